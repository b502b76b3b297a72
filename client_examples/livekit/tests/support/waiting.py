"""Waiting for what no event announces."""

import asyncio
import itertools
from collections.abc import Callable

_EVERY_S = 0.01


async def until(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    """Wait until a condition holds.

    Raises:
        TimeoutError: it does not hold in time.
    """
    async with asyncio.timeout(limit_s):
        for _ in itertools.count():
            if condition():
                return
            await asyncio.sleep(_EVERY_S)


async def until_only(tasks: set[asyncio.Task[object]]) -> None:
    """Wait until all other tasks have ended, as a leaked one never does."""
    await until(lambda: not asyncio.all_tasks() - tasks - {asyncio.current_task()}, limit_s=10)
