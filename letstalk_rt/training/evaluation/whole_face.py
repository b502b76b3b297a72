"""The motion of the whole face in videos against that of the same people's true videos.

A tracker from outside, MediaPipe, reads sixteen channels in shown frames. Compared are how far and
how fast each moves, how often eyes blink, whether head and brows go with the sound, and how often a
classifier that never saw a clip tells ours from the true one by a second of motion.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from letstalk_rt.errors import DependencyError, InputError
from letstalk_rt.extras import pip_install
from letstalk_rt.training.data.audio_features import correlation
from letstalk_rt.training.data.dataset import Clip, packaged_landmarker
from letstalk_rt.types import FPS, SAMPLES_PER_FRAME

CHANNELS = (
    "gap", "width", "height", "pucker", "smile", "frown", "jaw", "brow_up", "brow_down", "squint",
    "gaze_x", "gaze_y", "lids", "yaw", "pitch", "roll",
)  # fmt: skip
"""The first three are distances of lips over that of the outer corners of the eyes, the last three
angles in degrees, the others blendshapes, those of both sides averaged."""

HEAD = slice(13, 16)
BROW_UP, LIDS = CHANNELS.index("brow_up"), CHANNELS.index("lids")

_SHAPES = {
    "pucker": (38,), "smile": (44, 45), "frown": (30, 31), "jaw": (25,), "brow_up": (3,),
    "brow_down": (1, 2), "squint": (19, 20), "lids": (9, 10),
}  # fmt: skip
_OUT, _IN, _UP, _DOWN = (15,), (13,), (17, 18), (11, 12)  # blendshapes of the gaze

_LEAST_RANGE, _LEAST_SPEED = 0.2, 0.02  # of the usual deviation: what hardly moves has no ratio
_SECOND, _STEP = 25, 12  # frames of a piece that is classified, and from one to the next
_TOGETHER = [0, 4, 7, 9, 12, 13, 14]  # channels whose correlations of speed are classified
_RIDGE, _ROUNDS = 10.0, 30
_SHAKE_HZ = 4.0  # power above it is trembling
_BLINK_RISE, _BLINK_FRAMES = 0.25, 8
_MEAN_FRAMES = 25  # over which speed, brows and loudness are averaged


@dataclass(frozen=True)
class FaceMotion:
    """The face in each frame of a video, as the tracker reads it.

    Attributes:
        channels: `(T, 16)`, see `CHANNELS`.
        points: landmarks, `(T, 478, 2)` px.
    """

    channels: np.ndarray
    points: np.ndarray

    def after(self, frames: int) -> "FaceMotion":
        """Return the motion without the first frames."""
        return FaceMotion(self.channels[frames:], self.points[frames:])


class MotionTracker:
    """MediaPipe's face landmarker in its video mode.

    Args:
        model: `face_landmarker.task`; None for the one of a package.

    Raises:
        DependencyError: the extra `eval` is not installed.
    """

    def __init__(self, model: Path | None = None) -> None:
        try:
            import mediapipe as mp
            from mediapipe.tasks.python import BaseOptions, vision
        except ImportError as error:
            raise DependencyError(
                f"mediapipe is missing; install it with: {pip_install('eval')}"
            ) from error
        self._mp, self._vision = mp, vision
        self._options = vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_path=str(model or packaged_landmarker())),
            running_mode=vision.RunningMode.VIDEO,
            output_face_blendshapes=True,
            output_facial_transformation_matrixes=True,
        )

    def __call__(self, frames: np.ndarray) -> FaceMotion:
        """Track a video `(T, H, W, 3)` uint8; a frame without a face repeats the one before.

        Raises:
            InputError: no frame has a face.
        """
        read: list[tuple[np.ndarray, np.ndarray, np.ndarray] | None] = []
        with self._vision.FaceLandmarker.create_from_options(self._options) as tracker:
            for number, frame in enumerate(frames):
                image = self._mp.Image(
                    image_format=self._mp.ImageFormat.SRGB, data=np.ascontiguousarray(frame)
                )
                found = tracker.detect_for_video(image, number * 1000 // FPS)
                read.append(_arrays(found, frame.shape) if found.face_landmarks else None)
        first = next((one for one in read if one is not None), None)
        if first is None:
            raise InputError("no frame of the video has a face; expected the video of one person")
        kept = [first]
        for one in read:
            kept.append(kept[-1] if one is None else one)
        points, shapes, poses = (np.stack(part) for part in zip(*kept[1:], strict=True))
        return FaceMotion(channels_of(points, shapes, poses), points)


def _arrays(found: object, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return landmarks `(478, 2)`, blendshapes `(52,)` and pose `(4, 4)` of what was found."""
    height, width = shape[:2]
    points = [(p.x * width, p.y * height) for p in found.face_landmarks[0]]  # type: ignore[attr-defined]
    shapes = [c.score for c in found.face_blendshapes[0]]  # type: ignore[attr-defined]
    pose = found.facial_transformation_matrixes[0]  # type: ignore[attr-defined]
    return np.array(points), np.array(shapes), np.asarray(pose, np.float64)


