"""The talking mouth: how latents change while people talk, and how mouths look at rest."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from letstalk_rt.models.autoencoder.latents import FACE_SIZE
from letstalk_rt.models.face.head_motion import rigid_projection
from letstalk_rt.models.face.neutral_mouth import NeutralMouth

COMPONENTS = 24
"""Number of principal components of the latent that are kept."""

_HEAD_COMPONENTS = 6  # of the affine head motion
_MIN_HEAD_SHARE = 0.05  # of the largest head component; smaller ones are noise


class TalkingMouth(nn.Module):
    """Statistics of mouths that talk; before they are fitted, no latent changes.

    Attributes:
        natural: principal components of the latent's face part while people talk, without head
            motion, each at one standard deviation, `(K, 256)`.
        neutral: predicts how a portrait with parted lips looks at rest.
    """

    natural: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("natural", torch.zeros(COMPONENTS, FACE_SIZE))
        self.neutral = NeutralMouth()

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
