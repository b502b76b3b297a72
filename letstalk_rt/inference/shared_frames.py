"""Shared memory that carries the windows of one step from the model's process to the session's.

The reader creates the memory, and its name is removed as soon as the writer has opened it. From
then on the system frees it when both processes have ended, however they end.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from multiprocessing.shared_memory import SharedMemory

import numpy as np

from letstalk_rt.inference.protocol import Windows

Sizes = Sequence[tuple[int, int]]
"""Height and width of the frames of each session in pixels."""


def nbytes_of(sizes: Sizes, frames: int) -> list[int]:
    """Return the size of each session's window of so many frames."""
    return [3 * frames * height * width for height, width in sizes]


def windows_in(memory: SharedMemory, sizes: Sizes, frames: int) -> list[np.ndarray]:
    """Return the windows `(N, H, W, 3)` of the sessions, which lie one behind the other."""
    shapes = [(frames, height, width, 3) for height, width in sizes]
    places = pairwise(accumulate(nbytes_of(sizes, frames), initial=0))
    return [
        np.ndarray(shape, np.uint8, memory.buf, place)
        for shape, (place, _) in zip(shapes, places, strict=True)
    ]


class FrameReader:
    """The side of the session: copies partial windows out of the shared memory."""

    def __init__(self) -> None:
        self._memory: SharedMemory | None = None
        self._is_named = False

    def allocate(self, nbytes: int) -> str:
        """Create shared memory of at least `nbytes` in place of the present one; return its name.

        Raises:
            OSError: the system has no shared memory left.
        """
        self.close()
        self._memory = SharedMemory(create=True, size=nbytes)
        self._is_named = True
        return self._memory.name

    def remove_name(self) -> None:
        """Remove the name of the memory, which the writer has opened."""
        if self._memory is not None and self._is_named:
            self._memory.unlink()
            self._is_named = False

    def copy(self, windows: Sequence[np.ndarray], first: int, count: int) -> None:
        """Copy `count` frames from number `first` on into windows `(N, H, W, 3)` uint8."""
        assert self._memory is not None, "nothing was allocated"
        sizes = [window.shape[1:3] for window in windows]
        shared = windows_in(self._memory, sizes, len(windows[0]))
        for window, here in zip(windows, shared, strict=True):
            window[first : first + count] = here[first : first + count]

    def close(self) -> None:
        """Release the memory. May be called twice."""
        self.remove_name()
        if self._memory is not None:
            self._memory.close()
            self._memory = None


class FrameWriter:
    """The side of the model: copies partial windows into the shared memory.

    Args:
        allocate: returns the name of new shared memory of so many bytes.
        attached: called when it was opened.
    """

    def __init__(self, allocate: Callable[[int], str], attached: Callable[[], None]) -> None:
        self._allocate, self._attached = allocate, attached
        self._memory: SharedMemory | None = None

    def write(self, parts: Windows, first: int, frames: int) -> None:
        """Copy partial windows to their places, in larger memory if they do not fit.

        Args:
            parts: a partial window of each session.
            first: the number of their first frame in the window.
            frames: N, the number of frames in a whole window.
        """
        sizes = [part.shape[1:3] for part in parts]
        memory = self._with_space(sum(nbytes_of(sizes, frames)))
        for part, here in zip(parts, windows_in(memory, sizes, frames), strict=True):
            here[first : first + len(part)] = part

    def _with_space(self, nbytes: int) -> SharedMemory:
        if self._memory is not None and self._memory.size >= nbytes:
            return self._memory
        if self._memory is not None:
            self._memory.close()
        self._memory = memory = SharedMemory(self._allocate(nbytes))
        # Where the system has too little memory for it, this process dies and not the session's.
        np.ndarray(memory.size, np.uint8, memory.buf).fill(0)
        self._attached()
        return memory
