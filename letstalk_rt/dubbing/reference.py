"""Reference frames: pictures of the same person, from which a new mouth is made.

A reference shows the mouth closed or nearly so, sharply. Of several the one whose head is turned
most like the frame's is used.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from letstalk_rt.dubbing.face_reader import FilmedFace, cut
from letstalk_rt.dubbing.speech_motion import SpeechMotion
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

_GAP_COST = 1.5
_BLUR_COST = 0.3
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
    features = model.autoencoder.portrait_features(image, face.latent[None])  # type: ignore[attr-defined]
    side = min(max(IMAGE_SIZE / float(face.to_crop.scale), IMAGE_SIZE), MOST_SOURCE_PX)
    zoom = round(side) / IMAGE_SIZE
    to_source = CropTransform(face.to_crop.rotation * zoom, face.to_crop.shift * zoom)
    return Reference(
        features,
        cut(rgb, to_source, round(side)),
        SpeechMotion(model, face.latent),
        head_pose(face),
        reference_cost(face),
    )


def head_pose(face: FilmedFace) -> np.ndarray:
    """Return how the head is turned, sideways and up: `(2,)`, about in units of the face's size.

    In its crop the eyes and the base of the nose are aligned, so a turned head shows as a shift of
    the outline.
    """
    outline = face.points[_OUTLINE].float().cpu().numpy() / (IMAGE_SIZE / 2) - 1
    shift: np.ndarray = np.array([outline[:, 0].mean(), outline[:18, 1].mean()])
    return np.append(shift[:1], outline[[0, 1, -1], 1].mean())


def mouth_gap(points: Tensor) -> float:
    """Return the gap of the lips of landmarks `(L, 2)` in mouth widths."""
    width = (points[MOUTH_LEFT] - points[MOUTH_RIGHT]).norm().clamp(min=1e-6)
    return float((points[UPPER_LIP] - points[LOWER_LIP]).norm() / width)


def reference_cost(face: FilmedFace) -> float:
    """Return how little a frame suits as a reference: an open mouth, or blur."""
    gap = mouth_gap(face.points)
    return _GAP_COST * max(0.0, gap - 0.02) - _BLUR_COST * min(1.0, sharpness(face.crop) / 12)


def sharpness(crop: Tensor) -> float:
    """Return the mean absolute Laplacian of the lower half of a crop `(3, 256, 256)` uint8."""
    grey = crop.float().mean(0).cpu().numpy()[IMAGE_SIZE // 2 : -24, 48:-48]
    return float(np.abs(cv2.Laplacian(grey, cv2.CV_32F)).mean())
