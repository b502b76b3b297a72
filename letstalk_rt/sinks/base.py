"""What all live ends have in common: how frames are handed over, and a thread for slow work."""

import queue
import threading
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np

from letstalk_rt.errors import EngineError
from letstalk_rt.types import AVFrame


class Sink(Protocol):
    """A live end. `letstalk_rt.sinks.play.play` drives it.

    `open` and `close` may block; they are called off the event loop. The others are called on it
    and must return within a millisecond.

    Attributes:
        latency_s: how long after `show` the frame can be seen or heard; None where nobody watches
            in real time, as in a file.
    """

    @property
    def latency_s(self) -> float | None:
        """Seconds from `show` to the eye or ear."""
        ...

    def open(self, width: int, height: int) -> None:
        """Get ready for pictures of this size."""
        ...

    def show(self, frame: AVFrame) -> None:
        """Take a frame that is due. Raises what has failed since."""
        ...

    def repeat(self, frame: AVFrame) -> None:
        """Show the picture of `frame` again, for the next is late."""
        ...

    def flush(self) -> None:
        """Drop the sound that was taken and is not heard yet: speech was interrupted."""
        ...

    def close(self) -> None:
        """Finish what was taken, and free the device. Safe to call twice, and before `open`."""
        ...


class ThreadedSink:
    """A sink that does its work in a thread of its own, behind a bounded queue.

    Subclasses write `_write`, and `_open` and `_close` where needed; all run in callers' or the
    sink's thread, never on the event loop.

    Args:
        name: of the thread.
        max_pictures: so many pictures may wait; the next ones are left out.
        max_sounds: so many frames' sound may wait; then the sink is too slow to be of use.

    Attributes:
        skipped: pictures left out because the sink was too slow.
    """

    latency_s: float | None = None

    def __init__(self, name: str, *, max_pictures: int = 50, max_sounds: int = 1500) -> None:
        self.skipped = 0
        self._name = name
        self._max_pictures = max_pictures
        self._items: queue.Queue[tuple[np.ndarray | None, np.ndarray] | None]
        self._items = queue.Queue(max_sounds)
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._told = False
        self._ended_s: float | None = None  # since when `close` waits

    @property
    def waiting(self) -> int:
        """Frames that were taken and are not written yet, the one being written included."""
        return self._items.unfinished_tasks

    def open(self, width: int, height: int) -> None:
        """Get ready for pictures of this size; blocking."""
        assert self._thread is None, "opened twice"
        self._open(width, height)
        self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        self._thread.start()

    def show(self, frame: AVFrame) -> None:
        """Queue a frame.

        Raises:
            EngineError: the sink is far too slow.
            LetsTalkError: what went wrong with the frames before.
        """
        self._raise_failure()
        waiting = self._items.qsize()
        rgb = frame.rgb if waiting < self._max_pictures else None
        self.skipped += rgb is None
        try:
            self._items.put_nowait((rgb, frame.pcm))
        except queue.Full:
            raise EngineError(
                f"{self._name} is {waiting / 25:.0f} s behind; use a smaller picture or a faster "
                "disk or line"
            ) from None

    def repeat(self, frame: AVFrame) -> None:
        """Nothing to do: the picture stays until the next one."""

    def flush(self) -> None:
        """Nothing to do: what was taken is part of the recording, or on its way."""

    def close(self) -> None:
        """Write what waits, then end.

        Raises:
            LetsTalkError: what went wrong and was not told yet.
        """
        if self._thread is None:
            return
        self._ended_s = time.monotonic()
        self._items.put(None)
        self._thread.join()
        self._thread = None
        if not self._told:
            self._raise_failure()

    def _work(self) -> None:
        """Write until told to end. After a failure go on taking, so that nobody waits."""
        while (item := self._items.get()) is not None:
            if self._failure is None:
                self._try(self._write, *item)
            self._items.task_done()
        self._try(self._close)
        self._items.task_done()

    def _try(self, call: Callable[..., None], *arguments: np.ndarray | None) -> None:
        try:
            call(*arguments)
        except Exception as error:  # kept for the caller, who raises it
            self._failure = self._failure or error

    def _raise_failure(self) -> None:
        if self._failure is not None:
            self._told = True
            raise self._failure

    def _open(self, width: int, height: int) -> None:
        """Open the device or file."""

    def _write(self, rgb: np.ndarray | None, pcm: np.ndarray) -> None:
        """Write one frame; without a picture the last one stays."""
        raise NotImplementedError

    def _close(self) -> None:
        """Close the device or file; called once, after a failure too."""
