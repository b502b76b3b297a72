"""What a session wants changed in the motion the model makes, and when it blinks.

The landmarks are a linear read-out of the latent, so what is wanted of landmarks is one matrix on
the motion, made once per portrait. The memory bank keeps the motion as the model made it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from letstalk_rt.errors import ConfigError
from letstalk_rt.models.autoencoder.latents import FACE_SIZE, LATENT_SIZE
from letstalk_rt.models.avatar_model import AvatarModel, FaceModules
from letstalk_rt.models.face.head_motion import HeadTrajectory, rigid_landmarks
from letstalk_rt.models.geometry.landmarks import (
    EYES,
    IRISES,
    LIPS,
    NUM_LANDMARKS,
    landmark_indices,
    mouth_opening,
)
from letstalk_rt.types import FPS, MotionOptions

BLINK = (0.35, 0.9, 1.0, 0.65, 0.3, 0.1)
"""How far the eyes are closed in each frame of a blink: 240 ms, sooner shut than open."""

EASING = (0.5,)
"""Share of the new motion in the first frames after an interrupt; the mouth shuts in two frames."""

_RIDGE = 1e-3  # of the largest singular value: directions that hold no landmarks stay as they are
_LEAST_PAUSE_S = 0.8
_SPREAD = 0.5  # of the logarithm of the pauses between blinks
_REWIND = 32  # frames an interrupt may take back
_CORNERS = (landmark_indices((33, 133)), landmark_indices((263, 362)))
_IRIS = (landmark_indices(IRISES[:5]), landmark_indices(IRISES[5:]))


class MotionController:
    """Changes the motion of one session as its options ask, turns its head and closes its eyes.

    Args:
        options: what is wanted.
        model: whose landmarks are read.
        features: of the portrait, one item, as the autoencoder describes it.
        seed: of head and blinks.
        rest: motion that the model makes of this portrait in silence, `(1, C, h, w)`.

    Raises:
        ConfigError: the options need landmarks, and the model has none.
    """

    def __init__(
        self,
        options: MotionOptions,
        model: AvatarModel,
        features: Any,
        seed: int,
        rest: Tensor | None = None,
    ) -> None:
        self.options = options
        self._model, self._face = model, model.face
        self._from: Tensor | None = None  # what was shown before an interrupt
        head = self._face.head if self._face is not None and options.head_motion else None
        self._sway = HeadTrajectory(head.course, seed) if head is not None else None
        self.set_portrait(features, rest)
        self._blinks = BlinkSchedule(options.blinks_per_min, seed)

    def set_portrait(self, features: Any, rest: Tensor | None = None) -> None:
        """Take another portrait."""
        face, options = self._face, self.options
        as_made = (options.expressiveness, options.head_motion, options.gaze_at_camera)
        changes = as_made != (1.0, True, False)
        self._ajar: Tensor | None = None
        self.matrix: Tensor | None = None
        if face is None:
            if changes:
                raise ConfigError(
                    f"preset {self._model.preset.name!r} has no landmarks, by which "
                    "expressiveness, head motion and gaze are changed; leave them out"
                )
            return
        points, scale = features.points[0], _flat_scale(self._model)
        if rest is not None:
            self._ajar = _ajar(face, scale, points, rest)
        if self._sway is not None:
            self._turns = _turns(face, scale, points)
        if changes:
            self.matrix = _matrix(options, face, scale, points)

    def apply(self, motion: Tensor) -> Tensor:
        """Change motion `(1, N, C, h, w)`."""
        if self._from is not None:
            motion = self._ease(motion, self._from)
            self._from = None
        if self._ajar is not None:
            motion = motion - self._ajar
        if self.matrix is not None:
            motion = (motion.flatten(-3).float() @ self.matrix.T).view(motion.shape)
        if self._sway is not None:
            turned = self._sway.next(motion.shape[1]).to(motion.device) @ self._turns
            motion = motion + turned.view(motion.shape)
        return motion

    def eye_closures(self, frames: int) -> Sequence[float]:
        """Give how far the eyes are closed in each of the next frames, in [0, 1]."""
        return self._blinks.eye_closures(frames)

    def rewind(self, frames: int) -> None:
        """Take the last frames back: nobody saw them."""
        self._blinks.rewind(frames)
        if self._sway is not None:
            self._sway.rewind(frames)

    def ease_from(self, motion: Tensor) -> None:
        """Let the next motion begin at `(1, C, h, w)`, the last that was shown, without a jump."""
        self._from = motion.clone()

    def _ease(self, motion: Tensor, start: Tensor) -> Tensor:
        eased = motion.clone()
        for number, share in enumerate(EASING):
            eased[:, number] = torch.lerp(start, motion[:, number], share)
        return eased

    def reset(self) -> None:
        """Become as new."""
        self._from = None
        self._blinks.reset()
        if self._sway is not None:
            self._sway.reset()


class BlinkSchedule:
    """When the eyes close: pauses of random length, after the mean of people who talk.

    Args:
        per_min: blinks per minute on average; 0 for none.
        seed: the same seed gives the same blinks.

    Source: 17 a minute at rest, 26 in conversation: Bentivoglio et al. 1997,
    doi:10.1002/mds.870120629.
    """

    def __init__(self, per_min: float, seed: int) -> None:
        self._per_min, self._seed = per_min, seed
        self.reset()

    def reset(self) -> None:
        """Begin the same blinks again."""
        self._rng = np.random.default_rng(self._seed)
        self._frame = 0
        self._start = self._pause() if self._per_min else 0

    def eye_closures(self, frames: int) -> Sequence[float]:
        """Give how far the eyes are closed in each of the next frames."""
        return [self._next() for _ in range(frames)]

    def rewind(self, frames: int) -> None:
        """Take the last frames back, as many as are remembered."""
        self._frame = max(0, self._frame - min(frames, _REWIND))

    def _next(self) -> float:
        if not self._per_min:
            return 0.0
        place = self._frame - self._start
        self._frame += 1
        if place >= _REWIND:
            self._start += max(self._pause(), _REWIND + 1)
        return BLINK[place] if 0 <= place < len(BLINK) else 0.0

    def _pause(self) -> int:
        """Draw the frames from one blink's begin to the next one's."""
        mean_s = 60 / self._per_min
        pause_s: float = self._rng.lognormal(np.log(mean_s) - _SPREAD**2 / 2, _SPREAD)
        return round(max(_LEAST_PAUSE_S, pause_s) * FPS)


def _ajar(face: FaceModules, scale: Tensor, portrait: Tensor, rest: Tensor) -> Tensor | None:
    """Give the motion by which lips at rest `(1, C, h, w)` are wider open than in the portrait.

    Taken off all motion, it makes silence a mouth as shut as the portrait's. None where the
    portrait's is as wide open.
    """
    portrait = portrait.float()
    read = face.autoencoder.landmark_matrix
    moved = read @ (rest[0].float().flatten() * scale)
    shown = portrait + moved.view(NUM_LANDMARKS, 2)
    if mouth_opening(shown.cpu().numpy()) <= mouth_opening(portrait.cpu().numpy()):
        return None
    same = torch.eye(2 * NUM_LANDMARKS, device=read.device)
    lips = _pick(LIPS, read.device) @ (same - _rigid(portrait)) @ moved
    return (_undo(read) @ lips / scale).view(rest.shape)


def _turns(face: FaceModules, scale: Tensor, portrait: Tensor) -> Tensor:
    """Give the movements of the head as motion, `(K, 384)`, for landmarks `(L, 2)`."""
    write = _undo(face.autoencoder.landmark_matrix)
    moved = face.head.displacements(portrait.float()) @ write.T
    moved[:, FACE_SIZE:] += face.head.surroundings(portrait.float())
    return moved / scale


def _flat_scale(model: AvatarModel) -> Tensor:
    return model.motion_scale.float().expand(-1, 4, 4).flatten()


def _matrix(options: MotionOptions, face: FaceModules, scale: Tensor, portrait: Tensor) -> Tensor:
    """Give the matrix on flat motion, `(384, 384)`, for the portrait's landmarks `(L, 2)`."""
    read = face.autoencoder.landmark_matrix
    write = _undo(read)
    rigid = _rigid(portrait.float())
    same = torch.eye(2 * NUM_LANDMARKS, device=read.device)
    around = torch.diag((torch.arange(LATENT_SIZE, device=read.device) >= FACE_SIZE).float())
    head = write @ rigid @ read + around  # hair and shoulders go with it
    lids = write @ _pick(EYES + landmark_indices(IRISES), read.device) @ (same - rigid) @ read
    rest = torch.eye(LATENT_SIZE, device=read.device) - head - lids
    change = lids + options.expressiveness * rest
    if options.head_motion:
        change = change + head
    if options.gaze_at_camera:
        change = change + write @ _held_gaze(read.device) @ read @ change
    return change * scale / scale[:, None]


