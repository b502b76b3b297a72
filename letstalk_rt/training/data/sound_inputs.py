"""What an audio encoder is trained on, computed once per clip.

The causal encoder is trained on log-mel, which is augmented. wav2vec 2.0 is frozen and run once
over each clip, block by block as in a session; only the projector behind it is trained.
"""

from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from letstalk_rt.models.audio_encoder.causal import LOOKAHEAD_FRAMES, CausalAudioEncoder
from letstalk_rt.models.audio_encoder.interfaces import AudioEncoder
from letstalk_rt.models.audio_encoder.projector import AudioProjector
from letstalk_rt.models.audio_encoder.wav2vec_encoder import Wav2VecEncoder
from letstalk_rt.models.layers.network import fingerprint
from letstalk_rt.training.data.audio_features import (
    MEL_PER_FRAME,
    WARM_UP_FRAMES,
    augment_mel,
    clip_mel,
    silence_mel,
)
from letstalk_rt.types import SAMPLES_PER_FRAME

AUDIO_CONTEXT_FRAMES = 32
"""Frames of log-mel before the window in a training item: the causal encoder's receptive field."""


class SoundInput(Protocol):
    """Computes, cuts and augments the features of one kind of audio encoder.

    Attributes:
        name: The features' name in a store.
    """

    name: str

    @property
    def identity(self) -> dict[str, str]:
        """What the features depend on besides audio and look-ahead."""
        ...

    def of_clip(self, pcm: np.ndarray) -> Tensor:
        """Return the features of a clip's audio `(T * 640,)`, as a store holds them."""
        ...

    def window(self, features: Tensor, start: int, frames: int) -> Tensor:
        """Return what a training item hears: `frames` frames from `start` on, and what they need.

        Beyond the ends of a clip there is silence.
        """
        ...

    def whole(self, features: Tensor, start: int, frames: int) -> Tensor:
        """Return what the encoder needs for `frames` frames of an utterance that begins there."""
        ...

    def silence(self, frames: int, generator: torch.Generator) -> Tensor:
        """Return what a training item of this many frames of silence hears."""
        ...

    def augment(self, features: Tensor, generator: torch.Generator) -> Tensor:
        """Return the features of a batch as in other rooms, at other levels, with noise."""
        ...


class MelInput:
    """Log-mel for the causal audio encoder, `(64, 4 * (T + L))`.

    Args:
        lookahead_frames: The encoder's look-ahead, L.
    """

    name = "mel"

    def __init__(self, lookahead_frames: int = LOOKAHEAD_FRAMES) -> None:
        self._ahead, self._quiet = lookahead_frames, silence_mel()

    @property
    def identity(self) -> dict[str, str]:
        """Nothing: log-mel has no weights."""
        return {}

    def of_clip(self, pcm: np.ndarray) -> Tensor:
        """Return log-mel, followed by the look-ahead in silence."""
        return clip_mel(pcm, self._ahead)

    def window(self, features: Tensor, start: int, frames: int) -> Tensor:
        """Return log-mel `(64, 4 * (A + N + L))` with A frames of context."""
        return self._cut(features, start - AUDIO_CONTEXT_FRAMES, start + frames + self._ahead)

    def whole(self, features: Tensor, start: int, frames: int) -> Tensor:
        """Return log-mel `(64, 4 * (N + L))`."""
        return self._cut(features, start, start + frames + self._ahead)

    def silence(self, frames: int, generator: torch.Generator) -> Tensor:
        """Return log-mel of silence with a little noise, shaped as a window."""
        steps = MEL_PER_FRAME * (AUDIO_CONTEXT_FRAMES + frames + self._ahead)
        quiet = self._quiet.expand(-1, steps)
        return quiet + 0.02 * torch.rand(quiet.shape, generator=generator)

    def augment(self, features: Tensor, generator: torch.Generator) -> Tensor:
        """Return `augment_mel`'s result."""
        return augment_mel(features, generator)

    def _cut(self, mel: Tensor, first: int, stop: int) -> Tensor:
        length = mel.shape[1] // MEL_PER_FRAME
        low, high = min(max(first, 0), length), min(max(stop, 0), length)
        before, after = max(0, min(stop, 0) - first), max(0, stop - max(first, length))
        parts = [
            self._quiet.expand(-1, MEL_PER_FRAME * before),
            mel[:, MEL_PER_FRAME * low : MEL_PER_FRAME * high],
            self._quiet.expand(-1, MEL_PER_FRAME * after),
        ]
        return torch.cat(parts, 1) if low > first or stop > high else parts[1]


