"""How heads move while people talk: fitted to clips, drawn anew for each session.

One step of the sampler gives the mean of what may come, and the mean of all turns of a head is no
turn. So the head has a small model of its own: the main movements of the landmarks that speech
leaves alone, and for each of them an autoregressive process of second order.
"""

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from letstalk_rt.models.autoencoder.background_flow import SIZE as SURROUNDINGS
from letstalk_rt.models.geometry.landmarks import (
    EYES,
    IRISES,
    LIPS,
    NUM_LANDMARKS,
    landmark_indices,
)

MOVEMENTS = 4
_KEPT = 34
"""Frames that are remembered: as many as an interrupt may take back, and two to go on from."""


def rigid_landmarks(points: Tensor) -> Tensor:
    """Say which of the landmarks `(L, 2)` speech leaves alone: the upper face's, without lids.

    Where nearly all are below the lips, the points are no face's, and all of them count.
    """
    mask = points[:, 1] <= points[LIPS, 1].min()
    mask[EYES + landmark_indices(IRISES) + LIPS] = False
    return mask if mask.sum() > 2 else torch.ones_like(mask)


def face_size(points: Tensor) -> Tensor:
    """Give the size of a face `(L, 2)`: the spread of the landmarks that speech leaves alone."""
    fixed = points[rigid_landmarks(points)]
    return (fixed - fixed.mean(0)).pow(2).sum(1).mean().sqrt()


class HeadMotion(nn.Module):
    """What is known of heads that talk; without having been fitted, that they rest.

    Attributes:
        movements: displacements of all landmarks at one deviation, in sizes of the face,
            `(K, L, 2)`.
        followed: what the surroundings do meanwhile, as a part of the latent, likewise, `(K, 128)`.
        course: of each movement `x`, `(K, 3)`: `x[n] = a x[n-1] + b x[n-2] + c noise`.
    """

    movements: Tensor
    followed: Tensor
    course: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("movements", torch.zeros(MOVEMENTS, NUM_LANDMARKS, 2))
        self.register_buffer("followed", torch.zeros(MOVEMENTS, SURROUNDINGS))
        self.register_buffer("course", torch.zeros(MOVEMENTS, 3))

    def displacements(self, portrait: Tensor) -> Tensor:
        """Give the movements of the face with landmarks `(L, 2)`, flat: `(K, 2L)`."""
        return (self.movements * face_size(portrait)).flatten(1)

    def surroundings(self, portrait: Tensor) -> Tensor:
        """Give what hair, neck and shoulders do, as their part of the latent: `(K, 128)`."""
        return self.followed * face_size(portrait)

    @torch.no_grad()
    def fit(self, clips: Sequence[Tensor], surroundings: Sequence[Tensor]) -> None:
        """Learn from clips.

        Args:
            clips: landmarks of each, `(T, L, 2)`.
            surroundings: that part of their latents, `(T, 128)`.

        How far heads move is that of the middle clip, so that few who shake theirs do not count.
        """
        moved = [_in_faces(points) for points in clips]
        mask = rigid_landmarks(torch.stack([points.mean(0) for points in clips]).mean(0))
        spread = torch.stack([m[:, mask].pow(2).mean().sqrt() for m in moved])
        usual = spread.median()
        moved = [
            m * usual / s.clamp(min=usual / 3 + 1e-9) for m, s in zip(moved, spread, strict=True)
        ]
        every = torch.cat(moved)
        fixed = every[:, mask].flatten(1)
        values, vectors = torch.linalg.eigh(fixed.T @ fixed / len(fixed))
        main = vectors[:, -MOVEMENTS:] / values[-MOVEMENTS:].clamp(min=1e-12).sqrt()
        scores = fixed @ main
        all_points = scores.T @ every.flatten(1) / len(scores)  # the scores are white
        self.movements.copy_(all_points.unflatten(1, (-1, 2)))
        around = [
            (a - a.mean(0)) / face_size(points.mean(0)) * usual / s.clamp(min=usual / 3 + 1e-9)
            for a, points, s in zip(surroundings, clips, spread, strict=True)
        ]
        self.followed.copy_(scores.T @ torch.cat(around) / len(scores))
        courses = scores.split([len(m) for m in moved])
        for number in range(MOVEMENTS):
            self.course[number] = _fit_course([c[:, number] for c in courses])


def _in_faces(points: Tensor) -> Tensor:
    """Give how far landmarks `(T, L, 2)` are from their mean, in sizes of the face."""
    mean = points.mean(0)
    return (points - mean) / face_size(mean)


def _fit_course(tracks: Sequence[Tensor]) -> Tensor:
    """Fit `x[n] = a x[n-1] + b x[n-2] + c noise` to tracks `(T,)`."""
    past = torch.cat([torch.stack([x[1:-1], x[:-2]], 1) for x in tracks])
    now = torch.cat([x[2:] for x in tracks])
    factors = torch.linalg.lstsq(past, now[:, None]).solution[:, 0]
    return torch.cat([factors, (now - past @ factors).std()[None]])


class HeadTrajectory:
    """The course of one session's head; the same seed gives the same.

    Args:
        course: of a `HeadMotion`, `(K, 3)`.
        seed: of its chance.
    """

    def __init__(self, course: Tensor, seed: int) -> None:
        self._course, self._seed = course.cpu().numpy().T, seed
        self.reset()

    def reset(self) -> None:
        """Begin again, at rest."""
        self._rng = np.random.default_rng([self._seed, 1])
        at_rest = np.zeros(self._course.shape[1])
        self._made = deque([at_rest, at_rest], maxlen=_KEPT)
        self._unseen = 0  # of those made, from the end: to be given again

    def next(self, frames: int) -> Tensor:
        """Give where the head is in each of the next frames, `(frames, K)`, in deviations."""
        return torch.from_numpy(np.stack([self._next() for _ in range(frames)])).float()

    def rewind(self, frames: int) -> None:
        """Take the last frames back, as many as are remembered."""
        self._unseen = min(self._unseen + frames, len(self._made) - 2)

    def _next(self) -> np.ndarray:
        if self._unseen:
            self._unseen -= 1
            return self._made[-1 - self._unseen]
        near, far, chance = self._course
        noise = self._rng.standard_normal(len(near))
        self._made.append(near * self._made[-1] + far * self._made[-2] + chance * noise)
        return self._made[-1]
