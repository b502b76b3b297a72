"""One thread for torch, the two halves of the suite, and the packages that skipped tests want.

The tests' networks are tiny: more threads only wait for each other.
"""

from pathlib import Path

import pytest
import torch
from support.packages import missing_packages
from support.suites import is_system

pytest_plugins = ["support.browser_tools"]

torch.set_num_threads(1)

TESTS = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of `make test-system`."""
    for item in items:
        name = item.path.relative_to(TESTS).as_posix() + "::" + item.nodeid.partition("::")[2]
        if is_system(name):
            item.add_marker(pytest.mark.system)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which packages would bring the tests that were skipped."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = [report.longrepr[2] for report in skipped if isinstance(report.longrepr, tuple)]
    if packages := missing_packages(reasons):
        terminalreporter.section("skipped for want of system packages")
        terminalreporter.line(f"sudo apt-get install --no-install-recommends {' '.join(packages)}")
