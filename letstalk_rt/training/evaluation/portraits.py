"""Evaluates a model on portraits: stills that speak, silence, parted lips, and several seeds."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from letstalk_rt.errors import PortraitError
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.portrait.image import prepare_portrait
from letstalk_rt.training.data.dataset import Clip, read_index
from letstalk_rt.training.evaluation.clips import (
    EVERY,
    EvaluationModels,
    EvaluationResult,
    Row,
    batches,
    contact_sheet,
    mean,
)
from letstalk_rt.training.evaluation.faces import (
    read_faces,
)
from letstalk_rt.training.evaluation.generation import (
    GeneratedVideo,
    as_portrait,
    generate_videos,
    opening_correlation,
    true_track,
    with_crop_of,
)
from letstalk_rt.training.evaluation.image_quality import face_sharpness, seam_flicker
from letstalk_rt.training.evaluation.motion import (
    diversity,
)
from letstalk_rt.types import SAMPLES_PER_FRAME, Portrait

STILL_FRAMES = 150
SILENT_FRAMES = 100
CLOSED = 0.05
"""Largest lip gap over mouth width of a closed mouth."""

PARTED = 0.1
"""Mouth opening above which a portrait's lips count as parted."""

DIVERSITY_SEEDS = 3
"""Number of sessions with different seeds that are compared."""


