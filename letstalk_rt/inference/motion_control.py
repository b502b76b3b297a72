"""Motion control: changes to the sampled motion by the options of a session, and blinks.

Landmarks are a linear read-out of the latent, so a linear change of landmarks is one matrix on the
motion, computed once per portrait. The memory bank keeps the motion as the model generated it.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from letstalk_rt.errors import ConfigError
from letstalk_rt.inference.camera_control import CameraControl, driven_lips
from letstalk_rt.inference.lip_control import LipControl
from letstalk_rt.models.autoencoder.latents import FACE_SIZE, LATENT_SIZE
from letstalk_rt.models.avatar_model import AvatarModel, FaceModules
from letstalk_rt.models.face.face_motion import POSE, SHUT, DriveWindow
from letstalk_rt.models.face.gestures import BLINK, BROWS, GAZE, HEAD, NUM_GESTURES, Gestures
from letstalk_rt.models.face.head_motion import HeadTrajectory, face_size, rigid_projection
from letstalk_rt.models.geometry.landmarks import (
    EYES,
    IRISES,
    NUM_LANDMARKS,
    landmark_indices,
)
from letstalk_rt.types import FPS, MotionOptions

EASING = (0.5,)
"""Weight of the new motion in the first frames after an interrupt; the mouth closes in two."""

NO_LANDMARKS = (
    "the latents of this model hold no landmarks, so no camera can drive it; use preset 'tiny'"
)
_RIDGE = 1e-3  # of the largest singular value; directions without landmarks are not changed
_LEAST_PAUSE_S = 0.8
_SPREAD = 0.5  # standard deviation of the logarithm of the pauses between blinks
_REWIND = 32  # the most frames that an interrupt may rewind
_CORNERS = (landmark_indices((33, 133)), landmark_indices((263, 362)))
_IRIS = (landmark_indices(IRISES[:5]), landmark_indices(IRISES[5:]))


class MotionController:
    """Applies motion options, gestures, head motion and blinks to the motion of one session.

    If the model has gestures, all head motion is theirs, and their window brings the blinks, too.

    Args:
        options: the motion options of the session.
        model: the model, for its landmark read-out and head motion.
        features: the portrait features from the autoencoder, one item.
        seed: seed of head motion and blinks.

    Raises:
        ConfigError: the options need landmarks, but the model has none.
    """

    def __init__(
        self,
        options: MotionOptions,
        model: AvatarModel,
        features: Any,
        seed: int,
    ) -> None:
        self.options = options
        self._model, self._face = model, model.face
        self._ease_start: Tensor | None = None  # last motion shown before an interrupt
        self._gestures = model.gestures
        random_head = options.head_motion and self._gestures is None
        head = self._face.head if self._face is not None and random_head else None
        self._head = HeadTrajectory(head.course, seed) if head is not None else None
        self._drive: DriveWindow | None = None
        self._camera_control: CameraControl | None = None
        self._shown_values: deque[Tensor] = deque(maxlen=_REWIND + 1)
        self.set_portrait(features)
        self._blinks = BlinkSchedule(options.blinks_per_min, seed)

    def set_portrait(self, features: Any) -> None:
        """Change the portrait."""
        face, options = self._face, self.options
        defaults = (options.expressiveness, options.head_motion, options.gaze_at_camera)
        changes = defaults != (1.0, True, False)
        self._lip_control: LipControl | None = None
        self._portrait_points = None if face is None else features.points[0]
        self._camera_control = None  # it takes 20 ms, and most sessions have no camera
        self.matrix: Tensor | None = None
        if face is None:
            if changes:
                raise ConfigError(
                    f"preset {self._model.preset.name!r} has no landmarks, which expressiveness, "
                    "head motion and gaze need; leave these options out"
                )
            return
        points, scale = features.points[0], flat_scale(self._model)
        if (lip_motion := self._model.lip_motion) is not None:
            matrix = face.autoencoder.landmark_matrix
            self._lip_control = LipControl.of(lip_motion, points, matrix, scale)
        if self._head is not None:
            self._head_directions = _head_directions(face, scale, points)
        if self._gestures is not None:
            self._gesture_directions = _gesture_directions(
                options, self._gestures, face, scale, points
            )
        if changes or self._gestures is not None:
            keep_head = options.head_motion and self._gestures is None
            self.matrix = _matrix(options, face, scale, points, keep_head=keep_head)

    def drive(self, window: DriveWindow) -> None:
        """Let a camera move the face in the next frames; see `apply`.

        Raises:
            ConfigError: the model has no landmarks.
        """
        self.make_drivable()
        self._drive = window

    def make_drivable(self) -> None:
        """Compute what a camera needs, unless it is known.

        Raises:
            ConfigError: the model has no landmarks.
        """
        if self._camera_control is None:
            self._camera_control = self._new_camera_control()

    def _new_camera_control(self) -> CameraControl:
        face, points = self._face, self._portrait_points
        if face is None or points is None:
            raise ConfigError(NO_LANDMARKS)
        inverse = pseudo_inverse(face.autoencoder.landmark_matrix)
        return CameraControl.of(face, points, flat_scale(self._model), inverse)

    def apply(
        self, motion: Tensor, lip_values: Tensor | None = None, gestures: Tensor | None = None
    ) -> Tensor:
        """Return the motion to show.

        Args:
            motion: sampled motion of the next N frames, `(1, N, C, h, w)`.
            lip_values: lip values of each frame, `(1, N, Q)`; needed if the model has a lip reader.
            gestures: gestures of each frame, `(1, N, D)`; needed if the model has them.
        """
        if self._ease_start is not None:
            motion = _ease(motion, self._ease_start)
            if lip_values is not None and self._shown_values:
                lip_values = _ease(lip_values, self._shown_values[-1])
            self._ease_start = None
        if self.matrix is not None:
            motion = (motion.flatten(-3).float() @ self.matrix.T).view(motion.shape)
        drive, self._drive = self._drive, None
        own, driven = self._moved(motion, gestures, drive)
        motion = motion + own.view(motion.shape)
        # Gestures disturb the lips a little, so these are set afterwards. A nod from a camera moves
        # the chin, which would be taken back.
        if self._lip_control is not None:
            assert lip_values is not None, "the lip reader's values set the lips"
            self._shown_values.extend(lip_values[0])
            values = self.options.expressiveness * lip_values
            if drive is None:
                motion = self._lip_control.apply(motion, values)
            else:
                motion = self._with_driven_lips(motion, values, drive)
        return motion if driven is None else motion + driven.view(motion.shape)

    def _with_driven_lips(self, motion: Tensor, values: Tensor, drive: DriveWindow) -> Tensor:
        """Return motion with the lips of camera and sound; head and lids stay where they are.

        People who open the mouth wide also narrow their eyes, and lips beyond the usual would close
        them, so that no blink could be seen. Lips of a turned head would turn it once more.
        """
        assert self._lip_control is not None and self._camera_control is not None
        lip_motion = self._model.lip_motion
        assert lip_motion is not None, "it makes the lip control"
        usual = self._lip_control.usual(lip_motion, flat_scale(self._model))
        own = self._lip_control.apply(motion, values)
        shown = self._lip_control.apply(motion, driven_lips(values, drive, usual))
        change = (shown - own).flatten(-3) @ self._camera_control.beside_head.T
        return own + change.view(motion.shape)

    def _moved(
        self, motion: Tensor, gestures: Tensor | None, drive: DriveWindow | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the motion of head, brows and gaze, `(N, 384)`: its own, and the camera's."""
        own = motion.new_zeros(motion.shape[1], motion[0, 0].numel())
        if self._gestures is not None:
            assert gestures is not None, "the gestures move the head"
            own = own + (gestures @ self._gesture_directions)[0]
        if self._head is not None:
            own = own + self._head.next(len(own)).to(motion.device) @ self._head_directions
        if drive is None:
            return own, None
        assert self._camera_control is not None, "`drive` has made it"
        driven = self._camera_control.motion(drive.motion[:, POSE])
        weights = _weights(drive, motion.device)[:, None]
        return (1 - weights) * own, weights * driven

    def driven_eye_closures(self, own: Sequence[float]) -> Sequence[float]:
        """Return how far the eyes are closed in each of the next frames, with those of a camera.

        Args:
            own: how far the avatar itself closes them.
        """
        drive = self._drive
        if drive is None:
            return own
        shut = drive.motion[:, SHUT]
        mixed = np.asarray(own) * (1 - drive.weights) + shut * drive.weights
        return [float(value) for value in mixed]

    def eye_closures(self, frames: int) -> Sequence[float]:
        """Return how far the eyes are closed in each of the next frames, in [0, 1].

        For models without gestures.
        """
        return self._blinks.eye_closures(frames)

    def rewind(self, frames: int) -> None:
        """Rewind by frames that were not shown."""
        self._blinks.rewind(frames)
        for _ in range(min(frames, len(self._shown_values) - 1)):
            self._shown_values.pop()
        if self._head is not None:
            self._head.rewind(frames)

    def ease_from(self, motion: Tensor) -> None:
        """Ease the next motion in from `motion`, `(1, C, h, w)`, the last that was shown."""
        self._ease_start = motion.clone()

    def reset(self) -> None:
        """Return to the initial state."""
        self._ease_start = None
        self._shown_values.clear()
        self._blinks.reset()
        if self._head is not None:
            self._head.reset()


