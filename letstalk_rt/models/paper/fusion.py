"""How portrait and speech enter the denoiser: LetsTalk's three fusion schemes, for either.

From shallow to deep:

- Direct: each block's picture tokens read the condition's tokens, as they came, by
  cross-attention.
- Siamese: a second network moves the condition's tokens on, block by block beside the denoiser;
  each block reads, by cross-attention, what the second network has at its depth. For the portrait
  it mirrors the denoiser's block without attention over time, for speech it is two layers.
- Symbiotic: the condition's tokens join the picture's tokens in the blocks' own spatial attention,
  read and are read, and are dropped at the end.

The published model takes Symbiotic for the portrait and Direct for speech. The other combinations
are for its ablation; the sizes of the Siamese networks were not published and are ours.

Shapes: B items, T frames, P picture tokens, D width, K condition tokens, A their width. Condition
tokens are `(B, S, K, A)`: S is T, or 1 where all frames read the same.

Source: LetsTalk, arXiv:2411.16748, section on fusion schemes and its ablation.
"""

from collections.abc import Callable
from enum import StrEnum

import torch
from einops import rearrange
from torch import Tensor, nn

from letstalk_rt.errors import ConfigError
from letstalk_rt.models.layers.attention import GatedConvFFN, LinearAttention, attend, modulate

NORM_EPS = 1e-6
LINEAR_EPS = 1e-8


class Fusion(StrEnum):
    """A fusion scheme."""

    DIRECT = "direct"
    SIAMESE = "siamese"
    SYMBIOTIC = "symbiotic"

    @classmethod
    def parse(cls, name: str) -> "Fusion":
        """Look a scheme up.

        Raises:
            ConfigError: there is none of that name.
        """
        try:
            return cls(name)
        except ValueError:
            raise ConfigError(f"unknown fusion {name!r}; known: {', '.join(cls)}") from None


def plain_norm(width: int) -> nn.LayerNorm:
    """Make the normalisation that a modulation or a cross-attention follows."""
    return nn.LayerNorm(width, eps=NORM_EPS, elementwise_affine=False)


class CrossAttention(nn.Module):
    """Picture tokens read condition tokens; ungated, without biases on the inner maps.

    Args:
        width: `D`.
        token_width: `A`.
        heads: of the attention.
    """

    def __init__(self, width: int, token_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = plain_norm(width)
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(token_width, 2 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Let `(B, T, P, D)` read `(B, S, K, A)`; gives what is to be added to `x`."""
        shape, groups = x.shape, tokens.shape[1]
        assert groups in (1, shape[1]), (shape, tokens.shape)
        # With one group of tokens for all frames the frames' queries are one long sequence.
        queries = self.q(self.norm(x)).view(shape[0] * groups, -1, shape[-1])
        q = rearrange(queries, "n p (h d) -> n h p d", h=self.heads)
        k, v = rearrange(self.kv(tokens), "b s k (two h d) -> two (b s) h k d", two=2, h=self.heads)
        mixed = attend(q, k, v)
        out: Tensor = self.out(rearrange(mixed, "n h p d -> n p (h d)")).view(shape)
        return out


class DirectFusion(nn.Module):
    """Cross-attention to tokens that stay as they came."""

    joins = False

    def __init__(self, width: int, token_width: int, heads: int) -> None:
        super().__init__()
        self.read = CrossAttention(width, token_width, heads)

    def forward(self, x: Tensor, tokens: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Give picture tokens `(B, T, P, D)` and condition tokens after this block's fusion."""
        return x + self.read(x, tokens), tokens


class SiamesePortrait(nn.Module):
    """Cross-attention to a mirror of the block, which works on the portrait alone."""

    joins = False

    def __init__(self, width: int, heads: int, ffn_ratio: float, side: int) -> None:
        super().__init__()
        self.side = side
        self.norm_space, self.norm_ffn = plain_norm(width), plain_norm(width)
        self.space = LinearAttention(width, eps=LINEAR_EPS)
        self.ffn = GatedConvFFN(width, ffn_ratio)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.read = CrossAttention(width, width, heads)

    def forward(self, x: Tensor, tokens: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """As `DirectFusion`; `tokens` `(B, 1, P, D)`, `c` `(B, 1, D)` the timestep's vector."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, -1)
        seen = modulate(self.norm_space(tokens), shift1, scale1)
        tokens = tokens + gate1[..., None, :] * self.space(seen[:, 0])[0][:, None]
        seen = modulate(self.norm_ffn(tokens), shift2, scale2)
        tokens = tokens + gate2[..., None, :] * self.ffn(seen[:, 0], self.side)[:, None]
        return x + self.read(x, tokens), tokens


class SiameseAudio(nn.Module):
    """Cross-attention to audio tokens that two layers move on in each block."""

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
        """As `DirectFusion`; `tokens` `(B, T, K, A)`."""
        tokens = tokens + self.move(tokens)
        return x + self.read(x, tokens), tokens


class SymbioticFusion(nn.Module):
    """Nothing of its own: the block takes these tokens into its spatial attention."""

    joins = True

    def forward(self, x: Tensor, tokens: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Give both as they are."""
        return x, tokens


def portrait_fusion(
    scheme: Fusion, width: int, heads: int, ffn_ratio: float, side: int
) -> nn.Module:
    """Make one block's part of the portrait's fusion."""
    makers: dict[Fusion, Callable[[], nn.Module]] = {
        Fusion.DIRECT: lambda: DirectFusion(width, width, heads),
        Fusion.SIAMESE: lambda: SiamesePortrait(width, heads, ffn_ratio, side),
        Fusion.SYMBIOTIC: SymbioticFusion,
    }
    return makers[scheme]()


def audio_fusion(scheme: Fusion, width: int, token_width: int, heads: int) -> nn.Module:
    """Make one block's part of the speech's fusion."""
    makers: dict[Fusion, Callable[[], nn.Module]] = {
        Fusion.DIRECT: lambda: DirectFusion(width, token_width, heads),
        Fusion.SIAMESE: lambda: SiameseAudio(width, token_width, heads),
        Fusion.SYMBIOTIC: SymbioticFusion,
    }
    return makers[scheme]()


def attend_jointly(
    attention: LinearAttention, x: Tensor, joined: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Let picture tokens and all joined tokens read each other, frame by frame.

    Args:
        attention: of the block.
        x: `(B, T, P, D)`.
        joined: each `(B, T, K, D)`.

    Returns:
        What was read, in the same shapes.
    """
    both = torch.cat([x, *joined], 2)
    mixed = attention(both.flatten(0, 1))[0].view(both.shape)
    first, *rest = mixed.split([x.shape[2], *(j.shape[2] for j in joined)], 2)
    return first, rest
