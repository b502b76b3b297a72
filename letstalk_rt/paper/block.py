"""One block of the denoiser as published, in the two versions of the paper."""

import torch
from einops import rearrange
from torch import Tensor, nn

from letstalk_rt.models.layers.attention import attend, modulate
from letstalk_rt.paper.fusion import (
    attend_jointly,
    audio_fusion,
    plain_norm,
    portrait_fusion,
)
from letstalk_rt.paper.presets import PaperConfig
from letstalk_rt.paper.spatial import Attention, feed_forward, spatial_attention


class ClipAttention(nn.Module):
    """Bidirectional softmax attention over memory and clip in time, per spatial position."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.fc = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within `(B, T, P, D)`; return the result, to be added to `x`."""
        batch, heads = x.shape[0], self.heads
        qkv = rearrange(self.qkv(self.norm(x)), "b t p (k h d) -> k (b p) h t d", k=3, h=heads)
        attended = rearrange(attend(*qkv.unbind(0)), "(b p) h t d -> b t p (h d)", b=batch)
        out: Tensor = self.fc(self.out(attended))
        return out


class PaperBlock(nn.Module):
    """One block; `denoiser` describes its order."""

    def __init__(self, config: PaperConfig) -> None:
        super().__init__()
        width, heads = config.width, config.heads
        self.side = config.grid
        self.ffn_for_all = config.attention is Attention.SOFTMAX
        self.time = ClipAttention(width, heads)
        self.audio = audio_fusion(config.audio_fusion, width, config.audio_width, heads)
        self.portrait = portrait_fusion(
            config.portrait_fusion, width, heads, config.ffn_ratio, config.grid, config.attention
        )
        self.norm_space, self.norm_ffn = plain_norm(width), plain_norm(width)
        self.space = spatial_attention(config.attention, width, heads)
        self.ffn = feed_forward(config.attention, width, config.ffn_ratio)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(
        self, both: Tensor, slots: int, c: Tensor, portrait: Tensor, audio: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the hidden states for the next block.

        Args:
            both: memory, then clip, `(B, slots + T, P, D)`; memory takes part in temporal attention
                only.
            slots: frames of memory.
            c: embedding of the timestep, `(B, 1, D)`.
            portrait: tokens of the portrait, see `fusion`.
            audio: tokens of the speech, see `fusion`.

        Returns:
            The next `both`, `portrait` and `audio`.
        """
        both = both + self.time(both)
        memory, x = both[:, :slots], both[:, slots:]
        x, audio = self.audio(x, audio, c)
        x, portrait = self.portrait(x, portrait, c)
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, -1)
        modulation = shift1, scale1, gate1
        x, portrait, audio = self._attend_within_frames(x, portrait, audio, modulation)
        modulation = shift2, scale2, gate2
        x = self._feed_forward(x, modulation)
        if self.ffn_for_all:
            portrait = self._feed_forward(portrait, modulation) if self.portrait.joins else portrait
            audio = self._feed_forward(audio, modulation) if self.audio.joins else audio
        return torch.cat([memory, x], 1), portrait, audio

    def _feed_forward(self, x: Tensor, modulation: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        shift, scale, gate = modulation
        normed = modulate(self.norm_ffn(x), shift, scale)
        mapped: Tensor = self.ffn(normed.flatten(0, 1), self.side).view(x.shape)
        return x + gate[..., None, :] * mapped

    def _attend_within_frames(
        self, x: Tensor, portrait: Tensor, audio: Tensor, modulation: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attend within each frame, jointly with conditions of Symbiotic fusion."""
        shift, scale, gate = modulation
        joins = [self.portrait.joins, self.audio.joins]
        joined = [tokens for tokens, j in zip((portrait, audio), joins, strict=True) if j]
        normed = [modulate(self.norm_space(part), shift, scale) for part in (x, *joined)]
        first, rest = attend_jointly(self.space, normed[0], normed[1:])
        gate = gate[..., None, :]
        updated = [old + gate * new for old, new in zip(joined, rest, strict=True)]
        portrait = updated.pop(0) if joins[0] else portrait
        audio = updated.pop(0) if joins[1] else audio
        return x + gate * first, portrait, audio
