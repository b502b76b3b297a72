"""Draws windows of latents with their audio and the frames before them."""

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.training.data.audio_features import NUM_MOUTH_TARGETS
from letstalk_rt.training.data.sound_inputs import AUDIO_CONTEXT_FRAMES, SoundInput
from letstalk_rt.training.data.tracks import Track


@dataclass(frozen=True)
class FlowLossConfig:
    """Weights of the parts of the flow loss, and shares of special training items.

    Attributes:
        lips: Weight of the lip landmarks.
        change: Weight of their change from frame to frame.
        mouth: Weight of the mouth values that a helper head predicts from the audio tokens.
        no_audio: Share of items without audio condition, for guidance.
        silent: Share of items with silence and a mouth at rest.
        no_memory: Share of items with an empty memory bank.
        frozen_memory: Share of items whose memory bank holds only the portrait.
        stale_memory: Share of items whose memory bank comes from another moment of the clip.
        drift: Largest offset that all frames of the memory bank share, in deviations of motion.
        heavy_noise: Share of items with heavy noise on the memory bank.
        mouth_noise: Largest noise on the true mouth values, in their deviations.
        mouth_read: Share of items with predicted instead of true mouth values.
    """

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
    """A batch of training items, with A = `AUDIO_CONTEXT_FRAMES`.

    Attributes:
        portrait: Portrait latents `(B, C, h, w)`.
        window: Latents of the window `(B, N, C, h, w)`.
        memory: Latents of the frames before it `(B, M, C, h, w)`.
        filled: Which entries of `memory` are valid, `(B, M)` bool.
        features: What the audio encoder is trained on, `(B, ...)`; see `SoundInput.window`.
        targets: Mouth targets of the window and A frames before it, `(B, A + N, 11)`.
        weight: Weights of the items `(B,)`.
    """

    portrait: Tensor
    window: Tensor
    memory: Tensor
    filled: Tensor
    features: Tensor
    targets: Tensor
    weight: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        return Batch(*(getattr(self, part.name).to(device) for part in fields(self)))


class WindowSource:
    """Draws random windows with the frames before them.

    Args:
        tracks: Clips as latents.
        window: Frames per window.
        memory: Frames before it; see `DenoiserConfig.history`.
        loss: Shares of special items.
        sound: Cuts the features of the tracks.
    """

    def __init__(
        self,
        tracks: list[Track],
        window: int,
        memory: int,
        loss: FlowLossConfig,
        sound: SoundInput,
    ) -> None:
        self.tracks, self.window, self.memory, self.loss = tracks, window, memory, loss
        self.sound = sound
        self.weights = torch.tensor([track.audio_clip.weight for track in tracks])
        self.odds = torch.tensor([len(t.quiet) ** 0.7 for t in tracks]) * self.weights.sqrt()
        sound.silence(window, torch.Generator())  # what it needs is computed here, in this thread

    def draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw a batch."""
        chosen = torch.multinomial(self.odds, batch_size, True, generator=generator).tolist()
        items = [self._item(index, generator) for index in chosen]
        portrait, window, memory, filled, features, targets = (
            torch.stack(column) for column in zip(*items, strict=True)
        )
        return Batch(portrait, window, memory, filled, features, targets, self.weights[chosen])

    def _item(self, index: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        track = self.tracks[index]

        def uniform() -> float:
            return float(torch.rand((), generator=generator))

        def randint(limit: int) -> int:
            return int(torch.randint(limit, (1,), generator=generator))

        latents = track.latents[randint(len(track.latents))]
        count = len(latents)
        silent = uniform() < self.loss.silent
        start = randint(count - self.window + 1)
        if silent:
            start = _quiet_start(track.quiet, self.window, start)
        portrait = latents[randint(count) if uniform() < 0.7 else 0].float()
        memory = torch.zeros(self.memory, *latents.shape[1:])
        filled = torch.zeros(self.memory, dtype=torch.bool)
        u = uniform()
        if u < self.loss.frozen_memory:
            memory[:], filled[:] = portrait, True  # as in a session at rest
        elif u >= self.loss.frozen_memory + self.loss.no_memory:
            # A stale memory is from another moment: the mouth must follow audio, not the past.
            end = randint(count + 1) if uniform() < self.loss.stale_memory else start
            known = min(self.memory, end)
            memory[self.memory - known :] = latents[end - known : end]
            filled[self.memory - known :] = True
        if silent:
            features = self.sound.silence(self.window, generator)
            targets = torch.zeros(AUDIO_CONTEXT_FRAMES + self.window, NUM_MOUTH_TARGETS)
        else:
            audio = track.audio_clip
            features = self.sound.window(audio.features, start - audio.shift, self.window)
            targets = self._targets(audio.targets, start)
        window = latents[start : start + self.window].float()
        return portrait, window, memory, filled, features, targets

    def _targets(self, targets: Tensor, start: int) -> Tensor:
        first = start - AUDIO_CONTEXT_FRAMES
        known = targets[max(first, 0) : start + self.window]
        return F.pad(known, (0, 0, max(-first, 0), 0))


def _quiet_start(quiet: Tensor, window: int, fallback: int) -> int:
    """Return the start of the window at rest nearest to `fallback`, or `fallback`."""
    at_rest = quiet.unfold(0, window, 1).all(1).nonzero()[:, 0]
    if not len(at_rest):
        return fallback
    return int(at_rest[(at_rest - fallback).abs().argmin()])
