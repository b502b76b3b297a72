"""Work in a thread of its own, so that the model's thread has the processor's cores for itself.

GNU OpenMP, by which torch computes in parallel, keeps a team of threads for every thread that ever
computed, for as long as that one lives. With two teams there are more threads than cores, so teams
no longer wait for work but are woken for it, hundreds of times a window. On two cores a window of
the embedded model takes 64 ms where only one thread ever computed, 117 ms where a second one did.
"""

import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_SPINS = "20000"
"""About 0.2 ms."""


def spin_briefly() -> None:
    """Let OpenMP's teams spin for 0.2 ms before they sleep, not for 3; before torch is loaded.

    On an idle machine that is as fast. Beside other work, a thread that spins for long uses up the
    time it is given and then lacks it: with two busy processes on two cores, steps took 226 ms
    (p95 357) before and 212 (218) after. A setting of the user's own stays.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


def apart(call: Callable[P, T]) -> Callable[P, T]:
    """Make a function run in a thread that ends with it, and its team of threads too."""

    @functools.wraps(call)
    def run(*args: P.args, **named: P.kwargs) -> T:
        with ThreadPoolExecutor(1, thread_name_prefix="letstalk-apart") as own:
            return own.submit(call, *args, **named).result()

    return run


@contextmanager
def limited(threads: int | None) -> Iterator[None]:
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
