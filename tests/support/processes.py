"""The processes that a test has started, by the name of what they run."""

import os
from contextlib import suppress
from pathlib import Path

import pytest

PROC = Path("/proc")

needs_proc = pytest.mark.skipif(not (PROC / "self/stat").exists(), reason="there is no /proc")


def processes_named(name):
    """Return the folders in /proc of the children of this process whose command holds a name."""
    found = []
    for process in PROC.glob("[0-9]*"):
        with suppress(OSError):
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and name.encode() in (process / "cmdline").read_bytes():
                found.append(process)
    return found
