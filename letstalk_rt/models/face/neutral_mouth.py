"""The neutral mouth: how a portrait whose lips are parted looks with its lips closed and relaxed.

A portrait may show a wide smile or a rounded vowel. How far corners, lips and chin are from where
they rest is regressed from the landmarks of its mouth, on frames of clips whose rest is known.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from letstalk_rt.models.face.lip_values import GAPS, NUM_LIP_VALUES, lip_value_matrix, lip_values
from letstalk_rt.models.geometry.landmarks import LIPS, landmark_indices
from letstalk_rt.models.geometry.mouth_crop import align_heads

_POINTS = LIPS + landmark_indices((152, 148, 377))
"""Landmarks that are inputs: lips and chin."""

_UNIT_PX = 60.0
_PENALTY = 0.01
"""Weight of the ridge penalty, in shares of the inputs' mean variance."""

CLOSED_GAP, PARTED_GAP = 0.02, 0.06
"""Lip gaps in mouth widths: a portrait up to the first is neutral as it is, and from the second on
it rests as is predicted."""


class NeutralMouth(nn.Module):
    """Predicts how lip values change towards rest; not at all until it is fitted.

    Attributes:
        mean: mean inputs, `(F,)`.
        weight: change of lip values per input, `(Q, F)`.
        bias: mean change, `(Q,)`.
    """

    mean: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(2 * len(_POINTS)))
        self.register_buffer("weight", torch.zeros(NUM_LIP_VALUES, 2 * len(_POINTS)))
        self.register_buffer("bias", torch.zeros(NUM_LIP_VALUES))

    def forward(self, points: Tensor) -> Tensor:
        """Return by how much to change the lip values of landmarks `(L, 2)` at rest, `(Q,)`."""
        gap = float((lip_value_matrix(points)[GAPS] @ points.flatten())[0])
        share = min(1.0, max(0.0, (gap - CLOSED_GAP) / (PARTED_GAP - CLOSED_GAP)))
        change: Tensor = self.bias + self.weight @ (_inputs(points[None])[0] - self.mean)
        return share * change

    @torch.no_grad()
    def fit(self, frames: Sequence[Tensor], rests: Sequence[Tensor], weights: Tensor) -> None:
        """Fit the regression.

        Args:
            frames: landmarks of frames with parted lips, of each clip `(N, L, 2)`.
            rests: landmarks of the same face at rest, `(L, 2)` for each clip.
            weights: weight of each clip, `(clips,)`.
        """
        inputs = torch.cat([_inputs(points) for points in frames])
        changes = torch.cat(
            [
                torch.stack([change_to_rest(points, rest) for points in part])
                for part, rest in zip(frames, rests, strict=True)
            ]
        )
        counts = torch.tensor([len(part) for part in frames])
        share = (weights / counts).repeat_interleave(counts)[:, None] / weights.sum()
        mean, bias = (share * inputs).sum(0), (share * changes).sum(0)
        centred = inputs - mean
        covariance = centred.T @ (share * centred)
        penalty = _PENALTY * covariance.diagonal().mean() * torch.eye(len(covariance))
        solution = torch.linalg.solve(covariance + penalty, centred.T @ (share * (changes - bias)))
        self.mean.copy_(mean)
        self.bias.copy_(bias)
        self.weight.copy_(solution.T)


def change_to_rest(points: Tensor, rest: Tensor) -> Tensor:
    """Return the lip values at rest minus those of landmarks `(L, 2)`: `(Q,)`."""
    return (lip_values(rest[None], points) - lip_values(points[None], points))[0]


def _inputs(points: Tensor) -> Tensor:
    """Return the landmarks `(N, L, 2)` of mouths as inputs, `(N, F)`."""
    points = points.float()
    return align_heads(points)(points)[:, _POINTS].flatten(1) / _UNIT_PX
