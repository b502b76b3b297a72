"""`letstalk eval`: evaluates the packaged model on people who are not in the training data.

It measures reconstruction through the latent; generation by the streaming pipeline, of clips from
their first frame and of still portraits; silence; a run of ten minutes; speed. Faces are measured
by independent networks (MediaPipe, SFace), not by the model's own. Metrics of audio have a control
with the audio of another clip, and metrics that apply to real video are given for it too.
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
from letstalk_rt.models.parts import MOTION, MOUTH_PAINTER
from letstalk_rt.models.presets import DCAutoencoderConfig, get_preset
from letstalk_rt.paper import commands as paper
from letstalk_rt.training.data.dataset import (
    FRAME_SIZE,
    Clip,
    Landmarker,
    landmarker_file,
    load_clips,
    tags_with,
)
from letstalk_rt.training.evaluation.clips import (
    EvaluationModels,
    EvaluationResult,
    evaluate_clips,
)
from letstalk_rt.training.evaluation.dubbing import DUBBED_FRAMES, evaluate_dubbing
from letstalk_rt.training.evaluation.identity import IDENTITY_NETWORK, Identity
from letstalk_rt.training.evaluation.image_quality import evaluate_ssim
from letstalk_rt.training.evaluation.latent_drift import PART_S, measure_latent_drift
from letstalk_rt.training.evaluation.long_run import (
    SLICE_S,
    large_portrait,
    long_speech,
    measure_speed,
    run_long,
)
from letstalk_rt.training.evaluation.performance import LEAST_S, evaluate_performance
from letstalk_rt.training.evaluation.portraits import (
    closed_portraits,
    evaluate_diversity,
    evaluate_parted_lips,
    evaluate_silence,
    evaluate_stills,
    still_portraits,
)
from letstalk_rt.training.evaluation.published import (
    PublishedMetrics,
    PublishedSync,
    ScriptDistance,
    ScriptFeatures,
    identity_of,
)
from letstalk_rt.training.evaluation.reconstruction import (
    evaluate_pairs,
    evaluate_reconstruction,
    frames_tensor,
    resized,
)
from letstalk_rt.training.evaluation.report import write_report
from letstalk_rt.training.evaluation.rollout import Sampling
from letstalk_rt.training.evaluation.sync import calibrate, load_towers
from letstalk_rt.training.evaluation.whole_face import MotionTracker
from letstalk_rt.training.evaluation.whole_face_videos import (
    FRAMES,
    LEAST_FRAMES,
    WITHOUT,
    evaluate_whole_face,
)
from letstalk_rt.types import Portrait


def evaluate(
    pipeline: AvatarPipeline,
    models: EvaluationModels,
    clips: list[Clip],
    stills: list[tuple[str, Portrait]],
    *,
    long_s: int = 0,
) -> EvaluationResult:
    """Evaluate a model on people who are not in its training data.

    Args:
        pipeline: the model.
        models: networks that measure its videos.
        clips: clips of the eval split.
        stills: names and portraits of the eval split; may be empty.
        long_s: length of the long run in seconds; 0 skips it.
    """
    result = EvaluationResult()
    autoencoder, painter = pipeline.model.autoencoder, pipeline.model.get(MOUTH_PAINTER)
    result.figures |= evaluate_reconstruction(autoencoder, clips, painter=painter)
    result.figures |= evaluate_ssim(autoencoder, clips, painter=painter)
    result.figures |= evaluate_pairs(autoencoder, clips, painter=painter)
    evaluate_clips(pipeline, models, clips, result)
    if models.towers is not None:
        found = calibrate(models.towers, [c for c in clips if c.has_audio and c.kind == "real"])
        result.figures |= {k: found[k] for k in ("sync_found", "sync_found_shifted")}
    if stills:
        evaluate_stills(pipeline, models, stills, clips, result)
    at_rest = closed_portraits(clips) + [portrait for _, portrait in stills]
    evaluate_silence(pipeline, models, at_rest, result)
    evaluate_parted_lips(pipeline, models, clips, stills, result)
    evaluate_diversity(pipeline, models, clips, result)
    result.figures["drift"] = None
    shown = stills[0][1] if stills else large_portrait(np.asarray(clips[0].frames[0]))
    if long_s:
        run_long(pipeline, models, shown, clips, long_s, result)
        result.figures |= _latent_drift(pipeline, clips, long_s)
    else:
        result.figures |= measure_speed(pipeline, shown, clips)
    result.figures |= {
        "steps": pipeline.steps,
        "guidance": pipeline.guidance,
        "preset": pipeline.model.preset.name,
        "size_px": clips[0].size_px,
    }
    return result


def _latent_drift(pipeline: AvatarPipeline, clips: list[Clip], long_s: int) -> dict[str, float]:
    """Return the drift of latents over the long run; none of a model that moves faces by code."""
    if pipeline.model.get(MOTION) is not None or long_s < 2 * PART_S:
        return {}
    sampling = Sampling(pipeline.steps, pipeline.guidance)
    pcm, _ = long_speech(clips, long_s)
    image = resized(frames_tensor(clips[0], [0]), pipeline.model.autoencoder.image_size)
    return measure_latent_drift(pipeline.model, image, pcm, sampling)


def save_samples(result: EvaluationResult, folder: Path) -> None:
    """Write the contact sheets as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    mouths = [(f"mouths-{name}", sheet) for name, sheet in result.mouths]
    for name, sheet in result.sheets + mouths:
        Image.fromarray(sheet).save(folder / f"{name.replace('/', '-').replace(' ', '-')}.png")


