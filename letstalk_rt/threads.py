"""Work in a thread of its own, so that the model's thread has the processor's cores for itself.

GNU OpenMP, by which torch computes in parallel, keeps a team of threads for every thread that ever
computed, for as long as that one lives. With two teams there are more threads than cores, so teams
no longer wait for work but are woken for it, hundreds of times a window. On two cores a window of
the embedded model takes 64 ms where only one thread ever computed, 117 ms where a second one did.
"""

import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_SPINS = "20000"
"""About 0.2 ms."""


def shorten_openmp_spin() -> None:
    """Let OpenMP's teams spin for 0.2 ms before they sleep, not for 3; before torch is loaded.

    On an idle machine that is as fast. Beside other work, a thread that spins for long uses up the
    time it is given and then lacks it: with two busy processes on two cores, steps took 226 ms
    (p95 357) before and 212 (218) after. A setting of the user's own stays.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


def in_own_thread(call: Callable[P, T]) -> Callable[P, T]:
    """Make a function run in a thread that ends with it, and its team of threads too."""

    @functools.wraps(call)
    def run(*args: P.args, **named: P.kwargs) -> T:
        with ThreadPoolExecutor(1, thread_name_prefix="letstalk-apart") as own:
            return own.submit(call, *args, **named).result()

    return run


class DecodePool:
    """Threads that paint the frames of a live window side by side, each by itself.

    Threads that compute one thing together wait for each other hundreds of times a window, so
    whatever takes a core for a moment (a browser, an encoder) stops them all. Beside Chromium on
    two cores such a window took 170 to 220 ms; painted side by side, 130 to 155 (docs/log.md).

    They are made at the first call and end with this object.

    Args:
        most: how many are of use.

    Attributes:
        model_threads: threads for what is computed before the frames: one core is left to others.
    """

    def __init__(self, most: int) -> None:
        import torch

        cores = torch.get_num_threads()
        self.model_threads = max(1, cores - 1)
        count = min(most, cores)
        self._each = max(1, cores // count)
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="letstalk-painter")

    def submit(self, call: Callable[P, T], *args: P.args, **named: P.kwargs) -> "Future[T]":
        """Run a call in the next free thread."""
        return self._pool.submit(self._run, functools.partial(call, *args, **named))

    def _run(self, call: Callable[[], T]) -> T:
        with thread_limit(self._each):
            return call()


@contextmanager
def thread_limit(threads: int | None) -> Iterator[None]:
    """Let torch compute with so many threads in this thread, for a while; as before when None."""
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
