"""Trains the eyelid painter: from a crop of an open eye to the same eye closed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from letstalk_rt.models.autoencoder.eyelid_painter import EyelidPainter
from letstalk_rt.models.geometry.eye_crop import lid_mask
from letstalk_rt.training.critic import Critic
from letstalk_rt.training.data.dataset import Clip
from letstalk_rt.training.data.eye_crops import EyeBatch, EyePairs, EyeSource, eye_pairs
from letstalk_rt.training.evaluation.eyelids import eyelid_figures, lid_differences
from letstalk_rt.training.loop import LoopConfig, Run
from letstalk_rt.training.stages.audio_encoder import split_by_source

CRITIC_START = 400
"""First step with a critic: before, lids are blurred, and it learns nothing from them."""

_COLOUR, _GRADIENT, _CRITIC, _FEATURES = 0.5, 1.0, 0.2, 1.2  # weights of the losses, beside L1
_AROUND = 0.05  # weight of what lies outside of the mask
_SHEET = (8, 3)  # columns and rows of eyes on a contact sheet


def train_eyelid_painter(
    clips: Sequence[Clip],
    folder: Path,
    config: LoopConfig,
    *,
    batch_size: int,
    critic_start: int = CRITIC_START,
) -> EyelidPainter:
    """Train the eyelid painter and return the averaged one; sources held out validate it.

    Args:
        clips: the clips of the train split.
        folder: the run's folder, which also gets contact sheets of held-out eyes.
        config: schedule and intervals.
        batch_size: eyes per step.
        critic_start: first step with a critic.
    """
    torch.manual_seed(7)
    kept, held_out = split_by_source(list(clips))
    source, validation = EyeSource(eye_pairs(kept)), eye_pairs(held_out)
    painter = EyelidPainter().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    critic = Critic(torch.device(config.device))
    run = Run(folder, painter, config, extras={"critic": critic})

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        batch = source.draw(batch_size, run.generator).to(run.device)
        with torch.autocast(run.device.type, torch.bfloat16):
            painted = painter(batch.opened, batch.lids, batch.closed)
        parts = eyelid_differences(painted, batch)
        total = parts["l1"] + _COLOUR * parts["colour"] + _GRADIENT * parts["gradient"]
        figures = {name: float(value.detach()) for name, value in parts.items()}
        if step >= critic_start:
            shown, true = in_place(painted, batch), in_place(batch.shut, batch)
            figures["critic"] = critic.learn(shown, true)
            adversarial, features = critic.judge(shown, true)
            total = total + _CRITIC * adversarial + _FEATURES * features
        return total, figures

    def evaluate(averaged: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(averaged, EyelidPainter)
        _write_sheet(averaged, validation, folder / f"eyes-{step:06d}.png")
        return eyelid_errors(averaged, validation)

    trained = run.train(loss, evaluate)
    assert isinstance(trained, EyelidPainter)
    return trained


def in_place(painted: Tensor, batch: EyeBatch) -> Tensor:
    """Return crops of eyes with what was painted in its place."""
    return torch.lerp(batch.opened, painted, lid_mask(batch.lids.upper, batch.closed))


def eyelid_differences(painted: Tensor, batch: EyeBatch) -> dict[str, Tensor]:
    """Return the distances of painted lids from true ones, by name of the loss."""
    weight = lid_mask(batch.lids.upper, batch.closed) + _AROUND
    weight = weight / weight.sum()
    error = painted - batch.shut
    blurred = F.avg_pool2d(error, 5, stride=1, padding=2, count_include_pad=False)
    across, down = error.diff(dim=-1), error.diff(dim=-2)
    gradient = (across.abs() * weight[..., 1:]).sum() + (down.abs() * weight[..., 1:, :]).sum()
    return {
        "l1": (error.abs() * weight).sum() / 3,
        "colour": (blurred.abs() * weight).sum() / 3,
        "gradient": gradient / 3,
    }


@torch.no_grad()
def eyelid_errors(painter: EyelidPainter, pairs: EyePairs) -> dict[str, float]:
    """Return how painted lids differ from true ones; see `eyelid_figures`."""
    rows = []
    for part in torch.arange(len(pairs)).split(64):
        batch = pairs.batch(part)
        painted = painter(batch.opened, batch.lids, batch.closed)
        rows.append(lid_differences(painted, batch))
    return eyelid_figures(torch.cat(rows))


@torch.no_grad()
def _write_sheet(painter: EyelidPainter, pairs: EyePairs, path: Path) -> None:
    """Write a contact sheet: open eyes, painted lids, true lids."""
    columns, rows = _SHEET
    picked = torch.linspace(0, len(pairs) - 1, columns * rows).long()
    batch = pairs.batch(picked)
    painted = in_place(painter(batch.opened, batch.lids, batch.closed), batch)
    lines = [
        torch.cat(list(images[first : first + columns]), 2)
        for first in range(0, len(picked), columns)
        for images in (batch.opened, painted, batch.shut)
    ]
    pixels = ((torch.cat(lines, 1).permute(1, 2, 0) + 1) * 127.5).clamp(0, 255)
    Image.fromarray(pixels.numpy().astype(np.uint8)).save(path)
