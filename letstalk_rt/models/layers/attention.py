"""Parts of LetsTalk's block: linear attention, attention in time, gated FFN, time embedding.

Shapes: B items, T frames, P picture tokens per frame, D width.
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
    """What linear attention needs of a set of keys and values: two sums over them.

    Attributes:
        sums: `(B, heads, d + 1, d)`: values with a row of ones, times the positive keys.
    """

    sums: Tensor


class LinearAttention(nn.Module):
    """ReLU linear attention whose keys may be joined by a state computed elsewhere.

    `out_i = sum_j v_j (relu(k_j) . relu(q_i)) / sum_j (relu(k_j) . relu(q_i))`, where j runs over
    the own tokens and those behind `state`. Sums are float32.

    Source: LiteLA of SANA, arXiv:2410.10629; LetsTalk, arXiv:2411.16748.
    """

    def __init__(self, width: int, head_width: int = 32, eps: float = 1e-6) -> None:
        super().__init__()
        self.heads = width // head_width
        self.eps = eps
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, state: LinearState | None = None) -> tuple[Tensor, LinearState]:
        """Attend within `(B, P, D)` tokens, and to what `state` holds.

        Returns:
            The attended tokens and the state of the own tokens alone.
        """
        q, k, v = rearrange(self.qkv(x), "b p (k h d) -> k b h p d", k=3, h=self.heads).float()
        q, k = F.relu(q), F.relu(k)
        v = F.pad(v, (0, 1), value=1.0)
        with full_precision(x.device):
            own = LinearState(v.transpose(-1, -2) @ k)
            sums = own.sums if state is None else own.sums + state.sums
            mixed = q @ sums.transpose(-1, -2)  # (B, h, P, d + 1)
        mixed = mixed[..., :-1] / (mixed[..., -1:] + self.eps)
        return self.out(rearrange(mixed, "b h p d -> b p (h d)").to(x.dtype)), own


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Suspend mixed precision, which rounds what goes into a product even of float32 tensors."""
    if device.type == "meta":  # where shapes are counted; it knows no mixed precision
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def attend(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None, kernel: str = "sdpa"
) -> Tensor:
    """Softmax attention of `(..., T, d)` queries to `(..., S, d)`; `allowed` `(..., T, S)` bool.

    On the CPU the plain product is taken: for sequences of some twenty tokens the backward of
    torch's fused attention is ten times slower (torch 2.13, docs/log.md). Elsewhere `kernel` says
    whose: torch's own, or that of xformers, which takes `(n, heads, T, d)` only.
    """
    if kernel == "xformers":
        return _attend_by_xformers(q, k, v, allowed)
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    read: Tensor = scores.softmax(-1).to(v.dtype) @ v
    return read


