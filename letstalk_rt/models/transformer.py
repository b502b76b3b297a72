"""The streaming LetsTalk denoiser, small: one window of latents, given sound, portrait and memory.

Each block: softmax attention over memory and window in time; cross-attention to the frame's audio
tokens (Direct fusion); linear attention over picture and portrait tokens (Symbiotic fusion, here
one-way: the portrait never reads the picture, so its part is a state computed once per portrait);
a gated convolutional FFN; adaLN-Zero by a timestep per frame.

Source: LetsTalk, arXiv:2411.16748. Changes for streaming: one-way portrait, memory that does not
read the window, a timestep per frame, and the audio also in the frame's modulation vector.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from letstalk_rt.models.layers import (
    AudioAttention,
    GatedConvFFN,
    LinearAttention,
    LinearState,
    MemoryAttention,
    TimeEmbedding,
    grid_positions,
    modulate,
)
from letstalk_rt.models.memory import MemoryBank
from letstalk_rt.models.state import gather


@dataclass(frozen=True)
class DenoiserConfig:
    """Shape of a denoiser."""

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
        self.time = MemoryAttention(width)
        self.audio = AudioAttention(width, config.audio_width)
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

    def forward(
        self,
        both: Tensor,
        slots: int,
        mask: Tensor,
        tokens: Tensor,
        c: Tensor,
        portrait: LinearState,
    ) -> Tensor:
        """Move `(B, slots + N, P, D)`, memory first, one block on.

        Memory slots take part in the temporal attention only.
        """
        both = both + self.time(both, mask)
        memory, x = both[:, :slots], both[:, slots:]
        frames = x.shape[1]
        x = x + self.dropout(self.audio(x, tokens))
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, -1)
        state = LinearState(portrait.sums.repeat_interleave(frames, 0))
        mixed, _ = self.space(modulate(self.norm_space(x), shift1, scale1).flatten(0, 1), state)
        x = x + gate1[..., None, :] * self.dropout(mixed.unflatten(0, (-1, frames)))
        wide = self.ffn(modulate(self.norm_ffn(x), shift2, scale2).flatten(0, 1), self.side)
        x = x + gate2[..., None, :] * self.dropout(wide.unflatten(0, (-1, frames)))
        return torch.cat([memory, x], 1)


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
        # Slot 0 is the anchor, then memory oldest first, then the window.
        self.slots = nn.Parameter(0.02 * torch.randn(1 + config.memory + config.window, width))
        self.embed_time = TimeEmbedding(width)
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
        tokens = self.embed_portrait(rearrange(latent, "b c y x -> b (y x) c")) + self.positions
        condition = self.embed_time(latent.new_zeros(latent.shape[0]))
        states = []
        for block in self.blocks:
            assert isinstance(block, Block)
            tokens, state = block.portrait(tokens, condition)
            states.append(state)
        return PortraitState(states)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        tokens: Tensor,
        portrait: PortraitState,
        memory: Tensor,
        filled: Tensor,
    ) -> Tensor:
        """Predict the velocity `noise - data`.

        Args:
            x: the noisy window `(B, N, C, h, w)`.
            t: its timesteps `(B, N)` in [0, 1]; 1 is noise.
            tokens: audio tokens `(B, N, K, A)`.
            portrait: from `portrait_state`.
            memory: clean latents `(B, 1 + M, C, h, w)`, the anchor first.
            filled: `(B, 1 + M)` bool.

        Returns:
            As `x`.
        """
        frames, slots = x.shape[1], memory.shape[1]
        assert frames == self.config.window and slots == 1 + self.config.memory, (x.shape, slots)
        assert tokens.shape[:2] == x.shape[:2] and t.shape == x.shape[:2], (tokens.shape, t.shape)
        both = torch.cat([memory.to(x.dtype), x], 1)
        both = self.embed(rearrange(both, "b t c y x -> b t (y x) c"))
        both = both + self.positions + self.slots[:, None]
        c = self.embed_time(t) + self.embed_audio(tokens.flatten(2))
        mask = _reading_mask(filled, frames)
        for block, state in zip(self.blocks, portrait.layers, strict=True):
            both = block(both, slots, mask, tokens, c, state)
        shift, scale = self.final_modulation(c).chunk(2, -1)
        out = self.head(modulate(self.norm(both[:, slots:]), shift, scale))
        return rearrange(out, "b t (y x) c -> b t c y x", y=self.config.side)


def guided(
    denoiser: Denoiser,
    x: Tensor,
    t: Tensor,
    tokens: Tensor,
    portrait: PortraitState,
    bank: MemoryBank,
    guidance: float,
) -> Tensor:
    """Predict the velocity with the part that the sound decides made `guidance` times as large.

    At 1 this is one call of the denoiser; otherwise one call with twice the items, the second half
    without sound. Arguments are those of `Denoiser.forward`.

    Source: classifier-free guidance, arXiv:2207.12598.
    """
    if guidance == 1:
        return denoiser(x, t, tokens, portrait, bank.latents, bank.filled)
    none = denoiser.no_audio.to(tokens.dtype).expand_as(tokens)
    heard, unheard = denoiser(
        torch.cat([x, x]),
        torch.cat([t, t]),
        torch.cat([tokens, none]),
        gather([portrait, portrait]),
        torch.cat([bank.latents, bank.latents]),
        torch.cat([bank.filled, bank.filled]),
    ).chunk(2)
    return unheard + guidance * (heard - unheard)


def _reading_mask(filled: Tensor, frames: int) -> Tensor:
    """Give `(B, T, T)` bool: memory reads filled memory, the window reads that and itself."""
    batch, slots = filled.shape
    mask = torch.zeros(
        batch, slots + frames, slots + frames, dtype=torch.bool, device=filled.device
    )
    mask[:, :, :slots] = filled[:, None]
    mask[:, slots:, slots:] = True
    return mask
