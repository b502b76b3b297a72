"""wav2vec 2.0 run incrementally: audio to the hidden states of all layers, block by block.

The published audio path needs a whole utterance at once, for three reasons, which are handled as
follows:

- The 50 Hz features are interpolated to 25 Hz before the transformer. Over a whole number of
  frames this interpolation picks every second feature, and feature `2 i` depends on samples `640 i`
  to `640 i + 399`: the audio of one frame. So the convolutional front is exact without look-ahead.
- The first convolution is followed by a group norm over the whole utterance. Here its mean and
  variance are running statistics of the speech of the last seconds, with a prior for speech at a
  usual level. Pauses do not count, or the norm would amplify noise in them. The norm removes level
  and offset of the audio, so the processor's scaling to unit variance is not needed.
- Positional convolution and attention span the whole utterance. Here a block of frames attends to
  `context_frames` before it and `lookahead_frames` after it, with zeros beyond, as beyond the ends
  of an utterance. Keys and values of the context are kept as first computed; those of the
  look-ahead are computed again with their own block.

Source: Baevski et al. 2020 (wav2vec 2.0); Shi et al. 2021 (Emformer) for the blocks; 25 Hz and
stacked layers as in LetsTalk, arXiv 2411.16748, and its published code.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from letstalk_rt.errors import ConfigError, DependencyError, WeightsError
from letstalk_rt.extras import pip_install
from letstalk_rt.models.audio_encoder.lookahead import lookahead_in_frames
from letstalk_rt.types import FPS, SAMPLES_PER_FRAME

if TYPE_CHECKING:
    from transformers import Wav2Vec2Model

MEMORY_S = 8.0
"""Time constant of the running norm, in seconds of speech."""

PRIOR_FRAMES = 12.0
"""Initial weight of the prior statistics, in frames of speech."""

PRIOR_S = 1.0
"""Time constant by which the prior loses weight, in seconds of speech."""

_GATE = 10 ** (-55 / 10)
_SPEECH_POWER = 10 ** (-26 / 10)
_NEIGHBOUR = 0.9
"""Correlation of neighbouring samples of speech at 16 kHz."""

_NORMALIZER_EPS = 1e-7

_KERNELS, _STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
_FIRST_STEP = 1
"""The first convolution's first step of a frame begins in the frame before."""

_STEPS = 79
"""Steps of the first convolution behind one feature: 400 samples."""


@dataclass(frozen=True)
class Wav2Vec2StreamConfig:
    """Shape and streaming of the encoder; the defaults are wav2vec2-base's.

    Attributes:
        layers: number of transformer layers.
        width: width of the hidden states.
        heads: number of attention heads.
        ffn: inner width of a layer's feed-forward network.
        conv_width: channels of the convolutional front.
        context_frames: frames before a block that it attends to.
        block_frames: frames that are encoded together; audio comes in whole blocks.
        lookahead_ms: audio after a block that it attends to: 0, 40, 80 or 160.
        with_embedding: also return the input of the first layer, so `layers + 1` states in all.
    """

    layers: int = 12
    width: int = 768
    heads: int = 12
    ffn: int = 3072
    conv_width: int = 512
    context_frames: int = 50
    block_frames: int = 4
    lookahead_ms: int = 80
    with_embedding: bool = False


@dataclass
class NormState:
    """The running statistics of the first convolution.

    Attributes:
        past: `(B, K - S)`: last samples, which the next step of the convolution overlaps.
        frames: `(B, 1)`: frames of speech in the sums, old ones with less weight.
        sums: `(B, 2, C + 1)`: sums of values and of squares; the last channel is the audio itself.
    """

    past: Tensor
    frames: Tensor
    sums: Tensor

    def reset(self) -> None:
        """Return to the state of a new session."""
        for part in (self.past, self.frames, self.sums):
            part.zero_()


@dataclass
class Wav2Vec2State:
    """The state of a batch of streams, written in place.

    Attributes:
        norm: statistics of the convolutional front.
        past: `(B, P, width)`: projected features before the block, for the positional convolution.
        ahead: `(B, L, width)`: projected features of frames whose block is not complete.
        ahead_filled: `(B, L)` bool.
        keys: `(B, layers, heads, C, width / heads)`.
        values: as `keys`.
        filled: `(B, C)` bool.
    """

    norm: NormState
    past: Tensor
    ahead: Tensor
    ahead_filled: Tensor
    keys: Tensor
    values: Tensor
    filled: Tensor

    def reset(self) -> None:
        """Return to the state of a new session."""
        self.norm.reset()
        for part in (self.past, self.ahead, self.ahead_filled, self.keys, self.values, self.filled):
            part.zero_()


