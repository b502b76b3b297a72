"""Helpers that keep torch's threads from competing for the CPU's cores.

GNU OpenMP, which torch uses for parallel computation, keeps a team of threads for every thread that
has ever computed, for as long as that thread lives. With two teams there are more threads than
cores, so idle teams sleep instead of spinning and must be woken hundreds of times per window. On
two cores a window of the embedded model takes 64 ms if only one thread has ever computed, and
117 ms if a second one has.
"""

import functools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_SPINS = "20000"
"""Iterations; about 0.2 ms."""


def shorten_openmp_spin() -> None:
    """Make OpenMP threads spin for 0.2 ms before they sleep, instead of 3; call before torch loads.

    On an idle machine this is as fast. On a busy one, a thread that spins for long uses up its time
    slice and then has none left for work: with two busy processes on two cores, steps took 226 ms
    (p95 357) before and 212 (218) after. If the user has set `GOMP_SPINCOUNT`, it is kept.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


def in_own_thread(call: Callable[P, T]) -> Callable[P, T]:
    """Wrap a function to run in a new thread, which ends, with its OpenMP team, when it returns."""

    @functools.wraps(call)
    def run(*args: P.args, **named: P.kwargs) -> T:
        with ThreadPoolExecutor(1, thread_name_prefix="letstalk-own") as own:
            return own.submit(call, *args, **named).result()

    return run


def started_pool(count: int, name: str) -> ThreadPoolExecutor:
    """Return a pool of threads that all run already.

    A `ThreadPoolExecutor` starts a thread only when it is needed and none is idle, so a server
    would have more threads after hours under load than after its first session, and a leak of
    threads could not be told from that.

    Args:
        count: number of threads, at least 1.
        name: prefix of their names.
    """
    pool = ThreadPoolExecutor(count, thread_name_prefix=name)
    all_run = threading.Barrier(count)
    for running in [pool.submit(all_run.wait) for _ in range(count)]:
        running.result()
    return pool


class DecodePool:
    """A pool of threads that decode the frames of a live window in parallel, one frame per thread.

    Threads that share one computation synchronize hundreds of times per window, so any process that
    takes a core for a moment (a browser, an encoder) delays them all. With Chromium running on two
    cores, such a window took 170 to 220 ms; with one frame per thread, 130 to 155 (docs/log.md).

    The threads start at the first call and end with this object.

    Args:
        most: the largest useful number of threads.

    Attributes:
        model_threads: threads for the computation before decoding; it leaves one core free.
    """

    def __init__(self, most: int) -> None:
        import torch

        cores = torch.get_num_threads()
        self.model_threads = max(1, cores - 1)
        count = min(most, cores)
        self._each = max(1, cores // count)
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="letstalk-decoder")

    def submit(self, call: Callable[P, T], *args: P.args, **named: P.kwargs) -> "Future[T]":
        """Run a call in the next free thread and return its future."""
        return self._pool.submit(self._run, functools.partial(call, *args, **named))

    def _run(self, call: Callable[[], T]) -> T:
        with thread_limit(self._each):
            return call()


@contextmanager
def thread_limit(threads: int | None) -> Iterator[None]:
    """Limit the threads that torch uses for calls from this thread; None changes nothing."""
    import torch

    before = torch.get_num_threads()
    if threads in (None, before):
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
