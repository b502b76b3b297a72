"""From a peer's video track to frames of its camera, with their capture times.

Only the newest frame counts: one that arrives while another is being converted replaces the one
that waits. No frame is kept, stored or logged.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor

import numpy as np
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from av import VideoFrame

MOST_PX = 480
"""Longer side of the frames; larger ones are made smaller."""

KEPT_DELAYS = 128
"""Frames whose delays are known; the smallest is that of a frame that waited nowhere."""


class CaptureClock:
    """Converts timestamps of a stream to the times at which its frames would arrive undelayed.

    Frames come from a steady clock, and arrive late by a varying delay. The smallest delay of the
    last frames is taken as that of all, so that jitter of network and encoder does not move faces.
    """

    def __init__(self) -> None:
        self._delays_s: deque[float] = deque(maxlen=KEPT_DELAYS)

    def captured_s(self, stamp_s: float, arrived_s: float) -> float:
        """Return when a frame was captured, in the clock of arrivals.

        Args:
            stamp_s: the timestamp of the frame in its stream.
            arrived_s: when it arrived.
        """
        self._delays_s.append(arrived_s - stamp_s)
        return stamp_s + min(self._delays_s)


class CameraPath:
    """Reads a video track until it ends.

    Args:
        on_frame: called with each frame, `(H, W, 3)` uint8 RGB, and its capture time in seconds of
            the monotonic clock.
        executor: where frames are converted.
        clock: returns monotonic seconds.
    """

    def __init__(
        self,
        on_frame: Callable[[np.ndarray, float], None],
        executor: Executor,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_frame, self._executor, self._clock = on_frame, executor, clock
        self._capture_clock = CaptureClock()
        self._newest: tuple[VideoFrame, float] | None = None
        self._arrived = asyncio.Event()

    async def run(self, track: MediaStreamTrack) -> None:
        """Pass the frames on; return when the track ends."""
        converting = asyncio.create_task(self._convert(), name="camera-frames")
        try:
            while True:
                frame = await track.recv()
                if isinstance(frame, VideoFrame):
                    now_s = self._clock()
                    self._newest = frame, self._capture_clock.captured_s(frame.time or 0.0, now_s)
                    self._arrived.set()
        except MediaStreamError:
            return  # the track has ended
        finally:
            converting.cancel()
            await asyncio.wait([converting])

    async def _convert(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            newest, self._newest = self._newest, None
            if newest is None:
                continue
            frame, captured_s = newest
            rgb = await loop.run_in_executor(self._executor, as_rgb, frame)
            self._on_frame(rgb, captured_s)


def as_rgb(frame: VideoFrame) -> np.ndarray:
    """Return a frame as `(H, W, 3)` uint8, its longer side at most `MOST_PX`."""
    scale = min(1.0, MOST_PX / max(frame.width, frame.height))
    width, height = (2 * max(16, round(side * scale / 2)) for side in (frame.width, frame.height))
    rgb: np.ndarray = frame.to_ndarray(format="rgb24", width=width, height=height)
    return rgb
