"""Trains `ReferenceAutoencoder` on pairs of frames of one clip, and on still portraits.

One frame of a pair plays the portrait, the other is to be rebuilt from its latent. Stills give
pairs of one picture, moved in two ways: they bring two thousand more people.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from letstalk_rt.models.autoencoder.reference import ReferenceAutoencoder
from letstalk_rt.training.critic import Critic
from letstalk_rt.training.data.dataset import Clip, Stills
from letstalk_rt.training.data.pairs import PairSource
from letstalk_rt.training.evaluation.reconstruction import evaluate_reconstruction, save_samples
from letstalk_rt.training.loop import LoopConfig, Run
from letstalk_rt.training.stages.autoencoder_loss import (
    AutoencoderLoss,
    autoencoder_loss,
    heat_loss,
)


def fit_landmarks(
    model: ReferenceAutoencoder,
    source: PairSource,
    folder: Path,
    steps: int = 500,
    device: str = "cpu",
) -> None:
    """Teach the encoder landmarks alone, fast, before there is a picture to make.

    With the whole loss from the start the landmarks stay at their mean for a thousand steps, and
    the warp with them.
    """
    parts = nn.ModuleDict({"encoder": model.encoder, "read": model.read_points})
    config = LoopConfig(steps=steps, learning_rate=1e-3, warm_up=40, ema=0.98, device=device)
    run = Run(folder, parts, config)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        frames, points = (part.to(run.device) for part in source.draw(run.generator))
        with torch.autocast(frames.device.type, torch.bfloat16):
            latents, heat = model.encode_with_heatmaps(frames)
        read = model.decode_landmarks(latents + 0.1 * torch.randn_like(latents))
        error = (read - points).abs().mean()
        return heat_loss(heat.flatten(0, 1), points.flatten(0, 1)) + 20 * error, {
            "points": float(error.detach())
        }

    parts.load_state_dict(run.train(loss).state_dict())


def train_autoencoder(
    clips: list[Clip],
    stills: Stills,
    held_out: list[Clip],
    folder: Path,
    config: LoopConfig,
    *,
    batch_size: int = 8,
    weights: AutoencoderLoss | None = None,
    started: dict[str, Tensor] | None = None,
    fixed_latents: bool = False,
    critic: bool = False,
) -> nn.Module:
    """Train the autoencoder, or go on with it, and give the averaged model.

    Args:
        clips: of the train split.
        stills: of the train split.
        held_out: clips of other people, for the log and sample pictures; never trained on.
        folder: of the run.
        config: schedule.
        batch_size: pairs a step.
        weights: of the loss.
        started: weights of a trained autoencoder to go on from.
        fixed_latents: the latents of `started` must not change, as a denoiser lives on them: the
            encoder stays, reference encoder and decoder go on.
        critic: train a patch discriminator on mouth and eyes beside it.
    """
    assert started is not None or not fixed_latents
    torch.manual_seed(0)
    weights = weights or AutoencoderLoss()
    source = PairSource(clips, stills, batch_size)
    model = ReferenceAutoencoder()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if started is None:
        model.set_mean_landmarks(source.mean_points())
        fit_landmarks(model, source, folder / "landmarks", device=config.device)
    else:
        model.load_state_dict(started)
        model.encoder.requires_grad_(not fixed_latents)
        model.read_points.requires_grad_(not fixed_latents)
    judge = Critic(torch.device(config.device)) if critic else None
    run = Run(folder, model, config, {"critic": judge} if judge else {})

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        frames, points = (part.to(run.device) for part in source.draw(run.generator))
        maturity = 1.0 if started else min(1.0, step / 1500)
        return autoencoder_loss(model, frames, points, weights, maturity, judge)

    def evaluate(averaged: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(averaged, ReferenceAutoencoder)
        save_samples(averaged, held_out[::4], folder / f"samples-{step:06d}")
        return evaluate_reconstruction(averaged, held_out, every=40)

    return run.train(loss, evaluate if held_out else None)
