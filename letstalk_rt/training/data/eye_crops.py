"""Pairs of crops of the same eye, open and closed, from clips in which people blink.

Both are aligned by the corners of the eye. Their light differs a little, because they are different
frames: the mean colour around the eye is made the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.errors import InputError
from letstalk_rt.models.geometry.eye_crop import (
    EYE_HEIGHT,
    EYE_SIZE,
    EYE_WIDTH,
    LidEdges,
    align_eyes,
    lid_edges,
)
from letstalk_rt.models.geometry.landmarks import SUBSET, eye_openings
from letstalk_rt.models.geometry.mouth_crop import resample
from letstalk_rt.training.data.dataset import Clip

_OPEN_RANK = 70  # percentile of the opening that counts as open
_LEAST_OPENING = 0.12  # over the width of the eye; smaller eyes always look shut
_SHUT, _OPEN = 0.35, 0.85  # share of that opening: closed below the first, open above the second
_OF_BLINK, _OF_CLIP = 2, 80  # closed frames that are kept, those with the smallest opening
_NEAR = 2  # an open frame so many open frames away, and another one anywhere in the clip
_MOST_DIFFERENCE = 0.12  # below the eye; more is another pose or another light
_FILMED = 2.0  # weight of filmed clips

_SHIFT_PX, _SIZE = 4.0, 0.15  # largest changes of a crop; the size is logarithmic
_GAMMA, _GAIN, _TINT, _GREY = 0.35, 0.35, 0.12, 1 / 12
_NOISE = 0.03  # of open eyes
_LINE_ERROR_PX = 0.8  # of landmarks that the autoencoder reads

_FIELDS, _EDGES = ("opened", "shut", "closed", "weights"), ("upper", "lower")


@dataclass(frozen=True)
class EyePairs:
    """S eyes, open and closed.

    Attributes:
        opened: crops of open eyes, `(S, 3, 64, 80)` uint8.
        shut: the same eyes closed, likewise.
        lids: the lids of the open eyes.
        closed: where the lids of the closed ones meet, `(S, 80)`.
        weights: sampling weights, `(S,)`.
    """

    opened: Tensor
    shut: Tensor
    lids: LidEdges
    closed: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.opened)

    def batch(self, rows: Tensor) -> "EyeBatch":
        """Return some pairs as they are."""
        opened, shut = (to_unit_range(images[rows]) for images in (self.opened, self.shut))
        lids = LidEdges(self.lids.upper[rows], self.lids.lower[rows])
        return EyeBatch(opened, shut + _light(opened, shut), lids, self.closed[rows])


@dataclass(frozen=True)
class EyeBatch:
    """A batch of pairs.

    Attributes:
        opened: open eyes, `(B, 3, 64, 80)` in [-1, 1].
        shut: the same eyes closed, likewise.
        lids: the lids of the open eyes.
        closed: where the lids of the closed ones meet, `(B, 80)`.
    """

    opened: Tensor
    shut: Tensor
    lids: LidEdges
    closed: Tensor

    def to(self, device: torch.device) -> "EyeBatch":
        """Return the batch on a device."""
        lids = LidEdges(self.lids.upper.to(device), self.lids.lower.to(device))
        opened, shut, closed = (part.to(device) for part in (self.opened, self.shut, self.closed))
        return EyeBatch(opened, shut, lids, closed)


def to_unit_range(images: Tensor) -> Tensor:
    """Return uint8 images in [-1, 1]."""
    return images.float() / 127.5 - 1


def eye_pairs(clips: Sequence[Clip]) -> EyePairs:
    """Return the eyes of people who blink.

    Raises:
        InputError: nobody does.
    """
    found = [pair for clip in clips for pair in _pairs_of(clip)]
    found = [pair for pair in found if _is_alike(pair)]
    if not found:
        raise InputError(
            "the eyelid painter is trained on clips in which eyes close for at least one frame; "
            f"there is none among {len(clips)} clips"
        )
    joined = [torch.cat([getattr(pair, name) for pair in found]) for name in _FIELDS]
    lids = [torch.cat([getattr(pair.lids, name) for pair in found]) for name in _EDGES]
    opened, shut, closed, weights = joined
    return EyePairs(opened, shut, LidEdges(*lids), closed, weights)


def _pairs_of(clip: Clip) -> Iterator[EyePairs]:
    """Yield pairs of a clip, one at a time."""
    blinks = blink_frames(clip)
    weight = (_FILMED if clip.kind == "real" else 1.0) / max(1.0, len(blinks) / 2) ** 0.5
    for opened, shut in blinks:
        for eye in (0, 1):
            yield eye_pair(clip.frames[opened], clip, (opened, shut), eye, weight)


def blink_frames(clip: Clip) -> list[tuple[int, int]]:
    """Return pairs of a frame with open eyes and one with closed eyes."""
    openings = eye_openings(clip.landmarks[:, SUBSET])
    usual = np.percentile(openings, _OPEN_RANK, axis=0)
    if (usual < _LEAST_OPENING).any():
        return []
    share = openings / usual
    opened = np.flatnonzero((share > _OPEN).all(1))
    if len(opened) <= _NEAR:
        return []
    rng, pairs = np.random.default_rng(0), []
    for number in _most_shut(share.max(1)):
        near = opened[np.argsort(np.abs(opened - number), kind="stable")[_NEAR]]
        pairs += [(int(other), number) for other in (near, rng.choice(opened))]
    return pairs


def _most_shut(share: np.ndarray) -> list[int]:
    """Return the frames in which both eyes are shut, a few of each blink."""
    frames = np.flatnonzero(share < _SHUT)
    blinks = np.split(frames, np.flatnonzero(np.diff(frames) > 1) + 1)
    kept = [int(n) for blink in blinks for n in sorted(blink, key=share.__getitem__)[:_OF_BLINK]]
    return kept[:_OF_CLIP]


def eye_pair(
    shown: np.ndarray, clip: Clip, frames: tuple[int, int], eye: int, weight: float = 1.0
) -> EyePairs:
    """Return one pair.

    Args:
        shown: a picture of the frame with open eyes, `(S, S, 3)` uint8.
        clip: the clip.
        frames: numbers of the frames with open and with closed eyes.
        eye: which eye.
        weight: sampling weight.
    """
    crops, lids = [], []
    for image_of, number in zip((shown, clip.frames[frames[1]]), frames, strict=True):
        at = torch.from_numpy(clip.landmarks[number : number + 1, SUBSET].astype(np.float32))
        to_crop = align_eyes(at, eye)
        image = torch.from_numpy(np.array(image_of)).permute(2, 0, 1)[None].float()
        crop = resample(image, to_crop, EYE_SIZE)
        crops.append((crop.flip(-1) if eye else crop).add(0.5).clamp(0, 255).byte())
        lids.append(lid_edges(to_crop(at), eye))
    closed = (lids[1].upper + lids[1].lower) / 2
    return EyePairs(crops[0], crops[1], lids[0], closed, torch.tensor([weight]))


def _is_alike(pair: EyePairs) -> bool:
    """Return whether the skin below both eyes looks the same: no other pose, no other light."""
    batch = pair.batch(torch.zeros(1, dtype=torch.long))
    below = (batch.opened - batch.shut)[..., -12:, :]
    return float(below.abs().mean()) < _MOST_DIFFERENCE


def _light(opened: Tensor, shut: Tensor) -> Tensor:
    """Return the difference of the mean colours beside and below the eyes, `(B, 3, 1, 1)`."""
    around = opened.new_ones(EYE_SIZE)
    around[:18] = 0
    around[:-14, 10:-10] = 0
    return ((opened - shut) * around).sum((2, 3), keepdim=True) / around.sum()


class EyeSource:
    """Draws augmented batches of pairs."""

    def __init__(self, pairs: EyePairs) -> None:
        self._pairs = pairs

    def draw(self, count: int, generator: torch.Generator) -> EyeBatch:
        """Draw a batch: other places and sizes, light and colours, and lids that are not exact."""
        rows = torch.multinomial(self._pairs.weights, count, True, generator=generator)
        batch = self._pairs.batch(rows)
        place = _SHIFT_PX * _random(generator, count, 2)
        size = (_SIZE * _random(generator, count)).exp()
        moved = [_moved(images, place, size) for images in (batch.opened, batch.shut)]
        opened, shut = _lit(moved, generator)
        noise = torch.randn(opened.shape, generator=generator)
        opened = opened + _NOISE * _random(generator, count, 1, 1, 1) * noise
        upper, lower, closed = (
            _moved_line(line, place, size)
            for line in (batch.lids.upper, batch.lids.lower, batch.closed)
        )
        error = [_LINE_ERROR_PX * torch.randn(count, 1, generator=generator) for _ in range(2)]
        return EyeBatch(opened, shut, LidEdges(upper + error[0], lower + error[1]), closed)


def _random(generator: torch.Generator, *shape: int) -> Tensor:
    """Return random numbers in [-1, 1]."""
    return 2 * torch.rand(shape, generator=generator) - 1


def _lit(both: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Return images in another light: gamma, brightness and colour; some are black and white."""
    count = len(both[0])
    gamma = (_GAMMA * _random(generator, count, 1, 1, 1)).exp()
    gain = 1 + _GAIN * _random(generator, count, 1, 1, 1)
    tint = 1 + _TINT * _random(generator, count, 3, 1, 1)
    grey = (torch.rand(count, 1, 1, 1, generator=generator) < _GREY).float()
    light = [((image + 1) / 2).clamp(0, 1) ** gamma * gain * tint for image in both]
    lit = [2 * image.clamp(0, 1) - 1 for image in light]
    return [torch.lerp(one, one.mean(1, keepdim=True).expand_as(one), grey) for one in lit]


def _moved(images: Tensor, place: Tensor, size: Tensor) -> Tensor:
    """Return images scaled about their middle and shifted by `place`, `(B, 2)` in px."""
    extent = place.new_tensor([EYE_WIDTH, EYE_HEIGHT])
    matrix = torch.zeros(len(images), 2, 3)
    matrix[:, 0, 0] = matrix[:, 1, 1] = 1 / size
    matrix[:, :, 2] = -2 * place / extent / size[:, None]
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _moved_line(line: Tensor, place: Tensor, size: Tensor) -> Tensor:
    """Return a line `(B, 80)` moved like images."""
    x = torch.arange(EYE_WIDTH) + 0.5 - EYE_WIDTH / 2
    column = ((x - place[:, :1]) / size[:, None] + EYE_WIDTH / 2 - 0.5).clamp(0, EYE_WIDTH - 1)
    left = column.floor().long().clamp(max=EYE_WIDTH - 2)
    height = torch.lerp(line.gather(1, left), line.gather(1, left + 1), column - left)
    return (height - EYE_HEIGHT / 2) * size[:, None] + EYE_HEIGHT / 2 + place[:, 1:]
