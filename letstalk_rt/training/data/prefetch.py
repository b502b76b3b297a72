"""Draws the batches of the next steps, and reads the next clips, while others are computed."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

import torch

from letstalk_rt.training.loop import step_seed

B = TypeVar("B")
Name = TypeVar("Name")

LOADERS = 2
"""Threads that draw batches, or read clips. What they spend their time with releases the
interpreter: decoding, reading mapped files, converting numbers."""


class Prefetch(Generic[B]):
    """Batches by step, drawn ahead; the batch of a step does not depend on when it is drawn.

    Use it in a `with` statement.

    Args:
        draw: Draws a batch with a generator, its only source of randomness, in any thread.
        last: The number of steps; nothing is drawn beyond.
        depth: Steps that are drawn ahead.

    Attributes:
        waited_s: Seconds in which a step had to wait for its batch, in all.
    """

    def __init__(self, draw: Callable[[torch.Generator], B], last: int, depth: int = 4) -> None:
        self._draw, self._last, self._depth = draw, last, depth
        self._pool = ThreadPoolExecutor(LOADERS, "prefetch")
        self._waiting: dict[int, Future[B]] = {}
        self.waited_s = 0.0

    def __call__(self, step: int) -> B:
        """Return the batch of a step, and begin to draw those of the next ones."""
        for ahead in range(step, min(step + 1 + self._depth, max(self._last, step + 1))):
            if ahead not in self._waiting:
                self._waiting[ahead] = self._pool.submit(self._batch, ahead)
        for passed in [number for number in self._waiting if number < step]:
            del self._waiting[passed]
        asked_s = time.monotonic()
        try:
            return self._waiting.pop(step).result()
        finally:
            self.waited_s += time.monotonic() - asked_s

    def _batch(self, step: int) -> B:
        return self._draw(torch.Generator().manual_seed(step_seed(step)))

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop drawing."""
        self._pool.shutdown(cancel_futures=True)


def read_ahead(
    names: Iterable[Name], read: Callable[[Name], B]
) -> Iterator[tuple[Name, Callable[[], B]]]:
    """Yield names in order, with functions that return what was read or raise what reading raised.

    While one is used, the next `LOADERS` are read in threads.
    """
    with ThreadPoolExecutor(LOADERS, "read") as pool:
        ahead: deque[tuple[Name, Future[B]]] = deque()
        try:
            for name in names:
                ahead.append((name, pool.submit(read, name)))
                if len(ahead) > LOADERS:
                    first, future = ahead.popleft()
                    yield first, future.result
            while ahead:
                first, future = ahead.popleft()
                yield first, future.result
        finally:
            pool.shutdown(cancel_futures=True)
