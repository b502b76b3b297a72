"""Measures of motion: mouth opening, lip closures, head and speech, diversity over seeds."""

from collections.abc import Sequence

import numpy as np

from letstalk_rt.training.data.audio_features import correlation
from letstalk_rt.training.evaluation.faces import FaceTrack, head_pose
from letstalk_rt.types import SAMPLES_PER_FRAME

CLOSURE = 0.03
"""Mouth opening below which true lips are closed."""

GENERATED_CLOSURE = 0.05
"""The same for generated lips, whose landmarks are found frame by frame."""

_MIN_CLOSURE_FRAMES = 2
_TOLERANCE_FRAMES = 2  # by which a generated closure may be early or late
_MEAN_FRAMES = 25  # over which head speed and loudness are averaged


def value_range(values: np.ndarray) -> float:
    """Return the range of values `(T,)`, 10th to 90th percentile."""
    low, high = np.percentile(values, (10, 90))
    return float(high - low)


def closures(opening: np.ndarray) -> list[tuple[int, int]]:
    """Return start and end of each closure: at least two frames, with lips parted around them."""
    closed = np.concatenate([[0], (opening < CLOSURE).astype(int), [0]])
    edges = np.flatnonzero(np.diff(closed))
    spans = [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    inside = [(a, b) for a, b in spans if a > 0 and b < len(opening)]
    return [(a, b) for a, b in inside if b - a >= _MIN_CLOSURE_FRAMES]


def count_closures(generated: np.ndarray, true: np.ndarray) -> tuple[int, int]:
    """Return how many true closures generated lips `(T,)` close at, too, and how many there are."""
    count = min(len(generated), len(true))
    spans = closures(true[:count])
    matched = [
        generated[max(0, a - _TOLERANCE_FRAMES) : b + _TOLERANCE_FRAMES].min() < GENERATED_CLOSURE
        for a, b in spans
    ]
    return sum(matched), len(spans)


def head_speech_correlation(track: FaceTrack, pcm: np.ndarray) -> float:
    """Return Pearson's r of head speed and loudness, both averaged over one second.

    NaN if the video is not longer than that.
    """
    return pose_speech_correlation(head_pose(track), pcm)


def pose_speech_correlation(pose: np.ndarray, pcm: np.ndarray) -> float:
    """Return the same for a head pose `(T, 4)` and audio `(n,)`."""
    speed = np.linalg.norm(np.diff(pose, axis=0, prepend=pose[:1]), axis=1)
    count = min(len(speed), len(pcm) // SAMPLES_PER_FRAME)
    if count <= _MEAN_FRAMES:
        return float("nan")
    frames = pcm[: count * SAMPLES_PER_FRAME].reshape(count, SAMPLES_PER_FRAME)
    loudness = np.log(np.sqrt((frames**2).mean(1)) + 1e-3)
    window = np.ones(_MEAN_FRAMES) / _MEAN_FRAMES
    speed, loudness = (np.convolve(x, window, "valid") for x in (speed[:count], loudness))
    return correlation(speed, loudness)


def diversity(tracks: Sequence[FaceTrack]) -> tuple[float, float]:
    """Return how much faces with the same audio and different seeds differ: head, mouth opening.

    Each is the standard deviation over seeds, averaged over time; that of the head is also averaged
    over the four parts of its pose.
    """
    poses = np.stack([head_pose(track) for track in tracks])
    openings = np.stack([track.opening for track in tracks])
    return float(poses.std(0).mean()), float(openings.std(0).mean())
