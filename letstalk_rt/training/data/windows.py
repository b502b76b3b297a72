"""Draws windows of latents with their sound and with what came before them."""

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.training.data.audio_features import MEL_PER_FRAME, silence_mel
from letstalk_rt.training.data.tracks import Track

HEARD_FRAMES = 32
"""Frames of sound before the window that a training item hears: the encoder's reach."""


@dataclass(frozen=True)
class FlowLoss:
    """Weights of the parts of the loss, and shares of special items."""

    lips: float = 2.0
    change: float = 1.0
    mouth: float = 1.0
    no_audio: float = 0.1
    silent: float = 0.08
    no_memory: float = 0.15
    frozen_memory: float = 0.15
    stale_memory: float = 0.25
    drift: float = 0.8
    heavy_noise: float = 0.4
    mouth_noise: float = 0.2
    mouth_read: float = 0.25


@dataclass(frozen=True)
class Batch:
    """Items of training.

    Attributes:
        portrait: latents `(B, C, h, w)`.
        window: latents `(B, N, C, h, w)`.
        memory: latents `(B, M, C, h, w)`.
        filled: `(B, M)` bool.
        mel: sound `(B, 64, 4 * (HEARD + N + 2))`.
        targets: of the mouth for all frames heard, `(B, HEARD + N, 11)`.
        weight: `(B,)`.
    """

    portrait: Tensor
    window: Tensor
    memory: Tensor
    filled: Tensor
    mel: Tensor
    targets: Tensor
    weight: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Give the batch on another device."""
        return Batch(*(getattr(self, part.name).to(device) for part in fields(self)))


class WindowSource:
    """Draws windows with what came before them.

    Args:
        tracks: clips in latents.
        window: frames of a window.
        memory: frames before it.
        loss: shares of special items.
    """

    def __init__(self, tracks: list[Track], window: int, memory: int, loss: FlowLoss) -> None:
        self.tracks, self.window, self.memory, self.loss = tracks, window, memory, loss
        self.weights = torch.tensor([track.audio_clip.weight for track in tracks])
        self.chance = torch.tensor([len(t.quiet) ** 0.7 for t in tracks]) * self.weights.sqrt()
        self.quiet_mel = silence_mel()

    def draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw a batch."""
        chosen = torch.multinomial(self.chance, batch_size, True, generator=generator).tolist()
        items = [self._item(index, generator) for index in chosen]
        portrait, window, memory, filled, mel, targets = (
            torch.stack(column) for column in zip(*items, strict=True)
        )
        return Batch(portrait, window, memory, filled, mel, targets, self.weights[chosen])

    def _item(self, index: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        track = self.tracks[index]

        def chance() -> float:
            return float(torch.rand((), generator=generator))

        def below(limit: int) -> int:
            return int(torch.randint(limit, (1,), generator=generator))

        latents = track.latents[below(len(track.latents))]
        count = len(latents)
        silent = chance() < self.loss.silent
        start = below(count - self.window + 1)
        if silent:
            start = _quiet_start(track.quiet, self.window, start)
        portrait = latents[below(count) if chance() < 0.7 else 0]
        memory = latents.new_zeros(self.memory, *latents.shape[1:])
        filled = torch.zeros(self.memory, dtype=torch.bool)
        lot = chance()
        if lot < self.loss.frozen_memory:
            memory[:], filled[:] = portrait, True  # a session that was at rest
        elif lot >= self.loss.frozen_memory + self.loss.no_memory:
            # A stale memory is of another moment: mouths must follow the sound, not the past.
            end = below(count + 1) if chance() < self.loss.stale_memory else start
            known = min(self.memory, end)
            memory[self.memory - known :] = latents[end - known : end]
            filled[self.memory - known :] = True
        mel, targets = self._heard(track, start)
        if silent:
            mel = self.quiet_mel + 0.02 * torch.rand(mel.shape, generator=generator)
            targets = torch.zeros_like(targets)
        return portrait, latents[start : start + self.window], memory, filled, mel, targets

    def _heard(self, track: Track, start: int) -> tuple[Tensor, Tensor]:
        first, stop = start - HEARD_FRAMES, start + self.window
        audio, begin = track.audio_clip, max(first, 0)
        heard = slice(MEL_PER_FRAME * begin, MEL_PER_FRAME * (stop + audio.lookahead_frames))
        mel, targets = audio.mel[:, heard], audio.targets[begin:stop]
        if first < 0:
            mel = torch.cat([self.quiet_mel.expand(-1, -MEL_PER_FRAME * first), mel], 1)
            targets = F.pad(targets, (0, 0, -first, 0))
        return mel, targets


def _quiet_start(quiet: Tensor, window: int, fallback: int) -> int:
    """Find a window at rest at or after `fallback`, or before it."""
    at_rest = quiet.unfold(0, window, 1).all(1).nonzero()[:, 0]
    if not len(at_rest):
        return fallback
    return int(at_rest[(at_rest - fallback).abs().argmin()])
