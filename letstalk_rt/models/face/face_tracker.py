"""Follows one face through a video: where it is, its landmarks, and whether it can be seen.

The landmarks are read in a crop that follows those of the frame before, so the whole image is
searched only now and then: for a face that was lost, and for a second one. Heat maps tell how
certain they are: the landmarks of a face lie in few cells, those of anything else are spread out.
"""

from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.models.autoencoder.interfaces import LandmarkAutoencoder
from letstalk_rt.models.face.detector import (
    Box,
    FaceDetector,
    crop,
    detect_boxes,
    face_crop_box,
    is_plausible,
)
from letstalk_rt.models.face.heatmaps import LEAST_CERTAINTY, read_heatmaps
from letstalk_rt.models.layers.int8 import is_supported, quantize

_LOOK_FRAMES, _SEARCH_FRAMES = 6, 2  # the image is searched so often with a face, and without
_READINGS = 3  # of a face that was just found; each begins from the landmarks of the one before
_OTHER_SIZE = 0.5  # a second face counts from this share of the first one's size
_GREY, _MAX_GAIN = 0.35, 8.0  # brightness to which a dark crop is raised, and the most it may be
_FOLLOW = 0.6  # how fast the size of the crop follows the face, lest its noise move the landmarks


@dataclass(frozen=True, slots=True)
class TrackedFace:
    """A face in one frame of a video.

    Attributes:
        landmarks: `(L, 2)` float32, in pixels of the frame.
        certainty: how certain the landmarks are, from `LEAST_CERTAINTY` to 1.
        box: the crop in which they were read.
        turns: yaw and pitch that the pose reader says, `(2,)`, for comparison with the neutral
            look; empty without one.
    """

    landmarks: np.ndarray
    certainty: float
    box: Box
    turns: np.ndarray = field(default_factory=lambda: np.zeros(0))


@dataclass(slots=True)
class TrackState:
    """What is remembered of one video from frame to frame.

    Attributes:
        box: the crop in which to read next; None while there is no face.
        frames: frames since the image was last searched.
        others: whether there was a second face when the image was last searched.
    """

    box: Box | None = None
    frames: int = 1 << 30
    others: bool = field(default=False)

    def reset(self) -> None:
        """Forget the video."""
        self.box, self.frames, self.others = None, 1 << 30, False


@dataclass(frozen=True)
class Reading:
    """What a reader sees in B crops.

    Attributes:
        points: landmarks, `(B, L, 2)` in [-1, 1].
        certainty: `(B,)` in [0, 1].
    """

    points: Tensor
    certainty: Tensor


class LandmarkReader(Protocol):
    """Reads the landmarks of a face in its crop.

    Attributes:
        crop_px: side of the crops.
    """

    crop_px: int

    def __call__(self, crops: Tensor) -> Reading:
        """Read crops `(B, 3, crop_px, crop_px)` in [-1, 1]."""
        ...


class TurnReader(Protocol):
    """Reads how a face is turned; see `pose_reader.read_turns`."""

    def __call__(self, image: Tensor, points: np.ndarray, /) -> np.ndarray:
        """Read a frame `(1, 3, H, W)` in [-1, 1] with landmarks `(L, 2)`; return `(2,)`."""
        ...


class EncoderReader:
    """Reads landmarks by the encoder of the autoencoder: exact, and 44 ms on one core.

    Args:
        autoencoder: the autoencoder.
        in_8_bit: compute in 8-bit integers where the processor can, which is faster.
    """

    def __init__(self, autoencoder: LandmarkAutoencoder, *, in_8_bit: bool = False) -> None:
        self._encoder, self._mean_points = autoencoder.encoder, autoencoder.mean_points
        self.crop_px: int = autoencoder.image_size
        if in_8_bit and self._mean_points.device.type == "cpu" and is_supported():
            self._encoder = quantize(deepcopy(autoencoder.encoder))

    def __call__(self, crops: Tensor) -> Reading:
        """Read crops `(B, 3, 256, 256)`."""
        crops = crops.contiguous(memory_format=torch.channels_last)
        heat = self._encoder(crops, self._mean_points)[1]
        return Reading(*read_heatmaps(heat))


