"""Trains `ReferenceAutoencoder` on pairs of frames of one clip, and on still portraits.

One frame of a pair serves as the portrait; the other is reconstructed from its latent. A still
gives a pair of two random transforms of one image, which adds two thousand people.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from letstalk_rt.models.autoencoder.networks import AutoencoderConfig
from letstalk_rt.models.autoencoder.reference import ReferenceAutoencoder
from letstalk_rt.training.critic import Critic
from letstalk_rt.training.data.dataset import Clip, Stills
from letstalk_rt.training.data.pairs import PairSource
from letstalk_rt.training.evaluation.reconstruction import evaluate_reconstruction, save_samples
from letstalk_rt.training.loop import LoopConfig, Run
from letstalk_rt.training.stages.autoencoder_loss import (
    AutoencoderLossConfig,
    autoencoder_loss,
    heat_loss,
)

NEW_DECODER_STEPS = 400
"""Steps over which noise and penalties grow for a new decoder of a trained encoder."""


def load_fitting(model: ReferenceAutoencoder, weights: dict[str, Tensor]) -> bool:
    """Load the weights of an autoencoder; return whether its decoder is new.

    If the decoder has another shape, the model keeps its own, untrained decoder, and likewise the
    heads of the reference encoder, which serve the decoder.
    """
    own = model.state_dict()
    is_new = any(own[name].shape != value.shape for name, value in weights.items())
    if is_new:
        kept = {k: v for k, v in own.items() if k.startswith(("decoder.", "reference.heads."))}
        weights = weights | kept
    model.load_state_dict(weights)
    return is_new


def fit_landmarks(
    model: ReferenceAutoencoder,
    source: PairSource,
    folder: Path,
    steps: int = 500,
    device: str = "cpu",
) -> None:
    """Train the encoder on landmarks alone, before the decoder is trained.

    With the whole loss from the start, landmarks and warp stay at their mean for a thousand steps.
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
    shape: AutoencoderConfig | None = None,
    weights: AutoencoderLossConfig | None = None,
    initial_weights: dict[str, Tensor] | None = None,
    freeze_latents: bool = False,
    critic: bool = False,
) -> nn.Module:
    """Train the autoencoder, or continue its training, and return the averaged model.

    Args:
        clips: Clips of the train split.
        stills: Stills of the train split.
        held_out: Clips of other people, for the log and sample images; never trained on.
        folder: The run's folder.
        config: Schedule.
        batch_size: Pairs per step.
        shape: Widths of the autoencoder; the defaults when None.
        weights: Weights of the loss.
        initial_weights: Weights of a trained autoencoder to continue from. If its decoder has other
            widths, the decoder is trained from scratch.
        freeze_latents: Train the reference encoder and the decoder only, so that the latents, on
            which a denoiser was trained, stay the same. Needs `initial_weights`.
        critic: Train with a patch discriminator for mouth and eyes.
    """
    assert initial_weights is not None or not freeze_latents
    torch.manual_seed(0)
    weights = weights or AutoencoderLossConfig()
    source = PairSource(clips, stills, batch_size)
    model = ReferenceAutoencoder(shape)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    warm_up = 1500
    if initial_weights is None:
        model.set_mean_landmarks(source.mean_points())
        fit_landmarks(model, source, folder / "landmarks", device=config.device)
    else:
        warm_up = NEW_DECODER_STEPS if load_fitting(model, initial_weights) else 1
        model.encoder.requires_grad_(not freeze_latents)
        model.read_points.requires_grad_(not freeze_latents)
    patch_critic = Critic(torch.device(config.device)) if critic else None
    run = Run(folder, model, config, {"critic": patch_critic} if patch_critic else {})

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        frames, points = (part.to(run.device) for part in source.draw(run.generator))
        maturity = min(1.0, (step + 1) / warm_up)
        return autoencoder_loss(model, frames, points, weights, maturity, patch_critic)

    def evaluate(averaged: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(averaged, ReferenceAutoencoder)
        save_samples(averaged, held_out[::4], folder / f"samples-{step:06d}")
        return evaluate_reconstruction(averaged, held_out, every=40)

    return run.train(loss, evaluate if held_out else None)