def _weights(drive: DriveWindow, device: torch.device) -> Tensor:
    return torch.from_numpy(drive.weights).float().to(device)


def _ease(x: Tensor, start: Tensor) -> Tensor:
    """Return `x`, `(1, N, ...)`, with its first frames moved towards `start`."""
    eased = x.clone()
    for number, share in enumerate(EASING):
        eased[:, number] = torch.lerp(start, x[:, number], share)
    return eased


class BlinkSchedule:
    """Random times at which the eyes close: blinks with log-normal pauses between them.

    Args:
        per_min: mean number of blinks per minute; 0 for none.
        seed: the same seed gives the same blinks.

    Source: 17 a minute at rest, 26 in conversation: Bentivoglio et al. 1997,
    doi:10.1002/mds.870120629.
    """

    def __init__(self, per_min: float, seed: int) -> None:
        self._per_min, self._seed = per_min, seed
        self.reset()

    def reset(self) -> None:
        """Start the same sequence of blinks again."""
        self._rng = np.random.default_rng(self._seed)
        self._frame = 0
        # A session starts at a random point of a pause, not at the end of a blink.
        self._start = round(self._rng.uniform() * self._pause()) if self._per_min else 0

    def eye_closures(self, frames: int) -> Sequence[float]:
        """Return how far the eyes are closed in each of the next frames, in [0, 1]."""
        return [self._next() for _ in range(frames)]

    def rewind(self, frames: int) -> None:
        """Go back by `frames`, at most `_REWIND`."""
        self._frame = max(0, self._frame - min(frames, _REWIND))

    def _next(self) -> float:
        if not self._per_min:
            return 0.0
        position = self._frame - self._start
        self._frame += 1
        if position >= _REWIND:
            self._start += max(self._pause(), _REWIND + 1)
        return BLINK[position] if 0 <= position < len(BLINK) else 0.0

    def _pause(self) -> int:
        """Draw the number of frames from the start of one blink to that of the next."""
        mean_s = 60 / self._per_min
        pause_s: float = self._rng.lognormal(np.log(mean_s) - _SPREAD**2 / 2, _SPREAD)
        return round(max(_LEAST_PAUSE_S, pause_s) * FPS)


