"""A benchmark ends in time, whatever the machine, and marks what it has as partial."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import time_limit as time_limit_module
from time_limit import time_limit

NEVER_S = 60.0


@pytest.mark.parametrize(
    "wait", [time.sleep, threading.Event().wait, lambda s: asyncio.run(asyncio.sleep(s))]
)
def test_what_takes_too_long_is_ended_and_what_is_there_is_kept(wait):
    result, closed = {}, []
    with time_limit(0.05, result):
        result["first"] = 1
        try:
            wait(NEVER_S)
        finally:
            closed.append("a server")
        result["second"] = 2
    assert result.pop("partial").startswith("ended after 0.05 s")
    assert result == {"first": 1} and closed


def test_a_benchmark_in_the_background_is_ended_too():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        result = {}
        with time_limit(0.05, result):
            time.sleep(NEVER_S)
        assert "partial" in result and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_task_can_add_what_it_has_before_it_ends():
    async def measure(result):
        try:
            await asyncio.sleep(NEVER_S)
        finally:
            await asyncio.sleep(0)
            result["frames"] = 7

    result = {}
    with time_limit(0.05, result):
        asyncio.run(measure(result))
    assert result["frames"] == 7 and "partial" in result


def test_what_ends_in_time_is_whole_and_errors_pass():
    result = {}
    with pytest.raises(ValueError, match="no"), time_limit(NEVER_S, result):
        result["first"] = 1
        raise ValueError("no")
    with pytest.raises(KeyboardInterrupt), time_limit(NEVER_S, result):
        raise KeyboardInterrupt
    assert result == {"first": 1}
    assert not any(thread.name == "time-limit" for thread in threading.enumerate())


def test_a_benchmark_that_hangs_prints_what_it_has():
    script = """
import time
from time_limit import time_limit
result = {"first": 1}
with time_limit(0.05, result, grace_s=0.1):
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            pass
"""
    command = [sys.executable, "-c", script]
    folder = Path(time_limit_module.__file__).parent
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder)
    result = json.loads(done.stdout)
    assert done.returncode == 3 and result["first"] == 1 and "partial" in result
