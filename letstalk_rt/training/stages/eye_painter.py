"""Trains the eye painter: from an eye of a portrait to the same eye with other lids and gaze."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from letstalk_rt.models.autoencoder.eye_painter import EyePainter
from letstalk_rt.models.autoencoder.region_painter import PaintedRegion
from letstalk_rt.models.geometry.eye_region import EYE_MAPS, painted_part
from letstalk_rt.models.presets import EYE_PAINTER
from letstalk_rt.training.critic import Critic
from letstalk_rt.training.data.dataset import Clip
from letstalk_rt.training.data.eye_frames import EyeFrames, EyeFrameSource, eye_clips
from letstalk_rt.training.loop import LoopConfig, Run
from letstalk_rt.training.stages.audio_encoder import split_by_source

CRITIC_START = 400
"""First step with a critic: before, eyes are blurred, and it learns nothing from them."""

_GRADIENT, _COLOURS, _PAINTED = 0.7, 0.3, 0.04
_CRITIC, _FEATURES = 0.03, 0.3  # weights of the losses, beside L1
_CRITIC_RATE, _CRITIC_WIDTH = 4e-4, 24
_IN_EYE = 4.0  # further weight of what lies between the lids
_SHEET = 14


def train_eye_painter(
    clips: Sequence[Clip],
    folder: Path,
    config: LoopConfig,
    *,
    batch_size: int,
    critic_start: int = CRITIC_START,
) -> EyePainter:
    """Train the eye painter and return the averaged one; sources held out validate it.

    Args:
        clips: the clips of the train split.
        folder: the run's folder, which also gets contact sheets of held-out eyes.
        config: schedule and intervals.
        batch_size: eyes per step.
        critic_start: first step with a critic.
    """
    torch.manual_seed(7)
    kept, held_out = split_by_source(list(clips))
    source = EyeFrameSource(eye_clips(kept))
    validation = EyeFrameSource(eye_clips(held_out or kept), augmented=False)
    painter = EyePainter(EYE_PAINTER).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    critic = Critic(
        torch.device(config.device), _CRITIC_RATE, width=_CRITIC_WIDTH, channels=3 + EYE_MAPS
    )
    run = Run(folder, painter, config, extras={"critic": critic})

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        batch = source.draw(batch_size, run.generator).to(run.device)
        painted, shown = paint(painter, batch)
        parts = eye_differences(shown, batch)
        unkept = ((1 - painted.kept) * painted_part(shown)).mean()
        total = parts["l1"] + _GRADIENT * parts["gradient"] + _PAINTED * unkept
        total = total + _COLOURS * colour_difference(painted, batch)
        figures = {name: float(value.detach()) for name, value in parts.items()}
        figures["painted"] = float(unkept.detach())
        if step >= critic_start:
            fake, real = (torch.cat([image, batch.maps], 1) for image in (shown, batch.frame))
            figures["critic"] = critic.learn(fake, real)
            adversarial, features = critic.judge(fake, real)
            total = total + _CRITIC * adversarial + _FEATURES * features
        return total, figures

    def evaluate(averaged: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(averaged, EyePainter)
        batch = validation.draw(128, torch.Generator().manual_seed(1)).to(run.device)
        with torch.no_grad():
            painted, shown = paint(averaged, batch)
        _write_sheet(batch, painted, shown, folder / f"eyes-{step:06d}.png")
        return {f"val_{k}": float(v) for k, v in eye_differences(shown, batch).items()}

    trained = run.train(loss, evaluate)
    assert isinstance(trained, EyePainter)
    return trained


def paint(painter: EyePainter, batch: EyeFrames) -> tuple[PaintedRegion, Tensor]:
    """Return what the painter says of a batch, and the eyes in their surroundings."""
    part = painted_part(batch.frame)
    encoded = painter.encode_portrait(batch.portrait, batch.portrait_maps)
    painted = painter(encoded, batch.frame * (part == 0), batch.maps, batch.known_flow)
    return painted, torch.lerp(batch.frame, painted.shown(batch.portrait), part)


def colour_difference(painted: PaintedRegion, batch: EyeFrames) -> Tensor:
    """Return the distance of the colours alone: so they are right also where little is painted."""
    return ((painted.colours - batch.frame).abs() * painted_part(batch.frame)).mean()


def eye_differences(shown: Tensor, batch: EyeFrames) -> dict[str, Tensor]:
    """Return the distances of shown eyes from true ones, by name of the loss."""
    either = torch.maximum(batch.maps[:, 2:3], batch.portrait_maps[:, 2:3])
    weight = 1 + _IN_EYE * either
    error = shown - batch.frame
    across, down = error.diff(dim=-1).abs().mean(), error.diff(dim=-2).abs().mean()
    return {"l1": (error.abs() * weight).mean(), "gradient": across + down}


def _write_sheet(batch: EyeFrames, painted: PaintedRegion, shown: Tensor, path: Path) -> None:
    """Write a contact sheet: portraits, landmarks wanted, what is kept, painted eyes, true eyes."""
    kept = (painted.kept * 2 - 1).expand(-1, 3, -1, -1)
    wanted = torch.cat([batch.maps[:, 2:] * 2 - 1, batch.maps[:, :1] * 0 - 1], 1)
    lines = [
        torch.cat(list(images[first : first + _SHEET]), 2)
        for first in (0, _SHEET, 2 * _SHEET)
        for images in (batch.portrait, wanted, kept, shown, batch.frame)
    ]
    pixels = ((torch.cat(lines, 1).permute(1, 2, 0) + 1) * 127.5).clamp(0, 255)
    Image.fromarray(pixels.cpu().numpy().astype(np.uint8)).save(path)
