"""Lip motion: how large lip values are when people talk, and how latents change with them.

A regressed lip value is the mean of plausible ones, so it varies less than real lips do. A monotone
map brings predicted values to the distribution of measured ones.

Source: equal distributions by quantiles: histogram specification.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from letstalk_rt.models.autoencoder.latents import FACE_SIZE
from letstalk_rt.models.face.head_motion import rigid_projection
from letstalk_rt.models.face.lip_values import GAPS, NUM_LIP_VALUES
from letstalk_rt.models.face.neutral_mouth import NeutralMouth
from letstalk_rt.models.layers.interpolation import interpolate

COMPONENTS = 24
"""Number of principal components of the latent that are kept."""

KNOTS = 17
"""Number of knots of the map from predicted to shown values."""

_LEAST_GAP = 0.012  # of lips that are nearly closed; on screen they look closed
_HEAD_COMPONENTS = 6  # of the affine head motion
_MIN_HEAD_SHARE = 0.05  # of the largest head component; smaller ones are noise


class LipMotion(nn.Module):
    """Statistics of mouths that talk. Before it is fitted, every predicted value maps to rest.

    Attributes:
        natural: principal components of the latent's face part while people talk, without head
            motion, each at one standard deviation, `(K, 256)`.
        heard: predicted values at knots of equal shares of time, increasing, `(Q, KNOTS)`.
        meant: values to show at these knots, `(Q, KNOTS)`.
        neutral: predicts how a portrait with parted lips looks at rest.
    """

    natural: Tensor
    heard: Tensor
    meant: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("natural", torch.zeros(COMPONENTS, FACE_SIZE))
        knots = torch.linspace(0, 1, KNOTS).expand(NUM_LIP_VALUES, -1)
        self.register_buffer("heard", knots.clone())
        self.register_buffer("meant", torch.zeros(NUM_LIP_VALUES, KNOTS))
        self.neutral = NeutralMouth()

    def to_shown(self, predicted: Tensor) -> Tensor:
        """Map predicted lip values `(..., Q)` to the size of measured ones, clamped at the ends."""
        return interpolate(self.heard, self.meant, predicted)

    @torch.no_grad()
    def fit_sizes(
        self,
        predicted: Sequence[Tensor],
        measured: Sequence[Tensor],
        silence: Tensor,
        agreement: Tensor,
    ) -> None:
        """Fit the map to clips that the lip reader was not trained on.

        Each clip counts the same: quantiles are the medians over clips.

        Args:
            predicted: predicted values of each clip, `(T, Q)`.
            measured: measured values of each clip, `(T, Q)`.
            silence: predicted values in silence, `(Q,)`; they are mapped to rest. Where they are
                below all others, gaps of people who talk are at least `_LEAST_GAP`, so that lips
                still move there.
            agreement: Pearson's r of both, `(Q,)`; a value with a smaller r than the gap's is
                scaled down by the root of their ratio, so that its noise is amplified less. A value
                that is not positively correlated stays at rest.
        """
        shares = torch.linspace(0.005, 0.995, KNOTS - 1)
        heard = torch.stack([p.quantile(shares, 0) for p in predicted]).median(0).values.T
        meant = torch.stack([m.quantile(shares, 0) for m in measured]).median(0).values.T
        trust = (agreement / agreement[0].clamp(min=1e-6)).clamp(0, 1).sqrt()[:, None]
        meant = trust * (meant - interpolate(heard, meant, silence)[:, None])
        is_below = silence[:, None] < heard[:, :1]
        meant[GAPS] = torch.maximum(meant, _LEAST_GAP * trust * is_below)[GAPS]
        self.heard.copy_(torch.cat([torch.minimum(silence[:, None], heard[:, :1]), heard], 1))
        self.meant.copy_(torch.cat([torch.where(is_below, 0.0, meant[:, :1]), meant], 1))

    @torch.no_grad()
    def fit_components(
        self, latents: Sequence[Tensor], landmark_matrix: Tensor, points: Tensor
    ) -> None:
        """Fit the principal components of the latent while people talk.

        Args:
            latents: latents of each clip, `(T, C, h, w)`.
            landmark_matrix: read-out of the landmarks, `(2L, 384)`.
            points: landmarks of an average face, `(L, 2)`.
        """
        head = rigid_projection(points) @ landmark_matrix[:, :FACE_SIZE]
        left = []
        for clip in latents:
            face = clip.flatten(1)[:, :FACE_SIZE].float()
            face = face - face.mean(0)
            scores, sizes, _ = torch.linalg.svd(face @ head.T, full_matrices=False)
            sizes = sizes[:_HEAD_COMPONENTS]
            scores = scores[:, :_HEAD_COMPONENTS] * (sizes > _MIN_HEAD_SHARE * sizes[0])
            left.append(face - scores @ (scores.T @ face))
        frames = torch.cat(left)
        _, sizes, directions = torch.linalg.svd(frames, full_matrices=False)
        main = directions[:COMPONENTS] * sizes[:COMPONENTS, None] / len(frames) ** 0.5
        self.natural.zero_()[: len(main)] = main