def _undo(read: Tensor) -> Tensor:
    """Invert the read-out `(2L, 384)` where it reads something: the smallest change that fits."""
    square = read.T @ read
    ridge = _RIDGE * float(torch.linalg.matrix_norm(read, 2)) ** 2
    same = torch.eye(len(square), device=read.device)
    write: Tensor = torch.linalg.solve(square + ridge * same, read.T)
    return write


def _rigid(points: Tensor) -> Tensor:
    """Give what of landmark displacements, flat `(2L,)`, is the head's: `(2L, 2L)`.

    It is the affine map that fits the upper face best, without lids and lips: turns of the head
    show as one, and speech does not move those landmarks.
    """
    base = points.new_zeros(NUM_LANDMARKS, 2, 6)
    base[:, 0, 0:2], base[:, 0, 2] = points, 1
    base[:, 1, 3:5], base[:, 1, 5] = points, 1
    base = base.flatten(0, 1)
    fit = base * rigid_landmarks(points).repeat_interleave(2)[:, None]
    rigid: Tensor = base @ torch.linalg.pinv(fit)
    return rigid


def _pick(points: Sequence[int], device: torch.device) -> Tensor:
    """Give the matrix that keeps the displacements of some landmarks: `(2L, 2L)`."""
    kept = torch.zeros(NUM_LANDMARKS, device=device)
    kept[list(points)] = 1
    return torch.diag(kept.repeat_interleave(2))


def _held_gaze(device: torch.device) -> Tensor:
    """Give what must be added to displacements so that each iris moves as its eye does."""
    change = torch.zeros(NUM_LANDMARKS, 2, NUM_LANDMARKS, 2, device=device)
    for iris, corners in zip(_IRIS, _CORNERS, strict=True):
        for axis in range(2):
            for point in iris:
                change[point, axis, point, axis] -= 1
                for corner in corners:
                    change[point, axis, corner, axis] += 1 / len(corners)
    return change.flatten(0, 1).flatten(1, 2)
