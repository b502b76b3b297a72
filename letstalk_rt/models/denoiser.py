"""The streaming LetsTalk denoiser: velocities of a window of latents from audio, portrait, memory.

Each block: softmax attention over memory and window in time; cross-attention to the frame's audio
tokens (Direct fusion); linear attention over frame and portrait tokens (Symbiotic fusion, here
one-way: portrait tokens do not attend to the frame, so their part is a state computed once per
portrait); a gated convolutional FFN; adaLN-Zero with a timestep per frame.

Memory takes part in temporal attention only and does not attend to the window, so its keys and
values are computed once for all sampling steps. If they are to be cached from window to window
(`cached`), memory is encoded in blocks of one window, each attending to its past only, with rotary
position embeddings, which depend on distances in time only.

Source: LetsTalk, arXiv:2411.16748. Changes for streaming: one-way portrait, memory that does not
attend to the window, a timestep per frame, and the audio also in the frame's modulation vector.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from letstalk_rt.errors import ConfigError
from letstalk_rt.models.batch_state import gather
from letstalk_rt.models.geometry.landmarks import REST
from letstalk_rt.models.landmark_condition import FilmBranch, Hint, LandmarkBranch
from letstalk_rt.models.layers.attention import (
    AudioAttention,
    GatedConvFFN,
    KeysValues,
    LinearAttention,
    LinearState,
    MemoryAttention,
    TimeEmbedding,
    grid_positions,
    modulate,
)
from letstalk_rt.models.layers.checks import check_tensor
from letstalk_rt.models.memory import MemoryBank, TemporalCache

_ANCHOR, _MEMORY, _WINDOW = range(3)

HISTORY = 3
"""Memories of frames before a window in training where memory is cached: what is kept of a frame
depends on frames that have left memory, so training has to see some leave."""


@dataclass(frozen=True)
class DenoiserConfig:
    """Shape of a denoiser.

    Attributes:
        channels: channels of a latent.
        side: height and width of a latent.
        width: width of the hidden states.
        depth: number of blocks.
        ffn_ratio: inner width of the FFN over `width`.
        audio_tokens: audio tokens per frame.
        audio_width: width of an audio token.
        window: frames denoised together, N.
        memory: frames in the memory bank, M.
        dropout: dropout rate in training.
        time_head_width: width of the heads in temporal attention.
        cached: cache keys and values of memory from window to window, with relative positions in
            time; otherwise encode memory for each window, with a learned embedding per slot.
        second_time: accept MeanFlow's second time, the end of the step.
        guidance_input: accept guidance as an input, so that it needs no second call.
    """

    channels: int
    side: int
    width: int
    depth: int
    ffn_ratio: float
    audio_tokens: int
    audio_width: int
    window: int
    memory: int
    dropout: float = 0.0
    time_head_width: int = 32
    cached: bool = False
    second_time: bool = False
    guidance_input: bool = False

    @property
    def history(self) -> int:
        """Frames before a window in training: where memory is cached, also those that left it."""
        return HISTORY * self.memory if self.cached else self.memory

    def __post_init__(self) -> None:
        for head_width in (32, self.time_head_width):
            if self.width % head_width:
                raise ConfigError(
                    f"width {self.width} of a denoiser must be a multiple of {head_width}, "
                    "the width of its heads"
                )
        if self.cached and self.memory % self.window:
            raise ConfigError(
                f"memory is cached in windows: memory {self.memory} must be a multiple of window "
                f"{self.window}"
            )


@dataclass
class PortraitState:
    """The portrait's input to the denoiser: one linear-attention state per block.

    Attributes:
        layers: states of `(B, heads, d + 1, d)`.
    """

    layers: list[LinearState]


class Block(nn.Module):
    """One block; see the module docstring for its order."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        width = config.width
        self.side = config.side
        self.time = MemoryAttention(width, config.time_head_width)
        self.audio = AudioAttention(width, config.audio_width, config.time_head_width)
        self.norm_space = nn.LayerNorm(width, elementwise_affine=False)
        self.space = LinearAttention(width)
        self.norm_ffn = nn.LayerNorm(width, elementwise_affine=False)
        self.ffn = GatedConvFFN(width, config.ffn_ratio)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.dropout = nn.Dropout(config.dropout)
        for layer in (self.modulation[1], self.time.out, self.audio.out):
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def portrait(self, tokens: Tensor, condition: Tensor) -> tuple[Tensor, LinearState]:
        """Return the next portrait tokens `(B, P, D)` and the state that frame tokens attend to."""
        shift, scale, gate = self.modulation(condition).chunk(6, -1)[:3]
        normed = modulate(self.norm_space(tokens)[:, None], shift[:, None], scale[:, None])[:, 0]
        attended, state = self.space(normed)
        return tokens + gate[:, None] * attended, state

    def encode_memory(
        self, x: Tensor, past: KeysValues | None, mask: Tensor, positions: Tensor | None
    ) -> tuple[Tensor, KeysValues]:
        """Return the next hidden states of memory, and the keys and values for later frames.

        Args:
            x: hidden states of memory, `(B, T, P, D)`.
            past: keys and values of older memory to attend to as well.
            mask: `(B, 1, S)` bool: which of past and own frames are attended to.
            positions: their positions in time, see `MemoryAttention.attend`.
        """
        queries, own = self.time.project(x)
        context = own if past is None else past.joined(own)
        return x + self.time.attend(queries, context, mask, positions), own

    def forward(
        self,
        x: Tensor,
        past: KeysValues,
        mask: Tensor,
        positions: Tensor | None,
        tokens: Tensor,
        c: Tensor,
        portrait: LinearState,
    ) -> Tensor:
        """Return the window's next hidden states `(B, N, P, D)`."""
        frames = x.shape[1]
        queries, own = self.time.project(x)
        x = x + self.time.attend(queries, past.joined(own), mask, positions)
        x = x + self.dropout(self.audio(x, tokens))
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, -1)
        state = LinearState(portrait.sums.repeat_interleave(frames, 0))
        attended, _ = self.space(modulate(self.norm_space(x), shift1, scale1).flatten(0, 1), state)
        x = x + gate1[..., None, :] * self.dropout(attended.unflatten(0, (-1, frames)))
        wide = self.ffn(modulate(self.norm_ffn(x), shift2, scale2).flatten(0, 1), self.side)
        out: Tensor = x + gate2[..., None, :] * self.dropout(wide.unflatten(0, (-1, frames)))
        return out


