"""`letstalk eval`: judges the packaged model on people it never saw.

Reconstruction through the latent; generation by the streaming pipeline, of clips from their first
frame and of still portraits; silence; a run of ten minutes; speed. Faces are read off the pictures
by independent networks (MediaPipe, SFace), not by the model's own eyes. Figures about sound have a
control with the sound of another clip, and every figure that a true video has, too, has it beside.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from letstalk_rt.errors import ConfigError, InputError
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.training.data.dataset import Clip, Landmarker, landmarker_file, load_clips
from letstalk_rt.training.evaluation.clips import (
    EvaluationModels,
    EvaluationResult,
    closed_portraits,
    evaluate_clips,
    evaluate_silence,
    evaluate_stills,
    still_portraits,
)
from letstalk_rt.training.evaluation.identity import Identity
from letstalk_rt.training.evaluation.image_quality import evaluate_ssim
from letstalk_rt.training.evaluation.long_run import (
    SLICE_S,
    large_portrait,
    measure_speed,
    run_long,
)
from letstalk_rt.training.evaluation.reconstruction import evaluate_pairs, evaluate_reconstruction
from letstalk_rt.training.evaluation.report import write_report
from letstalk_rt.training.evaluation.sync import calibrate, load_towers
from letstalk_rt.types import Portrait


def evaluate(
    pipeline: AvatarPipeline,
    models: EvaluationModels,
    clips: list[Clip],
    stills: list[tuple[str, Portrait]],
    *,
    long_s: int = 0,
) -> EvaluationResult:
    """Judge a model on people it never saw.

    Args:
        pipeline: the model.
        models: what looks at its videos.
        clips: of the eval split.
        stills: names and portraits of the eval split; may be empty.
        long_s: length of the long run in seconds; 0 leaves it out.
    """
    findings = EvaluationResult()
    autoencoder = pipeline.model.autoencoder
    findings.figures |= evaluate_reconstruction(autoencoder, clips)
    findings.figures |= evaluate_ssim(autoencoder, clips)
    findings.figures |= evaluate_pairs(autoencoder, clips)
    evaluate_clips(pipeline, models, clips, findings)
    if models.towers is not None:
        found = calibrate(models.towers, [c for c in clips if c.has_audio and c.kind == "real"])
        findings.figures |= {k: found[k] for k in ("sync_found", "sync_found_shifted")}
    if stills:
        evaluate_stills(pipeline, models, stills, clips, findings)
    at_rest = closed_portraits(clips) + [portrait for _, portrait in stills]
    evaluate_silence(pipeline, models, at_rest, findings)
    findings.figures["drift"] = None
    shown = stills[0][1] if stills else large_portrait(np.asarray(clips[0].frames[0]))
    if long_s:
        run_long(pipeline, models, shown, clips, long_s, findings)
    else:
        findings.figures |= measure_speed(pipeline, shown, clips)
    findings.figures |= {
        "steps": pipeline.steps,
        "guidance": pipeline.guidance,
        "preset": pipeline.model.preset.name,
    }
    return findings


def save_samples(findings: EvaluationResult, folder: Path) -> None:
    """Write the contact sheets as pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, sheet in findings.sheets:
        Image.fromarray(sheet).save(folder / f"{name.replace('/', '-').replace(' ', '-')}.png")


def json_line(figures: dict[str, float | int | str | None]) -> str:
    """Give the figures as one line of JSON; what could not be measured is null."""
    clean = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in figures.items()
    }
    return json.dumps(clean, allow_nan=False)


def main(argv: list[str] | None = None) -> int:
    """Run the evaluation and print its figures."""
    args = _parser().parse_args(argv)
    for name in ("clips", "stills", "long_s"):
        if (value := getattr(args, name)) is not None and value < 0:
            raise ConfigError(f"--{name.replace('_', '-')} must not be negative, got {value}")
    if 0 < args.long_s < SLICE_S:
        raise ConfigError(f"--long-s must be 0 or at least {SLICE_S}, got {args.long_s}")
    towers = load_towers(args.sync) if args.sync.exists() else None
    if towers is None:
        print("no sync score: make its network with `letstalk train sync`", file=sys.stderr)
    landmarker = Landmarker(landmarker_file(args.data, args.landmarker))
    models = EvaluationModels(landmarker, Identity().likeness, towers)
    pipeline = AvatarPipeline.load(
        args.preset,
        args.device,
        steps=args.steps,
        guidance=args.guidance,
        threads=args.threads,
        weights=args.weights,
    )
    clips = spread(load_clips(args.data, args.cache, "eval"), args.clips)
    if not clips:
        raise InputError("the data folder has no clip of the split `eval`; see docs/training.md")
    stills = still_portraits(pipeline, args.data, args.stills)
    findings = evaluate(pipeline, models, clips, stills, long_s=args.long_s)
    _tell(findings, args)
    return 0


def spread(clips: list[Clip], count: int | None) -> list[Clip]:
    """Give `count` clips evenly taken from the list, so that all kinds are among them."""
    if count is None or count >= len(clips):
        return clips
    return [clips[i] for i in np.linspace(0, len(clips) - 1, count).round().astype(int)]


def _tell(findings: EvaluationResult, args: argparse.Namespace) -> None:
    if args.samples:
        save_samples(findings, args.samples)
    if args.report:
        write_report(findings, args.report, pictures=args.pictures)
    for name, value in findings.figures.items():
        print(f"{name:28} {f'{value:.3f}' if isinstance(value, float) else value}")
    if args.json:
        print(json_line(findings.figures))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="letstalk eval", description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="the data folder")
    add("--cache", type=Path, default=Path("cache"), help="decoded frames")
    add("--preset", default="tiny")
    add("--weights", type=Path, help="weights file; the package's own if absent")
    add("--device", default="auto")
    add("--steps", type=int, help="sampler steps")
    add("--guidance", type=float, help="weight of the sound against none")
    add("--threads", type=int)
    add("--clips", "--limit", type=int, help="only N clips, evenly taken from all")
    add("--stills", type=int, default=8, help="held-out portraits that speak (%(default)s)")
    add("--long-s", type=int, default=600, help="length of the long run, 0 to skip (%(default)s)")
    add("--sync", type=Path, default=Path("runs/sync/best.pt"),
        help="network of the sync score, from `letstalk train sync` (%(default)s)")  # fmt: skip
    add("--landmarker", type=Path, help="face_landmarker.task")
    add("--report", type=Path, metavar="FILE.html", help="report with plots and pictures")
    add(
        "--no-pictures",
        dest="pictures",
        action="store_false",
        help="leave the faces of the data folder out of the report",
    )
    add("--samples", type=Path, help="folder for contact sheets")
    add("--json", action="store_true", help="one JSON document as the last line")
    return parser
