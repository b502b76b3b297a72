"""Face detection with landmarks, without a download.

A small detector marks face centres on heat maps of the image at several scales. The autoencoder's
heat maps then find the landmarks in a crop around each centre, which is refined by them several
times. True landmarks stay in place when the crop is shifted; those of a false detection move with
the crop.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from letstalk_rt.models.autoencoder.interfaces import LandmarkAutoencoder
from letstalk_rt.models.autoencoder.latents import IMAGE_SIZE
from letstalk_rt.models.autoencoder.networks import soft_argmax
from letstalk_rt.models.face.heatmaps import certainty
from letstalk_rt.models.geometry.landmarks import LEFT_LID, MOUTH_LEFT, MOUTH_RIGHT, RIGHT_LID
from letstalk_rt.models.layers.network import fingerprint
from letstalk_rt.threads import in_own_thread, thread_limit
from letstalk_rt.types import Face

DETECTOR_SIZE = 160
STRIDE = 8
FACE_SHARE = 0.557
"""Height of the landmarks' bounding box over the side of a face crop."""

_MIN_PEAK = 0.35
_MAX_FACES = 8
_FINEST = 2.5
"""Pixels of the image for one of the finest scale: the crop of a face of 40 px has 29 there."""

_MARGIN, _MULTIPLE = 32, 16
"""Grey border of an input, and what its sides are multiples of, in pixels."""

_REFINEMENTS = 3
_MAX_DISAGREEMENT = 0.06
"""Largest mean distance of landmarks found in two crops, over the height of the face."""

_LEAST_AT_FIRST, _LEAST_CERTAIN = 0.25, 0.78
"""Least certainty of landmarks in a crop that is not exact yet, and in one that is: photographs of
faces have 0.85 to 0.92, hair and plain walls at most 0.75."""


def _conv(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.SiLU(),
    )


class FaceDetector(nn.Module):
    """An image of 160x160 to a heat map of face centres and the size of the face at each."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(3, 16, 2), _conv(16, 32, 2), _conv(32, 48), _conv(48, 64, 2),
            _conv(64, 96), _conv(96, 96),
        )  # fmt: skip
        self.context = nn.Sequential(_conv(96, 96, 2), _conv(96, 96), _conv(96, 96))
        self.head = nn.Sequential(_conv(192, 96), nn.Conv2d(96, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, 3, 160, 160)` in [-1, 1] to `(B, 4, 20, 20)`.

        Channels: logit of a centre in this cell; x and y offset of the centre from the middle of
        the cell, in cells; logarithm of the side of the face crop over 64 px.
        """
        fine = self.body(x)
        context = F.interpolate(self.context(fine), fine.shape[-2:], mode="nearest")
        maps: Tensor = self.head(torch.cat([fine, context], 1))
        return maps


@dataclass(frozen=True)
class Box:
    """A square around a face.

    Attributes:
        x: x coordinate of the centre, in pixels of the image.
        y: y coordinate of the centre.
        side: side, in pixels.
        score: the detector's confidence, from 0 to 1.
    """

    x: float
    y: float
    side: float
    score: float


