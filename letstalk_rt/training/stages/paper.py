"""Training of LetsTalk as published, without the faults of the published code.

Denoiser and audio projector are one module here, so the optimiser and the average have both. The
memory is noised by the first 50 of 1000 steps and loses a quarter of its places, drawn for each
item. Autoencoder and speech model are frozen: items come as latents and speech features.

Source: LetsTalk, arXiv:2411.16748, and its public code; picture noise: Stable Video Diffusion,
arXiv:2311.15127.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from letstalk_rt.errors import InputError
from letstalk_rt.models.memory import regularize_memory
from letstalk_rt.models.paper.denoiser import PaperModel
from letstalk_rt.models.paper.diffusion import Diffusion
from letstalk_rt.training.loop import LoopConfig, Run

PUBLISHED_LOOP = LoopConfig(
    steps=300_000,
    learning_rate=1e-4,
    warm_up=1,
    final_rate=1.0,
    weight_decay=0.0,
    clip=0.1,
    ema=0.9999,
)
"""Constant rate, no weight decay; gradients are clipped from the start, not from step 20,000 on."""


@dataclass(frozen=True)
class PaperBatch:
    """Items of training; latents have unit variance.

    Attributes:
        features: speech features `(B, T, layers, width)`.
        portrait: latents `(B, C, h, w)`; of a picture with `noisy_pictures` noise.
        clip: latents `(B, T, C, h, w)`.
        memory: latents of the frames before the clip `(B, f, C, h, w)`, likewise; clean.
    """

    features: Tensor
    portrait: Tensor
    clip: Tensor
    memory: Tensor

    def to(self, device: torch.device) -> "PaperBatch":
        """Give the same items on a device."""
        return PaperBatch(*(getattr(self, f.name).to(device) for f in fields(self)))


def noisy_pictures(pictures: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Noise portraits and memory frames `(B, ..., 3, H, W)` before they are encoded.

    The deviation is drawn per item: the exponential of a normal of mean -3 and deviation 0.5.
    """
    each = torch.randn(len(pictures), generator=generator) * 0.5 - 3
    sigma = each.exp().to(pictures).view(-1, *[1] * (pictures.ndim - 1))
    return pictures + sigma * torch.randn(pictures.shape, generator=generator).to(pictures)


def paper_loss(
    model: PaperModel,
    diffusion: Diffusion,
    batch: PaperBatch,
    generator: torch.Generator,
    *,
    drop_speech: float = 0.0,
) -> tuple[Tensor, dict[str, float]]:
    """Give the hybrid loss of a batch and its parts.

    Args:
        model: in train mode.
        diffusion: with all its steps.
        batch: on the model's device.
        generator: source of chance, on any device.
        drop_speech: share of items that hear zeros; guidance needs some, published is none.

    Raises:
        InputError: wrong shape or type, or NaN.
    """
    clip, where = batch.clip, generator.device
    count, device = len(clip), clip.device
    index = torch.randint(diffusion.num_steps, (count,), generator=generator, device=where)
    index = index.to(device)
    tokens = model.projector(batch.features)
    model.denoiser.check(
        clip, diffusion.times(index), tokens, batch.portrait, batch.memory, finite=True
    )
    dropped = torch.rand(count, 1, 1, 1, generator=generator, device=where) < drop_speech
    tokens = tokens.masked_fill(dropped.to(device), 0.0)
    memory = regularize_memory(batch.memory, generator, diffusion=True)
    noise = torch.randn(clip.shape, generator=generator, device=where).to(device)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        predicted: Tensor = model.denoiser(x, t, tokens, batch.portrait, memory)
        return predicted

    losses = diffusion.loss(denoise, clip, index, noise)
    parts = {name: value.mean() for name, value in losses.items()}
    seen = {name: float(value.detach()) for name, value in parts.items()}
    return parts["noise"] + parts["variance"], seen


def train_paper_model(
    model: PaperModel,
    draw: Callable[[torch.Generator], PaperBatch],
    folder: Path,
    config: LoopConfig = PUBLISHED_LOOP,
    *,
    drop_speech: float = 0.0,
) -> PaperModel:
    """Train a model, or go on, and give the average of its weights.

    Args:
        model: denoiser and projector.
        draw: makes a batch from a source of chance.
        folder: of the run.
        config: schedule.
        drop_speech: see `paper_loss`.

    Raises:
        InputError: `drop_speech` is no share, or a batch cannot be used.
    """
    if not 0 <= drop_speech < 1:
        raise InputError(f"drop_speech must be from 0 to below 1, got {drop_speech}")
    diffusion, run = Diffusion(), Run(folder, model, config)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        batch = draw(run.generator).to(run.device)
        return paper_loss(model, diffusion, batch, run.generator, drop_speech=drop_speech)

    averaged = run.train(loss)
    assert isinstance(averaged, PaperModel)
    return averaged