def _head_directions(face: FaceModules, scale: Tensor, portrait: Tensor) -> Tensor:
    """Return the K components of head motion as motion, `(K, 384)`, for landmarks `(L, 2)`."""
    inverse = pseudo_inverse(face.autoencoder.landmark_matrix)
    moved = face.head.displacements(portrait.float()) @ inverse.T
    moved[:, FACE_SIZE:] += face.head.background(portrait.float())
    return moved / scale


def _gesture_directions(
    options: MotionOptions, gestures: Gestures, face: FaceModules, scale: Tensor, portrait: Tensor
) -> Tensor:
    """Return each gesture as motion, `(D, 384)`, for landmarks `(L, 2)`; zeros if not wanted."""
    directions = scale.new_zeros(NUM_GESTURES, LATENT_SIZE)
    if options.head_motion:
        directions[HEAD] = _head_directions(face, scale, portrait)
    brows = options.expressiveness * gestures.brow_motion.float()
    directions[BROWS, :FACE_SIZE] = brows / scale[:FACE_SIZE]
    if not options.gaze_at_camera:
        moved = portrait.new_zeros(2, NUM_LANDMARKS, 2)
        for axis in range(2):
            moved[axis, landmark_indices(IRISES), axis] = face_size(portrait)
        inverse = pseudo_inverse(face.autoencoder.landmark_matrix)
        directions[GAZE] = moved.flatten(1) @ inverse.T / scale
    return directions


