"""What `letstalk eval --dub` measures: clips dubbed with their own sound and with another's.

With its own sound a clip should come out as it was; with another clip's sound its lips should move
like that clip's and no longer like its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from letstalk_rt.dubbing.dub_film import dubber_of, heard_by
from letstalk_rt.dubbing.lip_track import LipTrack
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.models.geometry.landmarks import SUBSET, mouth_opening
from letstalk_rt.models.parts import MOTION
from letstalk_rt.training.data.dataset import Clip, to_unit
from letstalk_rt.training.evaluation.faces import Landmarks, read_faces
from letstalk_rt.training.evaluation.image_quality import ssim_map
from letstalk_rt.training.evaluation.reconstruction import mouth_box
from letstalk_rt.types import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME

DUBBED_FRAMES = 125
"""By default, only so many frames of a longer clip are dubbed."""

_BAND = (0.02, 0.98)
"""The seam is where the mask lies between these."""

_STEP_PX = 6.0
"""Width of the kernel that leaves colours and no detail."""


@dataclass(frozen=True)
class Dubbed:
    """A clip with other lips.

    Attributes:
        before: the frames as they were, `(T, H, W, 3)` uint8.
        after: the frames as they came out, likewise.
        masks: how much of each pixel is new, `(T, H, W)` in [0, 1].
        passed: how many frames passed through untouched.
    """

    before: np.ndarray
    after: np.ndarray
    masks: np.ndarray
    passed: int


def dub_clip(
    pipeline: AvatarPipeline, clip: Clip, pcm: np.ndarray, most: int = DUBBED_FRAMES
) -> Dubbed:
    """Dub the first frames of a clip, at most so many, with `pcm`, `(n,)` at 16 kHz."""
    count = min(clip.num_frames, len(pcm) // SAMPLES_PER_FRAME, most)
    before = np.stack([np.asarray(clip.frames[i]) for i in range(count)])
    dubber = dubber_of(pipeline)  # refuses a model that cannot
    lips = heard_by(pipeline.model, [pcm], SAMPLE_RATE)
    after, masks, passed = before.copy(), np.zeros(before.shape[:3], np.float32), 0
    timed = ((i, rgb, (i + 0.5) / FPS) for i, rgb in enumerate(before))
    for index, patch in dubber.dub(timed, lips):
        if patch is None:
            passed += 1
            continue
        after[index, patch.rows, patch.columns] = patch.rgb
        masks[index, patch.rows, patch.columns] = patch.mask
    return Dubbed(before, after, masks, passed)


def heard_gaps(pipeline: AvatarPipeline, pcm: np.ndarray, count: int) -> np.ndarray:
    """Return the lip gap that is heard in `pcm` at each of so many frames, `(count,)`."""
    model = pipeline.model
    lips = LipTrack(model.part(MOTION), [pcm], SAMPLE_RATE)
    return np.array([float(lips.at((i + 0.5) / FPS)[0]) for i in range(count)])


def evaluate_dubbing(
    pipeline: AvatarPipeline,
    landmarker: Landmarks,
    clips: Sequence[Clip],
    most: int = DUBBED_FRAMES,
    on_clip: Callable[[str, dict[str, float]], object] = lambda name, row: None,
) -> dict[str, float]:
    """Return the figures of dubbing: medians over filmed clips with sound.

    Args:
        pipeline: the model.
        landmarker: finds landmarks in frames.
        clips: the clips.
        most: of each clip, at most so many frames are dubbed.
        on_clip: called with the name and the figures of each clip.
    """
    filmed = [clip for clip in clips if clip.kind == "real" and clip.has_audio]
    rows: list[dict[str, float]] = []
    for index, clip in enumerate(filmed):
        other = filmed[(index + 1) % len(filmed)]
        own = dub_clip(pipeline, clip, clip.pcm, most)
        row = quality(own, clip.landmarks[: len(own.before)]) | seams(own)
        row["dub_own_r"] = _agreement(landmarker, own.after, _opening(clip))
        if other is not clip:
            new = dub_clip(pipeline, clip, other.pcm, most)
            row["dub_r_new"] = _agreement(landmarker, new.after, _opening(other))
            row["dub_r_old"] = _agreement(landmarker, new.after, _opening(clip))
            if pipeline.model.get(MOTION) is not None:
                heard = heard_gaps(pipeline, other.pcm, len(new.after))
                row["dub_r_heard"] = _agreement(landmarker, new.after, heard)
            row |= {f"{name}_other": value for name, value in seams(new).items()}
        rows.append(row)
        on_clip(clip.name, row)
    names = sorted({name for row in rows for name in row})
    figures = {
        name: float(np.nanmedian([row[name] for row in rows if name in row])) for name in names
    }
    gains = [row["dub_r_new"] - row["dub_r_old"] for row in rows if "dub_r_new" in row]
    figures["dub_follows_new"] = float(np.mean(np.array(gains) > 0)) if gains else float("nan")
    return figures | {"dub_clips": float(len(rows))}


def quality(dubbed: Dubbed, landmarks: np.ndarray) -> dict[str, float]:
    """Return how much of a clip dubbed with its own sound is as it was.

    Args:
        dubbed: the clip.
        landmarks: its landmarks, `(T, 478, 2)` in pixels.
    """
    errors, similar = [], []
    for before, after, points in zip(dubbed.before, dubbed.after, landmarks, strict=True):
        size = before.shape[0]
        left, top, right, bottom = mouth_box(to_unit(points[list(SUBSET)], size), size)
        part = np.s_[top:bottom, left:right]
        errors.append(float(np.mean((before[part].astype(np.float32) - after[part]) ** 2)))
        pair = [
            torch.from_numpy(image.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
            for image in (after, before)
        ]
        found = ssim_map(pair[0], pair[1])[0, 0]
        similar.append(
            float(found[max(top - 5, 0) : bottom - 5, max(left - 5, 0) : right - 5].mean())
        )
    outside = (dubbed.masks == 0) & (dubbed.before != dubbed.after).any(-1)
    error = max(float(np.mean(errors)), 1e-6)
    return {
        "dub_psnr_mouth": float(10 * np.log10(255**2 / error)),
        "dub_ssim_mouth": float(np.mean(similar)),
        "dub_outside_changed": float(outside.sum()),
        "dub_passed": dubbed.passed / len(dubbed.before),
    }


def seams(dubbed: Dubbed) -> dict[str, float]:
    """Return the figures of the seam between old and new.

    Returns:
        `dub_border`: gradients at the seam over those of the clip; more than 1 is an edge.
        `dub_colour_step`: mean difference of colours there, without detail, of 255 levels.
        `dub_flicker`: change from frame to frame at the seam over that of the clip.
    """
    edges, steps, changes = [], [], []
    for index, (before, after, mask) in enumerate(
        zip(dubbed.before, dubbed.after, dubbed.masks, strict=True)
    ):
        band = (mask > _BAND[0]) & (mask < _BAND[1])
        if not band.any():
            continue
        old, new = before.astype(np.float32), after.astype(np.float32)
        edges.append((_gradient(new)[band].mean(), _gradient(old)[band].mean()))
        smooth = cv2.GaussianBlur(new - old, (0, 0), _STEP_PX)
        steps.append(float(np.abs(smooth)[band].mean()))
        if index:
            last_old, last_new = dubbed.before[index - 1], dubbed.after[index - 1]
            changes.append(
                (np.abs(new - last_new)[band].mean(), np.abs(old - last_old)[band].mean())
            )
    return {
        "dub_border": _ratio(edges),
        "dub_colour_step": float(np.mean(steps)) if steps else float("nan"),
        "dub_flicker": _ratio(changes),
    }


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """Return the ratio of the sums of pairs."""
    if not pairs:
        return float("nan")
    new, old = np.sum(pairs, 0)
    return float(new / max(old, 1e-6))


def _gradient(image: np.ndarray) -> np.ndarray:
    """Return the size of the gradient of the grey image, `(H, W)`."""
    grey = image.mean(-1)
    down, across = np.gradient(grey)
    size: np.ndarray = np.hypot(down, across)
    return size


def _opening(clip: Clip) -> np.ndarray:
    """Return the true mouth opening of a clip, `(T,)`."""
    return mouth_opening(np.asarray(clip.landmarks)[:, SUBSET])


def _agreement(landmarker: Landmarks, frames: np.ndarray, opening: np.ndarray) -> float:
    """Return Pearson's r of the mouth opening in frames and another."""
    found = read_faces(landmarker, frames).opening
    count = min(len(found), len(opening))
    if count < 3 or np.std(found[:count]) < 1e-6 or np.std(opening[:count]) < 1e-6:
        return float("nan")
    return float(np.corrcoef(found[:count], opening[:count])[0, 1])
