"""Draws pairs of frames of one person, to train the autoencoder on."""

import numpy as np
import torch
from torch import Tensor

from letstalk_rt.models.geometry.landmarks import SUBSET, mouth_opening
from letstalk_rt.training.data.dataset import (
    STILL_SIZE,
    Clip,
    Stills,
    affine_augment,
    color_augment,
    mirror_map,
    to_unit,
)


class PairSource:
    """Draws random pairs (portrait, target) with their landmarks.

    Args:
        clips: Talking clips.
        stills: Still portraits.
        batch_size: Pairs per batch.
        still_share: Share of pairs that come from stills.
    """

    def __init__(
        self, clips: list[Clip], stills: Stills, batch_size: int, still_share: float = 0.125
    ) -> None:
        self.clips, self.stills = clips, stills
        self.num_stills = round(batch_size * still_share)
        self.num_clips = batch_size - self.num_stills
        weights = torch.tensor([clip.num_frames**0.5 for clip in clips])
        self.weights = weights / weights.sum()
        first = np.concatenate([clip.landmarks[:1] for clip in clips])
        self.mirror = mirror_map(first)

    def mean_points(self) -> Tensor:
        """Return the mean landmarks of the clips, `(L, 2)`."""
        return torch.from_numpy(np.stack([clip.points.mean(0) for clip in self.clips]).mean(0))

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw frames `(B, 2, 3, 256, 256)` in [-1, 1] and their landmarks `(B, 2, L, 2)`."""
        frames, points = self._from_clips(generator)
        if self.num_stills:
            still_frames, still_points = self._from_stills(generator)
            frames = torch.cat([frames, still_frames])
            points = torch.cat([points, still_points])
        return color_augment(frames, generator), points

    def _from_clips(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        frames, points = [], []
        for index in torch.multinomial(self.weights, self.num_clips, True, generator=generator):
            clip = self.clips[int(index)]
            pair = self._pair(clip, generator)
            mirrored = bool(torch.rand((), generator=generator) < 0.5)
            images, landmarks = clip.frames[pair], clip.landmarks[pair]
            frame, point = self._orient(images, landmarks, mirrored, images.shape[2])
            frames.append(frame)
            points.append(point)
        return affine_augment(torch.stack(frames), torch.stack(points), generator)

    def _pair(self, clip: Clip, generator: torch.Generator) -> list[int]:
        """Draw two frames; half of the time two whose mouth opening differs."""
        drawn = torch.randint(clip.num_frames, (4,), generator=generator).tolist()
        if float(torch.rand((), generator=generator)) < 0.5:
            return drawn[:2]
        opening = mouth_opening(clip.points[drawn])
        return [drawn[0], drawn[1 + int(np.abs(opening[1:] - opening[0]).argmax())]]

    def _from_stills(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(self.stills.frames), (self.num_stills,), generator=generator)
        frames, points = [], []
        for index in chosen.tolist():
            mirrored = bool(torch.rand((), generator=generator) < 0.5)
            images = self.stills.frames[index][None].repeat(2, 0)
            landmarks = self.stills.landmarks[index][None].repeat(2, 0)
            frame, point = self._orient(images, landmarks, mirrored, STILL_SIZE)
            frames.append(frame)
            points.append(point)
        pairs, pair_points = torch.stack(frames), torch.stack(points)
        moved, placed = affine_augment(
            pairs.view(-1, 1, *pairs.shape[2:]),
            pair_points.view(-1, 1, *pair_points.shape[2:]),
            generator,
            zoom=256 / STILL_SIZE,
        )
        return moved.view(-1, 2, *moved.shape[2:]), placed.view(-1, 2, *placed.shape[2:])

    def _orient(
        self, images: np.ndarray, landmarks: np.ndarray, mirrored: bool, size_px: int
    ) -> tuple[Tensor, Tensor]:
        if mirrored:
            images = images[:, :, ::-1]
            landmarks = landmarks[:, self.mirror]
            landmarks = np.stack([size_px - landmarks[..., 0], landmarks[..., 1]], -1)
        frames = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
        return frames, torch.from_numpy(to_unit(landmarks[:, SUBSET], size_px))
