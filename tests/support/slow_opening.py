"""A device that takes its time to open, and a caller who does not wait for it."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import pytest


class SlowOpening:
    """Holds a thread that opens something until its caller was cancelled.

    Attributes:
        log: what was opened and closed.
        closed: set when it was closed.
    """

    def __init__(self) -> None:
        self.log: list[str] = []
        self.closed = threading.Event()
        self._started, self._gate = threading.Event(), threading.Event()

    def open(self) -> None:
        """Open something, in a thread."""
        self._started.set()
        assert self._gate.wait(20)
        self.log.append("opened")

    def close(self) -> None:
        """Close it."""
        self.log.append("closed")
        self.closed.set()

    async def cancel(self, call: Coroutine[Any, Any, object], times: int = 1) -> None:
        """Cancel a call while its thread opens something; that goes on for a while."""
        task = asyncio.create_task(call)
        assert await asyncio.to_thread(self._started.wait, 20)
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0.05)
        self._gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task
