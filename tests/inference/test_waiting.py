"""What counts of a call's time: not the time in which its process waited for a processor."""

import os
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from letstalk_rt.inference.waiting import GUARD, CallLimit, name_thread, waited_s

HERE = os.getpid()
counted = pytest.mark.skipif(not waited_s(HERE), reason="the system does not count waits")


def over(limit, waits):
    """Return the first tenth of a second at which a call is over; `waits` maps time to waits."""
    return next(n / 10 for n in range(10_000) if limit.is_over(n / 10, partial(waits, n / 10)))


def test_a_call_that_does_not_wait_has_its_limit():
    assert over(CallLimit(0.0, 2.0), lambda now_s: {1: 5.0}) == 2.1
    assert over(CallLimit(3.0, 2.0), lambda now_s: {}) == 5.1, "where nothing is counted"


def test_waits_do_not_count():
    # three quarters of the time one thread waits, and another one a half of it
    took_s = over(CallLimit(0.0, 2.0), lambda now_s: {1: 7 + 0.75 * now_s, 2: 0.5 * now_s})
    assert 6.5 < took_s <= 8.1


def test_waits_of_threads_that_begin_meanwhile_count_from_their_begin():
    took_s = over(CallLimit(0.0, 2.0), lambda now_s: {2: 0.5 * (now_s - 1)} if now_s > 1 else {})
    assert 2.9 <= took_s <= 3.2


def test_a_call_that_always_waits_ends_as_well():
    assert over(CallLimit(0.0, 2.0), lambda now_s: {1: now_s}) == 20.1


@counted
def test_the_system_counts_the_waits_of_each_thread_but_the_guard():
    core = {min(os.sched_getaffinity(0))}
    spin = [sys.executable, "-c", "while True: pass"]
    both = [subprocess.Popen(spin) for _ in range(2)]
    try:
        for one in both:
            os.sched_setaffinity(one.pid, core)
        end_s = time.monotonic() + 60
        while min(sum(waited_s(one.pid).values()) for one in both) < 0.2:
            assert time.monotonic() < end_s, "they share a core, so both must wait"
            time.sleep(0.05)
    finally:
        for one in both:
            one.kill()
            one.wait()
    assert waited_s(both[0].pid) == {}, "it has ended"


@counted
def test_a_thread_can_be_left_out():
    named, done = threading.Event(), threading.Event()

    def guard():
        name_thread(GUARD)
        named.set()
        done.wait(60)

    thread = threading.Thread(target=guard)
    thread.start()
    assert named.wait(60)
    threads = {int(task.name) for task in Path("/proc/self/task").iterdir()}
    known = set(waited_s(HERE))
    done.set()
    thread.join()
    assert thread.native_id in threads - known