class FaceFinder:
    """Finds faces with their landmarks, by the face detector and the autoencoder's heat maps.

    Args:
        detector: the face detector.
        autoencoder: the autoencoder whose encoder finds landmarks.
        preset: name of the preset that the weights belong to.
        crop_px: side of the crops that the model animates, in pixels.
    """

    def __init__(
        self,
        detector: FaceDetector,
        autoencoder: LandmarkAutoencoder,
        *,
        preset: str,
        crop_px: int,
    ) -> None:
        self.detector, self.autoencoder = detector, autoencoder
        self.preset, self.crop_px = preset, crop_px

    def fingerprint(self) -> str:
        """Return a hash of the weights on which boxes depend: of the detector and the encoder."""
        return fingerprint(self.detector) + fingerprint(self.autoencoder.encoder)

    @in_own_thread
    @torch.inference_mode()
    def find_faces(self, rgb: np.ndarray) -> list[Face]:
        """Find faces, largest first.

        It takes one thread. On an idle machine two would save a tenth of a second; on a busy one
        they wait for each other, for seconds.

        Args:
            rgb: `(H, W, 3)` uint8.

        Returns:
            Faces with landmarks in pixels of `rgb`; empty if no face is found.
        """
        with thread_limit(1):
            return self._find_faces(rgb)

    def _find_faces(self, rgb: np.ndarray) -> list[Face]:
        image = torch.from_numpy(np.array(rgb, order="C")).permute(2, 0, 1)[None]
        image = image.to(self.autoencoder.mean_points.device).float() / 127.5 - 1
        faces: list[Face] = []
        for box in self.detect(image, rgb):
            if len(faces) < _MAX_FACES and not _lies_on(box, faces):
                face = self._landmarks_at(image, box)
                if face is not None and not _overlaps(face, faces):
                    faces.append(face)
        return sorted(faces, key=lambda face: -float(np.ptp(face.landmarks[:, 1])))

    def detect(self, image: Tensor, rgb: np.ndarray) -> list[Box]:
        """Detect faces from those that fill the frame down to 40 px.

        Args:
            image: `(1, 3, H, W)` in [-1, 1].
            rgb: the same, `(H, W, 3)` uint8.
        """
        boxes = _boxes_at_scales(self.detector, image, (1.0, 1.6))
        for level, scale in finer_levels(rgb):
            part = torch.from_numpy(level).to(image.device).permute(2, 0, 1)[None]
            padded = F.pad(part.float() / 127.5 - 1, _padding(*part.shape[-2:]))
            out = self.detector(padded)[0].float()
            boxes += find_peaks(out, -_MARGIN * scale, -_MARGIN * scale, DETECTOR_SIZE * scale)
        return distinct(boxes)

    def _landmarks_at(self, image: Tensor, box: Box) -> Face | None:
        """Find the face at a box; return None if there is no face."""
        points, sure = self.read(image, box)
        if sure < _LEAST_AT_FIRST:
            return None
        for _ in range(_REFINEMENTS - 1):
            box = face_crop_box(points, box.score)
            if not 8 <= box.side <= 8 * max(image.shape[-2:]):
                return None
            points, sure = self.read(image, box)
        if sure < _LEAST_CERTAIN or not is_plausible(points):
            return None
        shifted = Box(box.x + 0.08 * box.side, box.y - 0.06 * box.side, 1.12 * box.side, box.score)
        again, _ = self.read(image, shifted)
        distance = np.linalg.norm(again - points, axis=1).mean()
        if not distance < _MAX_DISAGREEMENT * np.ptp(points[:, 1]):
            return None
        return Face(points.astype(np.float32), box.score, head_yaw(points))

    def read(self, image: Tensor, box: Box) -> tuple[np.ndarray, float]:
        """Read the face at a box.

        Returns:
            Its landmarks, `(L, 2)` in pixels of the image, and how certain they are.
        """
        left, top = box.x - box.side / 2, box.y - box.side / 2
        cropped = crop(image, left, top, box.side, IMAGE_SIZE)
        heat = self.autoencoder.encode_with_heatmaps(cropped[None])[1][0]
        points = soft_argmax(heat)[0].float().cpu().numpy()
        return (points + 1) / 2 * box.side + [left, top], float(certainty(heat.float())[0])


def detect_boxes(
    detector: FaceDetector, image: Tensor, pads: Sequence[float] = (1.0, 1.6)
) -> list[Box]:
    """Return the boxes of faces in an image `(1, 3, H, W)`, the most certain first.

    Args:
        detector: the face detector.
        image: values in [-1, 1].
        pads: scales to look at: side of the square that is searched, over the longer side.
    """
    boxes = _boxes_at_scales(detector, image, pads)
    return sorted(boxes, key=lambda box: -box.score)[:_MAX_FACES]


def _boxes_at_scales(detector: FaceDetector, image: Tensor, pads: Sequence[float]) -> list[Box]:
    height, width = image.shape[-2:]
    boxes: list[Box] = []
    for pad in pads:
        side = pad * max(height, width)
        left, top = (width - side) / 2, (height - side) / 2
        resized = crop(image, left, top, side, DETECTOR_SIZE)
        boxes += find_peaks(detector(resized)[0].float(), left, top, side)
    return boxes


def finer_levels(rgb: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
    """Yield an image `(H, W, 3)` at the scales that small faces need, finest first.

    Yields:
        The scaled image, and how many pixels of the image one of its pixels is.
    """
    scale, longer = _FINEST, max(rgb.shape[:2])
    while longer > scale * DETECTOR_SIZE:
        height, width = (max(1, round(side / scale)) for side in rgb.shape[:2])
        yield cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA), scale
        scale *= 2


def _padding(height: int, width: int) -> tuple[int, int, int, int]:
    """Return a border, as for `F.pad`, that makes both sides multiples of `_MULTIPLE`."""
    right, below = (_MARGIN + -side % _MULTIPLE for side in (width, height))
    return _MARGIN, right, _MARGIN, below


def distinct(boxes: Sequence[Box]) -> list[Box]:
    """Return boxes without those that repeat a better one, the most certain first."""
    kept: list[Box] = []
    for box in sorted(boxes, key=lambda box: -box.score):
        if not any(_repeats(box, other) for other in kept):
            kept.append(box)
    return kept


def _repeats(box: Box, other: Box) -> bool:
    small, large = sorted((box.side, other.side))
    return float(np.hypot(box.x - other.x, box.y - other.y)) < 0.3 * small and large < 1.6 * small