class FaceTracker:
    """Follows the largest face of a video. Calls are blocking, and use torch.

    Args:
        detector: finds faces in the whole image.
        reader: reads the landmarks in the crop.
        turn_reader: reads how the face is turned; None leaves that to the landmarks.
    """

    def __init__(
        self,
        detector: FaceDetector,
        reader: LandmarkReader,
        turn_reader: TurnReader | None = None,
    ) -> None:
        self._detector, self._reader, self._turn_reader = detector, reader, turn_reader
        self._device = next(detector.parameters()).device

    @torch.inference_mode()
    def track(self, rgb: np.ndarray, state: TrackState) -> TrackedFace | None:
        """Return the face in the next frame of a video; None if there is none.

        Args:
            rgb: `(H, W, 3)` uint8.
            state: updated in place; `others` tells whether there is a second face.
        """
        image = self._as_image(rgb)
        face = None if state.box is None else self._read(image, state.box)
        state.frames += 1
        if state.frames >= (_SEARCH_FRAMES if face is None else _LOOK_FRAMES):
            state.frames = 0
            face = self._search(image, face, state)
        if face is None:
            state.box = None
            return None
        at, old = face_crop_box(face.landmarks, face.certainty), face.box
        side = old.side + _FOLLOW * (at.side - old.side)
        state.box = Box(at.x, at.y, side, at.score)
        if self._turn_reader is None:
            return face
        return replace(face, turns=self._turn_reader(image, face.landmarks))

    def _search(
        self, image: Tensor, face: TrackedFace | None, state: TrackState
    ) -> TrackedFace | None:
        """Search the whole image; return the face to follow."""
        pads = (1.0,) if face is not None else (1.0, 1.6)
        found = [face] if face is not None else []
        for box in detect_boxes(self._detector, image, pads):
            if not any(_is_same(box, other) for other in found):
                other = self._find(image, box)
                if other is not None and not any(_is_same(other.box, o) for o in found):
                    found.append(other)
        if face is None:
            found.sort(key=lambda one: -one.box.side)
        largest = found[0].box.side if found else 0.0
        state.others = any(o.box.side > _OTHER_SIZE * largest for o in found[1:])
        return found[0] if found else None

    def _find(self, image: Tensor, box: Box) -> TrackedFace | None:
        """Read the landmarks of a face whose box is not exact yet."""
        face = None
        for _ in range(_READINGS):
            face = self._read(image, box, least=LEAST_CERTAINTY if face is not None else 0.0)
            if face is None:
                return None
            box = face_crop_box(face.landmarks, box.score)
        return face

    def _read(self, image: Tensor, box: Box, least: float = LEAST_CERTAINTY) -> TrackedFace | None:
        """Read the landmarks at a box; return None if there is no face."""
        size = self._reader.crop_px
        if not 0.1 * size <= box.side <= 4 * max(image.shape[-2:]):
            return None
        left, top = box.x - box.side / 2, box.y - box.side / 2
        reading = self._reader(exposed(crop(image, left, top, box.side, size)))
        score = float(reading.certainty[0])
        unit = reading.points[0].float().cpu().numpy()
        points = ((unit + 1) / 2 * box.side + [left, top]).astype(np.float32)
        if score < least or not is_plausible(points):
            return None
        return TrackedFace(points, score, box)

    def _as_image(self, rgb: np.ndarray) -> Tensor:
        image = torch.from_numpy(np.array(rgb, order="C")).to(self._device)
        return image.permute(2, 0, 1)[None].float() / 127.5 - 1


def exposed(crops: Tensor) -> Tensor:
    """Return crops `(B, 3, H, W)` in [-1, 1], the dark ones raised to the brightness of others."""
    light = (crops + 1) / 2
    bright = F.adaptive_avg_pool2d(light.mean(1, keepdim=True), 4).amax((1, 2, 3))
    gain = (_GREY / bright.clamp(min=1e-3)).clamp(1, _MAX_GAIN)[:, None, None, None]
    return (2 * gain * light - 1).clamp(max=1)


def _is_same(box: Box, face: TrackedFace | Box) -> bool:
    """Return whether a box lies on a face."""
    other = face.box if isinstance(face, TrackedFace) else face
    distance = float(np.hypot(box.x - other.x, box.y - other.y))
    return distance < 0.45 * max(box.side, other.side)
