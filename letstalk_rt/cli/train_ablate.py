"""The stage `ablate` of `letstalk train`: what noise and patch drop of the memory are worth."""

import argparse

import torch

from letstalk_rt.cli.train_faithful import load_parts
from letstalk_rt.errors import InputError
from letstalk_rt.training.data.dataset import source_of
from letstalk_rt.training.data.paper_items import PaperClip, PaperSource
from letstalk_rt.training.distributed import is_main_process
from letstalk_rt.training.loop import LoopConfig
from letstalk_rt.training.stages.ablation import measure_rollout, train_variants, write_table
from letstalk_rt.training.stages.audio_encoder import held_out_sources
from letstalk_rt.training.stages.paper import PaperBatch


def run_ablate(args: argparse.Namespace, loop: LoopConfig, batch: int) -> None:
    """Train all variants on the same data and write `ablate/table.json` and `ablate/table.md`."""
    parts = load_parts(args)
    held_out = held_out_sources({source_of(row) for row in parts.rows})
    kept: list[PaperClip] = []
    validation: list[PaperClip] = []
    for row, clip in zip(parts.rows, parts.clips, strict=True):
        (validation if source_of(row) in held_out else kept).append(clip)
    if not kept or not validation:
        raise InputError(
            f"{len(kept)} clips to train on and {len(validation)} to measure with are too few: "
            "clips of at least two people are needed"
        )
    source = PaperSource(kept, parts.preset.denoiser)

    def draw(generator: torch.Generator) -> PaperBatch:
        return PaperBatch(**source.draw(batch, generator))

    folder, seeds = args.runs / "ablate", range(args.seed, args.seed + args.seeds)
    trained = train_variants(parts.preset, draw, folder, loop, seeds)
    if not is_main_process():
        return
    steps = args.sampling_steps
    measured = {
        which: measure_rollout(model, parts.autoencoder, validation, steps)
        for which, model in trained.items()
    }
    facts: dict[str, object] = {
        "preset": args.preset,
        "training steps": loop.steps,
        "batch": batch,
        "seeds": list(seeds),
        "sampling": f"DDIM, {steps} steps",
        "training clips": len(kept),
        "held-out clips": len(validation),
    }
    print(write_table(measured, facts, folder))