class Wav2Vec2Stream(nn.Module):
    """wav2vec 2.0 from audio to stacked hidden states; any number of sessions share its weights.

    Args:
        config: shape and streaming; the defaults when None.
        model: the model with its weights; random weights when None.

    Raises:
        ConfigError: a setting is out of range, or the architecture is not that of wav2vec2-base.
        DependencyError: the extra `paper` is not installed.
    """

    def __init__(
        self, config: Wav2Vec2StreamConfig | None = None, model: "Wav2Vec2Model | None" = None
    ) -> None:
        super().__init__()
        self.config = config or Wav2Vec2StreamConfig()
        _check(self.config)
        self.lookahead_frames = lookahead_in_frames(self.config.lookahead_ms)
        model = model or _random_model(self.config)
        _check_kind(model.config)
        self.convs: Any = model.feature_extractor.conv_layers
        self.projection: Any = model.feature_projection
        self.encoder: Any = model.encoder

    @classmethod
    def load(cls, source: str | Path, config: Wav2Vec2StreamConfig | None = None) -> Self:
        """Load a checkpoint.

        Args:
            source: a local folder, or a hub id such as `facebook/wav2vec2-base-960h`.
            config: streaming settings to use; shapes are taken from the checkpoint.

        Raises:
            WeightsError: there is no checkpoint, or it is not wav2vec 2.0.
            ConfigError: see `Wav2Vec2Stream`.
            DependencyError: the extra `paper` is not installed.
        """
        found = _read(source)
        shape = found.config
        config = replace(
            config or Wav2Vec2StreamConfig(),
            layers=shape.num_hidden_layers,
            width=shape.hidden_size,
            heads=shape.num_attention_heads,
            ffn=shape.intermediate_size,
            conv_width=shape.conv_dim[0],
        )
        return cls(config, found).eval()

    @property
    def num_states(self) -> int:
        """Hidden states per frame, `K`: 12 for wav2vec2-base, 13 with the embedding."""
        return self.config.layers + self.config.with_embedding

    def init_state(self, batch_size: int) -> Wav2Vec2State:
        """Return the state of new sessions, which have had no audio yet."""
        c, like = self.config, self.convs[0].conv.weight
        conv = self.convs[0].conv
        kept = (batch_size, c.layers, c.heads, c.context_frames, c.width // c.heads)
        flags = torch.zeros(batch_size, self.lookahead_frames, dtype=torch.bool, device=like.device)
        return Wav2Vec2State(
            norm=NormState(
                like.new_zeros(batch_size, conv.kernel_size[0] - conv.stride[0]),
                like.new_zeros(batch_size, 1),
                like.new_zeros(batch_size, 2, c.conv_width + 1),
            ),
            past=like.new_zeros(batch_size, self._positions.kernel_size[0] // 2, c.width),
            ahead=like.new_zeros(batch_size, self.lookahead_frames, c.width),
            ahead_filled=flags,
            keys=like.new_zeros(kept),
            values=like.new_zeros(kept),
            filled=flags.new_zeros(batch_size, c.context_frames),
        )

    def forward(self, pcm: Tensor, state: Wav2Vec2State | None = None) -> Tensor:
        """Encode the next chunk of a stream, or a whole recording when `state` is None.

        Args:
            pcm: `(B, n)` in [-1, 1] at 16 kHz, `n` a positive multiple of a block's samples.
            state: updated in place.

        Returns:
            `(B, n / 640, K, width)`; entry `i` of the stream belongs to frame
            `i - lookahead_frames`, and is zero before the first frame.
        """
        hop = self.config.block_frames * SAMPLES_PER_FRAME
        assert pcm.ndim == 2 and pcm.shape[1] > 0 and pcm.shape[1] % hop == 0, (pcm.shape, hop)
        state = state or self.init_state(pcm.shape[0])
        return torch.cat([self._encode_block(x, state) for x in torch.split(pcm, hop, 1)], 1)

    @property
    def _positions(self) -> nn.Conv1d:
        conv: nn.Conv1d = self.encoder.pos_conv_embed.conv
        return conv

    def front(self, pcm: Tensor, state: NormState) -> Tensor:
        """Compute features `(B, T, C)` at 25 Hz of `(B, T * 640)`, each from one frame of audio.

        The published front computes 50 features per second; those that interpolation to 25 Hz drops
        are not computed here.
        """
        first, *rest = self.convs
        x = first.conv(_slide(state.past, pcm)[:, None])
        x = rearrange(x, "b c (t s) -> b c t s", s=SAMPLES_PER_FRAME // first.conv.stride[0])
        audio = rearrange(pcm, "b (t n) -> b t n", n=SAMPLES_PER_FRAME)
        mean, scale = self._running_norm(x, audio, state)
        x = x[..., _FIRST_STEP : _FIRST_STEP + _STEPS]
        norm = first.layer_norm
        x = (x - mean) * scale * norm.weight[:, None, None] + norm.bias[:, None, None]
        batch = x.shape[0]
        x = first.activation(x).transpose(1, 2).flatten(0, 1)
        for layer in rest:
            x = layer(x)
        features: Tensor = rearrange(x, "(b t) c 1 -> b t c", b=batch)
        return features

    @torch.no_grad()
    def _running_norm(self, x: Tensor, audio: Tensor, state: NormState) -> tuple[Tensor, Tensor]:
        """Return mean and scale `(B, C, T, 1)` at each frame, that frame included.

        Args:
            x: `(B, C, T, steps)`, output of the first convolution.
            audio: `(B, T, 640)`.
            state: updated in place.
        """
        fade, prior = math.exp(-1 / (MEMORY_S * FPS)), self._prior()
        both = [torch.cat([v.mean(-1), s.mean(-1)[:, None]], 1) for v, s in _powers(x, audio)]
        moments = torch.stack(both, 1)
        voiced = (audio.var(-1) > _GATE).to(moments)
        known = []
        for now, voice in zip(moments.unbind(-1), voiced[..., None].unbind(1), strict=True):
            keep = 1 + (fade - 1) * voice
            state.frames.mul_(keep).add_(voice)
            state.sums.mul_(keep[..., None]).add_(voice[..., None] * now)
            faded = (1 - (1 - fade) * state.frames[..., None]).clamp(min=0)  # exp(-t / MEMORY_S)
            trust = PRIOR_FRAMES * faded ** (MEMORY_S / PRIOR_S)
            known.append((trust * prior + state.sums) / (trust + state.frames[..., None]))
        mean, square = torch.stack(known, -1).unbind(1)
        variance = square - mean**2
        # The published eps is for audio of unit variance.
        eps = self.convs[0].layer_norm.eps * (variance[:, -1:] + _NORMALIZER_EPS)
        scale = torch.rsqrt(variance[:, :-1] + eps)
        return mean[:, :-1, :, None], scale[..., None]

    def _prior(self) -> Tensor:
        """Return the expected moments `(2, C + 1)` of speech at a usual level."""
        taps = self.convs[0].conv.weight[:, 0].float()
        steps = torch.arange(taps.shape[1], device=taps.device)
        likeness = _NEIGHBOUR ** (steps[:, None] - steps[None]).abs()
        power = _SPEECH_POWER * F.pad(((taps @ likeness) * taps).sum(1), (0, 1), value=1.0)
        return torch.stack([torch.zeros_like(power), power])

    def _encode_block(self, pcm: Tensor, state: Wav2Vec2State) -> Tensor:
        size = self.config.block_frames
        new, _ = self.projection(self.front(pcm, state.norm))
        window = _slide(state.ahead, new)
        known = _slide(state.ahead_filled, state.filled.new_ones(new.shape[:2]))
        x = self.encoder.dropout(
            self.encoder.layer_norm(window + self._positional_embedding(window, state))
        )
        allowed = torch.cat([state.filled, known], 1)[:, None, None]
        out = [x] if self.config.with_embedding else []
        for index, layer in enumerate(self.encoder.layers):
            x = self._run_layer(layer, x, allowed, state.keys[:, index], state.values[:, index])
            out.append(x)
        _slide(state.filled, known[:, :size])
        return torch.stack([x[:, :size] for x in out], 2) * known[:, :size, None, None]

    def _positional_embedding(self, window: Tensor, state: Wav2Vec2State) -> Tensor:
        """Return the positional embedding of a block and its look-ahead, `(B, N + L, width)`."""
        size, conv = self.config.block_frames, self._positions
        reach = conv.kernel_size[0] - 1 - state.past.shape[1]
        x = torch.cat([_slide(state.past, window[:, :size]), window[:, size:]], 1)
        x = F.pad(x.transpose(1, 2), (0, reach))
        x = F.conv1d(x, conv.weight, conv.bias, groups=conv.groups)
        placed: Tensor = self.encoder.pos_conv_embed.activation(x).transpose(1, 2)
        return placed

    def _run_layer(
        self, layer: Any, x: Tensor, allowed: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """Run one transformer layer over a block and its look-ahead.

        Args:
            layer: transformers' `Wav2Vec2EncoderLayer`.
            x: `(B, N + L, width)`.
            allowed: attention mask `(B, 1, 1, C + N + L)`, bool.
            keys: `(B, heads, C, D)` of the context; those of the block are appended in place.
            values: as `keys`.
        """
        attention, size = layer.attention, self.config.block_frames

        def split(y: Tensor) -> Tensor:
            return rearrange(y, "b t (h d) -> b h t d", h=self.config.heads)

        q, k, v = (
            split(part(x)) for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        all_k = torch.cat([_slide(keys, k[:, :, :size], 2), k[:, :, size:]], 2)
        all_v = torch.cat([_slide(values, v[:, :, :size], 2), v[:, :, size:]], 2)
        attended = F.scaled_dot_product_attention(q, all_k, all_v, attn_mask=allowed)
        x = x + layer.dropout(attention.out_proj(attended.transpose(1, 2).flatten(2)))
        x = layer.layer_norm(x)
        out: Tensor = layer.final_layer_norm(x + layer.feed_forward(x))
        return out


def _powers(x: Tensor, audio: Tensor) -> list[tuple[Tensor, Tensor]]:
    x, audio = x.float(), audio.float()
    return [(x, audio), (x**2, audio**2)]


def _slide(past: Tensor, new: Tensor, axis: int = 1) -> Tensor:
    """Append `new` to `past` and return both; `past` is set to the end of the result, in place."""
    joined = torch.cat([past.to(new.dtype), new], axis)
    kept = past.shape[axis]
    past.copy_(joined.narrow(axis, joined.shape[axis] - kept, kept).detach())
    return joined


def _check(config: Wav2Vec2StreamConfig) -> None:
    for name in ("layers", "width", "heads", "ffn", "conv_width", "context_frames", "block_frames"):
        value = getattr(config, name)
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    if config.width % config.heads:
        raise ConfigError(f"width {config.width} must be a multiple of heads {config.heads}")


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise DependencyError(
            f"transformers is missing; install it with: {pip_install('paper')}"
        ) from error
    return transformers


def _random_model(config: Wav2Vec2StreamConfig) -> Any:
    library = _transformers()
    shape = library.Wav2Vec2Config(
        num_hidden_layers=config.layers,
        hidden_size=config.width,
        num_attention_heads=config.heads,
        intermediate_size=config.ffn,
        conv_dim=(config.conv_width,) * len(_KERNELS),
    )
    return library.Wav2Vec2Model(shape)


def _read(source: str | Path) -> Any:
    library = _transformers()
    try:
        return library.Wav2Vec2Model.from_pretrained(str(source))
    except (OSError, ValueError, RuntimeError) as error:
        raise WeightsError(
            f"cannot load wav2vec 2.0 from {str(source)!r}: {error}. Pass a folder with "
            "config.json and the weights, or a hub id such as 'facebook/wav2vec2-base-960h'"
        ) from error


def _check_kind(shape: Any) -> None:
    """Check that a model has the architecture of wav2vec2-base."""
    front = (tuple(shape.conv_kernel), tuple(shape.conv_stride))
    if front != (_KERNELS, _STRIDES) or shape.feat_extract_norm != "group":
        raise ConfigError(
            "the model's convolutional front is not wav2vec2-base's: expected kernels "
            f"{_KERNELS}, strides {_STRIDES} and a group norm, got {front} and "
            f"{shape.feat_extract_norm!r}"
        )
    if shape.do_stable_layer_norm:
        raise ConfigError(
            "the model normalises before its layers (do_stable_layer_norm), as the large models "
            "do; use one with the architecture of wav2vec2-base"
        )
