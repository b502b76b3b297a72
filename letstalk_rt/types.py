"""Data types shared by all packages: small and frozen.

Time is counted in integers: audio in samples, video in frames. Seconds appear only in
`session/pacing.py` and in metrics.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from letstalk_rt.errors import ConfigError
from letstalk_rt.metrics import FrameStamps
from letstalk_rt.prepared_portrait import FaceTrack as FaceTrack
from letstalk_rt.prepared_portrait import Footage as Footage
from letstalk_rt.prepared_portrait import Portrait as Portrait

LipDrive = Literal["sound", "camera", "blend"]
"""What moves the lips of a session with a camera."""

CameraRole = Literal["drive", "watch"]
"""Whether a camera moves the avatar, or the avatar looks at whom it shows."""

SAMPLE_RATE = 16_000
"""Sample rate of all audio inside the package, in Hz."""

FPS = 25
"""Frames per second of all video."""

SAMPLES_PER_FRAME = SAMPLE_RATE // FPS


@dataclass(frozen=True, slots=True)
class Face:
    """One face found in an image.

    Attributes:
        landmarks: `(L, 2)` float32, x and y in pixels of that image.
        score: confidence in [0, 1].
        yaw: rotation of the head in [-1, 1]; 0 faces the camera.
    """

    landmarks: np.ndarray
    score: float
    yaw: float


@dataclass(frozen=True, slots=True)
class MotionOptions:
    """How the face of a session moves. The defaults leave it as the model generates it.

    Attributes:
        expressiveness: scale of lip and face movement, from 0 to 2; 1 as the model generates it.
        head_motion: whether the head moves as people's do while they talk and listen.
        blinks_per_min: mean number of blinks per minute, from 0 to 60.
        gaze_at_camera: keep the gaze where it is in the portrait.

    Raises:
        ConfigError: a value is out of range.
    """

    expressiveness: float = 1.0
    head_motion: bool = True
    blinks_per_min: float = 15.0
    gaze_at_camera: bool = False

    def __post_init__(self) -> None:
        _check_range("expressiveness", self.expressiveness, 2)
        _check_range("blinks_per_min", self.blinks_per_min, 60)


@dataclass(frozen=True, slots=True)
class CameraOptions:
    """How a camera moves the face of a session; see `AvatarSession.push_video`.

    Attributes:
        lips: what moves the lips: the `sound`, to which a smile is added; the `camera`; or a
            `blend`, in which the sound counts for more while there is speech.
        absolute: whether the head turns as the driver's is turned to the camera. Otherwise, and by
            default, only how it moves from the driver's neutral look counts.
        role: `drive` moves the face; `watch` leaves it to the model, and the avatar answers a smile
            with a smile and a nod with a nod, smaller and half a second later.

    Raises:
        ConfigError: `lips` or `role` is unknown.
    """

    lips: LipDrive = "sound"
    absolute: bool = False
    role: CameraRole = "drive"

    def __post_init__(self) -> None:
        for name, kinds in (("lips", LipDrive), ("role", CameraRole)):
            if (value := getattr(self, name)) not in get_args(kinds):
                known = ", ".join(get_args(kinds))
                raise ConfigError(f"{name} must be one of {known}, got {value!r}")


def _check_range(name: str, value: float, most: float) -> None:
    if not 0 <= value <= most:  # nor NaN; whole numbers may be larger than any float
        raise ConfigError(f"{name} must be from 0 to {most}, got {value}")


@dataclass(frozen=True, slots=True)
class AVFrame:
    """One video frame with its 40 ms of audio, so that the two cannot drift apart.

    Attributes:
        rgb: `(H, W, 3)` uint8.
        pcm: `(sample_rate // 25,)` float32 in [-1, 1], mono: `(640,)` at 16 kHz.
        index: frame number within the session, from 0 without gaps; due at `index / 25` s.
        segment_id: the segment that its audio belongs to; counts from 0.
        epoch: the number of interrupts before it.
        stamps: when it passed each stage; None if that was not measured.
        spoken: how many of the samples are pushed speech; the others are padding.
        voiced: whether voice activity was detected in its audio; without detection, whether it
            holds pushed speech.
        sample_rate: of `pcm`, in Hz; 16000 unless the session has another `output_sample_rate`.
        repeated: whether `rgb` is the image of the frame before, because the session generates
            fewer than 25 images per second now; see `Quality.fps`.
    """

    rgb: np.ndarray
    pcm: np.ndarray
    index: int
    segment_id: int
    epoch: int
    stamps: FrameStamps | None = None
    spoken: int = 0
    voiced: bool = False
    sample_rate: int = SAMPLE_RATE
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class SegmentEnd:
    """The end of segment `segment_id`: all its frames came before.

    Attributes:
        segment_id: the segment that ended; counts from 0.
        epoch: the number of interrupts before it, including the one that ended the segment.
        interrupted: whether an interrupt ended it. Each interrupt is followed by one such item, at
            once, even if nothing had been pushed yet: the next speech then has the same
            `segment_id`. Segments that waited behind it are dropped without an item of their own,
            and of several interrupts in a row only the last may be told.
    """

    segment_id: int
    epoch: int
    interrupted: bool = False


@dataclass(frozen=True, slots=True)
class Interrupted:
    """What an interrupt cut off.

    Attributes:
        played_ms: how much of the segment had been played.
        dropped_ms: how much pushed speech had not been played and was dropped.
    """

    played_ms: int
    dropped_ms: int
