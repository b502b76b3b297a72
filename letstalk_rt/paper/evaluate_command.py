"""`letstalk eval --preset faithful-s`: evaluates the published model, which renders whole clips."""

import argparse
import sys
from collections.abc import Sequence

import cv2
import numpy as np
from tqdm import tqdm

from letstalk_rt.errors import InputError
from letstalk_rt.paper.rendering import FaithfulRenderer, FaithfulSampling
from letstalk_rt.training.data.dataset import Clip
from letstalk_rt.training.evaluation.clips import (
    EVERY,
    EvaluationModels,
    EvaluationResult,
    Row,
    contact_sheet,
    lip_row,
    mean,
    middle,
)
from letstalk_rt.training.evaluation.faces import read_faces
from letstalk_rt.training.evaluation.generation import (
    GeneratedVideo,
    mismatched_audio,
    true_track,
)
from letstalk_rt.training.evaluation.image_quality import likeness_to_true
from letstalk_rt.training.evaluation.sync import sync_score


def evaluate_faithful(
    args: argparse.Namespace, models: EvaluationModels, clips: Sequence[Clip]
) -> EvaluationResult:
    """Render every clip from its first frame, with its own audio and with another clip's.

    Raises:
        InputError: No clip has audio.
    """
    spoken = [clip for clip in clips if clip.has_audio]
    if not spoken:
        raise InputError("no clip to evaluate has audio; add clips of the split `eval`")
    renderer = FaithfulRenderer.load(
        args.preset, args.weights, args.autoencoder, args.wav2vec, args.device
    )
    guidance = 1.0 if args.guidance is None else args.guidance
    sampling = FaithfulSampling(args.steps, args.sampler == "ddim", guidance)
    result = EvaluationResult()
    for index, clip in enumerate(tqdm(spoken, desc="clips", file=sys.stderr)):
        own, wrong = (
            _render(renderer, models, clip, pcm, sampling)
            for pcm in (clip.pcm, mismatched_audio(spoken, index))
        )
        if models.published is not None:
            models.published.add(np.asarray(clip.frames), own.frames, clip.pcm)
        result.clips.append(_row(models, clip, own, wrong))
        result.sheets.append((clip.name, contact_sheet(np.asarray(clip.frames), own.frames)))
        result.curves.append((clip.name, np.stack([true_track(clip).opening, own.track.opening])))
    result.figures |= _figures(result.clips)
    if models.published is not None:
        result.figures |= models.published.figures()
    result.figures |= {
        "steps": sampling.steps or renderer.model.preset.steps,
        "guidance": guidance,
        "preset": args.preset,
        "size_px": spoken[0].size_px,
    }
    return result


def _render(
    renderer: FaithfulRenderer,
    models: EvaluationModels,
    clip: Clip,
    pcm: np.ndarray,
    sampling: FaithfulSampling,
) -> GeneratedVideo:
    """Return the video of one clip at the clip's size: the model's, unless that is below 256 px."""
    portrait = _resized(np.asarray(clip.frames[0]), renderer.image_size)
    rendered = renderer.render(portrait, pcm, sampling)
    frames = np.stack([_resized(frame, clip.size_px) for frame in rendered])
    return GeneratedVideo(frames, read_faces(models.landmarker, frames))


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    method = cv2.INTER_AREA if size < image.shape[0] else cv2.INTER_CUBIC
    made: np.ndarray = cv2.resize(image, (size, size), interpolation=method)
    return made


def _row(models: EvaluationModels, clip: Clip, own: GeneratedVideo, wrong: GeneratedVideo) -> Row:
    row = lip_row(clip, own, wrong)
    chosen = slice(EVERY, None, EVERY)
    videos = {"identity": own.frames[chosen], "identity_true": np.asarray(clip.frames[chosen])}
    for name, frames in videos.items():
        known = len(frames) > 0
        row[name] = models.likeness(np.asarray(clip.frames[0]), frames) if known else float("nan")
    pair = own.frames[chosen], np.asarray(clip.frames[chosen])
    row["psnr_generated"], row["ssim_generated"] = likeness_to_true(*pair)
    if models.towers is not None:
        videos = {"": own.track.points, "_true": clip.landmarks, "_shuffled": wrong.track.points}
        for which, points in videos.items():
            score = sync_score(models.towers, points, clip.pcm)
            row |= {f"sync{which}": score.confidence, f"sync_offset{which}": score.offset}
    return row


def _figures(rows: list[Row]) -> dict[str, float | int | str | None]:
    """Return the figures of all clips; those of lips against audio are of real clips alone."""
    real = [row for row in rows if row["kind"] != "generated"]
    of_lips = ("mouth_corr", "mouth_corr_shuffled")
    figures: dict[str, float | int | str | None] = {name: mean(real, name) for name in of_lips}
    figures["mouth_corr_all"] = mean(rows, "mouth_corr")
    figures["mouth_lag"] = middle(real, "mouth_lag")
    figures["mouth_range_ratio"] = middle(rows, "mouth_range_ratio")
    everywhere = (
        "lip_distance", "faces_missing", "identity", "identity_true", "psnr_generated",
        "ssim_generated",
    )  # fmt: skip
    figures |= {name: mean(rows, name) for name in everywhere}
    synced = [name for name in rows[0] if name.startswith("sync")]
    figures |= {
        name: middle(real, name) if "offset" in name else mean(real, name) for name in synced
    }
    figures["clips"] = len(rows)
    return figures
