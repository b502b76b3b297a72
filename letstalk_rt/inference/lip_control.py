"""Lip control: changes motion so that the mouth of a portrait has given lip values.

Lip values are linear in the landmarks, and these in the latent. So the change of motion that yields
given values is one matrix, computed once per portrait. Of all changes with these values it is the
most likely one in people who talk; what the denoiser generates for the rest of the face stays.

Source: the most likely completion of a partly known vector: conditional mean of a Gaussian.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.models.autoencoder.latents import FACE_SIZE, LATENT_SIZE
from letstalk_rt.models.face.head_motion import rigid_projection
from letstalk_rt.models.face.lip_values import GAPS, lip_value_matrix
from letstalk_rt.models.face.talking_mouth import TalkingMouth

CLOSED = 0.01
"""Lip gap of closed lips, in mouth widths; parted lips are brought to touch at rest."""

PRESS, PRESSED_GAP = 0.06, 0.03
"""How much closer than touching parted lips are brought, in mouth widths, and the lip gap from
which they are not: a warp leaves a line of what was visible between them, such as teeth, which
pressed lips hide."""

PARTED = 0.05
"""Lip gap of a portrait from which its lips are pressed in full."""

_NOISE: tuple[float, ...] = (1e-4, 1e-3, 0.02, 0.02, 0.02, 0.02, 0.02, 0.02)
"""Tolerance of each value as a share of its variance: the gap is met most exactly."""


@dataclass(frozen=True)
class LipControl:
    """Sets the mouth of one portrait.

    Attributes:
        read: maps motion to lip values relative to the portrait, `(Q, 384)`.
        write: the change of motion per unit of each value, `(384, Q)`.
        rest: lip values at rest relative to the portrait, `(Q,)`; they close parted lips.
        press: how much closer than touching the lips are brought, at most `PRESS`.
    """

    read: Tensor
    write: Tensor
    rest: Tensor
    press: float

    @classmethod
    def of(
        cls, mouth: TalkingMouth, points: Tensor, landmark_matrix: Tensor, scale: Tensor
    ) -> "LipControl":
        """Create the lip control of a portrait.

        Args:
            mouth: statistics of mouths that talk.
            points: landmarks of the portrait, `(L, 2)`.
            landmark_matrix: read-out of the landmarks, `(2L, 384)`.
            scale: scale of motion, flat, `(384,)`.
        """
        points = points.float()
        values = lip_value_matrix(points)
        without_head = torch.eye(values.shape[1], device=points.device) - rigid_projection(points)
        read = values @ without_head @ landmark_matrix
        natural = F.pad(mouth.natural.float(), (0, LATENT_SIZE - FACE_SIZE))
        gaps = values[GAPS] @ points.flatten()
        gap_change = torch.minimum(gaps, (2 * CLOSED - gaps).clamp(min=0)) - gaps
        rest = torch.cat([gap_change, mouth.neutral(points)[GAPS.stop :]])
        write = _completion(natural, read, _NOISE)
        parted = (float(gaps[0]) - CLOSED) / (PARTED - CLOSED)
        press = PRESS * min(1.0, max(0.0, parted))
        return cls(read * scale, write / scale[:, None], rest, press)

    def apply(self, motion: Tensor, values: Tensor) -> Tensor:
        """Return motion `(..., C, h, w)` whose mouth has `values`, `(..., Q)`."""
        return self.apply_flat(motion.flatten(-3).float(), values).view(motion.shape)

    def apply_flat(self, flat: Tensor, values: Tensor) -> Tensor:
        """Return motion `(..., 384)` whose mouth has `values`, `(..., Q)`.

        The pressing of parted lips fades out from a gap of 0 to one of `PRESSED_GAP`.
        """
        pressed = self.press * (1 - values[..., GAPS] / PRESSED_GAP).clamp(0, 1)
        target = torch.cat([values[..., GAPS] - pressed, values[..., GAPS.stop :]], -1)
        change = self.rest + target - flat @ self.read.T
        return flat + change @ self.write.T

    def usual(self, mouth: TalkingMouth, scale: Tensor) -> Tensor:
        """Return the standard deviation of each lip value in people who talk, `(Q,)`.

        Args:
            mouth: statistics of mouths that talk.
            scale: scale of motion, flat, `(384,)`.
        """
        natural = F.pad(mouth.natural.float(), (0, LATENT_SIZE - FACE_SIZE))
        usual: Tensor = torch.linalg.vector_norm(self.read / scale @ natural.T, dim=1)
        return usual


def _completion(natural: Tensor, read: Tensor, noise: Sequence[float]) -> Tensor:
    """Return the matrix from lip values to the most likely latent, `(384, Q)`.

    Args:
        natural: principal components at one standard deviation, `(K, 384)`.
        read: maps latents to values, `(Q, 384)`.
        noise: tolerance of each value as a share of its variance.
    """
    scores = natural @ read.T  # (K, Q)
    covariance = scores.T @ scores
    slack = covariance.diagonal() * torch.tensor(noise, device=read.device)
    matrix: Tensor = natural.T @ scores @ torch.linalg.pinv(covariance + torch.diag(slack))
    return matrix
