"""Evaluates a model on held-out clips, with their own audio and with that of another clip."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from letstalk_rt.errors import InputError
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.training.data.audio_features import correlation
from letstalk_rt.training.data.dataset import Clip
from letstalk_rt.training.evaluation.faces import (
    FaceTrack,
    Landmarks,
    aligned_mouth,
    blink_rate,
    head_range,
)
from letstalk_rt.training.evaluation.generation import (
    GeneratedVideo,
    as_portrait,
    generate_videos,
    mismatched_audio,
    opening_correlation,
    true_track,
)
from letstalk_rt.training.evaluation.image_quality import (
    face_sharpness,
    likeness_to_true,
    seam_flicker,
)
from letstalk_rt.training.evaluation.interior import (
    Interior,
    compare_interiors,
    mouth_sheet,
    read_interior,
)
from letstalk_rt.training.evaluation.motion import (
    count_closures,
    head_speech_correlation,
    value_range,
)
from letstalk_rt.training.evaluation.published import PublishedMetrics
from letstalk_rt.training.evaluation.sync import LIP_POINTS, SyncTowers, sync_score
from letstalk_rt.types import FPS

T = TypeVar("T")
Row = dict[str, float | str]
Likeness = Callable[[np.ndarray, np.ndarray], float]
"""A function from a portrait and frames `(T, H, W, 3)` to the mean cosine of their identities."""

EVERY = 12
"""Every how many frames slow figures such as identity are measured."""

INTERIOR = ("interior_contrast_ratio", "interior_ab", "interior_shimmer")
"""Figures of open mouths that are also measured with another clip's audio."""

TOGETHER = 4
"""Sessions per batch."""


@dataclass(frozen=True)
class EvaluationModels:
    """The independent networks that measure generated videos.

    Attributes:
        landmarker: Detects landmarks.
        likeness: Compares identities.
        towers: Compute the sync score; None leaves it out.
        published: Collects published metrics; None leaves them out.
    """

    landmarker: Landmarks
    likeness: Likeness
    towers: SyncTowers | None = None
    published: PublishedMetrics | None = None


@dataclass
class EvaluationResult:
    """The results of an evaluation.

    Attributes:
        figures: Figures by name, for the table and the JSON line.
        clips: A row for each clip.
        stills: A row for each still portrait.
        slices: A row for each ten seconds of the long run.
        sheets: Name and image `(H, W, 3)` of each contact sheet.
        mouths: Name and image of each contact sheet of enlarged mouths.
        curves: Name and mouth openings, true and generated, `(2, T)`.
    """

    figures: dict[str, float | int | str | None] = field(default_factory=dict)
    clips: list[Row] = field(default_factory=list)
    stills: list[Row] = field(default_factory=list)
    slices: list[Row] = field(default_factory=list)
    sheets: list[tuple[str, np.ndarray]] = field(default_factory=list)
    mouths: list[tuple[str, np.ndarray]] = field(default_factory=list)
    curves: list[tuple[str, np.ndarray]] = field(default_factory=list)


def evaluate_clips(
    pipeline: AvatarPipeline,
    models: EvaluationModels,
    clips: Sequence[Clip],
    findings: EvaluationResult,
) -> None:
    """Generate every clip from its first frame, with its own audio and with another clip's."""
    with_audio = [clip for clip in clips if clip.has_audio]
    if not with_audio:
        raise InputError("no clip to evaluate has audio; add clips of the split `eval`")
    for index, clip in enumerate(tqdm(with_audio, desc="clips", file=sys.stderr)):
        portrait = as_portrait(np.asarray(clip.frames[0]))
        speech = np.stack([clip.pcm, mismatched_audio(with_audio, index)])
        own, wrong = generate_videos(pipeline, models.landmarker, [portrait] * 2, speech)
        true = read_interior(np.asarray(clip.frames), true_track(clip))
        generated, shuffled = (read_interior(video.frames, video.track) for video in (own, wrong))
        if models.published is not None:
            models.published.add(np.asarray(clip.frames), own.frames, clip.pcm)
        row = _clip_row(pipeline, models, clip, own, wrong)
        findings.clips.append(row | _interior_row(true, generated, shuffled))
        findings.mouths.append((clip.name, mouth_sheet(true, generated)))
        findings.sheets.append((clip.name, contact_sheet(np.asarray(clip.frames), own.frames)))
        findings.curves.append((clip.name, np.stack([true_track(clip).opening, own.track.opening])))
    findings.figures |= _clip_figures(findings.clips)
    if models.published is not None:
        findings.figures |= models.published.figures()


