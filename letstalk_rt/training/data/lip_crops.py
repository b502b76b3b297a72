"""Batches of mouths, open and closed, with the landmarks of their lips.

A crop at inference is aligned by landmarks that are not exact, so these are turned, scaled and
shifted; and cameras differ, so light, colours and sharpness vary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.models.geometry.landmarks import LIPS, SUBSET, mouth_opening
from letstalk_rt.models.geometry.mouth_crop import (
    CROP_CENTRE,
    CROP_SIZE,
    FINE,
    CropTransform,
    align_mouths,
    aligned_centre,
    resample,
)
from letstalk_rt.training.data.dataset import Clip, Stills, mirror_map
from letstalk_rt.training.data.mouth_crops import MARGIN_PX, STORED_SIZE, MouthCrops, cut_mouth

_SHARES = (0.5, 0.3, 0.2)
"""Shares of frames of clips, of stills, and of stills with open mouths in a batch."""

_ANGLE, _SIZE, _SHIFT_PX = 0.12, 0.15, 5.0  # largest changes of a crop; the size is logarithmic


@dataclass(frozen=True)
class LipCrops:
    """A batch of crops.

    Attributes:
        images: `(B, 3, 80, 112)` in [-1, 1].
        lips: landmarks of the lips, `(B, len(LIPS), 2)` in pixels of the crops.
    """

    images: Tensor
    lips: Tensor

    def to(self, device: torch.device) -> "LipCrops":
        """Return the batch on a device."""
        return LipCrops(self.images.to(device), self.lips.to(device))


@dataclass(frozen=True)
class _Mouths:
    """Stored crops, with a margin.

    Attributes:
        images: `(N, 128, 160, 3)` uint8.
        lips: `(N, len(LIPS), 2)` in their pixels.
    """

    images: np.ndarray
    lips: np.ndarray


class LipCropSource:
    """Draws batches of crops.

    Args:
        clips: their frames are drawn as often with open as with closed mouths.
        stills: still portraits.
        open_mouths: the crops of the mouth painter, of which the stills are used; or None.
        per_clip: frames that are kept of each clip, twice as many if it was filmed.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        stills: Stills | None,
        open_mouths: MouthCrops | None,
        per_clip: int = 32,
    ) -> None:
        groups = [_stored(sample for clip in clips for sample in _frames(clip, per_clip))]
        if stills is not None:
            meshes = stills.landmarks[:, SUBSET]
            groups.append(_stored(zip(stills.frames, meshes, strict=True)))
        if open_mouths is not None:
            groups.append(_open_stills(open_mouths))
        self._groups = groups
        self._shares = np.array(_SHARES[: len(groups)]) / sum(_SHARES[: len(groups)])
        self._mirror = mirror_map(np.concatenate([group.lips for group in groups]))

    def mean_lips(self) -> Tensor:
        """Return the mean landmarks in crops, `(len(LIPS), 2)`."""
        return torch.from_numpy(self._groups[0].lips.mean(0) - MARGIN_PX).float()

    def draw(self, count: int, rng: np.random.Generator) -> LipCrops:
        """Draw a batch, augmented."""
        images, lips = [], []
        for group in rng.choice(len(self._groups), count, p=self._shares):
            mouths = self._groups[group]
            image, points = self._mirrored(mouths, int(rng.integers(len(mouths.images))), rng)
            images.append(image)
            lips.append(points)
        crops, placed = _placed(_tensor(images), torch.from_numpy(np.stack(lips)).float(), rng)
        return LipCrops(_filmed(crops, rng), placed)

    def all(self) -> Iterator[LipCrops]:
        """Yield the frames of the clips as they are, in batches."""
        mouths = self._groups[0]
        for first in range(0, len(mouths.images), 64):
            here = slice(first, first + 64)
            images = _tensor(list(mouths.images[here]))
            images = images[..., MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]
            yield LipCrops(images, torch.from_numpy(mouths.lips[here] - MARGIN_PX).float())

    def _mirrored(
        self, mouths: _Mouths, index: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        image, lips = mouths.images[index], mouths.lips[index]
        if rng.random() < 0.5:
            return image, lips
        return image[:, ::-1], lips[self._mirror] * [-1, 1] + [STORED_SIZE[1], 0]


def _frames(clip: Clip, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield frames of a clip, at even steps of its mouth opening."""
    count = min(2 * count if clip.kind == "real" else count, clip.num_frames)
    by_opening = np.argsort(mouth_opening(clip.landmarks[:, SUBSET]))
    for index in np.unique(by_opening[np.linspace(0, clip.num_frames - 1, count).astype(int)]):
        yield clip.frames[index], clip.landmarks[index, SUBSET]


def _stored(samples: Iterator[tuple[np.ndarray, np.ndarray]]) -> _Mouths:
    images, lips = [], []
    for frame, mesh in samples:
        points = torch.from_numpy(mesh[None].astype(np.float32))
        to_crop = align_mouths(points, aligned_centre(points))
        to_crop = to_crop.shifted(torch.full((1, 2), float(MARGIN_PX)))
        images.append(cut_mouth(frame, to_crop, 0))
        lips.append(to_crop(points)[0, LIPS].numpy())
    return _Mouths(np.stack(images), np.stack(lips))


def _open_stills(mouths: MouthCrops) -> _Mouths:
    height, width = STORED_SIZE
    images = [
        cv2.resize(still, (width, height), interpolation=cv2.INTER_AREA) for still in mouths.stills
    ]
    assert mouths.stills.shape[1] == FINE * height, mouths.stills.shape
    return _Mouths(np.stack(images), mouths.points[: len(images), LIPS])


def _tensor(images: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _placed(images: Tensor, lips: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Cut crops of random place, size and angle."""

    def random(*shape: int) -> Tensor:
        return torch.from_numpy(rng.uniform(-1, 1, (len(images), *shape))).float()

    angle, size = _ANGLE * random(), (_SIZE * random()).exp()
    rotation = torch.stack([size * angle.cos(), size * angle.sin()], -1)
    centre = torch.tensor(CROP_CENTRE)
    turned = CropTransform(rotation, torch.zeros(len(images), 2))
    from_centre = turned((centre + MARGIN_PX).expand(len(images), 1, 2))[:, 0]
    to_crop = turned.shifted(centre - from_centre + _SHIFT_PX * random(2))
    return resample(images, to_crop, CROP_SIZE), to_crop(lips)


def _filmed(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Change light, colour, sharpness and noise of crops."""

    def random(low: float, high: float, channels: int = 1) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (len(images), channels, 1, 1))).float()

    factor = float(rng.uniform(0.4, 1.0))
    small = F.interpolate(images, scale_factor=factor, mode="area")
    blurred = F.interpolate(small, images.shape[-2:], mode="bilinear")
    images = torch.where(random(0, 1) < 0.3, blurred, images)
    light = ((images + 1) / 2).clamp(0, 1) ** random(0.7, 1.4) * random(0.7, 1.25)
    light = light * random(0.9, 1.1, channels=3)
    light = torch.where(random(0, 1) < 1 / 12, light.mean(1, keepdim=True), light)
    noise = torch.from_numpy(rng.standard_normal(images.shape, np.float32))
    light = light + noise * random(0, 0.02)
    return light.clamp(0, 1) * 2 - 1