def channels_of(points: np.ndarray, shapes: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Return the channels of each frame, `(T, 16)`.

    Args:
        points: landmarks, `(T, 478, 2)`.
        shapes: blendshapes, `(T, 52)`.
        poses: head poses, `(T, 4, 4)`.
    """

    def distance(a: int, b: int) -> np.ndarray:
        return np.asarray(np.linalg.norm(points[:, a] - points[:, b], axis=1))

    def shape(places: Sequence[int]) -> np.ndarray:
        return np.asarray(shapes[:, list(places)].mean(1))

    eyes = np.maximum(distance(33, 263), 1e-6)
    values = {name: shape(places) for name, places in _SHAPES.items()}
    for name, pair in (("gap", (13, 14)), ("width", (61, 291)), ("height", (0, 17))):
        values[name] = distance(*pair) / eyes
    values["gaze_x"] = shape(_OUT) - shape(_IN)
    values["gaze_y"] = shape(_UP) - shape(_DOWN)
    turn = poses[:, :3, :3]
    values["yaw"] = np.degrees(np.arcsin(-np.clip(turn[:, 2, 0], -1, 1)))
    values["pitch"] = np.degrees(np.arctan2(turn[:, 2, 1], turn[:, 2, 2]))
    values["roll"] = np.degrees(np.arctan2(turn[:, 1, 0], turn[:, 0, 0]))
    return np.stack([values[name] for name in CHANNELS], 1)


def true_motion(clip: Clip, frames: int | None = None) -> FaceMotion:
    """Return the face in a clip's own video, from the tracks of the data folder.

    Raises:
        InputError: the data folder holds no head poses of the clip.
    """
    if clip.pose is None:
        raise InputError(f"clip {clip.name!r} has no head poses; expected `pose` in its .npz file")
    part = slice(0, frames)
    points, shapes, poses = clip.landmarks[part], clip.blendshapes[part], clip.pose[part]
    return FaceMotion(channels_of(points, shapes, poses), points)


Pair = tuple[np.ndarray, np.ndarray]
"""Channels of a generated video and of the true one, `(T, 16)` each."""


def compare(pairs: Sequence[Pair]) -> dict[str, float]:
    """Return how generated motion compares with true motion, medians over clips.

    Args:
        pairs: channels of each clip, generated and true.
    """
    usual = usual_deviation(pairs)
    figures: dict[str, float] = {}
    for name, values in (
        ("range", [span(a) / np.maximum(span(b), _LEAST_RANGE * usual) for a, b in pairs]),
        ("speed", [speed(a) / np.maximum(speed(b), _LEAST_SPEED * usual) for a, b in pairs]),
    ):
        middle = np.median(values, 0)
        figures |= {
            f"{name}_{channel}": float(v) for channel, v in zip(CHANNELS, middle, strict=True)
        }
    for which, index in (("", 0), ("_true", 1)):
        figures[f"blinks_per_min{which}"] = blinks_per_min([pair[index] for pair in pairs])
        heads = [pair[index][:, HEAD] for pair in pairs]
        for kind, measure in _OF_HEADS.items():
            middle = np.median([measure(head) for head in heads], 0)
            for name, value in zip(CHANNELS[HEAD], middle, strict=True):
                figures[f"{kind}_{name}{which}"] = float(value)
    return figures | told(pairs)


def usual_deviation(pairs: Sequence[Pair]) -> np.ndarray:
    """Return the median deviation of each channel in true videos, `(16,)`."""
    deviation: np.ndarray = np.median([true.std(0) for _, true in pairs], 0) + 1e-3
    return deviation


def span(channels: np.ndarray) -> np.ndarray:
    """Return the range of each channel, 5th to 95th percentile, `(16,)`."""
    low, high = np.percentile(channels, (5, 95), axis=0)
    return np.asarray(high - low)


def speed(channels: np.ndarray) -> np.ndarray:
    """Return the mean absolute change of each channel a frame, `(16,)`."""
    return np.asarray(np.abs(np.diff(channels, axis=0)).mean(0))


def trembling(channels: np.ndarray) -> np.ndarray:
    """Return the share of the power of each channel's velocity above 4 Hz."""
    velocity = np.diff(channels, axis=0)
    power = np.abs(np.fft.rfft(velocity - velocity.mean(0), axis=0)) ** 2
    above = np.fft.rfftfreq(len(velocity), 1 / FPS) > _SHAKE_HZ
    return np.asarray(power[above].sum(0) / np.maximum(power.sum(0), 1e-12))


def deviation(channels: np.ndarray) -> np.ndarray:
    """Return the standard deviation of each channel."""
    return np.asarray(channels.std(0))


def carried(channels: np.ndarray) -> np.ndarray:
    """Return the autocorrelation of each channel's velocity from one frame to the next."""
    velocity = np.diff(channels, axis=0)
    velocity = velocity - velocity.mean(0)
    power = np.maximum((velocity**2).sum(0), 1e-12)
    return np.asarray((velocity[1:] * velocity[:-1]).sum(0) / power)


_OF_HEADS = {"trembling": trembling, "deviation": deviation, "carried": carried}
"""Measures of yaw, pitch and roll that are given for ours and for the true videos."""


def blinks_per_min(videos: Sequence[np.ndarray]) -> float:
    """Return how often lids close and open again within a third of a second, of all videos."""
    frames = sum(len(channels) for channels in videos)
    return sum(_blinks(channels[:, LIDS]) for channels in videos) / max(frames, 1) * FPS * 60


def _blinks(lids: np.ndarray) -> int:
    count, last, reach = 0, -_BLINK_FRAMES, _BLINK_FRAMES
    for place in range(1, len(lids) - 1):
        before, after = lids[max(0, place - reach) : place], lids[place + 1 : place + 1 + reach]
        is_peak = lids[place] > before.max() and lids[place] >= after.max()
        rise = lids[place] - max(before.min(), after.min())
        if is_peak and rise > _BLINK_RISE and place - last > reach // 2:
            count, last = count + 1, place
    return count


def told(pairs: Sequence[Pair]) -> dict[str, float]:
    """Return how often a classifier tells generated from true seconds of a clip it never saw.

    0.5 is never, 1 always; NaN with fewer than three clips. `told_spread` is the standard error of
    the mean over clips.

    Source: leave-one-out validation of a ridge-penalised logistic regression.
    """
    usual = usual_deviation(pairs)
    pieces = [(_pieces(a, usual), _pieces(b, usual)) for a, b in pairs]
    pieces = [(a, b) for a, b in pieces if len(a) and len(b)]
    if len(pieces) < 3:
        return {"told": float("nan"), "told_spread": float("nan")}
    right = []
    for place, (ours, true) in enumerate(pieces):
        rest = [pair for other, pair in enumerate(pieces) if other != place]
        x = np.concatenate([np.concatenate(pair) for pair in rest])
        y = np.concatenate([np.r_[np.ones(len(a)), np.zeros(len(b))] for a, b in rest])
        judge = _Judge(x, y)
        hits = np.r_[judge(ours), ~judge(true)]
        right.append(hits.mean())
    spread = np.std(right) / len(right) ** 0.5
    return {"told": float(np.mean(right)), "told_spread": float(spread)}


class _Judge:
    """A logistic regression with a ridge penalty, fitted by Newton's method."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self._mean, self._deviation = x.mean(0), x.std(0) + 1e-3
        scaled = self._scaled(x)
        self._weights = np.zeros(scaled.shape[1])
        for _ in range(_ROUNDS):
            chance = 1 / (1 + np.exp(-np.clip(scaled @ self._weights, -20, 20)))
            curve = (scaled.T * (chance * (1 - chance))) @ scaled + _RIDGE * np.eye(scaled.shape[1])
            slope = scaled.T @ (chance - y) + _RIDGE * self._weights
            self._weights -= np.linalg.solve(curve, slope)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return which pieces `(n, F)` it takes for generated ones, `(n,)` bool."""
        return np.asarray(self._scaled(x) @ self._weights > 0)

    def _scaled(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(np.c_[(x - self._mean) / self._deviation, np.ones(len(x))])


def _pieces(channels: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """Return the features of each second: level, spread, range, speed, jerk and correlations."""
    x = (channels - np.median(channels, 0)) / usual
    velocity, rows = np.diff(x, axis=0), []
    for start in range(0, len(x) - _SECOND, _STEP):
        part, moved = x[start : start + _SECOND], velocity[start : start + _SECOND - 1]
        noise = 1e-6 * np.random.default_rng(start).standard_normal((len(_TOGETHER), len(moved)))
        together = np.corrcoef(moved[:, _TOGETHER].T + noise)
        rows.append(
            np.r_[
                part.mean(0), part.std(0), np.ptp(part, 0), np.abs(moved).mean(0),
                np.abs(np.diff(moved, axis=0)).mean(0),
                together[np.triu_indices(len(_TOGETHER), 1)],
            ]
        )  # fmt: skip
    return np.array(rows)


def expression(channels: np.ndarray, pcm: np.ndarray) -> dict[str, float]:
    """Return r of loudness with the speed of the head and with raised brows, over one second.

    Args:
        channels: of a video, `(T, 16)`.
        pcm: its audio, `(T * 640,)`. NaN if it is not longer than a second.
    """
    count = min(len(channels), len(pcm) // SAMPLES_PER_FRAME)
    if count <= _MEAN_FRAMES:
        return {"loud_head_r": float("nan"), "loud_brows_r": float("nan")}
    frames = pcm[: count * SAMPLES_PER_FRAME].reshape(count, -1)
    head = channels[:count, HEAD]
    courses = {
        "loud_head_r": np.linalg.norm(np.diff(head, axis=0, prepend=head[:1]), axis=1),
        "loud_brows_r": channels[:count, BROW_UP],
    }
    mean = np.ones(_MEAN_FRAMES) / _MEAN_FRAMES
    loudness = np.convolve(np.log(np.sqrt((frames**2).mean(1)) + 1e-3), mean, "valid")
    return {
        name: correlation(np.convolve(course, mean, "valid"), loudness)
        for name, course in courses.items()
    }


def lip_agreement(ours: np.ndarray, true: np.ndarray, late: int) -> dict[str, float]:
    """Return r of the lip gap with the true one, as filmed and with the clip's own offset removed.

    The sound of many clips does not fit their lips: generated lips, which fit it, are then late or
    early against the true ones.

    Args:
        ours: channels of the generated video, `(T, 16)`.
        true: those of the true one, `(T, 16)`.
        late: by how many frames the true lips are later than their sound.
    """
    a, b = ours[:, 0], true[:, 0]
    first, last = max(0, late), len(b) + min(0, late)
    moved = correlation(a[first - late : last - late], b[first:last])
    return {"gap_r": correlation(a, b), "gap_r_in_sync": moved}


def lost_variance(whole: Mapping[str, FaceMotion], without: Mapping[str, FaceMotion]) -> float:
    """Return the share of the variance of shown landmarks that goes with a part of the model.

    Args:
        whole: motion of each clip as it is shown.
        without: the same without that part.
    """

    def variance(motion: FaceMotion) -> float:
        return float(motion.points.var(0).sum())

    kept = sum(variance(without[name]) for name in whole)
    return 1 - kept / max(1e-9, sum(variance(motion) for motion in whole.values()))


def changed_variance(whole: Mapping[str, FaceMotion], without: Mapping[str, FaceMotion]) -> float:
    """Return the variance of how landmarks change without a part, over that of the landmarks."""
    changed = sum(float((whole[n].points - without[n].points).var(0).sum()) for n in whole)
    return changed / max(1e-9, sum(float(m.points.var(0).sum()) for m in whole.values()))
