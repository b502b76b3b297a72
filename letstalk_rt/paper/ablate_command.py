"""The stage `ablate` of `letstalk train`: what noise and patch drop of the memory are worth."""

import argparse
from functools import partial

import torch

from letstalk_rt.paper.ablation import measure_rollout, train_variants, write_table
from letstalk_rt.paper.items import PaperSource
from letstalk_rt.paper.train_command import load_parts, prepare_denoiser, split_clips
from letstalk_rt.paper.training import PaperBatch
from letstalk_rt.training.distributed import is_main_process
from letstalk_rt.training.loop import LoopConfig


def run_ablate(args: argparse.Namespace, loop: LoopConfig, batch: int) -> None:
    """Train all variants on the same data and write `ablate/table.json` and `ablate/table.md`."""
    parts = load_parts(args)
    kept, validation = split_clips(parts)
    source = PaperSource(list(kept.values()), parts.preset.denoiser)

    def draw(generator: torch.Generator) -> PaperBatch:
        return PaperBatch(**source.draw(batch, generator))

    folder, seeds = args.runs / "ablate", range(args.seed, args.seed + args.seeds)
    trained = train_variants(
        parts.preset, draw, folder, loop, seeds, partial(prepare_denoiser, args)
    )
    if not is_main_process():
        return
    steps = args.sampling_steps
    measured = {
        which: measure_rollout(model, parts.autoencoder, list(validation.values()), steps)
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