def json_line(figures: dict[str, float | int | str | None]) -> str:
    """Return the figures as one line of JSON; a figure that is not finite becomes null."""
    clean = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in figures.items()
    }
    return json.dumps(clean, allow_nan=False)


def main(argv: list[str] | None = None) -> int:
    """Run the evaluation and print its figures."""
    args = _parser().parse_args(argv)
    for name in ("clips", "stills", "long_s", "dub_frames"):
        if (value := getattr(args, name)) is not None and value < 0:
            raise ConfigError(f"--{name.replace('_', '-')} must not be negative, got {value}")
    if args.portraits < 1 or args.seconds < LEAST_S:
        raise ConfigError(
            f"--portraits must be at least 1 and --seconds at least {LEAST_S:g}, got "
            f"{args.portraits} and {args.seconds:g}"
        )
    if args.face_frames < LEAST_FRAMES:
        raise ConfigError(f"--face-frames must be at least {LEAST_FRAMES}, got {args.face_frames}")
    if 0 < args.long_s < SLICE_S:
        raise ConfigError(f"--long-s must be 0 or at least {SLICE_S}, got {args.long_s}")
    towers = load_towers(args.sync) if args.sync.exists() else None
    if towers is None:
        print("no sync score: train its network with `letstalk train sync`", file=sys.stderr)
    published = published_metrics(args)
    landmarker = Landmarker(landmarker_file(args.data, args.landmarker))
    models = EvaluationModels(landmarker, Identity().likeness, towers, published)
    tags, size_px = tags_with(args.lab), evaluated_size(args)
    clips = spread(
        load_clips(args.data, args.cache, "eval", tags=tags, size_px=size_px), args.clips
    )
    if not clips:
        raise InputError("the data folder has no clips of the split `eval`; see docs/training.md")
    if paper.is_faithful(args.preset):
        _write(paper.evaluate(args, models, clips), args)
        return 0
    pipeline = AvatarPipeline.load(
        args.preset,
        args.device,
        steps=args.steps,
        guidance=args.guidance,
        threads=args.threads,
        weights=args.weights,
    )
    if args.performance:
        stills = still_portraits(pipeline, args.data, args.portraits, size_px, args.portrait_size)
        _evaluate_performance(pipeline, stills, clips, args)
        return 0
    if args.only == "whole-face":
        _write(EvaluationResult(figures=dict(_whole_face(pipeline, clips, args))), args)
        return 0
    if args.dub:
        figures = evaluate_dubbing(pipeline, landmarker, clips, args.dub_frames, _note_clip)
        _write(EvaluationResult(figures=dict(figures)), args)
        return 0
    stills = still_portraits(pipeline, args.data, args.stills, size_px)
    result = evaluate(pipeline, models, clips, stills, long_s=args.long_s)
    if pipeline.model.face is not None:
        result.figures |= _whole_face(pipeline, clips, args)
    _write(result, args)
    return 0


def _whole_face(
    pipeline: AvatarPipeline, clips: list[Clip], args: argparse.Namespace
) -> dict[str, float]:
    """Return the figures of the whole face; see `evaluate_whole_face`."""
    tracker = MotionTracker(landmarker_file(args.data, args.landmarker))
    without = WITHOUT if args.without is None else args.without
    if args.only and args.without is None:
        without = []
    return evaluate_whole_face(pipeline, tracker, clips, without=without, frames=args.face_frames)


def _evaluate_performance(
    pipeline: AvatarPipeline,
    portraits: list[tuple[str, Portrait]],
    clips: list[Clip],
    args: argparse.Namespace,
) -> None:
    tracker = MotionTracker(landmarker_file(args.data, args.landmarker))
    figures, sheet = evaluate_performance(
        pipeline, tracker, portraits, clips, args.seconds, args.limit_s
    )
    _write(EvaluationResult(figures=dict(figures), sheets=[("moods", sheet)]), args)


def published_metrics(args: argparse.Namespace) -> PublishedMetrics | None:
    """Load the networks of published metrics that the options name; None without any.

    Raises:
        WeightsError: A file is missing, or not such a network.
    """
    networks = {
        "fid": args.inception,
        "fvd": args.i3d,
        "sync": args.syncnet,
        "e_fid": args.expression,
        "lpips": args.lpips,
    }
    if not any(networks.values()):
        return None
    return PublishedMetrics(
        args.inception and ScriptFeatures(args.inception, "inception"),
        args.i3d and ScriptFeatures(args.i3d, "i3d"),
        args.syncnet and PublishedSync(args.syncnet),
        args.expression and ScriptFeatures(args.expression, "expression"),
        args.lpips and ScriptDistance(args.lpips),
        {name: identity_of(path) for name, path in networks.items() if path},
    )


