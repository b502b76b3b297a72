"""Head motion: random processes that are fitted to clips and sampled for each session.

A single sampling step yields about the mean of what may follow, and the mean of all head turns is
no turn. So head motion has a small model of its own: the principal components of the landmarks that
speech does not move, and for each of them an autoregressive process of second order.
"""

from collections import deque
from collections.abc import Sequence

import numpy as np
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
_KEPT = 34
"""Frames in the history: as many as an interrupt may rewind, and two to continue from."""


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
    """The parameters of head motion: K components and their processes; no motion before `fit`.

    Attributes:
        movements: displacements of all landmarks at one standard deviation, over the size of the
            face, `(K, L, 2)`.
        followed: the background part of the latent at one standard deviation, likewise, `(K, 128)`.
        course: coefficients of each process, `(K, 3)`: `x[n] = a x[n-1] + b x[n-2] + c noise`.
    """

    movements: Tensor
    followed: Tensor
    course: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("movements", torch.zeros(MOVEMENTS, NUM_LANDMARKS, 2))
        self.register_buffer("followed", torch.zeros(MOVEMENTS, BACKGROUND_SIZE))
        self.register_buffer("course", torch.zeros(MOVEMENTS, 3))

    def displacements(self, portrait: Tensor) -> Tensor:
        """Return the displacements of landmarks `(L, 2)` at one standard deviation, `(K, 2L)`."""
        return (self.movements * face_size(portrait)).flatten(1)

    def background(self, portrait: Tensor) -> Tensor:
        """Return the background part of the latent at one standard deviation, `(K, 128)`."""
        return self.followed * face_size(portrait)

    @torch.no_grad()
    def fit(self, clips: Sequence[Tensor], backgrounds: Sequence[Tensor]) -> None:
        """Fit the components and their processes to clips.

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
        courses = scores.split([len(m) for m in moved])
        for number in range(MOVEMENTS):
            self.course[number] = _fit_course([c[:, number] for c in courses])


def _normalized(points: Tensor) -> Tensor:
    """Return landmarks `(T, L, 2)` minus their mean, over the size of the face."""
    mean = points.mean(0)
    return (points - mean) / face_size(mean)


def _fit_course(tracks: Sequence[Tensor]) -> Tensor:
    """Fit `x[n] = a x[n-1] + b x[n-2] + c noise` to tracks `(T,)`."""
    past = torch.cat([torch.stack([x[1:-1], x[:-2]], 1) for x in tracks])
    now = torch.cat([x[2:] for x in tracks])
    factors = torch.linalg.lstsq(past, now[:, None]).solution[:, 0]
    return torch.cat([factors, (now - past @ factors).std()[None]])


class HeadTrajectory:
    """The head motion of one session; the same seed yields the same motion.

    Args:
        course: coefficients of the processes, `(K, 3)`, see `HeadMotion`.
        seed: seed of the random numbers.
    """

    def __init__(self, course: Tensor, seed: int) -> None:
        self._course, self._seed = course.cpu().numpy().T, seed
        self.reset()

    def reset(self) -> None:
        """Restart from the seed, with the head at rest."""
        self._rng = np.random.default_rng([self._seed, 1])
        at_rest = np.zeros(self._course.shape[1])
        self._history = deque([at_rest, at_rest], maxlen=_KEPT)
        self._rewound = 0  # frames at the end of the history that are returned again

    def next(self, frames: int) -> Tensor:
        """Return the components in the next frames, `(frames, K)`, in standard deviations."""
        return torch.from_numpy(np.stack([self._next() for _ in range(frames)])).float()

    def rewind(self, frames: int) -> None:
        """Take the last frames back, at most as many as the history holds."""
        self._rewound = min(self._rewound + frames, len(self._history) - 2)

    def _next(self) -> np.ndarray:
        if self._rewound:
            self._rewound -= 1
            return self._history[-1 - self._rewound]
        a, b, c = self._course
        noise = self._rng.standard_normal(len(a))
        self._history.append(a * self._history[-1] + b * self._history[-2] + c * noise)
        return self._history[-1]
