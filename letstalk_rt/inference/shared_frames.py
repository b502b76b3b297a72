"""Shared memory that carries one window of frames from the model's process to the session's.

The reader creates the memory, and its name is removed as soon as the writer has opened it. From
then on the system frees it when both processes have ended, however they end.
"""

from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory

import numpy as np

Shape = tuple[int, int, int, int, int]
"""Shape of a window: `(B, N, H, W, 3)`."""


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

    def copy(self, window: np.ndarray, first: int, count: int) -> None:
        """Copy `count` frames from number `first` on into `window`, `(B, N, H, W, 3)` uint8."""
        assert self._memory is not None, "nothing was allocated"
        shared = np.ndarray(window.shape, np.uint8, self._memory.buf)
        np.copyto(window[:, first : first + count], shared[:, first : first + count])

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

    def write(self, part: np.ndarray, first: int, window: Shape) -> None:
        """Copy a partial window to its place, in larger memory if it does not fit.

        Args:
            part: `(B, n, H, W, 3)` uint8.
            first: the number of its first frame in the window.
            window: shape of the window.
        """
        memory = self._with_space(int(np.prod(window)))
        shared = np.ndarray(window, np.uint8, memory.buf)
        np.copyto(shared[:, first : first + part.shape[1]], part)

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
