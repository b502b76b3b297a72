"""What a block does within each frame, in the two versions of the paper.

- `linear`, the paper since its second version: ReLU linear attention and a gated convolutional FFN,
  which frame tokens alone pass through.
- `softmax`, its first version: softmax attention and an MLP as in DiT, which the tokens of
  Symbiotic fusion pass through, too.

Shapes: N frames, P tokens per frame, D width.

Source: LetsTalk, arXiv:2411.16748v1 and v2; DiT, arXiv:2212.09748.
"""

from enum import StrEnum

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from letstalk_rt.errors import ConfigError
from letstalk_rt.models.layers.attention import GatedConvFFN, LinearAttention, attend

LINEAR_HEAD_WIDTH = 32
LINEAR_EPS = 1e-8


class Attention(StrEnum):
    """The kind of attention within frames, and with it of the FFN."""

    LINEAR = "linear"
    SOFTMAX = "softmax"

    @classmethod
    def parse(cls, name: str) -> "Attention":
        """Return the kind of this name.

        Raises:
            ConfigError: there is no such kind.
        """
        try:
            return cls(name)
        except ValueError:
            raise ConfigError(f"unknown attention {name!r}; known: {', '.join(cls)}") from None


class SoftmaxAttention(nn.Module):
    """Softmax attention within tokens.

    Args:
        width: `D`.
        heads: number of attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """Attend within `(N, P, D)`; return the result, and no sums as linear attention has."""
        qkv = rearrange(self.qkv(x), "n p (k h d) -> k n h p d", k=3, h=self.heads)
        attended = attend(*qkv.unbind(0))
        return self.out(rearrange(attended, "n h p d -> n p (h d)")), None


class PlainFFN(nn.Module):
    """Two layers with a GELU in its tanh form; tokens do not mix.

    Args:
        width: `D`.
        ratio: inner width over `width`.
    """

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        self.widen = nn.Linear(width, int(width * ratio))
        self.narrow = nn.Linear(int(width * ratio), width)

    def forward(self, x: Tensor, side: int) -> Tensor:
        """Map tokens `(N, P, D)` to the same shape; `side` is not used."""
        mapped: Tensor = self.narrow(F.gelu(self.widen(x), approximate="tanh"))
        return mapped


def spatial_attention(kind: Attention, width: int, heads: int) -> nn.Module:
    """Return the attention within frames; `heads` are those of softmax attention."""
    if kind is Attention.SOFTMAX:
        return SoftmaxAttention(width, heads)
    return LinearAttention(width, LINEAR_HEAD_WIDTH, LINEAR_EPS)


def feed_forward(kind: Attention, width: int, ratio: float) -> nn.Module:
    """Return the FFN that belongs to a kind of attention."""
    return PlainFFN(width, ratio) if kind is Attention.SOFTMAX else GatedConvFFN(width, ratio)