def evaluate_stills(
    pipeline: AvatarPipeline,
    models: EvaluationModels,
    portraits: Sequence[tuple[str, Portrait]],
    clips: Sequence[Clip],
    findings: EvaluationResult,
) -> None:
    """Animate held-out still portraits with the audio of held-out clips."""
    voices = sorted((c for c in clips if c.has_audio), key=lambda c: -c.num_frames)
    voices = voices[: max(4, len(voices) // 3)]
    jobs = [(name, p, voices[i % len(voices)]) for i, (name, p) in enumerate(portraits)]
    for group in batches(jobs, "stills"):
        speech = [np.resize(v.pcm, STILL_FRAMES * SAMPLES_PER_FRAME) for _, _, v in group]
        crops = [as_portrait(p.crop) for _, p, _ in group]
        generated = generate_videos(pipeline, models.landmarker, crops, np.stack(speech), seed=7)
        for (name, portrait, voice), spoken in zip(group, generated, strict=True):
            findings.stills.append(_still_row(pipeline, models, name, portrait, voice, spoken))
            still = np.repeat(portrait.crop[None], len(spoken.frames), 0)
            findings.sheets.append((name, contact_sheet(still, spoken.frames)))
    findings.figures |= {
        f"still_{name}": mean(findings.stills, name)
        for name in ("mouth_corr", "identity", "sharpness", "seam_flicker", "faces_missing")
    }


def _still_row(
    pipeline: AvatarPipeline,
    models: EvaluationModels,
    name: str,
    portrait: Portrait,
    voice: Clip,
    spoken: GeneratedVideo,
) -> Row:
    true, generated = true_track(voice), spoken.frames[EVERY::EVERY]
    return {
        "name": name,
        "mouth_corr": opening_correlation(spoken.track, true)[0],
        "identity": models.likeness(portrait.crop, generated),
        "sharpness": face_sharpness(generated) / face_sharpness(portrait.crop[None]),
        "seam_flicker": seam_flicker(
            spoken.frames, pipeline.frames_per_window, pipeline.lookahead_frames
        ),
        "faces_missing": spoken.track.missing,
    }


def evaluate_silence(
    pipeline: AvatarPipeline,
    models: EvaluationModels,
    portraits: Sequence[Portrait],
    findings: EvaluationResult,
) -> None:
    """Animate portraits with closed mouths with silence, and compare mouth and portrait.

    The ratios are of sums over portraits. A closed mouth has a lip gap of less than a pixel, so
    the ratio of gaps is noisy; the height of the lips, gap included, is reported as well.
    """
    rows = []
    for group in batches(portraits, "silence"):
        silence = np.zeros((len(group), SILENT_FRAMES * SAMPLES_PER_FRAME), np.float32)
        crops = [as_portrait(p.crop) for p in group]
        generated = generate_videos(pipeline, models.landmarker, crops, silence, seed=3)
        for portrait, spoken in zip(group, generated, strict=True):
            still = read_faces(models.landmarker, [portrait.crop])
            if still.found.all() and float(still.opening[0]) <= CLOSED:
                gaps = (spoken.track.opening.mean(), still.opening[0])
                rows.append((*gaps, spoken.track.lip_height.mean(), still.lip_height[0]))
    gap, still_gap, height, still_height = np.mean(rows, 0) if rows else [np.nan] * 4
    findings.figures |= {
        "silence_openness_ratio": float(gap / still_gap),
        "silence_lip_height_ratio": float(height / still_height),
        "silence_openness": float(gap),
        "silence_openness_portrait": float(still_gap),
        "silence_portraits": len(rows),
    }


def evaluate_parted_lips(
    pipeline: AvatarPipeline,
    models: EvaluationModels,
    clips: Sequence[Clip],
    stills: Sequence[tuple[str, Portrait]],
    findings: EvaluationResult,
) -> None:
    """Feed silence to portraits with parted lips, whose mouths should close at rest."""
    widest = [int(true_track(clip).opening.argmax()) for clip in clips]
    frames = [np.asarray(clip.frames[i]) for clip, i in zip(clips, widest, strict=True)]
    portraits = [as_portrait(frame) for frame in (*frames, *(p.crop for _, p in stills))]
    gaps: list[float] = []
    for group in batches([p for p in portraits if _has_parted_lips(models, p)], "parted lips"):
        silence = np.zeros((len(group), SILENT_FRAMES // 2 * SAMPLES_PER_FRAME), np.float32)
        videos = generate_videos(pipeline, models.landmarker, group, silence, seed=3)
        for portrait, video in zip(group, videos, strict=True):
            gaps.append(float(video.track.opening[len(video.frames) // 2 :].mean()))
            still = np.repeat(portrait.crop[None], len(video.frames), 0)
            findings.sheets.append((f"parted {len(gaps)}", contact_sheet(still, video.frames)))
    findings.figures |= {
        "open_portrait_gap": float(np.median(gaps)) if gaps else float("nan"),
        "open_portrait_gap_worst": max(gaps, default=float("nan")),
        "open_portraits": len(gaps),
    }


def _has_parted_lips(models: EvaluationModels, portrait: Portrait) -> bool:
    face = read_faces(models.landmarker, [portrait.crop])
    return bool(face.found.all()) and float(face.opening[0]) > PARTED


def evaluate_diversity(
    pipeline: AvatarPipeline,
    models: EvaluationModels,
    clips: Sequence[Clip],
    findings: EvaluationResult,
) -> None:
    """Generate the first filmed clip with several seeds and compare the videos."""
    clip = next((c for c in clips if c.has_audio and c.kind == "real"), None)
    if clip is None:
        return
    samples = min(clip.num_frames, STILL_FRAMES) * SAMPLES_PER_FRAME
    portraits = [as_portrait(np.asarray(clip.frames[0]))] * DIVERSITY_SEEDS
    audio = np.stack([clip.pcm[:samples]] * DIVERSITY_SEEDS)
    videos = generate_videos(pipeline, models.landmarker, portraits, audio)
    head, opening = diversity([video.track for video in videos])
    findings.figures |= {"diversity_head": head, "diversity_opening": opening}


def closed_portraits(clips: Sequence[Clip]) -> list[Portrait]:
    """Return the frame of each clip in which the mouth is most closed."""
    return [
        as_portrait(np.asarray(clip.frames[int(true_track(clip).opening.argmin())]))
        for clip in clips
    ]


def still_portraits(
    pipeline: AvatarPipeline, root: Path, count: int, crop_px: int, size: int = 512
) -> list[tuple[str, Portrait]]:
    """Prepare held-out portraits, evenly spaced in the data folder's list; none without a list.

    Their crops have a side of `crop_px`, that of the clips' frames, their canvases one of `size`.
    Portraits in which the model's face finder finds no face are reported and left out.
    """
    if not count or not (root / "portraits.jsonl").exists():
        return []
    rows = [r for r in read_index(root, "portraits.jsonl") if r["split"] == "eval"]
    files = [str(r["file"]) for r in rows if r["tag"] == "ship"]
    found = []
    for place in np.linspace(0, len(files) - 1, min(count, len(files))).astype(int):
        try:
            source = root / "portraits" / files[place]
            portrait = prepare_portrait(source, pipeline.finder, size=size)
            # Clips and stills are judged at one size; the model gets the crop of its own.
            found.append((files[place], with_crop_of(portrait, crop_px)))
        except PortraitError as error:
            print(f"{files[place]}: {error}", file=sys.stderr)
    return found