def flat_scale(model: AvatarModel) -> Tensor:
    """Return the scale of motion, `(384,)`."""
    return model.motion_scale.float().expand(-1, 4, 4).flatten()


def _matrix(
    options: MotionOptions, face: FaceModules, scale: Tensor, portrait: Tensor, *, keep_head: bool
) -> Tensor:
    """Return the matrix on flat motion, `(384, 384)`, for the portrait's landmarks `(L, 2)`."""
    readout = face.autoencoder.landmark_matrix
    inverse = pseudo_inverse(readout)
    rigid = rigid_projection(portrait.float())
    identity = torch.eye(2 * NUM_LANDMARKS, device=readout.device)
    background = torch.diag((torch.arange(LATENT_SIZE, device=readout.device) >= FACE_SIZE).float())
    head = inverse @ rigid @ readout + background  # hair and shoulders move with the head
    eye_points = _selection(EYES + landmark_indices(IRISES), readout.device)
    eyes = inverse @ eye_points @ (identity - rigid) @ readout
    rest = torch.eye(LATENT_SIZE, device=readout.device) - head - eyes
    change = eyes + options.expressiveness * rest
    if keep_head:
        change = change + head
    if options.gaze_at_camera:
        change = change + inverse @ _held_gaze(readout.device) @ readout @ change
    return change * scale / scale[:, None]


def pseudo_inverse(readout: Tensor) -> Tensor:
    """Return the regularised pseudo-inverse `(384, 2L)` of the read-out `(2L, 384)`."""
    square = readout.T @ readout
    ridge = _RIDGE * float(torch.linalg.matrix_norm(readout, 2)) ** 2
    identity = torch.eye(len(square), device=readout.device)
    inverse: Tensor = torch.linalg.solve(square + ridge * identity, readout.T)
    return inverse


def _selection(points: Sequence[int], device: torch.device) -> Tensor:
    """Return the matrix that keeps only the displacements of some landmarks: `(2L, 2L)`."""
    kept = torch.zeros(NUM_LANDMARKS, device=device)
    kept[list(points)] = 1
    return torch.diag(kept.repeat_interleave(2))


def _held_gaze(device: torch.device) -> Tensor:
    """Return the matrix whose change to displacements makes each iris move with its eye."""
    change = torch.zeros(NUM_LANDMARKS, 2, NUM_LANDMARKS, 2, device=device)
    for iris, corners in zip(_IRIS, _CORNERS, strict=True):
        for axis in range(2):
            for point in iris:
                change[point, axis, point, axis] -= 1
                for corner in corners:
                    change[point, axis, corner, axis] += 1 / len(corners)
    return change.flatten(0, 1).flatten(1, 2)
