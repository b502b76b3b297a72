"""The parts of a model whose latents hold landmarks: one table, from which all else follows.

A preset names its parts, a model builds them in this order, and a weights file says which it holds.
To add a part, add a line here and its name to the preset.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from torch import nn

from letstalk_rt.models.autoencoder.eye_painter import EyePainter
from letstalk_rt.models.autoencoder.mouth_painter import MouthPainter
from letstalk_rt.models.face.detector import FaceDetector
from letstalk_rt.models.face.head_motion import HeadMotion
from letstalk_rt.models.face.lip_refiner import LipRefiner
from letstalk_rt.models.face.pose_reader import PoseReader
from letstalk_rt.models.landmark_condition import FilmBranch, LandmarkBranch
from letstalk_rt.models.motion.denoiser import MotionDenoiser
from letstalk_rt.models.presets import DCAutoencoderConfig, Preset

ModuleT_co = TypeVar("ModuleT_co", bound=nn.Module, covariant=True)


@dataclass(frozen=True)
class Part(Generic[ModuleT_co]):
    """A part of a model.

    Attributes:
        name: its name in model and weights.
        build: returns it for a preset, not trained yet.
        without: what a model without it does.
        needs_landmarks: whether latents must hold landmarks.
    """

    name: str
    build: Callable[[Preset], ModuleT_co]
    without: str
    needs_landmarks: bool = True


def _landmark_condition(preset: Preset) -> LandmarkBranch | FilmBranch:
    """Return the branch that fits the latents of a preset."""
    shape = preset.denoiser
    if isinstance(preset.autoencoder, DCAutoencoderConfig):
        return FilmBranch(shape.width, shape.channels)
    return LandmarkBranch(shape.width, shape.side)


DETECTOR = Part("detector", lambda _: FaceDetector(), "finds no faces")
HEAD = Part("head", lambda _: HeadMotion(), "leaves hair and shoulders where they are")
MOUTH_PAINTER = Part(
    "mouth_painter", lambda p: MouthPainter(p.mouth_painter), "shows mouths as they are decoded"
)
LIP_REFINER = Part(
    "lip_refiner", lambda _: LipRefiner(), "takes lips of portraits from the autoencoder"
)
EYE_PAINTER = Part(
    "eye_painter", lambda p: EyePainter(p.eye_painter), "moves lids as far as a warp moves them"
)
POSE_READER = Part(
    "pose_reader", lambda _: PoseReader(), "reads from landmarks alone how a driver is turned"
)
MOTION = Part(
    "motion", lambda p: MotionDenoiser(p.motion), "lets the denoiser of latents move the face"
)
LANDMARK_CONDITION: Part[LandmarkBranch | FilmBranch] = Part(
    "denoiser.landmarks",
    _landmark_condition,
    "does not generate the lower faces of films",
    needs_landmarks=False,
)

PARTS: tuple[Part[nn.Module], ...] = (
    DETECTOR,
    HEAD,
    MOUTH_PAINTER,
    LIP_REFINER,
    EYE_PAINTER,
    POSE_READER,
    MOTION,
    LANDMARK_CONDITION,
)


def with_parts(preset: Preset, names: Iterable[str]) -> Preset:
    """Return a copy of a preset with these parts and no others."""
    return replace(preset, parts=tuple(part.name for part in PARTS if part.name in set(names)))


def without_part(preset: Preset, name: str) -> Preset:
    """Return a copy of a preset without a part."""
    return with_parts(preset, set(preset.parts) - {name})
