"""The protocol of live sinks."""

from typing import Protocol

from letstalk_rt.types import AVFrame


class Sink(Protocol):
    """A live sink, driven by `letstalk_rt.sinks.play.play`.

    `open` and `close` may block and are called off the event loop. The other methods are called on
    it and must return within a millisecond.

    Attributes:
        latency_s: seconds from `show` until the frame is visible or audible; None for a sink that
            is not watched in real time, such as a file.
    """

    @property
    def latency_s(self) -> float | None:
        """Seconds from `show` until the frame is visible or audible."""
        ...

    def open(self, width: int, height: int) -> None:
        """Prepare for frames of this size."""
        ...

    def show(self, frame: AVFrame) -> None:
        """Accept a frame that is due. Raise the error of earlier frames, if there was one."""
        ...

    def repeat(self, frame: AVFrame) -> None:
        """Show the image of `frame` again, because the next frame is late."""
        ...

    def flush(self) -> None:
        """Drop audio that was accepted but is not audible yet, after an interrupt."""
        ...

    def close(self) -> None:
        """Write all accepted frames and release the device.

        It may be called twice, and before `open`.
        """
        ...
