"""Keeps what the allocator holds from growing, and gives it back.

Without glibc, nothing here changes anything.
"""

import asyncio
import ctypes
import gc
import os
import sys
import time
from collections.abc import Sized

_M_ARENA_MAX = -8
"""A parameter of `mallopt`, from glibc's malloc.h."""

IDLE_S = 2.0
"""How often it is checked whether the last session has ended."""

TRIM_S = 30.0
"""How often free memory is given back while there are sessions."""


def share_freed_memory() -> None:
    """Let all threads allocate from one arena; to be called before they allocate.

    glibc gives each thread an arena of its own, and what is freed stays in the arena that it came
    from. A new bitrate needs a new codec, which any of the encoding threads opens: at 512 px the
    process grew by 10 MB each time that it was another thread. The threads of the server rarely
    allocate at the same time.

    Nothing is changed where `MALLOC_ARENA_MAX` says what the user wants.
    """
    if "MALLOC_ARENA_MAX" not in os.environ:
        _call_glibc("mallopt", _M_ARENA_MAX, 1)


def trim_heap() -> None:
    """Give memory that is free to the system; takes some milliseconds.

    A window of four frames at 512 px takes 3 MB. Now and then more of them exist at once than ever
    before, the heap grows, and what is allocated above keeps it from shrinking by itself.
    """
    _call_glibc("malloc_trim", 0)


def return_freed_memory() -> None:
    """Collect what only cycles hold, and give memory that is free to the system.

    Everything else stops for about a tenth of a second.
    """
    gc.collect()
    trim_heap()


async def return_memory(sessions: Sized) -> None:
    """Give free memory to the system now and then; runs until cancelled.

    It is given back every half a minute, and whenever the last session has ended. Connections that
    have ended are cycles, which Python collects only now and then, and leave holes between what
    others still hold, which the allocator keeps; these are collected when no session is disturbed.
    """
    had_sessions, trimmed_s = False, time.monotonic()
    while True:
        await asyncio.sleep(IDLE_S)
        if not sessions and had_sessions:
            await asyncio.to_thread(return_freed_memory)
        elif sessions and time.monotonic() - trimmed_s >= TRIM_S:
            trimmed_s = time.monotonic()
            await asyncio.to_thread(trim_heap)
        had_sessions = len(sessions) > 0


def _call_glibc(name: str, *arguments: int) -> None:
    if sys.platform == "linux":
        function = getattr(ctypes.CDLL(None), name, None)  # musl has none
        if function is not None:
            function(*arguments)
