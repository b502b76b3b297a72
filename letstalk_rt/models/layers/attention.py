"""Layers of LetsTalk's block: linear attention, temporal attention, gated FFN, time embedding.

Shapes: B items, T frames, P tokens per frame, D width.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


@dataclass
class LinearState:
    """The sums over keys and values that linear attention needs of them.

    Attributes:
        sums: `(B, heads, d + 1, d)`: values with a row of ones, times the positive keys.
    """

    sums: Tensor


class LinearAttention(nn.Module):
    """ReLU linear attention to own tokens and to those summed up in a `LinearState`.

    `out_i = sum_j v_j (relu(k_j) . relu(q_i)) / sum_j (relu(k_j) . relu(q_i))`, where j runs over
    the own tokens and those of `state`. Sums are float32.

    Source: LiteLA of SANA, arXiv:2410.10629; LetsTalk, arXiv:2411.16748.
    """

    def __init__(self, width: int, head_width: int = 32, eps: float = 1e-6) -> None:
        super().__init__()
        self.heads = width // head_width
        self.eps = eps
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, state: LinearState | None = None) -> tuple[Tensor, LinearState]:
        """Attend within tokens `(B, P, D)`, and to those of `state`.

        Returns:
            The result, to be added to `x`, and the state of the own tokens alone.
        """
        q, k, v = rearrange(self.qkv(x), "b p (k h d) -> k b h p d", k=3, h=self.heads).float()
        q, k = F.relu(q), F.relu(k)
        v = F.pad(v, (0, 1), value=1.0)
        with full_precision(x.device):
            own = LinearState(v.transpose(-1, -2) @ k)
            sums = own.sums if state is None else own.sums + state.sums
            attended = q @ sums.transpose(-1, -2)  # (B, h, P, d + 1)
        attended = attended[..., :-1] / (attended[..., -1:] + self.eps)
        return self.out(rearrange(attended, "b h p d -> b p (h d)").to(x.dtype)), own


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Suspend mixed precision, which rounds the factors of products even of float32 tensors."""
    if device.type == "meta":  # used to count operations; it has no mixed precision
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, kernel: str = "sdpa"
) -> Tensor:
    """Return softmax attention of `(..., T, d)` to `(..., S, d)`, with a mask `(..., T, S)`, bool.

    On the CPU it is computed as plain products: for sequences of some twenty tokens the backward
    pass of torch's fused attention is ten times slower (torch 2.13, docs/log.md). On other devices
    `kernel` selects torch's own or that of xformers, which accepts `(n, heads, T, d)` only.
    """
    if kernel == "xformers":
        return _attend_by_xformers(q, k, v, mask)
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    attended: Tensor = scores.softmax(-1).to(v.dtype) @ v
    return attended


def _attend_by_xformers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    from xformers.ops import memory_efficient_attention

    bias = None
    if mask is not None:
        count = k.shape[-2]
        wide = count + -count % 8  # its kernels require rows of the bias to begin at multiples of 8
        bias = q.new_zeros(*q.shape[:-1], wide)[..., :count]
        bias.masked_fill_(~mask, float("-inf"))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    attended: Tensor = memory_efficient_attention(q, k, v, attn_bias=bias).transpose(1, 2)
    return attended


@dataclass
class KeysValues:
    """Keys and values of frames, per spatial position.

    Attributes:
        keys: `(B, P, heads, T, d)`, before any rotation.
        values: likewise.
    """

    keys: Tensor
    values: Tensor

    def joined(self, later: "KeysValues") -> "KeysValues":
        """Return keys and values of these frames followed by later ones."""
        keys = torch.cat([self.keys, later.keys.to(self.keys.dtype)], -2)
        return KeysValues(keys, torch.cat([self.values, later.values.to(self.values.dtype)], -2))


