"""wav2vec 2.0 over a whole utterance, as the published model hears it.

The audio is scaled to unit variance, its 50 Hz features are interpolated to 25 Hz, and the
transformer sees all of them at once. `wav2vec_stream` is the incremental form.

Source: Baevski et al. 2020 (wav2vec 2.0); 25 Hz and stacked layers as in LetsTalk,
arXiv:2411.16748, and its published code.
"""

from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.errors import InputError
from letstalk_rt.models.audio_encoder.wav2vec_stream import Wav2Vec2Stream, Wav2Vec2StreamConfig
from letstalk_rt.models.layers.network import fingerprint
from letstalk_rt.types import SAMPLES_PER_FRAME

_EPS = 1e-7
"""What transformers' processor adds to the variance."""


class WholeWav2Vec2:
    """Audio of a whole utterance to the stacked hidden states of all layers.

    Args:
        stream: wav2vec 2.0 with its weights; its layers are used, not its streaming.
    """

    def __init__(self, stream: Wav2Vec2Stream) -> None:
        self._parts = stream.eval().requires_grad_(False)

    @classmethod
    def load(cls, source: str | Path) -> Self:
        """Load a checkpoint; arguments and errors are those of `Wav2Vec2Stream.load`."""
        return cls(Wav2Vec2Stream.load(source, Wav2Vec2StreamConfig()))

    @property
    def identity(self) -> str:
        """A hash of the weights, to tell speech models apart."""
        return fingerprint(self._parts)

    @property
    def layers(self) -> int:
        """The number of hidden states per frame."""
        return self._parts.config.layers

    @property
    def width(self) -> int:
        """The width of a hidden state."""
        return self._parts.config.width

    def to(self, device: torch.device | str) -> Self:
        """Move the weights to a device."""
        self._parts.to(device)
        return self

    @torch.no_grad()
    def __call__(self, pcm: Tensor) -> Tensor:
        """Return the hidden states of each video frame.

        Args:
            pcm: `(B, n)` in [-1, 1] at 16 kHz, `n` a multiple of 640.

        Returns:
            `(B, n / 640, layers, width)` float32.

        Raises:
            InputError: `pcm` has the wrong shape or is shorter than a frame.
        """
        frames = pcm.shape[-1] // SAMPLES_PER_FRAME
        if pcm.ndim != 2 or frames < 1 or pcm.shape[1] % SAMPLES_PER_FRAME:
            raise InputError(
                f"audio must be (B, n) with n a positive multiple of {SAMPLES_PER_FRAME}, got "
                f"{tuple(pcm.shape)}; pad it with zeros"
            )
        encoder: Any = self._parts.encoder
        hidden, _ = self._parts.projection(self._features(pcm, frames))
        hidden = encoder.layer_norm(hidden + encoder.pos_conv_embed(hidden))
        states = []
        for layer in encoder.layers:
            attended = self._attend(layer.attention, hidden)
            hidden = layer.layer_norm(hidden + attended)
            hidden = layer.final_layer_norm(hidden + layer.feed_forward(hidden))
            states.append(hidden)
        return torch.stack(states, 2).float()

    def _features(self, pcm: Tensor, frames: int) -> Tensor:
        """Return features at 25 Hz, `(B, frames, C)`."""
        mean = pcm.mean(1, keepdim=True)
        x = (pcm - mean) / torch.sqrt(pcm.var(1, unbiased=False, keepdim=True) + _EPS)
        x = x.to(next(self._parts.parameters()))[:, None]
        for layer in self._parts.convs:
            x = layer(x)
        return F.interpolate(x, frames, mode="linear", align_corners=True).transpose(1, 2)

    def _attend(self, attention: Any, x: Tensor) -> Tensor:
        heads = self._parts.config.heads
        q, k, v = (
            part(x).unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out: Tensor = attention.out_proj(attended)
        return out
