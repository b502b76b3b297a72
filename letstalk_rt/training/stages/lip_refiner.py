"""Trains the lip refiner, and measures how exactly it reads lip gaps."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from letstalk_rt.models.face.lip_refiner import LipRefiner, cell_centres, expected_places
from letstalk_rt.models.geometry.landmarks import (
    INNER_LOWER_LIP,
    INNER_UPPER_LIP,
    LIPS,
    LOWER_LIP,
    UPPER_LIP,
)
from letstalk_rt.training.data.dataset import Clip, Stills
from letstalk_rt.training.data.lip_crops import LipCrops, LipCropSource
from letstalk_rt.training.data.mouth_crops import MouthCrops
from letstalk_rt.training.loop import LoopConfig, Run
from letstalk_rt.training.stages.audio_encoder import split_by_source

_GAP, _HEAT = 1.0, 0.3  # weights of the losses, beside the distance in px
_TARGET_PX = 3.0  # deviation of the target of heat maps

_UPPER = [LIPS.index(i) for i in INNER_UPPER_LIP]
_LOWER = [LIPS.index(i) for i in INNER_LOWER_LIP]


def refiner_loss(refiner: LipRefiner, batch: LipCrops) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of a batch and its parts.

    Landmarks have their mean distance, the gaps between the lips once more, because they decide
    whether a mouth is shut; heat maps have the cross entropy to a bump at the landmark.
    """
    heat = refiner.heatmaps(batch.images)
    lips = expected_places(heat)
    distance = (lips - batch.lips).abs().sum(-1).mean()
    gap = (_gaps(lips) - _gaps(batch.lips)).abs().mean()
    surprise = -(_bumps(batch.lips) * torch.log_softmax(heat.flatten(2), -1)).sum(-1).mean()
    loss = distance + _GAP * gap + _HEAT * surprise
    figures = {"points": float(distance.detach()), "gap": float(gap.detach())}
    return loss, figures | {"heat": float(surprise.detach())}


def _gaps(lips: Tensor) -> Tensor:
    return lips[:, _LOWER, 1] - lips[:, _UPPER, 1]


def _bumps(lips: Tensor) -> Tensor:
    x, y = cell_centres(lips.device)
    near_x = torch.exp(-((x - lips[..., :1]) ** 2) / (2 * _TARGET_PX**2))
    near_y = torch.exp(-((y - lips[..., 1:]) ** 2) / (2 * _TARGET_PX**2))
    bump = (near_y[..., :, None] * near_x[..., None, :]).flatten(2)
    return bump / bump.sum(-1, keepdim=True).clamp(min=1e-6)


@torch.no_grad()
def lip_errors(refiner: LipRefiner, source: LipCropSource) -> dict[str, float]:
    """Return errors in crops that are aligned exactly.

    Returns:
        `lips_px`: mean distance of landmarks, and `gap_px`: root mean square error of the gap
        between the middles of the lips, in pixels of a crop, of which a mouth is 68 wide;
        `gap_bias_px`: its mean error.
    """
    upper, lower = LIPS.index(UPPER_LIP), LIPS.index(LOWER_LIP)
    distances, gaps = [], []
    for batch in source.all():
        offset = refiner(batch.images) - batch.lips
        distances.append(offset.norm(dim=-1).mean(1))
        gaps.append(offset[:, lower, 1] - offset[:, upper, 1])
    gap = torch.cat(gaps)
    return {
        "lips_px": float(torch.cat(distances).mean()),
        "gap_px": float(gap.square().mean().sqrt()),
        "gap_bias_px": float(gap.mean()),
    }


def train_lip_refiner(
    clips: Sequence[Clip],
    stills: Stills | None,
    open_mouths: MouthCrops | None,
    folder: Path,
    config: LoopConfig,
    *,
    batch_size: int,
) -> LipRefiner:
    """Train the lip refiner and return the averaged one; sources held out validate it."""
    torch.manual_seed(5)
    kept, held_out = split_by_source(list(clips))
    source, refiner = LipCropSource(kept, stills, open_mouths), LipRefiner()
    validation = LipCropSource(held_out, None, None, per_clip=16)
    refiner.mean_points.copy_(source.mean_lips())
    refiner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = Run(folder, refiner, config)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        seed = int(torch.randint(1 << 30, (), generator=run.generator))
        batch = source.draw(batch_size, np.random.default_rng(seed)).to(run.device)
        with torch.autocast(run.device.type, torch.bfloat16):
            return refiner_loss(refiner, batch)

    def evaluate(averaged: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(averaged, LipRefiner)
        return lip_errors(averaged, validation)

    trained = run.train(loss, evaluate)
    assert isinstance(trained, LipRefiner)
    return trained