def _clip_row(
    pipeline: AvatarPipeline,
    models: EvaluationModels,
    clip: Clip,
    own: GeneratedVideo,
    wrong: GeneratedVideo,
) -> Row:
    true, generated = true_track(clip), own.track
    seams = (pipeline.frames_per_window, pipeline.lookahead_frames)
    row = lip_row(clip, own, wrong) | {
        "seam_flicker": seam_flicker(own.frames, *seams),
        "seam_flicker_true": seam_flicker(np.asarray(clip.frames), *seams),
        "blinks": blink_rate(generated),
        "blinks_true": blink_rate(true),
        "head_range": head_range(generated),
        "head_range_true": head_range(true),
    }
    row |= _motion_row(clip, own, wrong)
    return row | _image_row(models, clip, own.frames) | _sync_row(models, clip, own, wrong)


def lip_row(clip: Clip, own: GeneratedVideo, wrong: GeneratedVideo) -> Row:
    """Return how well generated lips agree with the true ones.

    Args:
        clip: the clip.
        own: generated with its audio.
        wrong: generated with another clip's audio.
    """
    true, generated = true_track(clip), own.track
    corr, lag = opening_correlation(generated, true)
    return {
        "name": clip.name,
        "kind": "grid" if clip.is_grid else clip.kind,
        "mouth_corr": corr,
        "mouth_lag": lag,
        "mouth_corr_shuffled": opening_correlation(wrong.track, true)[0],
        "mouth_range_ratio": float(generated.opening.std() / max(true.opening.std(), 1e-6)),
        "lip_distance": lip_distance(generated, true),
        "faces_missing": generated.missing,
    }


def _motion_row(clip: Clip, own: GeneratedVideo, wrong: GeneratedVideo) -> Row:
    """Return how far lips and head move, compared with the true video."""
    true, generated = true_track(clip), own.track
    matched, count = count_closures(generated.opening, true.opening)
    return {
        "opening_range_ratio": _ratio(value_range(generated.opening), value_range(true.opening)),
        **_width_row(generated, true),
        "closures": count,
        "closures_met": matched,
        "closures_met_shuffled": count_closures(wrong.track.opening, true.opening)[0],
        "head_range_ratio": _ratio(head_range(generated), head_range(true)),
        "head_speech_r": head_speech_correlation(generated, clip.pcm),
        "head_speech_r_true": head_speech_correlation(true, clip.pcm),
        "head_speech_r_shuffled": head_speech_correlation(wrong.track, clip.pcm),
        "frames": clip.num_frames,
    }


def _width_row(generated: FaceTrack, true: FaceTrack) -> Row:
    """Return how wide mouths are, how far their width changes, and its r with the true one."""
    count = min(len(generated.points), len(true.points))
    shown, wanted = generated.mouth_spread[:count], true.mouth_spread[:count]
    return {
        "mouth_width_ratio": _ratio(float(np.median(shown)), float(np.median(wanted))),
        "mouth_width_range_ratio": _ratio(value_range(shown), value_range(wanted)),
        "mouth_width_corr": correlation(shown, wanted),
    }


def _ratio(generated: float, true: float) -> float:
    return generated / max(true, 1e-6)


def _interior_row(true: Interior, generated: Interior, shuffled: Interior) -> Row:
    row: Row = {**compare_interiors(generated, true)}
    with_other_audio = compare_interiors(shuffled, true)
    return row | {f"{name}_shuffled": with_other_audio[name] for name in INTERIOR}


_IMAGE_FIGURES = (
    "identity", "identity_true", "sharpness_generated", "psnr_generated", "ssim_generated",
)  # fmt: skip


def _image_row(models: EvaluationModels, clip: Clip, frames: np.ndarray) -> Row:
    portrait, chosen = np.asarray(clip.frames[0]), slice(EVERY, None, EVERY)
    generated, true = frames[chosen], np.asarray(clip.frames[chosen])
    if not len(generated):
        return dict.fromkeys(_IMAGE_FIGURES, float("nan"))
    whole, similar = likeness_to_true(generated, true)
    return {
        "psnr_generated": whole,
        "ssim_generated": similar,
        "identity": models.likeness(portrait, generated),
        "identity_true": models.likeness(portrait, true),
        "sharpness_generated": face_sharpness(generated) / face_sharpness(true),
    }


def _sync_row(
    models: EvaluationModels, clip: Clip, own: GeneratedVideo, wrong: GeneratedVideo
) -> Row:
    if models.towers is None:
        return {}
    videos = {"": own.track.points, "_true": clip.landmarks, "_shuffled": wrong.track.points}
    row: Row = {}
    for which, points in videos.items():
        score = sync_score(models.towers, points, clip.pcm)
        row |= {
            f"sync{which}": score.confidence,
            f"sync_likeness{which}": score.likeness,
            f"sync_offset{which}": score.offset,
        }
    return row


