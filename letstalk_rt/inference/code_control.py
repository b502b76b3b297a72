"""Code control: shows motion codes on one portrait, changed by the options of a session.

What a code says of the face becomes a change of the latent: the head is turned as a solid, brows,
cheeks and a smile change the latent as in filmed people, and then the lips are set. Everything that
changes motion works on the code, here: expressiveness, head and gaze, interrupts and cameras.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from letstalk_rt.inference.camera_control import (
    MAX_BROWS,
    MAX_GAZE,
    SMILED,
    CameraControl,
    driven_lips,
)
from letstalk_rt.inference.lip_control import LipControl
from letstalk_rt.inference.sample_stage import EASING
from letstalk_rt.models.autoencoder.latents import FACE_SIZE
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.face import face_motion as motion_of
from letstalk_rt.models.face.face_motion import DriveWindow
from letstalk_rt.models.face.head_motion import face_size
from letstalk_rt.models.face.lip_values import NUM_LIP_VALUES
from letstalk_rt.models.geometry.eye_region import (
    CORNER_DISTANCE_PX,
    EYE_MOTION,
    LID_MIDDLE,
    LOWER_LID,
    UPPER_LID,
    align_eyes,
    eye_points,
)
from letstalk_rt.models.geometry.landmarks import landmark_indices
from letstalk_rt.models.motion.code import FACE, GAZE, HEAD, LIPS, REST, SHUT, channel
from letstalk_rt.models.motion.expression import EXPRESSION, EXPRESSION_NAMES, Expression
from letstalk_rt.models.parts import MOTION
from letstalk_rt.performance.direction import DirectedWindow
from letstalk_rt.types import MotionOptions

_OUTER_CORNERS = landmark_indices((33, 263))
_OPEN, _CLOSED = 0.03, 0.5
"""Lids that are lower by less than the first share are left as they are; from the second on they
are closed: landmarks of closed lids do not meet, and a tracker sees painted ones half open."""

_HEAD_LIMITS = np.array([0.4, 0.4, 0.4, 0.16, 0.16, 0.2])
"""The largest head pose that is shown, as `camera_control.LIMITS`: the denoiser's are true ones."""

_GAZE_SHOWN = (2.6, 2.6)
"""What the gaze is multiplied by: a tracker sees half of the way of irises that are painted."""

_HEAD_SHOWN = np.array([1.9, 1.2, 1.25, 1.0, 1.0, 1.05])
"""What a head pose is multiplied by, so that a tracker sees it at its size in shown frames."""

MAX_EXPRESSION = 1.0
"""The largest number of an expression that is shown when it is directed."""

MAX_RAISED = 0.18
"""By how many widths of an eye directed brows are raised at most: the flow that moves them ends
within 0.3 widths above the lid (`brow_flow`), and would fold from 0.2 on."""

NO_LANDMARKS = (
    "the latents of this model hold no landmarks, so no camera can drive it; use preset 'tiny'"
)
_RIDGE = 1e-3  # of the largest singular value; directions without landmarks are not changed
_SMILE = EXPRESSION_NAMES.index("smile")
_LEAST_SMILE = 1e-6  # of a squared unit of the code's smile; smaller ones were not fitted
_EYES = (0, 1)


@dataclass(frozen=True)
class EyeShape:
    """The eyes of a portrait, which the code's lids and gaze refer to.

    Attributes:
        opening: distance of the lids over the width of an eye.
        width: width of an eye over the distance of the outer corners.
        face_size: size of the face over that distance.
    """

    opening: float
    width: float
    face_size: float

    @classmethod
    def of(cls, points: Tensor) -> "EyeShape":
        """Return the shape of both eyes in landmarks `(L, 2)`, their means."""
        openings, widths = [], []
        outer = points[_OUTER_CORNERS]
        for eye in _EYES:
            place = align_eyes(points[None], eye)
            found = eye_points(points[None], eye, place)[0] / CORNER_DISTANCE_PX
            lids = found[LOWER_LID][LID_MIDDLE, 1] - found[UPPER_LID][LID_MIDDLE, 1]
            openings.append(float(lids.clamp(min=0)))
            widths.append(1 / float(place.scale) * CORNER_DISTANCE_PX)
        span = float((outer[1] - outer[0]).norm().clamp(min=1e-6))
        size = float(face_size(points))
        return cls(sum(openings) / 2, sum(widths) / 2 / span, size / span)


