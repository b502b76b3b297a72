"""Batches of open mouths for the mouth painter, augmented in geometry and, less, in colour.

All crops have the size of stills, twice that of video frames. Frames of video are enlarged, and are
compared with what is inpainted at their own size only, so that they teach nothing about details.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.models.autoencoder.mouth_painter import masked_teeth
from letstalk_rt.models.geometry.landmarks import INNER_LOWER_LIP, INNER_UPPER_LIP
from letstalk_rt.models.geometry.mouth_crop import (
    CROP_CENTRE,
    CROP_HEIGHT,
    CROP_WIDTH,
    FINE,
    FINE_SIZE,
    lip_gap_px,
    opening_mask,
)
from letstalk_rt.training.data.dataset import mirror_map
from letstalk_rt.training.data.mouth_crops import KINDS, MARGIN_PX, MouthCrops

STILL_SHARE = 0.4
"""Share of stills in a batch, by weight."""

COVERED_SHARE = 0.3
"""Share of frames whose teeth are partly covered by a lip before they become an input."""

LOWER_LIP_SHARE = 0.8
"""Share of those in which the lower lip covers them, as in a smile."""


@dataclass
class MouthBatch:
    """B mouths. Some are pairs of consecutive frames: the last frames follow the first ones.

    Attributes:
        crops: `(B, 3, 160, 224)` in [-1, 1].
        points: `(B, L, 2)` in pixels of 80x112 crops.
        opening: mask of the region to inpaint, `(B, 1, 160, 224)`.
        teeth: another frame of the same person, `(B, 4, 160, 224)`, see `masked_teeth`. Of a still
            it is a part of the still itself.
        sound: the audio around each frame, `(B, S)`; zeros where it is not known.
        is_still: whether each item is a still, `(B,)` bool.
        pairs: number of frames at the end that follow the first ones.
    """

    crops: Tensor
    points: Tensor
    opening: Tensor
    teeth: Tensor
    sound: Tensor
    is_still: Tensor
    pairs: int

    def to(self, device: torch.device) -> "MouthBatch":
        """Return the batch on a device."""
        return MouthBatch(
            self.crops.to(device),
            self.points.to(device),
            self.opening.to(device),
            self.teeth.to(device),
            self.sound.to(device),
            self.is_still.to(device),
            self.pairs,
        )

    def comparable(self, crops: Tensor) -> Tensor:
        """Return crops `(B, 3, 160, 224)` with no more details than the true ones have."""
        coarse = F.avg_pool2d(crops, FINE)
        enlarged = F.interpolate(coarse, scale_factor=FINE, mode="bilinear", align_corners=False)
        return torch.where(self.is_still[:, None, None, None], crops, enlarged)


class MouthSource:
    """Draws batches of mouths; wide open ones more often.

    Args:
        mouths: the crops.
        rows: indices of the crops to draw from.
    """

    def __init__(self, mouths: MouthCrops, rows: np.ndarray) -> None:
        self.mouths = mouths
        gap = lip_gap_px(torch.from_numpy(mouths.points)).numpy()
        still = mouths.is_still(np.arange(len(mouths)))
        weight = mouths.weight * np.clip(gap / 9, 0.3, 3)
        weight[mouths.kind == KINDS.index("openmouth")] *= 4
        chosen = np.zeros(len(gap), bool)
        chosen[rows] = True
        for group, share in ((still & chosen, STILL_SHARE), (~still & chosen, 1 - STILL_SHARE)):
            weight[group] *= share / max(weight[group].sum(), 1e-9)
        self.weight = torch.from_numpy(np.where(chosen, weight, 0.0))
        has_next = np.zeros(len(gap), bool)
        has_next[:-1] = (mouths.person[1:] == mouths.person[:-1]) & (
            mouths.time[1:] == mouths.time[:-1] + 1
        )
        self._pair_weight = self.weight * torch.from_numpy(has_next)
        _, self._first, self._count = np.unique(
            mouths.person, return_index=True, return_counts=True
        )
        filmed = mouths.points[mouths.kind == KINDS.index("real")]
        self._mirror_map = mirror_map(filmed if len(filmed) else mouths.points)

    def draw(self, batch_size: int, generator: torch.Generator) -> MouthBatch:
        """Draw mouths; a quarter of the batch are frames that follow another quarter."""
        pairs = min(batch_size // 4, int((self._pair_weight > 0).sum()))
        rows = torch.multinomial(self.weight, batch_size - 2 * pairs, True, generator=generator)
        if pairs:
            first = torch.multinomial(self._pair_weight, pairs, True, generator=generator)
            rows = torch.cat([first, rows, first + 1])
        return self.gather(rows, pairs, generator)

    def gather(
        self, rows: Tensor, pairs: int, generator: torch.Generator, *, augment: bool = True
    ) -> MouthBatch:
        """Return a batch of these rows."""
        count, others = len(rows), self._other_frames(rows, generator)
        _repeat_first(pairs, others)
        change = _Affine.random(count, generator) if augment else _Affine.identity(count)
        _repeat_first(pairs, change.matrix, change.shift)
        crops, points = _transformed(*self._read(rows), change)
        similar = change.jittered(generator) if augment else change
        _repeat_first(pairs, similar.matrix, similar.shift)
        other_crops, other_points = _transformed(*self._read(others), similar)
        sound = torch.from_numpy(self.mouths.sound[rows.numpy()]).float()
        dilation_px = torch.ones(count)
        if augment:
            sound = _noisy(sound, pairs, generator)
            self._mirror_half(pairs, generator, (crops, points), (other_crops, other_points))
            crops, other_crops = _tinted(crops, other_crops, pairs, generator)
            other_crops = _relit(other_crops, pairs, generator)
            # At inference the mask is only as accurate as landmarks are.
            dilation_px = 3 * torch.rand(count, generator=generator) - 0.5
            points = points + 0.4 * torch.randn(points.shape, generator=generator)
        covered = self._partly_closed(rows, other_points, pairs, generator)
        return MouthBatch(
            crops,
            points,
            opening_mask(points, dilation_px=dilation_px, resolution=FINE),
            masked_teeth(other_crops, opening_mask(covered, resolution=FINE)),
            sound,
            self._is_still(rows),
            pairs,
        )

    def _is_still(self, rows: Tensor) -> Tensor:
        return torch.from_numpy(self.mouths.is_still(rows.numpy()))

    def _other_frames(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Draw another frame of the same person for each row."""
        person = self.mouths.person[rows.numpy()]
        first, count = (torch.from_numpy(part[person]) for part in (self._first, self._count))
        share = torch.rand(len(rows), generator=generator)
        return first + (share * count).long().minimum(count - 1)

    def _partly_closed(
        self, rows: Tensor, points: Tensor, pairs: int, generator: torch.Generator
    ) -> Tensor:
        """Return landmarks whose lips cover some of the teeth, of all stills and some frames.

        A portrait that smiles shows less of its teeth than speech will.
        """
        draws = torch.rand(len(rows), 3, generator=generator)
        _repeat_first(pairs, draws)
        share = torch.where(
            self._is_still(rows) | (draws[:, 0] < COVERED_SHARE), 0.7 * draws[:, 1], 0.0
        )
        lower_moves = draws[:, 2] < LOWER_LIP_SHARE
        upper, lower = points[:, INNER_UPPER_LIP], points[:, INNER_LOWER_LIP]
        points = points.clone()
        points[:, INNER_LOWER_LIP] = lower.lerp(upper, (share * lower_moves)[:, None, None])
        points[:, INNER_UPPER_LIP] = upper.lerp(lower, (share * ~lower_moves)[:, None, None])
        return points

    def _read(self, rows: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return stored crops, `(3, h, w)` in [-1, 1] each, and their landmarks."""
        first = len(self.mouths.stills)
        stored = [
            self.mouths.stills[i] if i < first else self.mouths.frames[i - first]
            for i in rows.tolist()
        ]
        crops = [torch.from_numpy(c).permute(2, 0, 1).float() / 127.5 - 1 for c in stored]
        return crops, torch.from_numpy(self.mouths.points[rows.numpy()])

    def _mirror_half(
        self, pairs: int, generator: torch.Generator, *groups: tuple[Tensor, Tensor]
    ) -> None:
        """Mirror half of the items of each group of crops and landmarks, in place."""
        chosen = torch.rand(len(groups[0][0]), generator=generator) < 0.5
        _repeat_first(pairs, chosen)
        for crops, points in groups:
            crops[chosen] = crops[chosen].flip(-1)
            mirrored = points[chosen][:, self._mirror_map]
            mirrored[..., 0] = CROP_WIDTH - mirrored[..., 0]
            points[chosen] = mirrored


@dataclass
class _Affine:
    """Affine transforms about the centre of the mouth: matrices `(B, 2, 2)`, shifts `(B, 2)`."""

    matrix: Tensor
    shift: Tensor

    @staticmethod
    def identity(count: int) -> "_Affine":
        return _Affine(torch.eye(2).repeat(count, 1, 1), torch.zeros(count, 2))

    @staticmethod
    def random(count: int, generator: torch.Generator) -> "_Affine":
        u = 2 * torch.rand(count, 5, generator=generator) - 1
        angle, size, aspect = 0.15 * u[:, 0], (0.17 * u[:, 1]).exp(), (0.08 * u[:, 2]).exp()
        cos, sin = size * angle.cos(), size * angle.sin()
        rows = (cos * aspect, -sin / aspect, sin * aspect, cos / aspect)
        return _Affine(torch.stack(rows, -1).view(-1, 2, 2), 4 * u[:, 3:])

    def jittered(self, generator: torch.Generator) -> "_Affine":
        """Return similar transforms, because no two frames are aligned exactly alike."""
        noise = 0.03 * torch.randn(self.matrix.shape, generator=generator)
        shift = torch.randn(self.shift.shape, generator=generator)
        return _Affine(self.matrix @ (torch.eye(2) + noise), self.shift + shift)


def _repeat_first(pairs: int, *values: Tensor) -> None:
    """Set the last `pairs` items of tensors to the first ones: both frames of a pair are alike."""
    for value in values:
        if pairs:
            value[-pairs:] = value[:pairs]


def _transformed(crops: list[Tensor], points: Tensor, change: _Affine) -> tuple[Tensor, Tensor]:
    """Sample the final crops from stored ones, whose margin leaves space for the transform.

    Returns:
        Crops `(B, 3, 160, 224)`, and landmarks in pixels of 80x112 crops.
    """
    centre = torch.tensor(CROP_CENTRE) + MARGIN_PX
    target = torch.tensor(CROP_CENTRE) + change.shift
    points = (points - centre) @ change.matrix.mT + target[:, None]
    height, width = FINE_SIZE
    y, x = torch.meshgrid(
        (torch.arange(height) + 0.5) / FINE, (torch.arange(width) + 0.5) / FINE, indexing="ij"
    )
    goal = torch.stack([x, y], -1).view(1, -1, 2) - target[:, None]
    source = goal @ torch.linalg.inv(change.matrix).mT + centre
    extent = torch.tensor([CROP_WIDTH, CROP_HEIGHT]) + 2 * MARGIN_PX
    grid = (source / extent * 2 - 1).view(len(crops), height, width, 2)
    sampled = [
        F.grid_sample(
            crop[None],
            positions[None],
            mode="bicubic",
            padding_mode="reflection",
            align_corners=False,
        )
        for crop, positions in zip(crops, grid, strict=True)
    ]
    return torch.cat(sampled).clamp(-1, 1), points


def _noisy(sound: Tensor, pairs: int, generator: torch.Generator) -> Tensor:
    """Add noise to the sound, shared by its frames, and remove one in five."""
    count = len(sound)
    gain = 0.2 * torch.randn(count, 1, generator=generator)
    kept = (torch.rand(count, 1, generator=generator) > 0.2).float()
    _repeat_first(pairs, gain, kept)
    known = sound.any(1, keepdim=True)
    noise = 0.1 * torch.randn(sound.shape, generator=generator)
    return torch.where(known, (sound + gain + noise) * kept, 0.0)


def _relit(teeth: Tensor, pairs: int, generator: torch.Generator) -> Tensor:
    """Change the light on the teeth alone, so that the painter fits them to the surroundings."""
    count = len(teeth)
    gain = (0.2 * torch.randn(count, 1, 1, 1, generator=generator)).exp()
    tint = (0.05 * torch.randn(count, 3, 1, 1, generator=generator)).exp()
    _repeat_first(pairs, gain, tint)
    return ((teeth + 1) * gain * tint - 1).clamp(-1, 1)


def _tinted(
    crops: Tensor, others: Tensor, pairs: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Change brightness and, slightly, colour; make one item in sixteen black and white."""
    count = len(crops)
    gain = 1 + 0.15 * torch.randn(count, 1, 1, 1, generator=generator)
    tint = 1 + 0.04 * torch.randn(count, 3, 1, 1, generator=generator)
    colour = (torch.rand(count, 1, 1, 1, generator=generator) > 1 / 16).float()
    _repeat_first(pairs, gain, tint, colour)

    def changed(images: Tensor) -> Tensor:
        lit = ((images + 1) * gain * tint - 1).clamp(-1, 1)
        return torch.lerp(lit.mean(1, keepdim=True).expand_as(lit), lit, colour)

    return changed(crops), changed(others)