class MemoryAttention(nn.Module):
    """Softmax attention over time, per spatial position.

    Memory attends to memory only, the window to memory and window. So keys and values of memory do
    not depend on the window and can be cached.

    Attributes:
        kernel: see `attend`; `letstalk_rt.inference.autotune` selects it.
    """

    kernel = "sdpa"

    def __init__(self, width: int, head_width: int = 32) -> None:
        super().__init__()
        self.heads = width // head_width
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Attend over frames.

        Args:
            x: `(B, T, P, D)`, memory first.
            mask: `(B, T, T)` bool: which frame (second axis) attends to which (third).

        Returns:
            `(B, T, P, D)` to be added to `x`.
        """
        queries, own = self.project(x)
        return self.attend(queries, own, mask)

    def project(self, x: Tensor) -> tuple[Tensor, KeysValues]:
        """Return queries `(B, P, heads, T, d)`, keys and values of frames `(B, T, P, D)`."""
        qkv = rearrange(self.qkv(self.norm(x)), "b t p (k h d) -> k b p h t d", k=3, h=self.heads)
        q, k, v = qkv.unbind(0)
        return q, KeysValues(k, v)

    def attend(
        self, queries: Tensor, context: KeysValues, mask: Tensor, positions: Tensor | None = None
    ) -> Tensor:
        """Attend to keys and values.

        Args:
            queries: `(B, P, heads, T, d)`.
            context: keys and values of `S` frames, those of the queries last.
            mask: `(B, T, S)` bool, or `(B, 1, S)`.
            positions: positions in time of the `S` frames, `(S,)`; None for no rotary embedding.

        Returns:
            The result `(B, T, P, D)`, to be added to the hidden states.
        """
        keys, values = context.keys.to(queries.dtype), context.values.to(queries.dtype)
        if positions is not None:
            queries = rotate(queries, positions[-queries.shape[-2] :])
            keys = rotate(keys, positions)
        count = queries.shape[1]
        wide_mask = mask[:, None, None].expand(-1, count, 1, -1, -1).flatten(0, 1)
        attended = attend(
            queries.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1), wide_mask, self.kernel
        )
        out: Tensor = self.out(rearrange(attended, "(b p) h t d -> b t p (h d)", p=count))
        return out


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Return `(..., T, d)` with rotary embeddings of the frames' positions in time, `(T,)`.

    The product of a query and a key then depends on the distance of their frames only. The base is
    small because positions differ by some tens at most.

    Source: rotary embedding, arXiv:2104.09864.
    """
    half = x.shape[-1] // 2
    frequencies = 100.0 ** (-torch.arange(half, device=x.device) / half)
    angles = positions[:, None].float() * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class AudioAttention(nn.Module):
    """Cross-attention of a frame's tokens to its audio tokens: Direct fusion.

    Source: LetsTalk, arXiv:2411.16748 (ungated, after temporal attention).
    """

    def __init__(self, width: int, token_width: int, head_width: int = 32) -> None:
        super().__init__()
        self.heads = width // head_width
        self.norm = nn.LayerNorm(width)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(token_width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Attend from `(B, T, P, D)` to `(B, T, K, A)`; return the result, to be added to `x`."""
        q = rearrange(self.q(self.norm(x)), "b t p (h d) -> (b t) h p d", h=self.heads)
        k, v = rearrange(self.kv(tokens), "b t n (k h d) -> k (b t) h n d", k=2, h=self.heads)
        attended = attend(q, k, v)
        out: Tensor = self.out(rearrange(attended, "(b t) h p d -> b t p (h d)", b=x.shape[0]))
        return out


class GatedConvFFN(nn.Module):
    """GLUMBConv: widen, 3x3 depthwise, gate, narrow.

    Source: SANA, arXiv:2410.10629 (Mix-FFN); DC-AE, arXiv:2410.10733.
    """

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        hidden = int(width * ratio)
        self.widen = nn.Conv2d(width, 2 * hidden, 1)
        self.depthwise = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
        self.narrow = nn.Conv2d(hidden, width, 1, bias=False)

    def forward(self, x: Tensor, side: int) -> Tensor:
        """Map tokens `(N, P, D)` of a `side` x `side` grid to the same shape.

        1x1 convolutions are computed as products: torch's convolution takes three times as long on
        one CPU thread.
        """
        wide = F.silu(F.linear(x, self.widen.weight.flatten(1), self.widen.bias))
        spread = self.depthwise(rearrange(wide, "n (y x) d -> n d y x", y=side))
        value, gate = rearrange(spread, "n d y x -> n (y x) d").chunk(2, -1)
        return F.linear(value * F.silu(gate), self.narrow.weight.flatten(1))


class TimeEmbedding(nn.Module):
    """A time in [0, 1] to a vector: sines and cosines of 128 frequencies, then two layers.

    Args:
        width: width of the vector.
        zero_init: initialise the output to zero, to add an input to a trained model.
    """

    def __init__(self, width: int, zero_init: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        if zero_init:
            for parameter in self.layers[2].parameters():
                nn.init.zeros_(parameter)

    def forward(self, time: Tensor) -> Tensor:
        """Embed `(...)` times as `(..., D)`."""
        steps = torch.arange(128, device=time.device)
        frequencies = torch.exp(-math.log(10_000) * steps / 128)
        angles = 1000 * time[..., None].float() * frequencies
        waves = torch.cat([angles.cos(), angles.sin()], -1)
        first = self.layers[0]
        assert isinstance(first, nn.Linear)
        embedded: Tensor = self.layers(waves.to(first.weight.dtype))
        return embedded


def grid_positions(side: int, width: int) -> Tensor:
    """Return fixed 2-D sine-cosine embeddings `(side * side, width)`, half the width per axis."""
    frequencies = 1 / 10_000 ** (torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], -1)  # (side, width / 2)
    rows = line[:, None].expand(side, side, -1)
    return torch.cat([rows, rows.transpose(0, 1)], -1).reshape(side * side, width)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Shift and scale tokens `(B, T, P, D)` by per-frame vectors `(B, T, D)`."""
    return x * (1 + scale[..., None, :]) + shift[..., None, :]