@dataclass(frozen=True)
class ShownFace:
    """How a portrait shows the codes of some frames.

    Attributes:
        latents: `(n, C, h, w)`.
        shut: how far each eye is shut, `(n, 2)`: `shut` of the code; the eye on the left of the
            image first.
        eyes: how far lids and irises are from the portrait's, `(n, 4)`: see `moved_eyes`.
        brows: motion of the brows, `(n, 3)`: see `BROW_MOTION`.
    """

    latents: Tensor
    shut: Tensor
    eyes: Tensor
    brows: Tensor


class CodeControl:
    """Applies motion codes to the portrait of one session.

    Args:
        options: the motion options of the session.
        model: a model with a motion denoiser.
        features: the portrait features from the autoencoder, one item.
    """

    def __init__(self, options: MotionOptions, model: AvatarModel, features: Any) -> None:
        self.options, self._model = options, model
        self._drive: DriveWindow | None = None
        self._eases = False
        self.set_portrait(features)

    def set_portrait(self, features: Any) -> None:
        """Change the portrait."""
        face, mouth = self._model.face, self._expression.mouth
        assert face is not None, "a motion denoiser needs landmarks"
        points, scale = features.points[0].float(), flat_scale(self._model)
        self._scale, self._eyes = scale, EyeShape.of(points)
        self._lips = LipControl.of(mouth, points, face.autoencoder.landmark_matrix, scale)
        self._usual_lips = self._lips.usual(mouth, scale)
        inverse = pseudo_inverse(face.autoencoder.landmark_matrix)
        self._head = CameraControl.of(face, points, scale, inverse)

    def drive(self, window: DriveWindow) -> None:
        """Let a camera move the face in the next frames; see `face`."""
        self._drive = window

    def ease(self) -> None:
        """Ease the next lips in from the last ones that were shown."""
        self._eases = True

    def reset(self) -> None:
        """Return to the initial state."""
        self._drive, self._eases = None, False

    def shown(self, codes: Tensor, last_lips: Tensor) -> Tensor:
        """Return codes as the session shows them, `(N, D)`.

        Args:
            codes: of a whole window.
            last_lips: the last lips that were shown, `(Q,)`.
        """
        shown = codes.clone()
        if self._eases:
            for number, share in enumerate(EASING):
                shown[number, LIPS] = torch.lerp(last_lips, shown[number, LIPS], share)
            self._eases = False
        return shown

    def face(
        self, codes: Tensor, portrait: Tensor, direction: DirectedWindow | None = None
    ) -> ShownFace:
        """Return how the portrait shows codes; a camera moves it in these frames only.

        Args:
            codes: motion codes, `(n, D)`.
            portrait: the portrait's latent, `(C, h, w)`.
            direction: how the motion of these frames is changed; a camera has precedence.
        """
        drive, self._drive = self._drive, None
        codes = self._with_options(codes)
        if direction is not None:
            codes = directed(codes, direction)
        head = self._head.motion(_HEAD_SHOWN * _on_cpu(codes[:, HEAD]), _HEAD_LIMITS)
        shown = codes if drive is None else self._driven(codes, drive)
        felt, expression = shown[:, EXPRESSION], self._expression
        motion = codes.new_zeros(len(codes), len(self._scale))
        motion[:, :FACE_SIZE] = felt @ expression.face / self._scale[:FACE_SIZE]
        smiled = codes[:, EXPRESSION] @ expression.lips
        values = codes[:, LIPS][:, :NUM_LIP_VALUES] + smiled
        if drive is not None:
            weights = _weights(drive, codes)
            heard = (values - weights * smiled)[None]
            values = driven_lips(heard, drive, self._usual_lips)[0]
            head = torch.lerp(head, self._head.motion(drive.motion[:, motion_of.POSE]), weights)
        motion = self._with_lips(motion, values) + head
        latents = self._model.to_latents(motion.view(1, -1, *portrait.shape), portrait[None])
        shut, brows = shown[:, SHUT, None].expand(-1, 2), felt @ expression.brows
        if direction is not None:
            shut = shut.maximum(torch.from_numpy(direction.closures).to(codes))
            brows = torch.cat([brows[:, :2].clamp(min=-MAX_RAISED), brows[:, 2:]], 1)
        return ShownFace(latents[0], shut, self._eyes_of(shown), brows)

    def _driven(self, codes: Tensor, drive: DriveWindow) -> Tensor:
        """Return codes `(n, D)` with the driver's brows, smile, lids and gaze by their weights.

        How far lips are pushed forward is not seen by a camera and stays the code's.
        """
        seen = torch.from_numpy(drive.motion).to(codes)
        driven = codes.clone()
        driven[:, FACE] = 0
        raised = seen[:, motion_of.BROWS].clamp(-MAX_BROWS, MAX_BROWS)
        for name, value in (
            ("brow_inner", raised.clamp(min=0)),
            ("brow_outer", raised.clamp(min=0)),
            ("brow_down", (-raised).clamp(min=0)),
            ("smile", self._smile_of(seen[:, motion_of.SMILE])),
        ):
            driven[:, channel(name)] = value
        driven[:, SHUT] = seen[:, motion_of.SHUT]
        if not self.options.gaze_at_camera:
            look = seen[:, motion_of.GAZE].clamp(-MAX_GAZE, MAX_GAZE)
            driven[:, GAZE] = look * self._eyes.face_size
        return torch.lerp(codes, driven, _weights(drive, codes))

    def _smile_of(self, corners: Tensor) -> Tensor:
        """Return the smile of the code, `(n,)`, that moves the mouth's corners like a driver's.

        Args:
            corners: change of `SMILED` by the smile, `(n, 2)`.
        """
        unit = self._expression.lips[_SMILE, SMILED]
        smile: Tensor = corners @ unit / unit.square().sum().clamp(min=_LEAST_SMILE)
        return smile.clamp(0, 1)

    def _eyes_of(self, codes: Tensor) -> Tensor:
        """Return how far lids and irises are from the portrait's, `(n, 4)`: see `moved_eyes`.

        Lids that close are left to `eye_closures`.
        """
        moved = codes.new_zeros(len(codes), EYE_MOTION)
        moved[:, 0] = self._eyes.opening * codes[:, SHUT].clamp(max=0)
        moved[:, 1] = codes[:, EXPRESSION] @ self._expression.lower_lid
        moved[:, 2:] = codes[:, GAZE] * codes.new_tensor(_GAZE_SHOWN) / self._eyes.width
        return moved

    @property
    def _expression(self) -> Expression:
        return self._model.part(MOTION).expression

    def _with_options(self, codes: Tensor) -> Tensor:
        codes = codes.clone()
        codes[:, LIPS] *= self.options.expressiveness
        codes[:, EXPRESSION] *= self.options.expressiveness
        if not self.options.head_motion:
            codes[:, HEAD] = 0
        if self.options.gaze_at_camera:
            codes[:, GAZE] = 0
        return codes

    def _with_lips(self, motion: Tensor, values: Tensor) -> Tensor:
        """Return motion `(n, 384)` with these lip values, `(n, Q)`; head and lids stay.

        People who talk also nod a little and narrow their eyes. Shown with the lips, that would
        make the head tremble beside its own motion, and hide blinks.
        """
        change = self._lips.apply_flat(motion, values) - motion
        return motion + change @ self._head.beside_head.T


