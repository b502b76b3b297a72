"""The streaming LetsTalk denoiser: one window of latents, given sound, portrait and memory.

Each block: softmax attention over memory and window in time; cross-attention to the frame's audio
tokens (Direct fusion); linear attention over picture and portrait tokens (Symbiotic fusion, here
one-way: the portrait never reads the picture, so its part is a state computed once per portrait);
a gated convolutional FFN; adaLN-Zero by a timestep per frame.

Memory takes part in the attention in time only and never reads the window, so its keys and values
are computed once and serve all steps of the sampler. Where they are to be kept from window to
window (`cached`), memory reads in blocks of one window, each its past alone, and places in time are
told by rotation, which sees distances only.

Source: LetsTalk, arXiv:2411.16748. Changes for streaming: one-way portrait, memory that does not
read the window, a timestep per frame, and the audio also in the frame's modulation vector.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from letstalk_rt.errors import ConfigError
from letstalk_rt.models.batch_state import gather
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


@dataclass(frozen=True)
class DenoiserConfig:
    """Shape of a denoiser.

    Attributes:
        channels: of a latent.
        side: of a latent, in cells.
        width: of a token.
        depth: number of blocks.
        ffn_ratio: width inside the FFN over `width`.
        audio_tokens: of a frame.
        audio_width: of an audio token.
        window: frames denoised together, N.
        memory: latest frames remembered, M.
        dropout: in training.
        time_head_width: of the attention in time.
        cached: keys and values of memory are kept from window to window, places in time are
            relative; otherwise memory is read anew for each window, and each slot has a learned
            place.
        second_time: takes MeanFlow's second time, the end of the step.
        guidance_input: takes the weight of the sound as an input, so guidance costs no second call.
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

    def __post_init__(self) -> None:
        for head_width in (32, self.time_head_width):
            if self.width % head_width:
                raise ConfigError(
                    f"width {self.width} of a denoiser must be a multiple of {head_width}, "
                    "the width of its heads"
                )
        if self.cached and self.memory % self.window:
            raise ConfigError(
                f"a cached memory is kept in windows: memory {self.memory} must be a multiple of "
                f"window {self.window}"
            )