class Denoiser(nn.Module):
    """A transformer that predicts the velocity of a window of latents.

    Args:
        config: shape.
    """

    positions: Tensor

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.embed = nn.Linear(config.channels, width)
        self.embed_portrait = nn.Linear(config.channels, width)
        self.register_buffer("positions", grid_positions(config.side, width), persistent=False)
        if config.cached:
            self.kinds = nn.Parameter(0.02 * torch.randn(3, width))  # anchor, memory, window
        else:
            # Slot 0 is the anchor, then memory oldest first, then the window.
            self.slots = nn.Parameter(0.02 * torch.randn(1 + config.memory + config.window, width))
        self.embed_time = TimeEmbedding(width)
        if config.second_time:
            self.embed_span = TimeEmbedding(width, zero_init=True)
        if config.guidance_input:
            self.embed_guidance = TimeEmbedding(width, zero_init=True)
        self.embed_audio = nn.Linear(config.audio_tokens * config.audio_width, width)
        self.no_audio = nn.Parameter(torch.zeros(config.audio_tokens, config.audio_width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.final_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.head = nn.Linear(width, config.channels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        # A part of the model, see `models/parts.py`.
        self.landmarks: LandmarkBranch | FilmBranch | None = None

    def portrait_state(self, latent: Tensor) -> PortraitState:
        """Compute the portrait state.

        Args:
            latent: portrait latent `(B, C, h, w)`, unit variance. It is clean: its timestep is 0.
        """
        config = self.config
        check_tensor("latent", latent, ("B", config.channels, config.side, config.side))
        tokens = rearrange(latent.to(self.embed.weight.dtype), "b c y x -> b (y x) c")
        tokens = self.embed_portrait(tokens) + self.positions
        condition = self.embed_time(latent.new_zeros(latent.shape[0]))
        states = []
        for block in self.blocks:
            assert isinstance(block, Block)
            tokens, state = block.portrait(tokens, condition)
            states.append(state)
        return PortraitState(states)

    def init_cache(self, anchor: Tensor) -> TemporalCache:
        """Return the cache of new sessions, whose memory holds only the anchors `(B, C, h, w)`.

        The cache has no layers if the denoiser is not `cached`.
        """
        count = self.config.memory
        if not self.config.cached:
            return TemporalCache.empty(len(anchor), 1 + count, anchor.device)
        filled = torch.ones(len(anchor), 1, dtype=torch.bool, device=anchor.device)
        return self._encode_memory_block(anchor[:, None], filled, None).padded(count)

    def update_cache(self, latents: Tensor, cache: TemporalCache) -> None:
        """Append a window of clean latents `(B, N, C, h, w)` to the cache, in place."""
        if self.config.cached:
            filled = cache.filled.new_ones(latents.shape[:2])
            cache.write(self._encode_memory_block(latents, filled, cache))

    def encode_memory(self, memory: Tensor, filled: Tensor) -> TemporalCache:
        """Compute keys and values of memory, as sessions have them.

        In a session that caches them, what is kept of a window was computed when older frames were
        still in memory, and keeps traces of them. So the history may be longer than memory: its
        windows are encoded one after the other, and the oldest leave, as `update_cache` does it.
        Gradients flow through all of it.

        Args:
            memory: clean latents `(B, 1 + H, C, h, w)`, the anchor first; `H` is `config.memory`,
                or for a `cached` denoiser any multiple of the window from there on.
            filled: `(B, 1 + H)` bool.

        Returns:
            The anchor and the last `config.memory` frames.
        """
        config = self.config
        slots, side = max(1 + config.memory, memory.shape[1] if config.cached else 0), config.side
        check_tensor("memory", memory, ("B", slots, config.channels, side, side))
        if not config.cached:
            return self._encode_memory_slots(memory, filled)
        assert (slots - 1) % config.window == 0, "a history has whole windows"
        cache = self._encode_memory_block(memory[:, :1], filled[:, :1], None)
        for start in range(1, slots, config.window):
            part = slice(start, start + config.window)
            block = self._encode_memory_block(memory[:, part], filled[:, part], cache)
            cache = cache.extended(block).newest(config.memory)
        return cache

    def memory_of(self, bank: MemoryBank, kept: TemporalCache) -> TemporalCache:
        """Return keys and values of a session's memory: those that are kept, or of its bank."""
        return kept if self.config.cached else self.encode_memory(bank.latents, bank.filled)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        tokens: Tensor,
        portrait: PortraitState,
        memory: Tensor,
        filled: Tensor,
        *,
        end: Tensor | None = None,
        guidance: Tensor | None = None,
        rest: Tensor | None = None,
    ) -> Tensor:
        """Predict the velocity `noise - data`.

        Args:
            x: the noisy window `(B, N, C, h, w)`.
            t: its timesteps `(B, N)` in [0, 1]; 1 is noise.
            tokens: audio tokens `(B, N, K, A)`.
            portrait: result of `portrait_state`.
            memory: see `encode_memory`.
            filled: see `encode_memory`.
            end: see `predict`.
            guidance: see `predict`.
            rest: see `predict`.

        Returns:
            The velocity, of the shape of `x`.
        """
        cache = self.encode_memory(memory, filled)
        return self.predict(x, t, tokens, portrait, cache, end=end, guidance=guidance, rest=rest)

    def predict(
        self,
        x: Tensor,
        t: Tensor,
        tokens: Tensor,
        portrait: PortraitState,
        cache: TemporalCache,
        *,
        end: Tensor | None = None,
        guidance: Tensor | None = None,
        rest: Tensor | None = None,
        shown: Tensor | None = None,
    ) -> Tensor:
        """Predict the velocity as `forward` does, from the keys and values of memory.

        Args:
            x: the noisy window.
            t: its timesteps.
            tokens: audio tokens.
            portrait: result of `portrait_state`.
            cache: keys and values of memory, from `encode_memory` or `update_cache`.
            end: end of the step, `(B, N)`, at most `t`: the mean velocity between the two is
                predicted. `t` when None. Requires `second_time`.
            guidance: weight of the audio, `(B,)`; 1 when None. Requires `guidance_input`.
            rest: the rest of the face, `(B, N, R, 2)`, see `rest_of_face`; when None nothing is
                added. Requires the landmark condition.
            shown: latents of masked frame and reference, `(B, N, 2 C, h, w)`, with `rest` where
                latents hold no landmarks; unit variance.

        Raises:
            InputError: a tensor has the wrong shape or type.
            ConfigError: the denoiser does not accept `end`, `guidance` or `rest`.
        """
        config, dtype = self.config, self.embed.weight.dtype
        self._check(x, t, tokens)
        h = self.embed(rearrange(x.to(dtype), "b t c y x -> b t (y x) c")) + self.positions
        h = h + (self.kinds[_WINDOW] if config.cached else self.slots[-config.window :, None])
        tokens = tokens.to(dtype)
        c = self._condition(t, tokens, end, guidance)
        if rest is not None:
            hint = self._hint(rest, shown, x.shape[:2])
            h, c = h + hint.tokens, c + hint.vector
        mask = torch.cat([cache.filled, cache.filled.new_ones(x.shape[:2])], 1)[:, None]
        positions = self._positions(cache.filled.shape[1] - 1, h) if config.cached else None
        for block, past, state in zip(self.blocks, cache.layers, portrait.layers, strict=True):
            h = block(h, past, mask, positions, tokens, c, state)
        shift, scale = self.final_modulation(c).chunk(2, -1)
        out = self.head(modulate(self.norm(h), shift, scale)).to(x.dtype)
        velocity: Tensor = rearrange(out, "b t (y x) c -> b t c y x", y=config.side)
        return velocity

    def _check(self, x: Tensor, t: Tensor, tokens: Tensor) -> None:
        config = self.config
        check_tensor("x", x, ("B", config.window, config.channels, config.side, config.side))
        check_tensor("t", t, x.shape[:2])
        check_tensor("tokens", tokens, (*x.shape[:2], config.audio_tokens, config.audio_width))

    def _condition(
        self, t: Tensor, tokens: Tensor, end: Tensor | None, guidance: Tensor | None
    ) -> Tensor:
        """Return the conditioning vector of each frame, `(B, N, D)`, which modulates all blocks."""
        c: Tensor = self.embed_time(t) + self.embed_audio(tokens.flatten(2))
        if self.config.second_time:
            c = c + self.embed_span(torch.zeros_like(t) if end is None else t - end)
        elif end is not None:
            raise ConfigError("this denoiser does not accept `end`; set second_time in its preset")
        if self.config.guidance_input:
            weight = t.new_ones(len(t)) if guidance is None else guidance
            c = c + self.embed_guidance((weight - 1) / 10)[:, None]
        elif guidance is not None:
            raise ConfigError(
                "this denoiser does not accept `guidance`; set guidance_input in its preset"
            )
        return c

    def _hint(self, rest: Tensor, shown: Tensor | None, frames: torch.Size) -> Hint:
        """Return what a film's frames add to each frame."""
        if self.landmarks is None:
            raise ConfigError(
                "this denoiser does not accept `rest`; add denoiser.landmarks to the preset's parts"
            )
        check_tensor("rest", rest, (*frames, len(REST), 2))
        if isinstance(self.landmarks, LandmarkBranch):
            told: Hint = self.landmarks(rest)
            return told
        if shown is None:
            raise ConfigError("this denoiser needs masked frame and reference beside landmarks")
        config = self.config
        check_tensor("shown", shown, (*frames, 2 * config.channels, config.side, config.side))
        hint: Hint = self.landmarks(rest, shown)
        return hint

    def _encode_memory_slots(self, memory: Tensor, filled: Tensor) -> TemporalCache:
        """Encode all of memory at once; each slot has its own embedding."""
        h = self._embed_memory(memory) + self.slots[: memory.shape[1], None]
        mask, layers = filled[:, None], []
        for block in self.blocks:
            assert isinstance(block, Block)
            h, kept = block.encode_memory(h, None, mask, None)
            layers.append(kept)
        return TemporalCache(layers, filled)

    def _encode_memory_block(
        self, latents: Tensor, filled: Tensor, cache: TemporalCache | None
    ) -> TemporalCache:
        """Return keys and values of a block of memory, or of the anchor when there is no cache."""
        kind = _ANCHOR if cache is None else _MEMORY
        h = self._embed_memory(latents) + self.kinds[kind]
        mask = filled if cache is None else torch.cat([cache.filled, filled], 1)
        past = [None] * len(self.blocks) if cache is None else cache.layers
        if cache is None:
            positions = torch.zeros(1, device=h.device)
        else:
            positions = self._positions(cache.filled.shape[1] - 1, h)[: mask.shape[1]]
        layers = []
        for block, older in zip(self.blocks, past, strict=True):
            assert isinstance(block, Block)
            h, kept = block.encode_memory(h, older, mask[:, None], positions)
            layers.append(kept)
        return TemporalCache(layers, filled)

    def _embed_memory(self, latents: Tensor) -> Tensor:
        latents = latents.to(self.embed.weight.dtype)
        embedded: Tensor = (
            self.embed(rearrange(latents, "b t c y x -> b t (y x) c")) + self.positions
        )
        return embedded

    def _positions(self, past: int, like: Tensor) -> Tensor:
        """Return the positions in time of the anchor, `past` frames of memory and the window.

        The anchor is always at the same distance from the window.
        """
        first = 1 + self.config.memory
        frames = torch.arange(first - past, first + self.config.window, device=like.device)
        return torch.cat([frames.new_zeros(1), frames])


def guided_velocity(
    denoiser: Denoiser,
    x: Tensor,
    t: Tensor,
    tokens: Tensor,
    portrait: PortraitState,
    memory: MemoryBank | TemporalCache,
    guidance: float,
    *,
    end: Tensor | None = None,
    predict: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Predict the velocity with classifier-free guidance on the audio.

    A denoiser that accepts guidance as an input is called once. Others are called once if
    `guidance` is 1, else once with twice the items, the second half without audio.

    Args:
        denoiser: the denoiser.
        x: the noisy window, as in `Denoiser.predict`.
        t: its timesteps.
        tokens: audio tokens.
        portrait: result of `portrait_state`.
        memory: memory as latents, or as keys and values.
        guidance: weight of the audio against no audio.
        end: end of the step, as in `Denoiser.predict`.
        predict: replacement for `denoiser.predict`, such as a compiled or recorded one.

    Source: classifier-free guidance, arXiv:2207.12598; as an input, arXiv:2210.03142.
    """
    if isinstance(memory, MemoryBank):
        memory = denoiser.encode_memory(memory.latents, memory.filled)
    predict = predict or denoiser.predict
    if denoiser.config.guidance_input:
        weight = t.new_full(t.shape[:1], guidance)
        return predict(x, t, tokens, portrait, memory, end=end, guidance=weight)
    if guidance == 1:
        return predict(x, t, tokens, portrait, memory, end=end)
    none = denoiser.no_audio.to(tokens.dtype).expand_as(tokens)
    conditional, unconditional = predict(
        torch.cat([x, x]),
        torch.cat([t, t]),
        torch.cat([tokens, none]),
        gather([portrait, portrait]),
        gather([memory, memory]),
        end=None if end is None else torch.cat([end, end]),
    ).chunk(2)
    return unconditional + guidance * (conditional - unconditional)
