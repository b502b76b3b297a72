"""Trains the face reader of the face tracker, and fits the depth of an average face."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from letstalk_rt.errors import InputError
from letstalk_rt.models.face.face_reader import FaceReader
from letstalk_rt.models.face.head_motion import face_size, rigid_landmarks
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
_RIDGE = 1e-4  # per frame
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


def fit_depth(clips: Sequence[Clip]) -> Tensor:
    """Return the depth of each landmark of an average face, `(L,)`, in face sizes.

    So the depths in `weights/average_head.npy` were made.

    A head that turns by known angles moves its landmarks sideways by their depth. Each clip gives
    an estimate by least squares, which counts by how far its head turns.
    """
    depths, weights = [], []
    for clip in clips:
        if clip.pose is None:
            continue
        shape, turning = _shape_of(clip.points[::2] * [1, -1], clip.pose[::2])
        size = float(face_size(torch.from_numpy(shape[:, :2] * [1, -1]).float()))
        depths.append(shape[:, 2] / size)
        weights.append(turning)
    if not depths:
        raise InputError("no clip has head poses, which the face tracker needs: see docs/training")
    return torch.from_numpy(np.average(depths, 0, weights)).float()


def _shape_of(points: np.ndarray, pose: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the shape `(L, 3)` of a head, y up, z to the camera, and how far it turns.

    Args:
        points: landmarks `(T, L, 2)`, y up.
        pose: `(T, 4, 4)`, from the head to the camera.
    """
    scale = 1 / np.maximum(-pose[:, 2, 3], 1e-3)
    scale = scale / np.median(scale)
    still = rigid_landmarks(torch.from_numpy(points.mean(0) * [1, -1])).numpy()
    seen = points - points[:, still].mean(1, keepdims=True)  # (T, L, 2)
    rows = (scale[:, None, None] * pose[:, :2, :3]).reshape(-1, 3)  # (2T, 3)
    ridge = 1e-3 * len(rows) * np.diag([0.0, 0.0, 1.0])
    flat = seen.transpose(0, 2, 1).reshape(len(rows), -1)
    shape = np.linalg.solve(rows.T @ rows + ridge, rows.T @ flat).T
    turning = float(pose[:, 0, 2].var() + pose[:, 1, 2].var())
    return shape - shape[still].mean(0), turning


def fit_reading(
    tracks: Sequence[np.ndarray], targets: Sequence[np.ndarray], weights: Sequence[np.ndarray]
) -> np.ndarray:
    """Return the regression from landmarks to what they tell, `(D, L, 2)`.

    So `weights/head_turns.npy` was made, from `in_face_sizes` of landmarks that the tracker reads
    to measured head poses, and `weights/eye_openings.npy`, with the eyes level. Both are relative
    to the rest of each clip, because faces differ at rest.

    Args:
        tracks: landmarks of each clip, `(T, L, 2)`.
        targets: what was measured in its frames, `(T, D)`.
        weights: of its frames, `(T,)`; closed eyes are rare and count for more.
    """
    seen = np.concatenate([(t - np.median(t, 0)).reshape(len(t), -1) for t in tracks])
    wanted = np.concatenate([target - np.median(target, 0) for target in targets])
    weighted = seen * np.concatenate(weights)[:, None]
    ridge = _RIDGE * len(seen) * np.eye(seen.shape[1])
    solved = np.linalg.solve(weighted.T @ seen + ridge, weighted.T @ wanted)
    return np.asarray(solved.T.reshape(wanted.shape[1], *tracks[0].shape[1:]))


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