def _clip_figures(rows: list[Row]) -> dict[str, float | int | str | None]:
    """Return the figures of all clips; those of lips against audio are of real clips alone."""
    real = [row for row in rows if row["kind"] != "generated"]
    grid = [row for row in rows if row["kind"] == "grid"]
    everywhere = [
        "lip_distance", "faces_missing", "seam_flicker", "seam_flicker_true", "blinks",
        "blinks_true", "head_range", "head_range_true", "identity", "identity_true",
        "sharpness_generated", "psnr_generated", "ssim_generated",
    ]  # fmt: skip
    of_sync = [n for n in rows[0] if n.startswith("sync") and "offset" not in n]
    figures: dict[str, float | int | str | None] = {
        "mouth_corr": mean(real, "mouth_corr"),
        "mouth_corr_grid": mean(grid, "mouth_corr"),
        "mouth_corr_all": mean(rows, "mouth_corr"),
        "mouth_lag": middle(real, "mouth_lag"),
        "mouth_corr_shuffled": mean(real, "mouth_corr_shuffled"),
        "mouth_range_ratio": middle(rows, "mouth_range_ratio"),
    }
    figures |= _motion_figures(real)
    figures |= {name: mean(rows, name) for name in everywhere}
    figures["identity_ratio"] = mean(rows, "identity") / mean(rows, "identity_true")
    figures |= {name: middle(rows, name) for name in rows[0] if name.startswith("interior")}
    figures |= {name: mean(real, name) for name in of_sync}
    figures |= {n: middle(real, n) for n in ("sync_offset", "sync_offset_true") if of_sync}
    figures["clips"] = len(rows)
    return figures


def _motion_figures(real: list[Row]) -> dict[str, float | int | str | None]:
    """Return the figures of motion for the rows of filmed clips.

    Blinks and closures are counted over all clips together, because most clips are short.
    """
    filmed = [row for row in real if row["kind"] != "grid"]
    closures = _total(real, "closures")
    minutes = _total(real, "frames") / FPS / 60

    def blinks_per_min(name: str) -> float:
        blinks = sum(float(row[name]) * float(row["frames"]) / FPS / 60 for row in real)
        return blinks / minutes if minutes else float("nan")

    def recall(name: str) -> float:
        return _total(real, name) / closures if closures else float("nan")

    speech = ("head_speech_r", "head_speech_r_true", "head_speech_r_shuffled")
    return {
        "mouth_corr_filmed": mean(filmed, "mouth_corr"),
        "opening_range_ratio": middle(real, "opening_range_ratio"),
        "opening_range_ratio_filmed": middle(filmed, "opening_range_ratio"),
        "mouth_width_ratio": middle(filmed, "mouth_width_ratio"),
        "mouth_width_range_ratio": middle(filmed, "mouth_width_range_ratio"),
        "mouth_width_corr": mean(filmed, "mouth_width_corr"),
        "closure_recall": recall("closures_met"),
        "closure_recall_shuffled": recall("closures_met_shuffled"),
        "head_range_ratio": middle(real, "head_range_ratio"),
        "head_range_ratio_filmed": middle(filmed, "head_range_ratio"),
        **{name: mean(real, name) for name in speech},
        **{f"{name}_filmed": mean(filmed, name) for name in speech},
        "blinks_per_min": blinks_per_min("blinks"),
        "blinks_per_min_true": blinks_per_min("blinks_true"),
    }


def _total(rows: Sequence[Row], name: str) -> float:
    return sum(float(row[name]) for row in rows)


def lip_distance(generated: FaceTrack, true: FaceTrack) -> float:
    """Return the mean distance of lip landmarks of aligned faces, over the eye distance.

    Each mouth is relative to its own mean over the video.
    """
    count = min(len(generated.points), len(true.points))
    a, b = (aligned_mouth(t.points[:count], LIP_POINTS) for t in (generated, true))
    return float(np.linalg.norm((a - a.mean(0)) - (b - b.mean(0)), axis=-1).mean())


def contact_sheet(true: np.ndarray, generated: np.ndarray, count: int = 8) -> np.ndarray:
    """Return an image of true frames above generated ones, evenly spaced in time."""
    chosen = np.linspace(0, min(len(true), len(generated)) - 1, count).astype(int)
    return np.concatenate([np.concatenate(list(f[chosen]), 1) for f in (true, generated)])


def mean(rows: Sequence[Row], name: str) -> float:
    """Return the mean of a column without NaN; NaN if nothing is left."""
    return float(np.mean(kept)) if (kept := _column(rows, name)) else float("nan")


def middle(rows: Sequence[Row], name: str) -> float:
    """Return the median of a column without NaN; NaN if nothing is left."""
    return float(np.median(kept)) if (kept := _column(rows, name)) else float("nan")


def _column(rows: Sequence[Row], name: str) -> list[float]:
    values = [float(row.get(name, np.nan)) for row in rows]
    return [value for value in values if np.isfinite(value)]


def batches(items: Sequence[T], what: str) -> Iterator[list[T]]:
    for start in tqdm(range(0, len(items), TOGETHER), desc=what, file=sys.stderr):
        yield list(items[start : start + TOGETHER])
