"""`letstalk train`: trains the model in stages; run a stage again to resume it.

The order is autoencoder, and phones -> audio; then flow -> distill, which need both; the presets b
and l need only flow -> distill. decoder continues the training of the autoencoder's decoder, with a
critic; the latents that flow was trained on stay as they are. motion trains the denoiser of the
motion of the whole face, after flow; landmarks, after motion, adds the condition by which the
denoiser generates lower faces of films. eyes needs a trained autoencoder; detector, painter,
refiner and pose may run at any time. faithful trains the published model and needs no other stage;
ablate trains it with and without noise and patch drop of the memory and writes one table. export
joins all stages into one weights file. sync is separate: it trains the network of the sync score
for `letstalk eval`.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from letstalk_rt.cli.export import (
    averaged,
    base_model,
    chosen_preset,
    export,
    given_weights,
    part_of,
)
from letstalk_rt.cli.train_flow import run_distill, run_flow, run_landmarks
from letstalk_rt.cli.train_motion import train_motion_stage
from letstalk_rt.errors import ConfigError, InputError
from letstalk_rt.inference.devices import choose_device
from letstalk_rt.models.audio_encoder.causal import AudioEncoderConfig
from letstalk_rt.models.autoencoder.mouth_painter import SMALL_PAINTER
from letstalk_rt.models.loading import load_model
from letstalk_rt.models.parts import MOUTH_PAINTER
from letstalk_rt.models.presets import DCAutoencoderConfig, get_preset
from letstalk_rt.paper import commands as paper
from letstalk_rt.training.data.dataset import (
    Clip,
    landmarker_file,
    load_clips,
    load_stills,
    tags_with,
)
from letstalk_rt.training.data.mouth_crops import MouthCrops, load_mouth_crops
from letstalk_rt.training.distributed import (
    destroy_process_group,
    init_process_group,
    is_main_process,
)
from letstalk_rt.training.evaluation.sync import train_sync
from letstalk_rt.training.loop import LoopConfig, Precision
from letstalk_rt.training.stages.audio_encoder import (
    split_by_source,
    train_audio,
)
from letstalk_rt.training.stages.autoencoder import train_autoencoder
from letstalk_rt.training.stages.eye_motion import fit_eye_motion
from letstalk_rt.training.stages.eye_painter import train_eye_painter
from letstalk_rt.training.stages.face_detector import train_face_detector
from letstalk_rt.training.stages.lip_refiner import train_lip_refiner
from letstalk_rt.training.stages.mouth_painter import train_mouth_painter
from letstalk_rt.training.stages.mouth_painter_distill import distill_mouth_painter
from letstalk_rt.training.stages.phones import load_phones, train_phones
from letstalk_rt.training.stages.pose_reader import train_pose_reader

LOOPS = {
    "autoencoder": LoopConfig(steps=6000, learning_rate=3e-4),
    "decoder": LoopConfig(steps=4000, learning_rate=4e-4, warm_up=100, ema=0.998),
    "phones": LoopConfig(
        steps=1500, learning_rate=1e-3, warm_up=50, ema=0.99, evaluate_every=250, weight_decay=0.05
    ),
    "audio": LoopConfig(
        steps=1200, learning_rate=6e-4, warm_up=50, ema=0.99, evaluate_every=100, weight_decay=0.05
    ),
    "flow": LoopConfig(
        steps=6000,
        learning_rate=4e-4,
        warm_up=100,
        ema=0.997,
        evaluate_every=250,
        weight_decay=0.02,
    ),
    "distill": LoopConfig(
        steps=2000, learning_rate=1e-4, warm_up=50, ema=0.995, evaluate_every=250, weight_decay=0.02
    ),
    "landmarks": LoopConfig(
        steps=2000, learning_rate=2e-3, warm_up=50, ema=0.99, evaluate_every=250, weight_decay=0.01
    ),
    "motion": LoopConfig(
        steps=6000,
        learning_rate=1e-3,
        warm_up=100,
        ema=0.998,
        evaluate_every=500,
        weight_decay=0.05,
    ),
    "detector": LoopConfig(steps=2000, learning_rate=1e-3, warm_up=50, ema=0.995),
    "refiner": LoopConfig(
        steps=3000, learning_rate=2e-3, warm_up=100, ema=0.997, evaluate_every=500
    ),
    "eyes": LoopConfig(
        steps=5000,
        learning_rate=4e-4,
        warm_up=100,
        betas=(0.5, 0.99),
        weight_decay=0.0,
        ema=0.995,
        evaluate_every=500,
    ),
    "pose": LoopConfig(
        steps=1200, learning_rate=2e-3, warm_up=60, ema=0.98, evaluate_every=200, weight_decay=0.05
    ),
    "painter": LoopConfig(
        steps=12000, learning_rate=3e-4, warm_up=100, ema=0.998, evaluate_every=500
    ),
    "sync": LoopConfig(
        steps=1500, learning_rate=1e-3, warm_up=50, ema=0.99, evaluate_every=150, weight_decay=0.1
    ),
    **paper.training_loops(),
}
DISTILLED_PAINTER = LoopConfig(
    steps=6000, learning_rate=1e-3, warm_up=100, ema=0.998, weight_decay=0.0, evaluate_every=500
)
"""Of the stage `painter` with --distill."""

HALF = ("distill", *paper.STAGES)
"""Stages whose loss holds in bfloat16 as a whole; others choose the parts of theirs."""

BATCH = {
    "autoencoder": 8,
    "decoder": 8,
    "phones": 24,
    "audio": 24,
    "flow": 32,
    "distill": 32,
    "landmarks": 32,
    "motion": 32,
    "detector": 32,
    "refiner": 32,
    "eyes": 12,
    "pose": 8,
    "painter": 16,
    "sync": 24,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="letstalk train", description=__doc__)
    parser.add_argument("stage", choices=[*LOOPS, "export"])
    parser.add_argument("--data", type=Path, required=True, help="the data folder")
    parser.add_argument(
        "--lab",
        action="store_true",
        help="also train on clips with the tag lab: their licence may not allow distributing the "
        "weights",
    )
    parser.add_argument(
        "--cache", type=Path, default=Path("cache"), help="folder of decoded frames"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    parser.add_argument("--steps", type=int, help="training steps of this stage")
    parser.add_argument("--rate", type=float, help="peak learning rate")
    parser.add_argument("--batch", type=int, help="batch size")
    parser.add_argument(
        "--save-every-s", type=float, help="seconds between two checkpoints (default: the stage's)"
    )
    parser.add_argument(
        "--keep",
        type=int,
        help="number of checkpoints to keep; the newest is last.pt (default: the stage's)",
    )
    parser.add_argument(
        "--evaluate-every", type=int, help="steps between two evaluations (default: the stage's)"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--start",
        type=Path,
        help="autoencoder, decoder, phones, flow, painter: run folder with the initial weights",
    )
    parser.add_argument(
        "--distill",
        action="store_true",
        help="painter: train a small one, in the folder small-painter, on the results of a trained "
        "one",
    )
    parser.add_argument(
        "--ablate",
        action="store_true",
        help="landmarks, presets b and l: train with all conditions and without each of them, and "
        "write the errors into one table; nothing is kept",
    )
    parser.add_argument(
        "--surroundings",
        action="store_true",
        help="flow: train the denoiser of --start on the background motion only",
    )
    parser.add_argument(
        "--autoencoder",
        help="folder or hub id: presets b, l, faithful: DC-AE f32c32; faithful-v1-*: SD-VAE",
    )
    parser.add_argument(
        "--wav2vec",
        help="faithful, flow of b-wav2vec2 and l-wav2vec2: folder or hub id of the base model",
    )
    parser.add_argument("--landmarker", type=Path, help="face_landmarker.task for stills")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument(
        "--lookahead-ms",
        type=int,
        help="look-ahead of the audio encoder: 0, 40, 80 or 160; the same in all stages from "
        "phones to export (default: the preset's, 80)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="flow, motion, landmarks, faithful: seed of the initial weights",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        help="decoder, motion, landmarks, eyes, export: weights file with the parts of stages that "
        "have not run; painter --distill: with its teacher (the packaged weights)",
    )
    parser.add_argument("-o", "--output", type=Path, help="export: weights file to write")
    half = parser.add_argument_group(f"the stages {', '.join(HALF)}")
    half.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="auto: bfloat16 on a GPU, and on a CPU with AMX",
    )
    half.add_argument(
        "--accumulate", type=int, default=1, help="batches whose gradients make one step"
    )
    paper.add_training_options(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one training stage to its end."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    init_process_group(args.device)
    {
        "autoencoder": _autoencoder,
        "decoder": _autoencoder,
        "phones": _phones,
        "audio": _audio,
        "flow": lambda args: run_flow(args, _loop(args), args.batch or BATCH["flow"]),
        "distill": lambda args: run_distill(args, _loop(args), args.batch or BATCH["distill"]),
        "landmarks": lambda args: run_landmarks(
            args, _loop(args), args.batch or BATCH["landmarks"]
        ),
        **dict.fromkeys(paper.STAGES, lambda args: paper.train(args, _loop(args))),
        "motion": _motion,
        "detector": _detector,
        "refiner": _refiner,
        "eyes": _eyes,
        "pose": _pose,
        "painter": _painter,
        "sync": _sync,
        "export": export,
    }[args.stage](args)
    destroy_process_group()
    return 0


def _clips(args: argparse.Namespace) -> list[Clip]:
    return load_clips(args.data, args.cache, "train", tags=tags_with(args.lab))


def _encoder(args: argparse.Namespace) -> AudioEncoderConfig:
    audio = chosen_preset(args).audio
    if not isinstance(audio, AudioEncoderConfig):
        raise ConfigError(
            f"preset {args.preset!r} hears by wav2vec 2.0 and needs neither stage 'phones' nor "
            "'audio': run stage 'flow' with --wav2vec"
        )
    return audio


def _with_blendshapes(clips: list[Clip]) -> list[Clip]:
    """Return the clips, whose blendshapes are targets of a stage.

    Raises:
        InputError: Some were prepared without.
    """
    lacking = [clip.name for clip in clips if not clip.has_blendshapes]
    if lacking:
        raise InputError(
            f"{len(lacking)} clips have no blendshapes, which this stage learns, first "
            f"{lacking[0]!r}; prepare them with --landmarks mediapipe"
        )
    return clips


def _loop(args: argparse.Namespace, usual: LoopConfig | None = None) -> LoopConfig:
    """Return the stage's settings, or the usual ones, with what was chosen."""
    given = {
        "steps": args.steps,
        "learning_rate": args.rate,
        "save_every_s": args.save_every_s,
        "keep": args.keep,
        "evaluate_every": args.evaluate_every,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    device = choose_device(args.device).type
    config = replace(usual or LOOPS[args.stage], device=device, **chosen)
    if args.stage in HALF:
        return replace(config, precision=_precision(args, device), accumulate=args.accumulate)
    if args.accumulate != 1 or args.precision != "auto":
        raise ConfigError(
            f"--precision and --accumulate are for the stages {', '.join(HALF)}, not {args.stage!r}"
        )
    return config


def _precision(args: argparse.Namespace, device: str) -> Precision:
    if args.precision != "auto":
        chosen: Precision = args.precision
        return chosen
    fast = device == "cuda" or getattr(torch.cpu, "_is_amx_tile_supported", bool)()
    return "bfloat16" if fast else "float32"


def _autoencoder(args: argparse.Namespace) -> None:
    fixed = args.stage == "decoder"
    shape = get_preset(args.preset).autoencoder
    if isinstance(shape, DCAutoencoderConfig):
        raise ConfigError(
            f"preset {args.preset!r} uses DC-AE, which is not trained here; use preset 'tiny'"
        )
    initial_weights = None
    if args.start:
        initial_weights = averaged(args.start)
    elif fixed and args.weights:
        initial_weights = part_of(given_weights(args), "autoencoder")
    elif fixed:
        initial_weights = averaged(args.runs / "autoencoder")
    train_autoencoder(
        _clips(args),
        load_stills(args.data, args.cache, "train", landmarker_file(args.data, args.landmarker)),
        load_clips(args.data, args.cache, "eval"),
        args.runs / args.stage,
        _loop(args),
        batch_size=args.batch or BATCH[args.stage],
        shape=shape,
        initial_weights=initial_weights,
        freeze_latents=fixed,
        critic=fixed,
    )


def _phones(args: argparse.Namespace) -> None:
    shape = _encoder(args)
    train_phones(
        load_phones(args.data, args.cache),
        args.runs / "phones",
        _loop(args),
        batch_size=args.batch or BATCH["phones"],
        encoder=shape,
        initial_weights=part_of(averaged(args.start), "audio") if args.start else None,
    )


def _audio(args: argparse.Namespace) -> None:
    shape = _encoder(args)
    clips = _with_blendshapes(_clips(args))
    kept, validation = split_by_source(clips)
    train_audio(
        kept,
        validation,
        args.runs / "audio",
        _loop(args),
        batch_size=args.batch or BATCH["audio"],
        initial_weights=part_of(averaged(args.runs / "phones"), "audio"),
        encoder=shape,
    )


def _motion(args: argparse.Namespace) -> None:
    face = base_model(args, given_weights(args)).face
    if face is None:
        raise ConfigError(f"preset {args.preset!r} has no landmarks; choose 'tiny'")
    batch_size = args.batch or BATCH["motion"]
    clips, held_out = split_by_source(_with_blendshapes(_clips(args)))
    train_motion_stage(args, clips, held_out, _loop(args), batch_size, face.autoencoder)


def _detector(args: argparse.Namespace) -> None:
    train_face_detector(
        _clips(args),
        load_stills(args.data, args.cache, "train", landmarker_file(args.data, args.landmarker)),
        args.runs / "detector",
        _loop(args),
        batch_size=args.batch or BATCH["detector"],
    )


def _refiner(args: argparse.Namespace) -> None:
    landmarker = landmarker_file(args.data, args.landmarker)
    refiner = train_lip_refiner(
        _clips(args),
        load_stills(args.data, args.cache, "train", landmarker),
        load_mouth_crops(args.data, args.cache, "train", landmarker),
        args.runs / "refiner",
        _loop(args),
        batch_size=args.batch or BATCH["refiner"],
    )
    if is_main_process():
        torch.save(refiner.state_dict(), args.runs / "refiner" / "model.pt")


def _eyes(args: argparse.Namespace) -> None:
    face, clips = base_model(args, given_weights(args)).face, _clips(args)
    if face is None:
        raise ConfigError(f"preset {args.preset!r} has no landmarks; choose 'tiny'")
    painter = train_eye_painter(
        clips, args.runs / "eyes", _loop(args), batch_size=args.batch or BATCH["eyes"]
    )
    if is_main_process():
        painter.from_landmarks.copy_(fit_eye_motion(face.autoencoder, clips))
        torch.save(painter.state_dict(), args.runs / "eyes" / "model.pt")


def _pose(args: argparse.Namespace) -> None:
    reader = train_pose_reader(
        _clips(args),
        load_stills(args.data, args.cache, "train", landmarker_file(args.data, args.landmarker)),
        args.runs / "pose",
        _loop(args),
        batch_size=args.batch or BATCH["pose"],
    )
    if is_main_process():
        torch.save(reader.state_dict(), args.runs / "pose" / "model.pt")


def _painter(args: argparse.Namespace) -> None:
    if args.distill:
        _distilled_painter(args)
        return
    preset = get_preset(args.preset)
    if MOUTH_PAINTER.name not in preset.parts:
        raise ConfigError(f"preset {args.preset!r} has no mouth painter; use preset 'tiny'")
    train_mouth_painter(
        _mouths(args),
        args.runs / "painter",
        _loop(args),
        batch_size=args.batch or BATCH["painter"],
        painter=preset.mouth_painter,
        initial_weights=averaged(args.start) if args.start else None,
    )


def _distilled_painter(args: argparse.Namespace) -> None:
    """Train a small mouth painter on the results of the one in a weights file."""
    teacher = load_model(args.preset, args.weights).part(MOUTH_PAINTER)
    distill_mouth_painter(
        _mouths(args),
        args.runs / "small-painter",
        _loop(args, DISTILLED_PAINTER),
        batch_size=args.batch or BATCH["painter"],
        teacher=teacher,
        student=replace(SMALL_PAINTER, bank=teacher.config.bank),
        initial_weights=averaged(args.start) if args.start else None,
    )


def _mouths(args: argparse.Namespace) -> MouthCrops:
    landmarker = landmarker_file(args.data, args.landmarker)
    return load_mouth_crops(args.data, args.cache, "train", landmarker)


def _sync(args: argparse.Namespace) -> None:
    kept, validation = split_by_source(_clips(args))
    train_sync(
        kept, validation, args.runs / "sync", _loop(args), batch_size=args.batch or BATCH["sync"]
    )


if __name__ == "__main__":
    raise SystemExit(main())