def _attend_by_xformers(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
    from xformers.ops import memory_efficient_attention

    bias = None
    if allowed is not None:
        count = k.shape[-2]
        wide = count + -count % 8  # its kernels want rows of the bias to begin at multiples of 8
        bias = q.new_zeros(*q.shape[:-1], wide)[..., :count]
        bias.masked_fill_(~allowed, float("-inf"))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    read: Tensor = memory_efficient_attention(q, k, v, attn_bias=bias).transpose(1, 2)
    return read


@dataclass
class KeysValues:
    """Keys and values of frames, per place of the picture.

    Attributes:
        keys: `(B, P, heads, T, d)`, before any rotation.
        values: likewise.
    """

    keys: Tensor
    values: Tensor

    def joined(self, later: "KeysValues") -> "KeysValues":
        """Give these frames followed by later ones."""
        keys = torch.cat([self.keys, later.keys.to(self.keys.dtype)], -2)
        return KeysValues(keys, torch.cat([self.values, later.values.to(self.values.dtype)], -2))


class MemoryAttention(nn.Module):
    """Softmax attention over time, per place of the picture.

    Memory slots see memory only, window frames see memory and window: so what memory computes
    does not depend on the window, and its keys and values can be kept.

    Attributes:
        kernel: see `attend`; `letstalk_rt.inference.autotune` chooses it.
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
            x: `(B, T, P, D)`, memory slots first.
            mask: `(B, T, T)` bool: which frame (second axis) reads which (third).

        Returns:
            `(B, T, P, D)` to be added to `x`.
        """
        queries, own = self.project(x)
        return self.read(queries, own, mask)

    def project(self, x: Tensor) -> tuple[Tensor, KeysValues]:
        """Give queries `(B, P, heads, T, d)`, keys and values of frames `(B, T, P, D)`."""
        qkv = rearrange(self.qkv(self.norm(x)), "b t p (k h d) -> k b p h t d", k=3, h=self.heads)
        q, k, v = qkv.unbind(0)
        return q, KeysValues(k, v)

    def read(
        self, queries: Tensor, seen: KeysValues, mask: Tensor, places: Tensor | None = None
    ) -> Tensor:
        """Let queries read keys and values.

        Args:
            queries: `(B, P, heads, T, d)`.
            seen: of `S` frames, the queries' own frames last.
            mask: `(B, T, S)` bool, or `(B, 1, S)`.
            places: in time, of the `S` frames, `(S,)`; None when they are not told by rotation.

        Returns:
            `(B, T, P, D)`.
        """
        keys, values = seen.keys.to(queries.dtype), seen.values.to(queries.dtype)
        if places is not None:
            queries = rotate(queries, places[-queries.shape[-2] :])
            keys = rotate(keys, places)
        count = queries.shape[1]
        allowed = mask[:, None, None].expand(-1, count, 1, -1, -1).flatten(0, 1)
        mixed = attend(
            queries.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1), allowed, self.kernel
        )
        out: Tensor = self.out(rearrange(mixed, "(b p) h t d -> b t p (h d)", p=count))
        return out


def rotate(x: Tensor, places: Tensor) -> Tensor:
    """Turn `(..., T, d)` by angles that grow with the frames' places in time, `(T,)`.

    Then a product of a query and a key depends on the distance of their frames only. The base is
    small, since places differ by some tens.

    Source: rotary embedding, arXiv:2104.09864.
    """
    half = x.shape[-1] // 2
    frequencies = 100.0 ** (-torch.arange(half, device=x.device) / half)
    angles = places[:, None].float() * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class AudioAttention(nn.Module):
    """Cross-attention of picture tokens to the audio tokens of their frame: Direct fusion.

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
        """Let `(B, T, P, D)` read `(B, T, K, A)`; gives what is to be added to `x`."""
        q = rearrange(self.q(self.norm(x)), "b t p (h d) -> (b t) h p d", h=self.heads)
        k, v = rearrange(self.kv(tokens), "b t n (k h d) -> k (b t) h n d", k=2, h=self.heads)
        mixed = attend(q, k, v)
        out: Tensor = self.out(rearrange(mixed, "(b t) h p d -> b t p (h d)", b=x.shape[0]))
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
        """Map `(N, P, D)` tokens of a picture of `side` x `side` to the same shape.

        Convolutions of single cells are products: on one thread of a CPU, torch's convolution takes
        three times as long for them.
        """
        wide = F.silu(F.linear(x, self.widen.weight.flatten(1), self.widen.bias))
        spread = self.depthwise(rearrange(wide, "n (y x) d -> n d y x", y=side))
        value, gate = rearrange(spread, "n d y x -> n (y x) d").chunk(2, -1)
        return F.linear(value * F.silu(gate), self.narrow.weight.flatten(1))


class TimeEmbedding(nn.Module):
    """A time in [0, 1] to a vector: sine and cosine of 256 frequencies, then two layers.

    Args:
        width: of the vector.
        silent: begin with zeros, so that a trained model can be given one more time.
    """

    def __init__(self, width: int, silent: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        if silent:
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
    """Give fixed 2-D sine-cosine positions `(side * side, width)`; half the width per axis."""
    frequencies = 1 / 10_000 ** (torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], -1)  # (side, width / 2)
    rows = line[:, None].expand(side, side, -1)
    return torch.cat([rows, rows.transpose(0, 1)], -1).reshape(side * side, width)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Shift and scale `(B, T, P, D)` tokens by per-frame vectors `(B, T, D)`."""
    return x * (1 + scale[..., None, :]) + shift[..., None, :]