def crop(image: Tensor, left: float, top: float, side: float, size: int) -> Tensor:
    """Crop a square, which may extend beyond the border, of `(1, 3, H, W)` and resize it to `size`.

    A large crop is first downsampled by averaging, to avoid aliasing.
    """
    factor = int(side // size)
    if factor > 1:
        image, left, top = _part(image, left, top, side, factor)
        image = F.avg_pool2d(image, factor, ceil_mode=True, count_include_pad=False)
    scale = max(factor, 1)
    grid_x = (left + (torch.arange(size) + 0.5) * side / size) / (image.shape[-1] * scale) * 2 - 1
    grid_y = (top + (torch.arange(size) + 0.5) * side / size) / (image.shape[-2] * scale) * 2 - 1
    grid = torch.stack(torch.meshgrid(grid_x, grid_y, indexing="xy"), -1)[None]
    return F.grid_sample(image, grid.to(image.device), align_corners=False)


def _part(
    image: Tensor, left: float, top: float, side: float, factor: int
) -> tuple[Tensor, float, float]:
    """Return what a crop sees of an image, cut at multiples of `factor`, and the crop's corner.

    The margin keeps the border where the image ends, and there only.
    """
    starts, ends = [], []
    for low, length in ((top, image.shape[-2]), (left, image.shape[-1])):
        starts.append(min(max(int(low // factor) - 2, 0), (length - 1) // factor) * factor)
        ends.append(max(int((low + side) // factor) + 3, starts[-1] // factor + 1) * factor)
    part = image[..., starts[0] : ends[0], starts[1] : ends[1]]
    return part, left - starts[1], top - starts[0]


def head_yaw(points: np.ndarray) -> float:
    """Estimate the head's yaw in [-1, 1] from the position of mouth and eyes in the outline."""
    left, right = points[LEFT_LID].mean(0)[0], points[RIGHT_LID].mean(0)[0]
    centre = 0.5 * (points[MOUTH_LEFT, 0] + points[MOUTH_RIGHT, 0])
    low, high = points[:, 0].min(), points[:, 0].max()
    inner = (left + right + centre) / 3
    return float(np.clip(2 * (2 * (inner - low) / max(high - low, 1e-6) - 1), -1, 1))


def face_crop_box(points: np.ndarray, score: float) -> Box:
    """Return the box around landmarks `(L, 2)` that face crops had in training."""
    low, high = points.min(0), points.max(0)
    side = float(high[1] - low[1]) / FACE_SHARE
    middle = (low + high) / 2
    return Box(float(middle[0]), float(middle[1] - 0.06 * side), side, score)


def find_peaks(out: Tensor, left: float, top: float, side: float) -> list[Box]:
    """Return the boxes at the peaks of a detector's output `(4, 20, 20)`.

    Args:
        out: output of `FaceDetector`.
        left: left edge of the square that was its input, in pixels of the image.
        top: top edge of that square.
        side: side of that square.
    """
    heat = torch.sigmoid(out[0])
    best = F.max_pool2d(heat[None, None], 3, 1, 1)[0, 0]
    scale = side / DETECTOR_SIZE
    boxes = []
    for row, column in torch.nonzero((heat == best) & (heat > _MIN_PEAK)).tolist():
        dx, dy, log_side = out[1:, row, column].tolist()
        x = left + (column + 0.5 + dx) * STRIDE * scale
        y = top + (row + 0.5 + dy) * STRIDE * scale
        face_side = 64 * float(np.exp(np.clip(log_side, -3, 3))) * scale
        boxes.append(Box(x, y, face_side, float(heat[row, column])))
    return boxes


def is_plausible(points: np.ndarray) -> bool:
    """Return whether landmarks form an upright face: mouth below eyes, plausible proportions."""
    eyes = points[LEFT_LID + RIGHT_LID].mean(0)
    mouth = 0.5 * (points[MOUTH_LEFT] + points[MOUTH_RIGHT])
    across, down = mouth - eyes
    width, height = np.ptp(points, axis=0)
    return bool(down > 0.2 * height and abs(across) < 0.7 * down and 0.5 < width / height < 1.3)


def _lies_on(box: Box, faces: Sequence[Face]) -> bool:
    """Return whether a box repeats a face that was found."""
    return any(_repeats(box, face_crop_box(face.landmarks, 1.0)) for face in faces)


def _overlaps(face: Face, others: list[Face]) -> bool:
    centre, size = face.landmarks.mean(0), np.ptp(face.landmarks[:, 1])
    for other in others:
        distance = float(np.linalg.norm(centre - other.landmarks.mean(0)))
        if distance < 0.5 * max(size, np.ptp(other.landmarks[:, 1])):
            return True
    return False