def eye_closures(shut: Tensor) -> list[tuple[float, float]]:
    """Return how far the lids of both eyes are closed, from 0 to 1, for `ShownFace.shut`."""
    closed = ((shut - _OPEN) / (_CLOSED - _OPEN)).clamp(0, 1)
    return [(left, right) for left, right in closed.tolist()]


def directed(codes: Tensor, direction: DirectedWindow) -> Tensor:
    """Return codes `(n, D)` whose motion is changed; lips are left to speech."""
    changed = codes.clone()
    kept, added = (torch.from_numpy(x).to(codes) for x in (direction.kept, direction.added))
    changed[:, REST] = kept * codes[:, REST] + added
    changed[:, EXPRESSION] = changed[:, EXPRESSION].clamp(-MAX_EXPRESSION, MAX_EXPRESSION)
    return changed


def flat_scale(model: AvatarModel) -> Tensor:
    """Return the scale of motion, `(384,)`."""
    return model.motion_scale.float().expand(-1, 4, 4).flatten()


def pseudo_inverse(readout: Tensor) -> Tensor:
    """Return the regularised pseudo-inverse `(384, 2L)` of the read-out `(2L, 384)`."""
    square = readout.T @ readout
    ridge = _RIDGE * float(torch.linalg.matrix_norm(readout, 2)) ** 2
    identity = torch.eye(len(square), device=readout.device)
    inverse: Tensor = torch.linalg.solve(square + ridge * identity, readout.T)
    return inverse


def _weights(drive: DriveWindow, codes: Tensor) -> Tensor:
    """Return the share of the camera in each frame, `(n, 1)`."""
    return torch.from_numpy(drive.weights).to(codes)[:, None]


def _on_cpu(codes: Tensor) -> np.ndarray:
    values: np.ndarray = codes.detach().cpu().double().numpy()
    return values
