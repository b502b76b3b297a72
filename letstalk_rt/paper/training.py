"""Trains LetsTalk as published, without the defects of the published training.

Denoiser and audio projector are one module, so that the optimiser and the average include both. The
memory gets noise of the first 50 of 1000 steps and loses a quarter of its positions, drawn for each
item. Autoencoder and speech model are frozen: items are latents and speech features.

Source: LetsTalk, arXiv:2411.16748, and its public code; image noise: Stable Video Diffusion,
arXiv:2311.15127.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn

from letstalk_rt.errors import InputError
from letstalk_rt.models.memory import DROP, MAX_NOISE, regularize_memory
from letstalk_rt.paper.denoiser import PaperModel
from letstalk_rt.paper.diffusion import Diffusion
from letstalk_rt.paper.items import noisy_images
from letstalk_rt.training.data.prefetch import Prefetch
from letstalk_rt.training.loop import LoopConfig, Run

__all__ = [
    "PUBLISHED_LOOP",
    "PaperBatch",
    "held_out_loss",
    "noisy_images",
    "paper_loss",
    "train_paper_model",
]

PUBLISHED_LOOP = LoopConfig(
    steps=300_000,
    learning_rate=1e-4,
    warm_up=1,
    final_rate=1.0,
    weight_decay=0.0,
    max_grad_norm=0.1,
    ema=0.9999,
    betas=(0.9, 0.999),
    evaluate_every=2500,
    save_every_s=900.0,
    keep=3,
)
"""Constant learning rate, no weight decay, AdamW's usual betas as published (our stages have 0.9
and 0.99); gradients are clipped from the start instead of from step 20,000 on."""


@dataclass(frozen=True)
class PaperBatch:
    """A batch of training items; latents have unit variance.

    Attributes:
        features: Speech features `(B, T, layers, width)`.
        portrait: Portrait latents `(B, C, h, w)`, encoded after `noisy_images`.
        clip: Latents of the clip `(B, T, C, h, w)`.
        memory: Clean latents of the frames before the clip `(B, f, C, h, w)`, encoded after
            `noisy_images`.
    """

    features: Tensor
    portrait: Tensor
    clip: Tensor
    memory: Tensor

    def to(self, device: torch.device) -> "PaperBatch":
        """Return the batch on a device."""
        return PaperBatch(*(getattr(self, f.name).to(device) for f in fields(self)))


@dataclass(frozen=True)
class MemoryRegularization:
    """How memory is corrupted in training; both on as published.

    Attributes:
        noise: Whether noise of the first 50 of 1000 steps is added.
        patch_drop: Whether a quarter of the positions is dropped.
    """

    noise: bool = True
    patch_drop: bool = True


PUBLISHED_MEMORY = MemoryRegularization()


def paper_loss(
    model: PaperModel,
    diffusion: Diffusion,
    batch: PaperBatch,
    generator: torch.Generator,
    *,
    drop_speech: float = 0.0,
    regularization: MemoryRegularization = PUBLISHED_MEMORY,
) -> tuple[Tensor, dict[str, float]]:
    """Return the hybrid loss of a batch and its parts.

    Args:
        model: The model in train mode.
        diffusion: The diffusion process with all its steps.
        batch: The batch on the model's device.
        generator: Random generator, on any device.
        drop_speech: Share of items whose audio tokens are zeros, which guidance needs; 0 as
            published.
        regularization: How memory is corrupted. The generator is advanced by the same amount
            whatever is on, so ablations see the same noise elsewhere.

    Raises:
        InputError: A tensor has the wrong shape or type, or holds NaN.
    """
    clip, source = batch.clip, generator.device
    count, device = len(clip), clip.device
    index = torch.randint(diffusion.num_steps, (count,), generator=generator, device=source)
    index = index.to(device)
    tokens = model.projector(batch.features)
    model.denoiser.check(
        clip, diffusion.times(index), tokens, batch.portrait, batch.memory, finite=True
    )
    dropped = torch.rand(count, 1, 1, 1, generator=generator, device=source) < drop_speech
    tokens = tokens.masked_fill(dropped.to(device), 0.0)
    memory = regularize_memory(
        batch.memory,
        generator,
        max_noise=MAX_NOISE if regularization.noise else 0.0,
        drop=DROP if regularization.patch_drop else 0.0,
        diffusion=True,
    )
    noise = torch.randn(clip.shape, generator=generator, device=source).to(device)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        predicted: Tensor = model.denoiser(x, t, tokens, batch.portrait, memory)
        return predicted

    losses = diffusion.loss(denoise, clip, index, noise)
    parts = {name: value.mean() for name, value in losses.items()}
    figures = {name: float(value.detach()) for name, value in parts.items()}
    return parts["noise"] + parts["variance"], figures


@torch.no_grad()
def held_out_loss(
    model: PaperModel,
    diffusion: Diffusion,
    items: Sequence[PaperBatch],
    regularization: MemoryRegularization = PUBLISHED_MEMORY,
) -> dict[str, float]:
    """Return the loss on items that are not trained on, and its parts, at fixed noise and times.

    Args:
        model: The model in eval mode.
        diffusion: The diffusion process with all its steps.
        items: Batches of one size.
        regularization: See `paper_loss`.
    """
    device = next(model.parameters()).device
    rows = []
    for number, batch in enumerate(items):
        generator = torch.Generator().manual_seed(number)
        loss, parts = paper_loss(
            model, diffusion, batch.to(device), generator, regularization=regularization
        )
        rows.append({"loss": float(loss), **parts})
    return {f"held_out_{name}": fmean(row[name] for row in rows) for name in rows[0]}


def train_paper_model(
    model: PaperModel,
    draw: Callable[[torch.Generator], PaperBatch],
    folder: Path,
    config: LoopConfig = PUBLISHED_LOOP,
    *,
    drop_speech: float = 0.0,
    regularization: MemoryRegularization = PUBLISHED_MEMORY,
    held_out: Sequence[PaperBatch] = (),
    evaluate: Callable[[nn.Module, int], dict[str, float]] | None = None,
) -> PaperModel:
    """Train a model and return the average of its weights.

    Args:
        model: Denoiser and projector.
        draw: Draws a batch with a random generator.
        folder: The run's folder.
        config: Schedule.
        drop_speech: See `paper_loss`.
        regularization: See `paper_loss`.
        held_out: Batches of items that are not trained on: the average with the lowest loss on them
            is kept as `best.pt` in the folder.
        evaluate: Called now and then with the averaged model and the number of steps; returns named
            figures for the log.

    Raises:
        InputError: `drop_speech` is out of range, or a batch has wrong tensors.
    """
    if not 0 <= drop_speech < 1:
        raise InputError(f"drop_speech must be at least 0 and below 1, got {drop_speech}")
    diffusion, run = Diffusion(), Run(folder, model, config)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        batch = batches(step).to(run.device)
        return paper_loss(
            model,
            diffusion,
            batch,
            run.noise,
            drop_speech=drop_speech,
            regularization=regularization,
        )

    def judge(averaged: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(averaged, PaperModel)
        figures = evaluate(averaged, step) if evaluate else {}
        if held_out:
            figures |= held_out_loss(averaged, diffusion, held_out, regularization)
            run.keep_if_best(-figures["held_out_loss"])
        return figures

    with Prefetch(draw, config.batches) as batches:
        averaged = run.train(loss, judge if held_out or evaluate else None, batches)
    assert isinstance(averaged, PaperModel)
    return averaged
