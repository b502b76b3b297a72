"""The camera of a session: frames come in, and how they move the face at given times comes out.

Frames are read one at a time in a thread of their own; one that arrives meanwhile waits, and
replaces an older one that waits. So the event loop never waits, and a slow machine reads fewer
frames. Frames are not kept. Nothing here imports torch.
"""

import asyncio
import logging
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from letstalk_rt.errors import ConfigError, is_callers_mistake
from letstalk_rt.inference.protocol import (
    NOT_DRIVABLE,
    CameraReader,
    CameraReading,
    CameraStatus,
)
from letstalk_rt.metrics import Metrics
from letstalk_rt.models.face.face_motion import NUM_MOTION, POSE, SHUT, SMILE, DriveWindow
from letstalk_rt.performance.mirroring import Seen
from letstalk_rt.session.camera_schedule import ReadSchedule
from letstalk_rt.session.events import EventHub
from letstalk_rt.types import FPS, CameraOptions

logger = logging.getLogger(__name__)

HOLD_S = 0.15
"""A face that was not seen for so long is lost: then the avatar begins to move by itself."""

FADE_FRAMES = 7
"""Frames in which the share of the camera falls from 1 to 0, or rises."""

RETRY_S = 3.0
"""Pause after a frame that could not be read, because its reader's process may have ended."""

FULL_SMILE = 0.42
"""By how much the corners of a mouth move outwards and up in a smile of 1, in face sizes: as the
packaged model shows the smile of a code."""

_PITCH = 1  # of a head pose
_KEPT = 50  # readings
_EASE = 0.7  # share of a jump that is left in the next frame
_LEAST_SIDE, _MOST_SIDE = 32, 4096  # px of a frame


@dataclass(frozen=True, slots=True)
class _Seen:
    captured_s: float
    motion: np.ndarray | None  # None without a face


