"""Reference frames: pictures of the same person, from which a new mouth is made.

A reference shows the mouth closed or nearly so, sharply. Of several the one whose head is turned
most like the frame's is used.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from letstalk_rt.inference.face_reader import FilmedFace, cut
from letstalk_rt.inference.speech_motion import SpeechMotion
from letstalk_rt.models.autoencoder.latents import IMAGE_SIZE, PortraitFeatures
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.geometry.landmarks import (
    LOWER_LIP,
    MOUTH_LEFT,
    MOUTH_RIGHT,
    OVAL,
    UPPER_LIP,
    landmark_indices,
)
from letstalk_rt.models.geometry.mouth_crop import CropTransform

MOST_SOURCE_PX = 768
"""Largest side of the picture of a reference that is kept."""

MOST_REFERENCES = 10

FADE_FRAMES = 5
"""Length of a cross-fade between references, and of the ends of the change, in frames."""

TURNED, PROFILE = 0.55, 0.75
"""Yaw from which the change fades out, and from which frames pass through."""

NEW_POSE = 0.5
"""A reference is added from this distance to all others."""

_POSE_UNIT = 0.05
_STAY = 0.25  # the present reference is kept unless another is better by this
_GAP_COST, _BLUR_COST, _SHARP = 4.0, 0.8, 10.0
_OUTLINE = landmark_indices(OVAL)


@dataclass(frozen=True)
class Reference:
    """A reference frame, prepared for rendering.

    Attributes:
        features: portrait features of its crop, one item.
        source: its crop as sharp as the frame, `(S, S, 3)` uint8.
        motion: changes latents relative to it.
        pose: how the head is turned, `(2,)`; see `head_pose`.
        cost: how little it suits as a reference, whatever the pose.
    """

    features: PortraitFeatures
    source: np.ndarray
    motion: SpeechMotion
    pose: np.ndarray
    cost: float


@torch.inference_mode()
def make_reference(model: AvatarModel, rgb: np.ndarray, face: FilmedFace) -> Reference:
    """Prepare a frame `(H, W, 3)` uint8 of a film, and its face, as a reference."""
    assert model.face is not None
    image = face.crop.to(face.latent.device).float()[None] / 127.5 - 1
    features = model.face.autoencoder.portrait_features(image, face.latent[None])
    side = min(max(IMAGE_SIZE / float(face.to_crop.scale), IMAGE_SIZE), MOST_SOURCE_PX)
    zoom = round(side) / IMAGE_SIZE
    to_source = CropTransform(face.to_crop.rotation * zoom, face.to_crop.shift * zoom)
    return Reference(
        features,
        cut(rgb, to_source, round(side)),
        SpeechMotion(model, face.latent),
        head_pose(face.points),
        reference_cost(face.points, face.sharpness),
    )


def head_pose(points: Tensor) -> np.ndarray:
    """Return how the head of landmarks `(L, 2)` in a crop is turned, sideways and up: `(2,)`.

    In its crop the eyes and the base of the nose are aligned, so a turned head shows as a shift of
    the outline, and a nod as a shift of the brow.
    """
    outline = points[_OUTLINE].float().cpu().numpy() / (IMAGE_SIZE / 2) - 1
    return np.array([outline[:, 0].mean(), outline[[0, 1, -1], 1].mean()])


def pose_distance(pose: np.ndarray, other: np.ndarray) -> float:
    """Return how far two poses are apart; 1 is a difference that is seen."""
    return float(np.linalg.norm(pose - other)) / _POSE_UNIT


def mouth_gap(points: Tensor) -> float:
    """Return the gap of the lips of landmarks `(L, 2)` in mouth widths."""
    width = (points[MOUTH_LEFT] - points[MOUTH_RIGHT]).norm().clamp(min=1e-6)
    return float((points[UPPER_LIP] - points[LOWER_LIP]).norm() / width)


def reference_cost(points: Tensor, sharpness: float) -> float:
    """Return how little a frame suits as a reference: an open mouth, or blur."""
    gap = mouth_gap(points)
    return _GAP_COST * max(0.0, gap - 0.02) + _BLUR_COST * math.log(_SHARP / max(sharpness, 0.1))


def shown_share(yaw: float | None) -> float:
    """Return how much of the change is shown in a face, in [0, 1]; `yaw` is None without one."""
    if yaw is None:
        return 0.0
    return float(np.clip((PROFILE - abs(yaw)) / (PROFILE - TURNED), 0, 1))


@dataclass
class ReferenceMixer:
    """Chooses the reference that fits a pose, and fades from one to the next.

    Attributes:
        chosen: the present one.
        previous: the one before, while it fades out.
        fade: how far the cross-fade is, in [0, 1].
    """

    chosen: Reference | None = None
    previous: Reference | None = None
    fade: float = 1.0

    def mix(
        self, references: list[Reference], poses: Sequence[np.ndarray]
    ) -> list[tuple[Reference, float]]:
        """Return the references to mix in the next frame, with weights whose sum is 1.

        Args:
            references: references to choose from.
            poses: how the head is turned in the next frame and, as far as it is known, in the
                `FADE_FRAMES` after it: a fade begins before a head has turned.
        """

        def total(reference: Reference) -> float:
            away = [pose_distance(reference.pose, pose) for pose in poses]
            return float(np.mean([d * max(1.0, d) for d in away])) + reference.cost

        best = min(references, key=total)
        if self.chosen is None:
            self.chosen = best
        elif (
            best is not self.chosen and self.fade >= 1 and total(self.chosen) - total(best) > _STAY
        ):
            self.previous, self.chosen, self.fade = self.chosen, best, 0.0
        self.fade = min(1.0, self.fade + 1 / FADE_FRAMES)
        if self.previous is None or self.fade >= 1:
            self.previous = None
            return [(self.chosen, 1.0)]
        return [(self.previous, 1 - self.fade), (self.chosen, self.fade)]
