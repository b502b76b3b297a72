"""Values that cross from one room to the next: frozen, small, without behaviour.

Time is counted, not measured: audio in samples, video in frames. Seconds appear only in
`pacing.py` and in metrics.
"""

import math
from dataclasses import dataclass

import numpy as np

from letstalk_rt.errors import ConfigError
from letstalk_rt.metrics import FrameStamps

SAMPLE_RATE = 16_000
"""Rate of all audio inside, in Hz."""

FPS = 25
"""Frames per second of all video."""

SAMPLES_PER_FRAME = SAMPLE_RATE // FPS


@dataclass(frozen=True, slots=True)
class Face:
    """One face found in a picture.

    Attributes:
        landmarks: `(L, 2)` float32, x and y in pixels of that picture.
        score: confidence in [0, 1].
        yaw: turn of the head in [-1, 1]; 0 looks at the camera.
    """

    landmarks: np.ndarray
    score: float
    yaw: float


@dataclass(frozen=True, slots=True)
class Portrait:
    """A still picture prepared for animation.

    Attributes:
        canvas: `(H, W, 3)` uint8 RGB: the picture that is shown, at output size.
        crop: `(256, 256, 3)` uint8 RGB: the aligned face crop that the model animates.
        box: left, top and side of that crop in canvas pixels; it may reach beyond the canvas.
        warnings: what the caller should know, e.g. that the largest of several faces was taken.
    """

    canvas: np.ndarray
    crop: np.ndarray
    box: tuple[float, float, float]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MotionOptions:
    """How a session's face moves. The defaults leave the lips as the model makes them.

    Attributes:
        expressiveness: size of lip and face movement, from 0 to 2; 1 is as the model makes it.
        head_motion: whether the head moves: as the model makes it, and as heads of people who talk
            sway, drawn anew for each session.
        blinks_per_min: blinks added to the model's own, from 0 to 60.
        gaze_at_camera: the eyes stay on what they look at in the portrait.

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


def _check_range(name: str, value: float, most: float) -> None:
    if not (math.isfinite(value) and 0 <= value <= most):
        raise ConfigError(f"{name} must be from 0 to {most}, got {value}")


@dataclass(frozen=True, slots=True)
class AVFrame:
    """One picture and the speech that belongs to it, so that the two cannot drift apart.

    Attributes:
        rgb: `(H, W, 3)` uint8.
        pcm: `(640,)` float32 in [-1, 1], 16 kHz mono.
        index: frame number of the session, without gaps; due at `index / 25` s.
        segment_id: the segment its sound belongs to; counts from 0.
        epoch: how many interrupts came before it.
        stamps: when it passed each stage; None where nobody measured.
        spoken: how many of the samples are speech that was pushed; the others are filling.
        voiced: there is voice in it, as voice activity detection says; where there is none, all
            pushed speech counts as voice.
    """

    rgb: np.ndarray
    pcm: np.ndarray
    index: int
    segment_id: int
    epoch: int
    stamps: FrameStamps | None = None
    spoken: int = 0
    voiced: bool = False


@dataclass(frozen=True, slots=True)
class SegmentEnd:
    """All frames of segment `segment_id` came before this point."""

    segment_id: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Interrupted:
    """What an interrupt cut off.

    Attributes:
        played_ms: how much of the segment had been played.
        dropped_ms: speech that was waiting and is gone.
    """

    played_ms: int
    dropped_ms: int
