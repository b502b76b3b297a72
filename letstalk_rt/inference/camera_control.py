"""Camera control: moves a portrait as a person before a camera moves.

The head is turned as a solid: the portrait's own landmarks with the depth of an average face. So
its proportions stay, and only the motion is the driver's.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from letstalk_rt.models.autoencoder.latents import FACE_SIZE
from letstalk_rt.models.avatar_model import FaceModules
from letstalk_rt.models.face import face_motion as motion_of
from letstalk_rt.models.face.face_motion import DriveWindow
from letstalk_rt.models.face.head_motion import MOVEMENTS
from letstalk_rt.models.face.head_pose import HeadShape, angles, average_head, rotation
from letstalk_rt.models.face.lip_values import LIP_VALUES
from letstalk_rt.models.geometry.landmarks import EYES, IRISES, NUM_LANDMARKS, landmark_indices

LIMITS = np.array([0.2, 0.28, 0.26, 0.07, 0.07, 0.12])
"""The largest head pose that is shown; larger ones approach it. A flat picture does not turn
or move further without tearing, and a face that is moved far is less like its picture."""

DEPTH = 1.2
"""By how much a head is deeper than the average head, which is too flat: the landmarks to which it
was fitted stay behind the head. With 1.43 MediaPipe sees turns of two portraits in full, but noses
and cheeks of a flat picture move so far then that it is less like itself."""

MOST_DEVIATIONS = 1.6
"""By how many deviations lips that a camera sees may differ from those at rest."""

_NOD = 0.9  # share of a nod that is seen then

MAX_GAZE, MAX_BROWS = 0.12, 1.2
"""The largest motion of irises, in face sizes, and of brows that is shown."""

_BLENDED = 0.6  # weight of the sound in blended lips while there is speech
_SPEECH_GAP = 0.06  # lip gap of the sound from which there is speech
_EYE_POINTS = EYES + landmark_indices(IRISES)
SMILED = [LIP_VALUES.index("width"), LIP_VALUES.index("corners")]
"""The lip values of a smile: how wide it is, and how low its corners are."""


@dataclass(frozen=True)
class CameraControl:
    """How face motion is shown by one portrait.

    Attributes:
        shape: the portrait's head.
        to_front: how the portrait's head is turned from the front, `(3, 3)`.
        write: maps displacements of landmarks to motion, `(384, 2L)`.
        beside_head: takes the motion of head, eyes and lids out of motion, `(384, 384)`.
    """

    shape: HeadShape
    to_front: np.ndarray
    write: Tensor
    beside_head: Tensor

    @classmethod
    def of(
        cls,
        face: FaceModules,
        points: Tensor,
        scale: Tensor,
        inverse: Tensor,
    ) -> "CameraControl":
        """Create the camera control of a portrait.

        Args:
            face: the modules that know about faces.
            points: landmarks of the portrait, `(L, 2)`.
            scale: scale of motion, flat, `(384,)`.
            inverse: maps displacements of landmarks to latents, `(384, 2L)`.
        """
        flat = HeadShape.of(points.cpu().double().numpy())
        shape = replace(flat, points=flat.points * [1.0, 1.0, DEPTH])
        to_front = average_head().view(points.cpu().double().numpy())[0]
        write = inverse.clone()
        rigid = torch.from_numpy(shape.rigid).to(points.device).repeat_interleave(2).float()
        usual = face.head.displacements(points.float()) * rigid
        if bool(usual.abs().sum() > 0):  # what is behind the face follows as it does in clips
            to_scores = torch.linalg.pinv(usual.T) * rigid
            followed = face.head.background(points.float())
            write[FACE_SIZE:] += followed.T @ to_scores
            assert to_scores.shape[0] == MOVEMENTS, to_scores.shape
        eyes = torch.zeros(2 * NUM_LANDMARKS, device=points.device)
        eyes.view(-1, 2)[_EYE_POINTS] = 1
        without = torch.eye(len(scale), device=points.device)
        solid = torch.from_numpy(_solid_part(shape)).float().to(points.device)
        for part in (eyes.diag(), solid):
            moved = inverse @ part @ face.autoencoder.landmark_matrix
            without = without - (moved * scale / scale[:, None]) @ without
        return cls(shape, to_front, write / scale[:, None], without)

    def motion(self, poses: np.ndarray, limits: np.ndarray = LIMITS) -> Tensor:
        """Return the motion of the head in each frame, `(N, 384)`.

        Args:
            poses: head poses, `(N, 6)`.
            limits: the largest head pose that is shown, `(6,)`.
        """
        base = self.shape.shown(np.zeros(len(LIMITS)))
        moved = np.stack([self._displacement(pose, base, limits) for pose in poses])
        flat = torch.from_numpy(moved.reshape(len(moved), -1)).float().to(self.write.device)
        return flat @ self.write.T

    def _displacement(self, seen: np.ndarray, base: np.ndarray, limits: np.ndarray) -> np.ndarray:
        pose = limited(seen.astype(np.float64), limits)
        pose[1] /= _NOD
        own = angles(self.to_front)
        pose[:3] = angles(rotation(own + pose[:3]) @ self.to_front.T)
        moved: np.ndarray = self.shape.shown(pose) - base
        assert moved.shape == (NUM_LANDMARKS, 2), moved.shape
        return moved


def limited(pose: np.ndarray, limits: np.ndarray = LIMITS) -> np.ndarray:
    """Return a head pose within limits: unchanged if small, and close to them if large.

    There is no knee: a motion that goes far beyond the limits keeps its shape.
    """
    return np.asarray(pose / np.sqrt(1 + (pose / limits) ** 2))


def _solid_part(shape: HeadShape) -> np.ndarray:
    """Return the matrix from displacements of landmarks to those of the head in them, `(2L, 2L)`.

    It is the motion of a solid that agrees best with the landmarks that speech does not move.
    """
    rest, small = shape.shown(np.zeros(len(LIMITS))), 0.05
    steps = small * np.eye(len(LIMITS))
    moves = np.stack([(shape.shown(step) - rest).ravel() / small for step in steps], 1)
    rigid = np.repeat(shape.rigid, 2)[:, None]
    return np.asarray(moves @ np.linalg.pinv(moves * rigid))


def driven_lips(sound: Tensor, window: DriveWindow, usual: Tensor) -> Tensor:
    """Return the lip values to show, `(1, N, Q)`.

    Args:
        sound: lip values of the sound, `(1, N, Q)`.
        window: what the camera has seen.
        usual: standard deviations of lip values in people who talk, `(Q,)`. Values far beyond are
            errors of the landmarks, or would distort the whole face.
    """
    weights = torch.from_numpy(window.weights).float().to(sound.device)[None, :, None]
    camera = torch.from_numpy(window.motion[:, motion_of.LIPS]).float().to(sound.device)[None]
    most = MOST_DEVIATIONS * usual
    camera = most * torch.tanh(camera / most)
    if window.lips == "sound":
        smile = torch.from_numpy(window.motion[:, motion_of.SMILE]).float().to(sound.device)
        driven = sound.clone()
        driven[..., SMILED] += smile
        return torch.lerp(sound, driven, weights)
    if window.lips == "blend":
        speech = (sound[..., :1].amax(1, keepdim=True) / _SPEECH_GAP).clamp(0, 1)
        camera = torch.lerp(camera, sound, _BLENDED * speech)
    return torch.lerp(sound, camera, weights)
