"""The door of this folder: what the commands of `letstalk` use of the published model.

`render`, `eval`, `train` and `train export` import this module and no other of the folder, and the
SDK not even this one. What does the work is imported when a command runs.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from letstalk_rt.errors import InputError
from letstalk_rt.paper import FAITHFUL

if TYPE_CHECKING:
    from letstalk_rt.training.data.dataset import Clip
    from letstalk_rt.training.evaluation.clips import EvaluationModels, EvaluationResult
    from letstalk_rt.training.loop import LoopConfig

STAGES = ("faithful", "ablate")
"""The stages of `letstalk train` that train this model."""

ABLATION_STEPS = 20_000
BATCH = 1
"""Items of a training step, as published."""


def is_faithful(preset: str) -> bool:
    """Return whether a preset's name is one of the published model."""
    return preset.startswith(FAITHFUL)


def image_size(preset: str) -> int:
    """Return height and width of a preset's frames, in pixels.

    Raises:
        ConfigError: There is no such preset.
    """
    from letstalk_rt.paper.presets import get_paper_preset

    return get_paper_preset(preset.removeprefix(FAITHFUL)).image_size


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `render` and `eval` that only these presets have."""
    group = parser.add_argument_group(
        "presets faithful-s, -b, -l, -xl and faithful-v1-s-2 to -xl-8 (the published model)"
    )
    add = group.add_argument
    add("--autoencoder", metavar="PLACE", help="folder or hub id of DC-AE f32c32; v1: SD-VAE")
    add("--wav2vec", metavar="PLACE", help="folder or hub id of wav2vec2-base")
    add("--sampler", choices=("ddpm", "ddim"), default="ddpm", help="(%(default)s, as published)")


def add_render_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `render`, whose usual presets have no guidance to choose."""
    add_sampling_options(parser)
    parser.add_argument(
        "--guidance",
        type=float,
        default=1.0,
        help="presets faithful-*: weight of the speech (%(default)s)",
    )


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the stages `faithful` and `ablate`."""
    group = parser.add_argument_group(f"the published model: {', '.join(STAGES)}")
    add = group.add_argument
    add(
        "--drop-speech",
        type=float,
        default=0.0,
        help="faithful: share of items without speech, which guidance needs (as published, 0)",
    )
    add("--compile", action="store_true", help="compile the blocks (torch.compile)")
    add(
        "--no-recompute",
        dest="recompute",
        action="store_false",
        help="keep all activations of a block; faster, and needs more memory",
    )
    add("--seeds", type=int, default=1, help="ablate: number of seeds, from --seed on")
    add("--sampling-steps", type=int, default=50, help="ablate: steps of DDIM (%(default)s)")


def training_loops() -> dict[str, "LoopConfig"]:
    """Return the usual settings of each stage."""
    from letstalk_rt.paper.training import PUBLISHED_LOOP

    return {"faithful": PUBLISHED_LOOP, "ablate": replace(PUBLISHED_LOOP, steps=ABLATION_STEPS)}


def train(args: argparse.Namespace, loop: "LoopConfig") -> None:
    """Run the stage that the arguments name."""
    from letstalk_rt.paper.ablate_command import run_ablate
    from letstalk_rt.paper.train_command import run_faithful

    {"faithful": run_faithful, "ablate": run_ablate}[args.stage](args, loop, args.batch or BATCH)


def render(
    options: argparse.Namespace, samples: np.ndarray, rate: int, size: list[int]
) -> Iterator[np.ndarray]:
    """Yield the frames of a whole utterance; write width and height into `size`.

    Raises:
        InputError: An option is missing, or the audio is empty.
    """
    from letstalk_rt.paper.render_command import render_faithful

    check_given(options)
    return render_faithful(options, samples, rate, size)


def evaluate(
    args: argparse.Namespace, models: "EvaluationModels", clips: Sequence["Clip"]
) -> "EvaluationResult":
    """Render clips from their first frames, and measure the videos.

    Raises:
        InputError: An option is missing, or no clip has audio.
    """
    from letstalk_rt.paper.evaluate_command import evaluate_faithful

    check_given(args)
    return evaluate_faithful(args, models, clips)


def trained_weights(runs: Path) -> Path:
    """Return the path of the file that the stage `faithful` writes, which is whole."""
    return runs / "faithful" / "model.safetensors"


def check_given(options: argparse.Namespace) -> None:
    """Check that the options name weights, autoencoder and speech model.

    Raises:
        InputError: One is missing.
    """
    for name in ("weights", "autoencoder", "wav2vec"):
        if getattr(options, name) is None:
            raise InputError(f"preset {options.preset!r} needs --{name}; see docs/paper.md")
