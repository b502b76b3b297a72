"""Head motion: what moves with a head, as principal components of landmarks and background."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from letstalk_rt.models.autoencoder.background_flow import SIZE as BACKGROUND_SIZE
from letstalk_rt.models.geometry.landmarks import (
    EYES,
    IRISES,
    LIPS,
    NUM_LANDMARKS,
    landmark_indices,
)

MOVEMENTS = 4


def rigid_landmarks(points: Tensor) -> Tensor:
    """Return a mask `(L,)` of the landmarks that speech does not move: the upper face, no eyelids.

    If these are fewer than three, the points `(L, 2)` are not a face, and the mask is all True.
    """
    mask = points[:, 1] <= points[LIPS, 1].min()
    mask[EYES + landmark_indices(IRISES) + LIPS] = False
    return mask if mask.sum() > 2 else torch.ones_like(mask)


def face_size(points: Tensor) -> Tensor:
    """Return the size of a face `(L, 2)`: the deviation of landmarks that speech does not move."""
    fixed = points[rigid_landmarks(points)]
    return (fixed - fixed.mean(0)).pow(2).sum(1).mean().sqrt()


def rigid_projection(points: Tensor) -> Tensor:
    """Return the projection of flat landmark displacements `(2L,)` on head motion: `(2L, 2L)`.

    Head motion is the affine map that best fits the upper face without eyelids and lips: head
    rotation is approximately affine, and speech does not move those landmarks.
    """
    base = points.new_zeros(NUM_LANDMARKS, 2, 6)
    base[:, 0, 0:2], base[:, 0, 2] = points, 1
    base[:, 1, 3:5], base[:, 1, 5] = points, 1
    base = base.flatten(0, 1)
    fit = base * rigid_landmarks(points).repeat_interleave(2)[:, None]
    rigid: Tensor = base @ torch.linalg.pinv(fit)
    return rigid


class HeadMotion(nn.Module):
    """The K components of head motion; no motion before `fit`.

    Attributes:
        movements: displacements of all landmarks at one standard deviation, over the size of the
            face, `(K, L, 2)`.
        followed: the background part of the latent at one standard deviation, likewise, `(K, 128)`.
    """

    movements: Tensor
    followed: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("movements", torch.zeros(MOVEMENTS, NUM_LANDMARKS, 2))
        self.register_buffer("followed", torch.zeros(MOVEMENTS, BACKGROUND_SIZE))

    def displacements(self, portrait: Tensor) -> Tensor:
        """Return the displacements of landmarks `(L, 2)` at one standard deviation, `(K, 2L)`."""
        return (self.movements * face_size(portrait)).flatten(1)

    def background(self, portrait: Tensor) -> Tensor:
        """Return the background part of the latent at one standard deviation, `(K, 128)`."""
        return self.followed * face_size(portrait)

    @torch.no_grad()
    def fit(self, clips: Sequence[Tensor], backgrounds: Sequence[Tensor]) -> None:
        """Fit the components to clips.

        The clips are scaled to the median amplitude, lest few with strong motion dominate.

        Args:
            clips: landmarks of each clip, `(T, L, 2)`.
            backgrounds: background part of each clip's latents, `(T, 128)`.
        """
        moved = [_normalized(points) for points in clips]
        mask = rigid_landmarks(torch.stack([points.mean(0) for points in clips]).mean(0))
        spread = torch.stack([m[:, mask].pow(2).mean().sqrt() for m in moved])
        median = spread.median()
        moved = [
            m * median / s.clamp(min=median / 3 + 1e-9) for m, s in zip(moved, spread, strict=True)
        ]
        every = torch.cat(moved)
        fixed = every[:, mask].flatten(1)
        values, vectors = torch.linalg.eigh(fixed.T @ fixed / len(fixed))
        main = vectors[:, -MOVEMENTS:] / values[-MOVEMENTS:].clamp(min=1e-12).sqrt()
        scores = fixed @ main
        all_points = scores.T @ every.flatten(1) / len(scores)  # the scores are white
        self.movements.copy_(all_points.unflatten(1, (-1, 2)))
        background = [
            (a - a.mean(0)) / face_size(points.mean(0)) * median / s.clamp(min=median / 3 + 1e-9)
            for a, points, s in zip(backgrounds, clips, spread, strict=True)
        ]
        self.followed.copy_(scores.T @ torch.cat(background) / len(scores))


def _normalized(points: Tensor) -> Tensor:
    """Return landmarks `(T, L, 2)` minus their mean, over the size of the face."""
    mean = points.mean(0)
    return (points - mean) / face_size(mean)