@dataclass
class PortraitState:
    """The portrait as the denoiser sees it: one linear-attention state per block.

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
        """Move portrait tokens `(B, P, D)` on, and give the state that picture tokens will read."""
        shift, scale, gate = self.modulation(condition).chunk(6, -1)[:3]
        seen = modulate(self.norm_space(tokens)[:, None], shift[:, None], scale[:, None])[:, 0]
        mixed, state = self.space(seen)
        return tokens + gate[:, None] * mixed, state

    def encode_memory(
        self, x: Tensor, past: KeysValues | None, mask: Tensor, places: Tensor | None
    ) -> tuple[Tensor, KeysValues]:
        """Move memory `(B, T, P, D)` on, and give the keys and values that later frames will read.

        Args:
            x: memory.
            past: older memory that it reads beside itself.
            mask: `(B, 1, S)` bool: which of past and own frames are read.
            places: of those in time, see `MemoryAttention.read`.
        """
        queries, own = self.time.project(x)
        seen = own if past is None else past.joined(own)
        return x + self.time.read(queries, seen, mask, places), own

    def forward(
        self,
        x: Tensor,
        past: KeysValues,
        mask: Tensor,
        places: Tensor | None,
        tokens: Tensor,
        c: Tensor,
        portrait: LinearState,
    ) -> Tensor:
        """Move the window `(B, N, P, D)` one block on."""
        frames = x.shape[1]
        queries, own = self.time.project(x)
        x = x + self.time.read(queries, past.joined(own), mask, places)
        x = x + self.dropout(self.audio(x, tokens))
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, -1)
        state = LinearState(portrait.sums.repeat_interleave(frames, 0))
        mixed, _ = self.space(modulate(self.norm_space(x), shift1, scale1).flatten(0, 1), state)
        x = x + gate1[..., None, :] * self.dropout(mixed.unflatten(0, (-1, frames)))
        wide = self.ffn(modulate(self.norm_ffn(x), shift2, scale2).flatten(0, 1), self.side)
        out: Tensor = x + gate2[..., None, :] * self.dropout(wide.unflatten(0, (-1, frames)))
        return out


class Denoiser(nn.Module):
    """Predicts the velocity of a window of latents.

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
            self.embed_span = TimeEmbedding(width, silent=True)
        if config.guidance_input:
            self.embed_guidance = TimeEmbedding(width, silent=True)
        self.embed_audio = nn.Linear(config.audio_tokens * config.audio_width, width)
        self.no_audio = nn.Parameter(torch.zeros(config.audio_tokens, config.audio_width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.final_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.head = nn.Linear(width, config.channels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def portrait_state(self, latent: Tensor) -> PortraitState:
        """Compute all that depends on the portrait alone.

        Args:
            latent: `(B, C, h, w)`, unit variance. It is clean data, so its timestep is 0.
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
        """Make the cache of new sessions, whose memory holds the anchors `(B, C, h, w)` alone.

        Where nothing is kept from window to window, the cache has no layers.
        """
        count = self.config.memory
        if not self.config.cached:
            return TemporalCache.empty(len(anchor), 1 + count, anchor.device)
        filled = torch.ones(len(anchor), 1, dtype=torch.bool, device=anchor.device)
        return self._encode_memory_block(anchor[:, None], filled, None).padded(count)

    def update_cache(self, latents: Tensor, cache: TemporalCache) -> None:
        """Write clean latents `(B, N, C, h, w)` of a window to a cache that is kept, in place."""
        if self.config.cached:
            filled = cache.filled.new_ones(latents.shape[:2])
            cache.write(self._encode_memory_block(latents, filled, cache))

    def encode_memory(self, memory: Tensor, filled: Tensor) -> TemporalCache:
        """Compute keys and values of memory from its latents, as if it had been written just now.

        Args:
            memory: clean latents `(B, 1 + M, C, h, w)`, the anchor first.
            filled: `(B, 1 + M)` bool.
        """
        config = self.config
        slots, side = 1 + config.memory, config.side
        check_tensor("memory", memory, ("B", slots, config.channels, side, side))
        if not config.cached:
            return self._encode_memory_slots(memory, filled)
        cache = self._encode_memory_block(memory[:, :1], filled[:, :1], None)
        for start in range(1, slots, config.window):
            part = slice(start, start + config.window)
            cache = cache.extended(
                self._encode_memory_block(memory[:, part], filled[:, part], cache)
            )
        return cache

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
    ) -> Tensor:
        """Predict the velocity `noise - data`.

        Args:
            x: the noisy window `(B, N, C, h, w)`.
            t: its timesteps `(B, N)` in [0, 1]; 1 is noise.
            tokens: audio tokens `(B, N, K, A)`.
            portrait: from `portrait_state`.
            memory: clean latents `(B, 1 + M, C, h, w)`, the anchor first.
            filled: `(B, 1 + M)` bool.
            end: see `predict`.
            guidance: see `predict`.

        Returns:
            As `x`.
        """
        cache = self.encode_memory(memory, filled)
        return self.predict(x, t, tokens, portrait, cache, end=end, guidance=guidance)

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
    ) -> Tensor:
        """As `forward`, with memory as its keys and values.

        Args:
            x: the noisy window.
            t: its timesteps.
            tokens: audio tokens.
            portrait: from `portrait_state`.
            cache: from `encode_memory`, or kept by `update_cache`.
            end: time at which the step ends, `(B, N)`, at most `t`: what is predicted is then the
                mean velocity between the two. `t` when None. Needs `second_time`.
            guidance: weight of the sound, `(B,)`; 1 when None. Needs `guidance_input`.

        Raises:
            InputError: a tensor has another shape or type than the model takes.
            ConfigError: the model was not made to take `end` or `guidance`.
        """
        config, dtype = self.config, self.embed.weight.dtype
        self._check(x, t, tokens)
        h = self.embed(rearrange(x.to(dtype), "b t c y x -> b t (y x) c")) + self.positions
        h = h + (self.kinds[_WINDOW] if config.cached else self.slots[-config.window :, None])
        tokens = tokens.to(dtype)
        c = self._condition(t, tokens, end, guidance)
        mask = torch.cat([cache.filled, cache.filled.new_ones(x.shape[:2])], 1)[:, None]
        places = self._places(cache.filled.shape[1] - 1, h) if config.cached else None
        for block, past, state in zip(self.blocks, cache.layers, portrait.layers, strict=True):
            h = block(h, past, mask, places, tokens, c, state)
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
        """Give each frame's vector `(B, N, D)`, which modulates all blocks."""
        c: Tensor = self.embed_time(t) + self.embed_audio(tokens.flatten(2))
        if self.config.second_time:
            c = c + self.embed_span(torch.zeros_like(t) if end is None else t - end)
        elif end is not None:
            raise ConfigError("this denoiser takes no second time; set second_time in its preset")
        if self.config.guidance_input:
            weight = t.new_ones(len(t)) if guidance is None else guidance
            c = c + self.embed_guidance((weight - 1) / 10)[:, None]
        elif guidance is not None:
            raise ConfigError("this denoiser takes no guidance; set guidance_input in its preset")
        return c

    def _encode_memory_slots(self, memory: Tensor, filled: Tensor) -> TemporalCache:
        """Read all of memory at once; every slot has its own place."""
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
        """Give keys and values of a block of memory, or of the anchor when there is no cache."""
        kind = _ANCHOR if cache is None else _MEMORY
        h = self._embed_memory(latents) + self.kinds[kind]
        mask = filled if cache is None else torch.cat([cache.filled, filled], 1)
        past = [None] * len(self.blocks) if cache is None else cache.layers
        if cache is None:
            places = torch.zeros(1, device=h.device)
        else:
            places = self._places(cache.filled.shape[1] - 1, h)[: mask.shape[1]]
        layers = []
        for block, older in zip(self.blocks, past, strict=True):
            assert isinstance(block, Block)
            h, kept = block.encode_memory(h, older, mask[:, None], places)
            layers.append(kept)
        return TemporalCache(layers, filled)

    def _embed_memory(self, latents: Tensor) -> Tensor:
        latents = latents.to(self.embed.weight.dtype)
        embedded: Tensor = (
            self.embed(rearrange(latents, "b t c y x -> b t (y x) c")) + self.positions
        )
        return embedded

    def _places(self, past: int, like: Tensor) -> Tensor:
        """Give places in time of the anchor, `past` frames of memory and the window after them.

        The anchor's distance is always the same: it is pinned.
        """
        first = 1 + self.config.memory
        moving = torch.arange(first - past, first + self.config.window, device=like.device)
        return torch.cat([moving.new_zeros(1), moving])


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
    """Predict the velocity with the part that the sound decides made `guidance` times as large.

    A denoiser that takes guidance as an input is called once. For others, this is one call at 1,
    else one call with twice the items, the second half without sound.

    Args:
        denoiser: the model.
        x: as in `Denoiser.predict`, like all that is not named here.
        t: its timesteps.
        tokens: audio tokens.
        portrait: from `portrait_state`.
        memory: latents, or their keys and values.
        guidance: weight of the sound against none.
        end: time at which the step ends.
        predict: runs in the place of `denoiser.predict`: the same, compiled or recorded.

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
    heard, unheard = predict(
        torch.cat([x, x]),
        torch.cat([t, t]),
        torch.cat([tokens, none]),
        gather([portrait, portrait]),
        gather([memory, memory]),
        end=None if end is None else torch.cat([end, end]),
    ).chunk(2)
    return unheard + guidance * (heard - unheard)
