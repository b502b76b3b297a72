"""Keeps what the allocator holds from growing: memory that one thread freed serves all others."""

import ctypes
import os
import sys

_M_ARENA_MAX = -8
"""A parameter of `mallopt`, from glibc's malloc.h."""


def share_freed_memory() -> None:
    """Let all threads allocate from one arena; to be called before they allocate.

    glibc gives each thread an arena of its own, and what is freed stays in the arena that it came
    from. A new bitrate needs a new codec, which any of the encoding threads opens: at 512 px the
    process grew by 10 MB each time that it was another thread. The threads of the server rarely
    allocate at the same time.

    Without glibc nothing is changed, nor where `MALLOC_ARENA_MAX` says what the user wants.
    """
    if sys.platform != "linux" or "MALLOC_ARENA_MAX" in os.environ:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        mallopt(_M_ARENA_MAX, 1)
