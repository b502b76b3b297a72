"""A camera, or a video file in its place, whose face moves an avatar."""

import asyncio
import os
import platform
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, Self

import numpy as np

from letstalk_rt.errors import ConfigError, DependencyError
from letstalk_rt.opening import open_in_thread

MOST_PX = 640
"""Longer side of the frames; larger ones are made smaller."""

_ON_TIME_S = 1.0  # a device's own time is used if it differs by less from that of the system
_FORMATS = {"Linux": "v4l2", "Darwin": "avfoundation", "Windows": "dshow"}
_END = object()


class Camera:
    """A webcam, or a video file in real time. `async with` opens and closes it.

        async with Camera(0) as camera:
            await watch(session, camera)

    The newest frame counts: one that nobody has read yet is replaced.

    Args:
        device: number of a camera (0 is the first), its name as FFmpeg knows it, such as
            `/dev/video0`, or the path of a video file.
        loop: begin the file again at its end, without limit.
    """

    def __init__(self, device: int | str | os.PathLike[str] = 0, *, loop: bool = False) -> None:
        self._device, self._loops = device, loop
        self._newest: Any = None
        self._changed = asyncio.Event()
        self._closed = False
        self._reading: asyncio.Future[None] | None = None
        self._container: Any = None

    async def __aenter__(self) -> Self:
        """Open the camera.

        Raises:
            DependencyError: it cannot be opened, or there is none.
        """
        loop = asyncio.get_running_loop()
        await open_in_thread(self._open, self._release)

        def show(item: Any) -> None:
            try:
                loop.call_soon_threadsafe(self._show, item)
            except RuntimeError:
                self._closed = True  # the event loop is closed

        self._reading = loop.run_in_executor(None, self._read, show)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[np.ndarray, float]:
        """Wait for the next frame.

        Returns:
            `(H, W, 3)` uint8 RGB, and when it was captured, in seconds of the event loop's clock.

        Raises:
            DependencyError: the camera was disconnected, or the file is damaged.
            StopAsyncIteration: the file has ended, or the camera was closed.
        """
        while self._newest is None:
            if self._closed:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        item, self._newest = self._newest, None
        if item is _END:
            self._closed = True
            raise StopAsyncIteration
        if isinstance(item, Exception):
            self._closed = True
            raise item
        frame: tuple[np.ndarray, float] = item
        return frame

    async def aclose(self) -> None:
        """Close the camera. May be called twice, and before it is opened."""
        self._closed = True
        self._changed.set()
        if self._reading is not None:
            await asyncio.wait([self._reading])
        await asyncio.to_thread(self._release)

    def _show(self, item: Any) -> None:
        self._newest = item
        self._changed.set()

    # In other threads

    def _release(self) -> None:
        container, self._container = self._container, None
        if container is not None:
            container.close()

    @property
    def _is_file(self) -> bool:
        return not isinstance(self._device, int) and os.path.isfile(self._device)

    def _open(self) -> None:
        import av

        name, options = os.fspath(self._device) if not isinstance(self._device, int) else "", {}
        kind: str | None = None
        if not self._is_file:
            kind = _FORMATS.get(platform.system())
            if kind is None:
                raise DependencyError("Cameras are supported on Linux, macOS and Windows only.")
            if isinstance(self._device, int):
                name = f"/dev/video{self._device}" if kind == "v4l2" else str(self._device)
            if kind == "avfoundation":
                options = {"framerate": "30"}
        try:
            self._container = av.open(name, format=kind, options=options)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise DependencyError(
                f"The camera {self._device!r} cannot be opened ({error}). Connect it, close the "
                "program that uses it, or name another one, such as 0, 1 or a video file."
            ) from error
        if not self._container.streams.video:
            self._container.close()
            self._container = None
            raise DependencyError(f"{self._device!r} has no video.")

    def _read(self, show: Callable[[Any], None]) -> None:
        import av

        try:
            for rgb, captured_s in self._frames():
                if self._closed:
                    return
                show((rgb, captured_s))
        except (av.FFmpegError, OSError) as error:
            what = "The video file is damaged" if self._is_file else "The camera was disconnected"
            failure = DependencyError(f"{what} ({error}).")
            failure.__cause__ = error
            show(failure)
            return
        show(_END)

    def _frames(self) -> Iterator[tuple[np.ndarray, float]]:
        began_s, passed_s = time.monotonic(), 0.0
        while True:
            last_s = 0.0
            for frame in self._container.decode(video=0):
                at_s = float(frame.time or 0.0)
                captured_s = time.monotonic()
                if self._is_file:
                    last_s = at_s
                    due_s = began_s + passed_s + at_s
                    while not self._closed and (wait_s := due_s - time.monotonic()) > 0:
                        time.sleep(min(wait_s, 0.1))
                    captured_s = due_s
                elif abs(at_s - captured_s) < _ON_TIME_S:
                    captured_s = at_s  # the driver's own, of the same clock
                yield _small(frame), captured_s
                if self._closed:
                    return
            if not (self._is_file and self._loops and last_s > 0):
                return
            passed_s += last_s + 0.04
            self._container.seek(0)


def _small(frame: Any) -> np.ndarray:
    longer = max(frame.width, frame.height)
    scale = min(1.0, MOST_PX / longer)
    width, height = (2 * max(16, round(side * scale / 2)) for side in (frame.width, frame.height))
    rgb: np.ndarray = frame.to_ndarray(format="rgb24", width=width, height=height)
    return rgb


class VideoReceiver(Protocol):
    """A receiver of video, such as `AvatarSession`."""

    def push_video(self, frame: np.ndarray, timestamp: float | None = None) -> None:
        """Push a frame."""
        ...


async def watch(session: VideoReceiver, camera: Camera) -> int:
    """Push all frames of a camera until it ends. Run it in a task beside the others.

    Returns:
        The number of frames that were pushed.

    Raises:
        DependencyError: the camera was disconnected.
        SessionClosed: the session ended.
    """
    count = 0
    async for frame, captured_s in camera:
        session.push_video(frame, captured_s)
        count += 1
    return count


def parse_device(text: str) -> int | str:
    """Return the device that a command line names: a number, a name, or a file.

    Raises:
        ConfigError: the text is empty.
    """
    if not text:
        raise ConfigError("--webcam needs a number, such as 0, a device or a video file")
    return int(text) if text.isdigit() else text
