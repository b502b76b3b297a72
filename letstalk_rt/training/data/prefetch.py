"""Draws the batches of the next steps in a thread while a step is computed."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

import torch

from letstalk_rt.training.loop import step_seed

B = TypeVar("B")


class Prefetch(Generic[B]):
    """Batches by step, drawn ahead; the batch of a step does not depend on when it is drawn.

    Use it in a `with` statement.

    Args:
        draw: Draws a batch with a generator, its only source of randomness.
        last: The number of steps; nothing is drawn beyond.
        depth: Steps that are drawn ahead.
    """

    def __init__(self, draw: Callable[[torch.Generator], B], last: int, depth: int = 3) -> None:
        self._draw, self._last, self._depth = draw, last, depth
        self._pool = ThreadPoolExecutor(1, "prefetch")
        self._waiting: dict[int, Future[B]] = {}

    def __call__(self, step: int) -> B:
        """Return the batch of a step, and begin to draw those of the next ones."""
        for ahead in range(step, min(step + 1 + self._depth, max(self._last, step + 1))):
            if ahead not in self._waiting:
                self._waiting[ahead] = self._pool.submit(self._batch, ahead)
        for passed in [number for number in self._waiting if number < step]:
            del self._waiting[passed]
        return self._waiting.pop(step).result()

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
