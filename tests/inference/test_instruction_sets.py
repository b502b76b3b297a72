"""What networks compute is right under each instruction set that this processor can be limited to.

The libraries read the limits when they are loaded, so the numeric tests run again in a process.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
sys.path.insert(0, str(TESTS.parent / "benchmarks"))

from instruction_sets import FLAGS, LIMITS, processor_flags  # noqa: E402

NUMERIC = (
    "inference/test_autotune.py",
    "inference/test_shown_frames.py",
    "models/layers",
    "models/autoencoder",
    "models/test_streaming.py",
)
BEST_FIRST = ("amx", "avx512", "avx2")


def emulated():
    """Return the instruction sets below the processor's own best one, which all tests use."""
    flags = processor_flags() or frozenset()
    return [name for name in BEST_FIRST if FLAGS[name] in flags][1:]


def test_the_limits_are_those_of_the_benchmarks():
    assert set(BEST_FIRST) == set(LIMITS) == set(FLAGS)


@pytest.mark.skipif(not emulated(), reason="this processor has no lower instruction set to try")
@pytest.mark.parametrize("isa", emulated())
def test_the_numeric_tests_hold(isa):
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, *(str(TESTS / part) for part in NUMERIC)],
        env=os.environ | LIMITS[isa] | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-3000:]
    assert " passed" in run.stdout
