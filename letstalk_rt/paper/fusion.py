"""LetsTalk's three fusion schemes: how portrait and speech, the conditions, enter the denoiser.

From shallow to deep:

- Direct: the frame tokens of each block attend to the condition's tokens, unchanged, by
  cross-attention.
- Siamese: a second network beside the denoiser updates the condition's tokens block by block; each
  block attends to those of its own depth by cross-attention. For the portrait the second network
  mirrors the denoiser's block without temporal attention, for speech it has two layers per block.
- Symbiotic: the condition's tokens join the frame tokens in the spatial attention of each block,
  attend and are attended to, and are dropped at the end.

The published model has Symbiotic fusion of the portrait and Direct fusion of speech. The other
combinations are for its ablation. The sizes of the Siamese networks were not published; these are
ours.

Shapes: B items, T frames, P tokens per frame, D width, K condition tokens, A their width. Condition
tokens are `(B, S, K, A)`: S is T, or 1 if all frames have the same.

Source: LetsTalk, arXiv:2411.16748, section on fusion schemes and its ablation.
"""

from collections.abc import Callable
from enum import StrEnum

import torch
from einops import rearrange
from torch import Tensor, nn

from letstalk_rt.errors import ConfigError
from letstalk_rt.models.layers.attention import attend, modulate
from letstalk_rt.paper.spatial import Attention, feed_forward, spatial_attention

NORM_EPS = 1e-6


class Fusion(StrEnum):
    """A fusion scheme."""

    DIRECT = "direct"
    SIAMESE = "siamese"
    SYMBIOTIC = "symbiotic"

    @classmethod
    def parse(cls, name: str) -> "Fusion":
        """Return the scheme of this name.

        Raises:
            ConfigError: there is no such scheme.
        """
        try:
            return cls(name)
        except ValueError:
            raise ConfigError(f"unknown fusion {name!r}; known: {', '.join(cls)}") from None


def plain_norm(width: int) -> nn.LayerNorm:
    """Return the layer norm before a modulation or a cross-attention, without parameters."""
    return nn.LayerNorm(width, eps=NORM_EPS, elementwise_affine=False)


class CrossAttention(nn.Module):
    """Cross-attention of frame tokens to condition tokens; ungated, without biases on q, k and v.

    Args:
        width: `D`.
        token_width: `A`.
        heads: number of attention heads.
    """

    def __init__(self, width: int, token_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = plain_norm(width)
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(token_width, 2 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Attend from `(B, T, P, D)` to `(B, S, K, A)`; return the result, to be added to `x`."""
        shape, groups = x.shape, tokens.shape[1]
        assert groups in (1, shape[1]), (shape, tokens.shape)
        # With one group of tokens for all frames the frames' queries are one long sequence.
        queries = self.q(self.norm(x)).view(shape[0] * groups, -1, shape[-1])
        q = rearrange(queries, "n p (h d) -> n h p d", h=self.heads)
        k, v = rearrange(self.kv(tokens), "b s k (two h d) -> two (b s) h k d", two=2, h=self.heads)
        attended = attend(q, k, v)
        out: Tensor = self.out(rearrange(attended, "n h p d -> n p (h d)")).view(shape)
        return out


class DirectFusion(nn.Module):
    """Direct fusion: cross-attention to tokens that no block changes."""

    joins = False

    def __init__(self, width: int, token_width: int, heads: int) -> None:
        super().__init__()
        self.read = CrossAttention(width, token_width, heads)

    def forward(self, x: Tensor, tokens: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Return frame tokens `(B, T, P, D)` and condition tokens after this block's fusion."""
        return x + self.read(x, tokens), tokens


class SiamesePortrait(nn.Module):
    """Siamese fusion of the portrait: cross-attention to a mirror of the block."""

    joins = False

    def __init__(
        self,
        width: int,
        heads: int,
        ffn_ratio: float,
        side: int,
        attention: Attention = Attention.LINEAR,
    ) -> None:
        super().__init__()
        self.side = side
        self.norm_space, self.norm_ffn = plain_norm(width), plain_norm(width)
        self.space = spatial_attention(attention, width, heads)
        self.ffn = feed_forward(attention, width, ffn_ratio)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.read = CrossAttention(width, width, heads)

    def forward(self, x: Tensor, tokens: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse as `DirectFusion` does; `tokens` `(B, 1, P, D)`, timestep `c` `(B, 1, D)`."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, -1)
        normed = modulate(self.norm_space(tokens), shift1, scale1)
        tokens = tokens + gate1[..., None, :] * self.space(normed[:, 0])[0][:, None]
        normed = modulate(self.norm_ffn(tokens), shift2, scale2)
        tokens = tokens + gate2[..., None, :] * self.ffn(normed[:, 0], self.side)[:, None]
        return x + self.read(x, tokens), tokens


class SiameseAudio(nn.Module):
    """Siamese fusion of speech: cross-attention to tokens that each block updates."""

    joins = False

    def __init__(self, width: int, token_width: int, heads: int) -> None:
        super().__init__()
        self.move = nn.Sequential(
            plain_norm(token_width),
            nn.Linear(token_width, token_width),
            nn.SiLU(),
            nn.Linear(token_width, token_width),
        )
        self.read = CrossAttention(width, token_width, heads)

    def forward(self, x: Tensor, tokens: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse as `DirectFusion` does; `tokens` `(B, T, K, A)`."""
        tokens = tokens + self.move(tokens)
        return x + self.read(x, tokens), tokens


class SymbioticFusion(nn.Module):
    """Symbiotic fusion, which is done by the block's spatial attention; this has no weights."""

    joins = True

    def forward(self, x: Tensor, tokens: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Return both unchanged."""
        return x, tokens


def portrait_fusion(
    scheme: Fusion,
    width: int,
    heads: int,
    ffn_ratio: float,
    side: int,
    attention: Attention = Attention.LINEAR,
) -> nn.Module:
    """Return the fusion layer of one block for the portrait."""
    makers: dict[Fusion, Callable[[], nn.Module]] = {
        Fusion.DIRECT: lambda: DirectFusion(width, width, heads),
        Fusion.SIAMESE: lambda: SiamesePortrait(width, heads, ffn_ratio, side, attention),
        Fusion.SYMBIOTIC: SymbioticFusion,
    }
    return makers[scheme]()


def audio_fusion(scheme: Fusion, width: int, token_width: int, heads: int) -> nn.Module:
    """Return the fusion layer of one block for speech."""
    makers: dict[Fusion, Callable[[], nn.Module]] = {
        Fusion.DIRECT: lambda: DirectFusion(width, token_width, heads),
        Fusion.SIAMESE: lambda: SiameseAudio(width, token_width, heads),
        Fusion.SYMBIOTIC: SymbioticFusion,
    }
    return makers[scheme]()


def attend_jointly(
    attention: nn.Module, x: Tensor, joined: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Attend jointly over frame tokens and joined condition tokens, frame by frame.

    Args:
        attention: spatial attention of the block.
        x: frame tokens, `(B, T, P, D)`.
        joined: condition tokens, each `(B, T, K, D)`.

    Returns:
        The results for `x` and for each of `joined`, in the same shapes.
    """
    both = torch.cat([x, *joined], 2)
    attended: Tensor = attention(both.flatten(0, 1))[0].view(both.shape)
    first, *rest = attended.split([x.shape[2], *(j.shape[2] for j in joined)], 2)
    return first, rest
