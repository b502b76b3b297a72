"""`letstalk eval`: judges the packaged model on people it never saw.

Reconstruction through the latent, and generation from the first frame and the sound by the
streaming pipeline. Mouths are read off the generated pictures by an independent landmarker
(MediaPipe), not by the model's own eyes; each figure about sound has a control with the sound of
another clip.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from letstalk_rt.models.landmarks import SUBSET, mouth_opening
from letstalk_rt.pipeline import AvatarPipeline
from letstalk_rt.training.autoencoder import evaluate_pairs, evaluate_reconstruction
from letstalk_rt.training.data import Clip, Landmarker, landmarker_file, load_clips
from letstalk_rt.training.speech import best_lag, correlation
from letstalk_rt.types import SAMPLES_PER_FRAME, Portrait


@dataclass(frozen=True)
class Spoken:
    """How the mouth of one generated clip moved.

    Attributes:
        clip: what it was made from.
        frames: `(T, 256, 256, 3)` uint8.
        opening: of the generated mouth, `(T,)`; NaN where no face was found.
        seconds: that the generation took.
    """

    clip: Clip
    frames: np.ndarray
    opening: np.ndarray
    seconds: float


def as_portrait(frame: np.ndarray) -> Portrait:
    """Take a 256x256 frame of a clip, which is aligned already, as a portrait."""
    return Portrait(canvas=frame.copy(), crop=frame.copy(), box=(0.0, 0.0, float(frame.shape[0])))


def generate_frames(
    pipeline: AvatarPipeline, clip: Clip, pcm: np.ndarray, seed: int = 0
) -> Iterator[np.ndarray]:
    """Speak `pcm` with the first frame of `clip` as the portrait: `(256, 256, 3)` frames."""
    state = pipeline.init_state(as_portrait(np.asarray(clip.frames[0])), seed=seed)
    count = len(pcm) // SAMPLES_PER_FRAME
    needed = count + pipeline.lookahead_frames
    hops = -(-needed * SAMPLES_PER_FRAME // pipeline.hop)
    padded = np.zeros(hops * pipeline.hop, np.float32)
    padded[: len(pcm)] = pcm
    index = -pipeline.lookahead_frames
    for hop in padded.reshape(hops, 1, pipeline.hop):
        for frame in pipeline.step(hop, [state])[0]:
            if 0 <= index < count:
                yield frame
            index += 1


def speak(pipeline: AvatarPipeline, landmarker: Landmarker, clip: Clip, pcm: np.ndarray) -> Spoken:
    """Generate a clip and read its mouth."""
    started_s = time.monotonic()
    frames = np.stack(list(generate_frames(pipeline, clip, pcm)))
    seconds = time.monotonic() - started_s
    return Spoken(clip, frames, read_openings(landmarker, frames), seconds)


def read_openings(landmarker: Landmarker, frames: np.ndarray) -> np.ndarray:
    """Give the mouth opening in each frame, `(T,)`; NaN where no face is found."""
    openings = []
    for frame in frames:
        points = landmarker(frame)
        openings.append(np.nan if points is None else float(mouth_opening(points[list(SUBSET)])))
    return np.array(openings)


def follow(spoken: Spoken) -> tuple[float, int]:
    """Give r of generated against true mouth opening, and the best lag in frames."""
    made, true = spoken.opening, mouth_opening(spoken.clip.points)
    count = min(len(made), len(true))
    made, true = made[:count], true[:count]
    made = np.where(np.isnan(made), np.nanmean(made) if not np.isnan(made).all() else 0.0, made)
    return correlation(made, true), best_lag(made, true)[0]


def evaluate(
    pipeline: AvatarPipeline, clips: list[Clip], landmarker: Landmarker, samples: Path | None = None
) -> dict[str, float | int | str]:
    """Judge a model on clips of people it never saw.

    Args:
        pipeline: the model.
        clips: of the eval split.
        landmarker: reads mouths.
        samples: folder for contact sheets, true above generated.

    Returns:
        The figures, by the names of the table in the model card.
    """
    reconstruction = evaluate_reconstruction(pipeline.model.autoencoder, clips)
    heard = [clip for clip in clips if clip.has_sound]
    rows, seconds, frames = [], 0.0, 0
    for index, clip in enumerate(tqdm(heard, desc="generated", file=sys.stderr)):
        spoken = speak(pipeline, landmarker, clip, clip.pcm)
        other = heard[(index + len(heard) // 2) % len(heard)].pcm  # neighbours may be of one kind
        wrong = speak(pipeline, landmarker, clip, np.resize(other, clip.pcm.shape))
        r, lag = follow(spoken)
        missing = float(np.isnan(spoken.opening).mean())
        true = mouth_opening(clip.points)
        spread = float(np.nanstd(spoken.opening) / max(true.std(), 1e-6))
        rows.append((r, lag, follow(wrong)[0], missing, spread))
        seconds, frames = seconds + spoken.seconds, frames + len(spoken.frames)
        if samples is not None:
            save_sheet(spoken, samples / f"{clip.name}.png")
    table = np.array(rows, float)
    real = np.array([clip.kind == "real" for clip in heard])
    grid = np.array([clip.is_grid for clip in heard])
    return {
        **reconstruction,
        **evaluate_pairs(pipeline.model.autoencoder, clips),
        "mouth_corr": float(table[real, 0].mean()),
        "mouth_corr_grid": float(table[grid, 0].mean()),
        "mouth_corr_all": float(table[:, 0].mean()),
        "mouth_lag": float(np.median(table[real, 1])),
        "mouth_corr_shuffled": float(table[real, 2].mean()),
        "mouth_range_ratio": float(np.median(table[:, 4])),
        "faces_missing": float(table[:, 3].mean()),
        "fps": frames / seconds,
        "clips": len(heard),
        "steps": pipeline.steps,
        "guidance": pipeline.guidance,
        "preset": pipeline.model.preset.name,
    }


def save_sheet(spoken: Spoken, path: Path, count: int = 8) -> None:
    """Write a picture with true frames above generated ones, evenly spaced in time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    chosen = np.linspace(0, len(spoken.frames) - 1, count).astype(int)
    rows = [np.concatenate(list(f[chosen]), 1) for f in (spoken.clip.frames, spoken.frames)]
    Image.fromarray(np.concatenate(rows)).save(path)


def main(argv: list[str] | None = None) -> int:
    """Run the evaluation and print its figures."""
    parser = argparse.ArgumentParser(prog="letstalk eval", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the data folder")
    parser.add_argument("--cache", type=Path, default=Path("cache"), help="decoded frames")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--weights", type=Path, help="weights file; the package's own if absent")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, help="sampler steps")
    parser.add_argument("--guidance", type=float, help="weight of the sound against none")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--limit", type=int, help="only the first N clips")
    parser.add_argument("--landmarker", type=Path, help="face_landmarker.task")
    parser.add_argument("--samples", type=Path, help="folder for contact sheets")
    parser.add_argument("--json", action="store_true", help="one JSON document as the last line")
    args = parser.parse_args(argv)
    landmarker = Landmarker(landmarker_file(args.data, args.landmarker))
    pipeline = AvatarPipeline.load(
        args.preset,
        args.device,
        steps=args.steps,
        guidance=args.guidance,
        threads=args.threads,
        weights=args.weights,
    )
    clips = load_clips(args.data, args.cache, "eval")[: args.limit]
    figures = evaluate(pipeline, clips, landmarker, args.samples)
    for name, value in figures.items():
        shown = f"{value:.3f}" if isinstance(value, float) else value
        print(f"{name:22} {shown}")
    if args.json:
        print(json.dumps(figures))
    return 0
