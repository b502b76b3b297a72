"""Opening of devices, files and connections in a thread, also for a task that is cancelled."""

import asyncio
from collections.abc import Callable
from contextlib import suppress


async def open_in_thread(open_it: Callable[[], None], close: Callable[[], None]) -> None:
    """Open something in a thread; if the caller is cancelled meanwhile, close it again.

    A thread cannot be cancelled, so without this it would open what nobody closes.

    Args:
        open_it: blocks until it is open, or raises.
        close: closes it; it must not mind if opening has failed.
    """
    opening = asyncio.ensure_future(asyncio.to_thread(open_it))
    try:
        await asyncio.shield(opening)
    except asyncio.CancelledError:
        # A caller that is cancelled again does not wait any longer; it is closed all the same.
        await asyncio.shield(_close_when_open(opening, close))
        raise


async def _close_when_open(opening: asyncio.Future[None], close: Callable[[], None]) -> None:
    with suppress(Exception):  # nobody is left to tell
        await opening
    with suppress(Exception):
        await asyncio.to_thread(close)