class Wav2VecInput:
    """Hidden states of frozen wav2vec 2.0 for its projector, `(T + L, layers, width)` bfloat16.

    Entry `i` is what a session's stream yields in frame `i`: it belongs to the frame earlier by
    the look-ahead of wav2vec 2.0. L is the look-ahead of both parts. The running norm of
    wav2vec 2.0 takes out level and offset, so nothing is augmented.

    Args:
        encoder: The audio encoder; its wav2vec 2.0 runs where its weights are.
    """

    name = "wav2vec2"

    def __init__(self, encoder: Wav2VecEncoder) -> None:
        self._encoder, self._stream = encoder, encoder.stream.eval().requires_grad_(False)
        self._reach = encoder.projector.config.reach

    @cached_property
    def identity(self) -> dict[str, str]:
        """A hash of the weights of wav2vec 2.0."""
        return {"wav2vec2": fingerprint(self._stream)}

    @torch.no_grad()
    def of_clip(self, pcm: np.ndarray) -> Tensor:
        """Return the stream's hidden states, as a new session computes them."""
        count = len(pcm) // SAMPLES_PER_FRAME + self._encoder.lookahead_frames
        blocks = -(-count // self._encoder.block_frames)
        padded = np.zeros(blocks * self._encoder.block_frames * SAMPLES_PER_FRAME, np.float32)
        padded[: len(pcm)] = pcm
        weight = next(self._stream.parameters())
        states: Tensor = self._stream(torch.from_numpy(padded)[None].to(weight))
        return states[0, :count].bfloat16().cpu()

    def window(self, features: Tensor, start: int, frames: int) -> Tensor:
        """Return states `(N + 2 * reach, layers, width)`; ends of a clip are repeated."""
        first = start + self._stream.lookahead_frames - self._reach
        places = torch.arange(first, first + frames + 2 * self._reach)
        return features[places.clamp(0, len(features) - 1)].float()

    def whole(self, features: Tensor, start: int, frames: int) -> Tensor:
        """Return the same as `window`: the projector needs no other context."""
        return self.window(features, start, frames)

    def silence(self, frames: int, generator: torch.Generator) -> Tensor:
        """Return the states of long silence."""
        places = torch.arange(frames + 2 * self._reach) % len(self._quiet)
        return self._quiet[places]

    def augment(self, features: Tensor, generator: torch.Generator) -> Tensor:
        """Return the features unchanged."""
        return features

    @cached_property
    def _quiet(self) -> Tensor:
        """The states of the last block of silence so long that they no longer change."""
        block, places = self._encoder.block_frames, self._stream.encoder.pos_conv_embed.conv
        frames = 4 * self._stream.config.context_frames + int(places.kernel_size[0])
        return self.of_clip(np.zeros(frames * SAMPLES_PER_FRAME, np.float32))[-block:].float()


def sound_input(encoder: AudioEncoder) -> SoundInput:
    """Return what computes the features that an audio encoder is trained on."""
    if isinstance(encoder, Wav2VecEncoder):
        return Wav2VecInput(encoder)
    return MelInput(encoder.lookahead_frames)


def trained_part(encoder: AudioEncoder) -> nn.Module:
    """Return the part of an audio encoder that is trained with the denoiser."""
    if isinstance(encoder, Wav2VecEncoder):
        return encoder.projector
    assert isinstance(encoder, CausalAudioEncoder)
    return encoder


def audio_tokens(part: nn.Module, features: Tensor) -> Tensor:
    """Return the audio tokens `(B, F, K, A)` of features `(B, ...)`.

    Args:
        part: From `trained_part`.
        features: Windows; log-mel also yields tokens of the frames before the window.
    """
    if isinstance(part, AudioProjector):
        return part.project_inner(features)
    assert isinstance(part, CausalAudioEncoder)
    return part.encode_mel(features)[:, part.lookahead_frames :]


def warm_up_frames(part: nn.Module) -> int:
    """Return how many of the first frames of `audio_tokens` lack past audio in training."""
    return 0 if isinstance(part, AudioProjector) else WARM_UP_FRAMES