def evaluated_size(args: argparse.Namespace) -> int:
    """Return the side of the frames that are compared, in pixels: the model's, at least 256.

    A model that generates less is compared with what was filmed, not with what it cannot show.
    """
    if paper.is_faithful(args.preset):
        return max(FRAME_SIZE, paper.image_size(args.preset))
    shape = get_preset(args.preset).autoencoder
    return max(FRAME_SIZE, shape.image_size if isinstance(shape, DCAutoencoderConfig) else 0)


def spread(clips: list[Clip], count: int | None) -> list[Clip]:
    """Return `count` clips spaced evenly over the list, so that all kinds are included."""
    if count is None or count >= len(clips):
        return clips
    return [clips[i] for i in np.linspace(0, len(clips) - 1, count).round().astype(int)]


def _note_clip(name: str, row: dict[str, float]) -> None:
    """Write the figures of one clip to stderr."""
    print(name, json_line(dict(row)), file=sys.stderr, flush=True)


def _write(result: EvaluationResult, args: argparse.Namespace) -> None:
    if "identity" in result.figures:
        result.figures["identity_network"] = IDENTITY_NETWORK
    if args.samples:
        save_samples(result, args.samples)
    if args.report:
        write_report(result, args.report, pictures=args.pictures)
    for name, value in result.figures.items():
        print(f"{name:28} {f'{value:.3f}' if isinstance(value, float) else value}")
    if args.json:
        print(json_line(result.figures))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="letstalk eval", description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="the data folder")
    add("--cache", type=Path, default=Path("cache"), help="folder of decoded frames")
    add("--lab", action="store_true", help="also evaluate on clips with the tag lab")
    add("--preset", default="tiny")
    add("--weights", type=Path, help="weights file (default: the one of the package)")
    add("--device", default="auto")
    add("--steps", type=int, help="sampling steps")
    add("--guidance", type=float, help="weight of the audio condition")
    add("--threads", type=int)
    add("--clips", "--limit", type=int, help="number of clips, spaced evenly over all")
    add(
        "--stills",
        type=int,
        default=8,
        help="number of held-out portraits to animate (%(default)s)",
    )
    add(
        "--long-s",
        type=int,
        default=600,
        help="length of the long run in seconds; 0 skips it (%(default)s)",
    )
    add(
        "--dub",
        action="store_true",
        help="measure dubbing alone: filmed clips with their own sound and with another's",
    )
    add(
        "--dub-frames",
        type=int,
        default=DUBBED_FRAMES,
        help="with --dub: frames of each clip (%(default)s)",
    )
    add(
        "--performance",
        action="store_true",
        help="measure moods, gestures and listening alone, on held-out portraits",
    )
    add(
        "--portraits",
        type=int,
        default=4,
        help="with --performance: number of portraits (%(default)s)",
    )
    add(
        "--portrait-size",
        type=int,
        default=256,
        help="with --performance: longer side of the frames in pixels (%(default)s)",
    )
    add(
        "--seconds",
        type=float,
        default=10.0,
        help="with --performance: length of each video (%(default)s)",
    )
    add(
        "--limit-s",
        type=float,
        default=math.inf,
        help="with --performance: no portrait begins later than so many seconds",
    )
    add(
        "--only",
        choices=("whole-face",),
        help="measure the motion of the whole face alone, a few minutes for ten clips",
    )
    add(
        "--without",
        action="append",
        choices=WITHOUT,
        help="also generate without this part of the model; may be repeated (with --only: none)",
    )
    add(
        "--face-frames",
        type=int,
        default=FRAMES,
        help="frames of each clip in which the whole face is measured (%(default)s)",
    )
    add("--sync", type=Path, default=Path("runs/sync/best.pt"),
        help="network of the sync score, from `letstalk train sync` (%(default)s)")  # fmt: skip
    add("--inception", type=Path, metavar="FILE", help="TorchScript network, for FID")
    add("--i3d", type=Path, metavar="FILE", help="TorchScript network, for FVD")
    add("--syncnet", type=Path, metavar="FILE", help="TorchScript network, for Sync-C and Sync-D")
    add("--expression", type=Path, metavar="FILE", help="TorchScript network, for E-FID")
    add("--lpips", type=Path, metavar="FILE", help="TorchScript network, for LPIPS")
    add("--landmarker", type=Path, help="face_landmarker.task")
    add("--report", type=Path, metavar="FILE.html", help="report with plots and images")
    add(
        "--no-pictures",
        dest="pictures",
        action="store_false",
        help="omit the faces of the data folder from the report",
    )
    add("--samples", type=Path, help="folder for contact sheets")
    add("--json", action="store_true", help="print the figures as JSON in the last line")
    paper.add_sampling_options(parser)
    return parser
