"""Trains the face reader of the face tracker."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from letstalk_rt.models.face.face_reader import FaceReader
from letstalk_rt.models.geometry.landmarks import (
    EYES,
    IRISES,
    LIPS,
    NUM_LANDMARKS,
    landmark_indices,
)
from letstalk_rt.training.data.camera_crops import CameraCrops, CameraCropSource
from letstalk_rt.training.data.dataset import Clip, Stills
from letstalk_rt.training.loop import LoopConfig, Run

_POINTS, _HEAT, _EXPRESSIONS = 20.0, 0.1, 2.0  # weights of the losses
_TARGET_WIDTH = 0.65  # of the heat maps, cells


def reader_loss(
    reader: FaceReader, batch: CameraCrops, weights: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of a batch and its parts.

    Landmarks have the mean distance of the expected coordinates; heat maps the cross entropy to a
    narrow bump at the landmark, or, without a face, to a uniform map, so that their width tells how
    certain they are; expressions the squared error.

    Args:
        reader: the network.
        batch: crops with targets.
        weights: weight of each landmark, `(L,)`.
    """
    heat, fine = reader.heatmaps(batch.images)
    reading = reader.read(heat, fine)
    has_face = batch.has_face[:, None]
    inside = (batch.points.abs() < 0.97).all(-1) & has_face
    distance = (reading.points - batch.points).abs().sum(-1)
    share = weights * inside
    points = (distance * share).sum() / share.sum().clamp(min=1)
    log_share = torch.log_softmax(heat.flatten(2), -1)
    surprise = -(_bumps(batch.points, heat) * log_share).sum(-1)
    uniform = -log_share.mean(-1)
    bump = torch.where(has_face, surprise * inside, uniform).mean()
    known = batch.expressions.isfinite() & has_face
    target = torch.where(known, batch.expressions, reading.expressions)
    expressions = ((reading.expressions - target) ** 2).sum() / known.sum().clamp(min=1)
    loss = _POINTS * points + _HEAT * bump + _EXPRESSIONS * expressions
    figures = {
        "points": float(points.detach()),
        "heat": float(bump.detach()),
        "expressions": float(expressions.detach()),
    }
    return loss, figures


def _bumps(points: Tensor, heat: Tensor) -> Tensor:
    """Return the target of heat maps, `(B, L, h w)`."""
    side = heat.shape[-1]
    axis = (torch.arange(side, device=heat.device) + 0.5) / side * 2 - 1
    near = torch.exp(-((axis - points[..., None]) ** 2) / (2 * (2 * _TARGET_WIDTH / side) ** 2))
    bump = (near[:, :, 1, :, None] * near[:, :, 0, None, :]).flatten(2)
    return bump / bump.sum(-1, keepdim=True).clamp(min=1e-6)


def train_face_reader(
    clips: Sequence[Clip], stills: Stills, folder: Path, config: LoopConfig, *, batch_size: int
) -> FaceReader:
    """Train the face reader and return the averaged one."""
    torch.manual_seed(3)
    source, reader = CameraCropSource(clips, stills), FaceReader()
    reader.mean_points.copy_(source.mean_points())
    reader.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = Run(folder, reader, config)
    weights = torch.ones(NUM_LANDMARKS, device=run.device)
    weights[LIPS] = 2.0
    weights[EYES + landmark_indices(IRISES)] = 3.0

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        seed = int(torch.randint(1 << 30, (), generator=run.generator))
        batch = source.draw(batch_size, np.random.default_rng(seed)).to(run.device)
        with torch.autocast(run.device.type, torch.bfloat16):
            return reader_loss(reader, batch, weights)

    trained = run.train(loss)
    assert isinstance(trained, FaceReader)
    return trained