class CameraInput:
    """Reads the frames of one camera.

    Args:
        pipeline: the model; a `DrivablePipeline` if a camera can drive it.
        options: how the camera moves the face; may be replaced at any time.
        now_s: returns monotonic seconds.
        hub: receives warnings.
        metrics: records how long frames wait and are read; None for none.
        on_seen: called with what is seen of a face that is watched.

    Attributes:
        options: how the camera moves the face.
    """

    def __init__(
        self,
        pipeline: Any,
        options: CameraOptions,
        now_s: Callable[[], float],
        hub: EventHub,
        metrics: Metrics | None = None,
        on_seen: Callable[[Seen], None] = lambda seen: None,
    ) -> None:
        self.options, self._on_seen = options, on_seen
        self._metrics = metrics or Metrics()
        self._schedule = ReadSchedule(pipeline.frames_per_window / FPS)
        self._pipeline, self._now_s, self._hub = pipeline, now_s, hub
        self._reader: CameraReader | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._reading = False
        self._waiting: tuple[np.ndarray, float] | None = None
        self._seen: tuple[_Seen, ...] = ()  # replaced as a whole: the model thread reads it
        self._status: CameraStatus | None = None
        self._rest_until_s = -np.inf
        self._level = 0  # of the fade, from 0 to FADE_FRAMES
        self._shown = np.zeros(NUM_MOTION, np.float32)
        self._offset = np.zeros(NUM_MOTION, np.float32)
        self._was_lost = True
        self._closed = False

    # For callers of the session

    def push(self, frame: np.ndarray, captured_s: float | None) -> None:
        """Take a frame; see `AvatarSession.push_video`."""
        _check(frame)
        if captured_s is not None and not math.isfinite(captured_s):
            raise ConfigError(
                f"timestamp must be a time of the event loop's clock in seconds, got {captured_s}"
            )
        now_s = self._now_s()
        captured_s = now_s if captured_s is None else min(captured_s, now_s)
        self._metrics.stamp("camera_push", now_s - captured_s)
        self._schedule.note_frame(now_s)
        if self._reader is None:
            self._open()
        if self._reading:
            self._waiting = frame, captured_s
        else:
            self._read_if_due(frame, captured_s)

    def take_neutral(self) -> None:
        """Take the look of the next frames as the neutral one."""
        if self._reader is not None and self._thread is not None:
            self._thread.submit(self._reader.take_neutral)

    def close(self) -> None:
        """Drop all frames. May be called twice."""
        self._closed, self._waiting = True, None
        if self._thread is not None and self._reader is not None:
            self._thread.submit(self._reader.close)
            self._thread.shutdown(wait=False)
            self._thread = None

    # For the steps; `age_s` and `window` are called from the model thread

    @property
    def is_open(self) -> bool:
        """Whether frames have been pushed."""
        return self._reader is not None

    @property
    def is_driving(self) -> bool:
        """Whether the camera moves the face, or its share still fades."""
        return self.is_open and (self.options.role == "drive" or self._level > 0)

    @property
    def status(self) -> CameraStatus | None:
        """What the camera sees; None before the first frame was read."""
        return self._status

    def age_s(self, now_s: float) -> float:
        """Return at which age the newest motion is shown; see `ReadSchedule.note_age`.

        Infinity if no face was seen.
        """
        known = (one.captured_s for one in reversed(self._seen) if one.motion is not None)
        newest_s = next(known, None)
        return math.inf if newest_s is None else self._schedule.note_age(now_s, newest_s)

    def window(self, times_s: Sequence[float]) -> DriveWindow | None:
        """Return how the camera moves the face at these times; None if it does not.

        Args:
            times_s: capture times of the frames of the next window, increasing.
        """
        if self._reader is None:
            return None
        weights, motions = [], []
        for time_s in times_s:
            motion = self._motion_at(time_s) if self.options.role == "drive" else None
            if motion is not None:
                if self._was_lost and self._level:  # it goes on from where it is
                    self._offset = self._shown - motion
                self._offset = _EASE * self._offset if self._level else 0 * self._offset
                self._shown = (motion + self._offset).astype(np.float32)
            self._was_lost = motion is None
            step = -1 if motion is None else 1
            self._level = min(FADE_FRAMES, max(0, self._level + step))
            share = self._level / FADE_FRAMES
            weights.append(share * share * (3 - 2 * share))
            motions.append(self._shown)
        if not any(weights):
            return None
        return DriveWindow(np.array(weights, np.float32), np.stack(motions), self.options.lips)

    def _motion_at(self, time_s: float) -> np.ndarray | None:
        """Return the face motion at a time, interpolated; None if no face was seen just before."""
        seen = self._seen
        at = bisect_right(seen, time_s, key=lambda one: one.captured_s)
        before = next((one for one in reversed(seen[:at]) if one.motion is not None), None)
        if before is None or time_s - before.captured_s > HOLD_S:
            return None
        after = next((one for one in seen[at:] if one.motion is not None), None)
        assert before.motion is not None, "it was chosen so"
        if after is None or after.captured_s - before.captured_s > HOLD_S:
            return before.motion
        assert after.motion is not None, "it was chosen so"
        share = (time_s - before.captured_s) / max(1e-6, after.captured_s - before.captured_s)
        mixed = (1 - share) * before.motion + share * after.motion
        near = before if share < 0.5 else after
        assert near.motion is not None, "it was chosen so"
        mixed[SHUT] = max(mixed[SHUT], near.motion[SHUT])  # a blink may be one reading long
        return np.asarray(mixed)

    # Reading

    def _open(self) -> None:
        if not hasattr(self._pipeline, "open_camera"):
            raise ConfigError(NOT_DRIVABLE)
        self._reader = self._pipeline.open_camera()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="letstalk-camera")

    def _read_if_due(self, frame: np.ndarray, captured_s: float) -> None:
        now_s = self._now_s()
        if now_s >= self._rest_until_s and self._schedule.suits(now_s):
            self._read(frame, captured_s)

    def _read(self, frame: np.ndarray, captured_s: float) -> None:
        assert self._reader is not None and self._thread is not None, "it was opened"
        if self._seen and captured_s <= self._seen[-1].captured_s:
            return
        self._reading, began_s = True, self._now_s()
        read = partial(self._reader.read, frame, captured_s, absolute=self.options.absolute)
        future = asyncio.wrap_future(self._thread.submit(read))
        future.add_done_callback(lambda done: self._take(done, captured_s, began_s))

    def _take(
        self, future: "asyncio.Future[CameraReading]", captured_s: float, began_s: float
    ) -> None:
        self._reading = False
        if self._closed or future.cancelled():
            return
        now_s = self._now_s()
        self._metrics.stamp("camera_read", now_s - began_s)
        self._schedule.note_reading(began_s, now_s)
        error = future.exception()
        if error is not None:
            self._note_failure(error)
        else:
            reading = future.result()
            self._seen = (*self._seen[1 - _KEPT :], _Seen(captured_s, reading.motion))
            self._status = reading.status
            if reading.motion is not None and self.options.role == "watch":
                self._on_seen(_seen(captured_s, reading.motion))
        if self._waiting is not None:
            (frame, captured_s), self._waiting = self._waiting, None
            self._read_if_due(frame, captured_s)

    def _note_failure(self, error: BaseException) -> None:
        logger.warning("a frame of a camera was not read", extra={"error": type(error).__name__})
        known = is_callers_mistake(error)
        self._rest_until_s = np.inf if known else self._now_s() + RETRY_S
        message = str(error) if known else "The camera cannot be read now."
        self._hub.warn("camera-failed", message, self._now_s())


def _seen(captured_s: float, motion: np.ndarray) -> Seen:
    """Return what the avatar answers to of a face motion."""
    wider, lower = (float(value) for value in motion[SMILE])
    smile = (max(0.0, wider) + max(0.0, -lower)) / FULL_SMILE
    return Seen(captured_s, min(1.0, smile), float(motion[POSE][_PITCH]))


def _check(frame: np.ndarray) -> None:
    if not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.shape[2] != 3:
        shape = getattr(frame, "shape", type(frame).__name__)
        raise ConfigError(f"a frame must be an array (H, W, 3) of RGB, got {shape}")
    if frame.dtype != np.uint8:
        raise ConfigError(f"a frame must be uint8, got {frame.dtype}; scale it to 0..255")
    if not all(_LEAST_SIDE <= side <= _MOST_SIDE for side in frame.shape[:2]):
        raise ConfigError(
            f"a frame must have sides from {_LEAST_SIDE} to {_MOST_SIDE} px, got {frame.shape[:2]}"
        )
