"""A base class for sinks that write in a thread of their own."""

import queue
import threading
import time
from collections.abc import Callable

import numpy as np

from letstalk_rt.errors import ConfigError, EngineError
from letstalk_rt.types import SAMPLE_RATE, AVFrame


def check_sample_rate(frame: AVFrame, sample_rate: int) -> None:
    """Check that a frame's audio has the sample rate that a sink was made for.

    Raises:
        ConfigError: it has another one.
    """
    if frame.sample_rate != sample_rate:
        raise ConfigError(
            f"the sink was made for audio of {sample_rate} Hz, the session delivers "
            f"{frame.sample_rate} Hz; pass sample_rate=session.output_sample_rate to the sink"
        )


class ThreadedSink:
    """A sink that writes in a thread of its own, behind a bounded queue.

    Subclasses implement `_write`, and `_open` and `_close` if needed. `_open` runs in the thread of
    the caller, the others in that of the sink; none of them runs on the event loop.

    Args:
        name: name of the thread, used in error messages.
        max_video_frames: queue length above which the image of a frame is dropped and only its
            audio is kept.
        max_audio_frames: longest queue; a sink that is further behind has failed.
        sample_rate: sample rate of the frames' audio, Hz; None for a sink that ignores audio.

    Attributes:
        skipped: number of images dropped because the sink was too slow.
    """

    latency_s: float | None = None

    def __init__(
        self,
        name: str,
        *,
        max_video_frames: int = 50,
        max_audio_frames: int = 1500,
        sample_rate: int | None = SAMPLE_RATE,
    ) -> None:
        self.skipped = 0
        self._name = name
        self._sample_rate = sample_rate
        self._max_video_frames = max_video_frames
        self._items: queue.Queue[tuple[np.ndarray | None, np.ndarray] | None]
        self._items = queue.Queue(max_audio_frames)
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._raised = False
        self._closing_since_s: float | None = None

    @property
    def waiting(self) -> int:
        """Number of frames that are not written yet, including the one being written."""
        return self._items.unfinished_tasks

    def open(self, width: int, height: int) -> None:
        """Prepare for frames of this size. This blocks."""
        assert self._thread is None, "opened twice"
        self._open(width, height)
        self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        self._thread.start()

    def show(self, frame: AVFrame) -> None:
        """Queue a frame.

        Raises:
            EngineError: the queue is full.
            ConfigError: the frame's audio has another sample rate.
            LetsTalkError: writing an earlier frame failed.
        """
        if self._sample_rate is not None:
            check_sample_rate(frame, self._sample_rate)
        self._raise_failure()
        waiting = self._items.qsize()
        rgb = frame.rgb if waiting < self._max_video_frames else None
        self.skipped += rgb is None
        try:
            self._items.put_nowait((rgb, frame.pcm))
        except queue.Full:
            raise EngineError(
                f"{self._name} is {waiting / 25:.0f} s behind; use a smaller video size, or a "
                "faster disk or network connection"
            ) from None

    def repeat(self, frame: AVFrame) -> None:
        """Do nothing: the image stays until the next one."""

    def flush(self) -> None:
        """Do nothing: accepted frames are part of the recording, or already sent."""

    def close(self) -> None:
        """Write the queued frames, then close.

        Raises:
            LetsTalkError: writing failed, and the error was not raised before.
        """
        if self._thread is None:
            return
        self._closing_since_s = time.monotonic()
        self._items.put(None)
        self._thread.join()
        self._thread = None
        if not self._raised:
            self._raise_failure()

    def _work(self) -> None:
        """Write until `close`. After a failure, discard frames so that no caller blocks."""
        while (item := self._items.get()) is not None:
            if self._failure is None:
                self._try(self._write, *item)
            self._items.task_done()
        self._try(self._close)
        self._items.task_done()

    def _try(self, call: Callable[..., None], *arguments: np.ndarray | None) -> None:
        try:
            call(*arguments)
        except Exception as error:  # raised by the next `show` or by `close`
            self._failure = self._failure or error

    def _raise_failure(self) -> None:
        if self._failure is not None:
            self._raised = True
            raise self._failure

    def _open(self, width: int, height: int) -> None:
        """Open the device or file."""

    def _write(self, rgb: np.ndarray | None, pcm: np.ndarray) -> None:
        """Write one frame; if `rgb` is None, the previous image stays."""
        raise NotImplementedError

    def _close(self) -> None:
        """Close the device or file. It is called once, also after a failure."""
