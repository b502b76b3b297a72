"""Keeps what the allocator holds from growing, and gives it back when nobody is there.

Without glibc, nothing here changes anything.
"""

import asyncio
import ctypes
import gc
import os
import sys
from collections.abc import Sized

_M_ARENA_MAX = -8
"""A parameter of `mallopt`, from glibc's malloc.h."""

IDLE_S = 2.0
"""How often it is checked whether the last session has ended."""


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


def return_freed_memory() -> None:
    """Collect what only cycles hold, and give memory that is free to the system.

    Everything else stops for about a tenth of a second.
    """
    gc.collect()
    _call_glibc("malloc_trim", 0)


async def return_memory_when_idle(sessions: Sized) -> None:
    """Give free memory to the system whenever the last session has ended; runs until cancelled.

    Connections that have ended are cycles, which Python collects only now and then, and leave holes
    between what others still hold, which the allocator keeps.
    """
    had_sessions = False
    while True:
        await asyncio.sleep(IDLE_S)
        if not sessions and had_sessions:
            await asyncio.to_thread(return_freed_memory)
        had_sessions = len(sessions) > 0


def _call_glibc(name: str, *arguments: int) -> None:
    if sys.platform == "linux":
        function = getattr(ctypes.CDLL(None), name, None)  # musl has none
        if function is not None:
            function(*arguments)
