"""The memory bank: the latest clean latents and a pinned anchor, which tie windows together.

Source: LetsTalk, arXiv:2411.16748 (memory bank, noise-regularised training). The
pinned-plus-recent split follows SAM 2 (arXiv:2408.00714): the anchor is the portrait's own
latent, never a generated one, so errors cannot reach it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.models.layers.attention import KeysValues

NOISE_STEPS = 50
"""Memory is noised by the first 50 steps of DDPM's linear schedule of 1000."""

MAX_NOISE = 0.147
"""Rectified-flow time that equals step 49: sigma / (alpha + sigma) = .170 / (.985 + .170)."""

DROP = 0.25


@dataclass
class MemoryBank:
    """A pinned anchor and a window over the last latents of each session, oldest first.

    A shift, not a ring: the bank is small, and slot `i` always means the same distance in time,
    so one constant temporal embedding fits and the addresses never change.

    Attributes:
        latents: `(B, 1 + M, C, h, w)`; slot 0 is the anchor.
        filled: `(B, 1 + M)` bool; False marks a slot nothing was written to yet.
    """

    latents: Tensor
    filled: Tensor

    @classmethod
    def anchored(cls, anchor: Tensor, num_frames: int) -> "MemoryBank":
        """Make a bank of `M = num_frames` empty slots behind the anchors, `(B, C, h, w)`."""
        latents = anchor.new_zeros(anchor.shape[0], 1 + num_frames, *anchor.shape[1:])
        latents[:, 0] = anchor
        filled = torch.zeros(latents.shape[:2], dtype=torch.bool, device=anchor.device)
        filled[:, 0] = True
        return cls(latents, filled)

    def write(self, latents: Tensor) -> None:
        """Append `(B, n, C, h, w)` clean latents and drop the `n` oldest; `1 <= n <= M`."""
        n, m = latents.shape[1], self.latents.shape[1] - 1
        assert 1 <= n <= m and latents.shape[2:] == self.latents.shape[2:], latents.shape
        shift_in(self.latents, latents, 1)
        shift_in(self.filled, self.filled.new_ones(latents.shape[:2]), 1)

    def rewind(self, n: int) -> None:
        """Forget the `n` newest latents; `n` may be more than there are."""
        shift_out(self.latents, n, 1)
        shift_out(self.filled, n, 1)

    def reset(self, mask: Tensor | None = None) -> None:
        """Empty all but the anchor, or only in the sessions where `mask`, `(B,)` bool, is True."""
        mask = _all_unless_told(mask, self.filled)
        self.latents[:, 1:].masked_fill_(mask.view(-1, 1, 1, 1, 1), 0)
        self.filled[:, 1:].masked_fill_(mask.view(-1, 1), False)


@dataclass
class TemporalCache:
    """Keys and values of memory in each block: the anchor, then the last frames, oldest first.

    Attributes:
        layers: of `(B, P, heads, 1 + M, d)`; none where memory is read anew for each window.
        filled: `(B, 1 + M)` bool.
    """

    layers: list[KeysValues]
    filled: Tensor

    @classmethod
    def empty(cls, batch: int, slots: int, device: torch.device) -> "TemporalCache":
        """Make a cache without layers, which keeps nothing."""
        return cls([], torch.zeros(batch, slots, dtype=torch.bool, device=device))

    def padded(self, count: int) -> "TemporalCache":
        """Give a cache of these frames and `count` empty slots behind them, in new memory."""
        layers = [
            KeysValues(F.pad(kv.keys, (0, 0, 0, count)), F.pad(kv.values, (0, 0, 0, count)))
            for kv in self.layers
        ]
        return TemporalCache(layers, F.pad(self.filled, (0, count)))

    def extended(self, later: "TemporalCache") -> "TemporalCache":
        """Give these frames followed by later ones."""
        pairs = zip(self.layers, later.layers, strict=True)
        filled = torch.cat([self.filled, later.filled], 1)
        return TemporalCache([old.joined(new) for old, new in pairs], filled)

    def write(self, later: "TemporalCache") -> None:
        """Append frames in place and drop as many of the oldest; the anchor stays."""
        for old, new in zip(self.layers, later.layers, strict=True):
            shift_in(old.keys, new.keys, -2)
            shift_in(old.values, new.values, -2)
        shift_in(self.filled, later.filled, 1)

    def rewind(self, n: int) -> None:
        """Forget the `n` newest frames; `n` may be more than there are."""
        for layer in self.layers:
            shift_out(layer.keys, n, -2)
            shift_out(layer.values, n, -2)
        shift_out(self.filled, n, 1)

    def reset(self, mask: Tensor | None = None) -> None:
        """Empty all but the anchor, or only in the sessions where `mask`, `(B,)` bool, is True."""
        mask = _all_unless_told(mask, self.filled)
        for layer in self.layers:
            for part in (layer.keys, layer.values):
                part[..., 1:, :].masked_fill_(mask.view(-1, 1, 1, 1, 1), 0)
        self.filled[:, 1:].masked_fill_(mask.view(-1, 1), False)


def shift_in(slots: Tensor, new: Tensor, axis: int) -> None:
    """Append to slots along an axis in place, dropping the oldest; slot 0, the anchor, stays."""
    n, m = new.shape[axis], slots.shape[axis] - 1
    assert 1 <= n <= m, (n, m)
    # clone(): source and target overlap, and copy_ gives no order.
    slots.narrow(axis, 1, m - n).copy_(slots.narrow(axis, 1 + n, m - n).clone())
    slots.narrow(axis, 1 + m - n, n).copy_(new)


def shift_out(slots: Tensor, count: int, axis: int) -> None:
    """Drop the newest slots along an axis in place; the oldest become empty, slot 0 stays."""
    m = slots.shape[axis] - 1
    n = min(count, m)
    slots.narrow(axis, 1 + n, m - n).copy_(slots.narrow(axis, 1, m - n).clone())
    slots.narrow(axis, 1, n).zero_()


def _all_unless_told(mask: Tensor | None, like: Tensor) -> Tensor:
    return like.new_ones(len(like), dtype=torch.bool) if mask is None else mask.to(like.device)


def diffusion_sigma(step: Tensor) -> Tensor:
    """Give the deviation of the noise after steps 0 to 999 of DDPM's linear schedule.

    Source: arXiv:2006.11239: beta from 1e-4 to 2e-2.
    """
    betas = torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)
    kept = (1 - betas).cumprod(0).to(step.device)
    return (1 - kept[step]).sqrt().float()


def regularize_memory(
    latents: Tensor,
    generator: torch.Generator | None = None,
    *,
    max_noise: float = MAX_NOISE,
    drop: float = DROP,
    diffusion: bool = False,
) -> Tensor:
    """Corrupt memory latents in training, so that errors of earlier windows do not grow.

    Args:
        latents: `(B, M, C, h, w)`, unit variance.
        generator: source of chance.
        max_noise: largest rectified-flow time of the noise; drawn per item.
        drop: share of spatial positions that are zeroed; drawn per item and shared by frames.
        diffusion: noise as published, for the model that is trained by diffusion: steps 0 to 49 of
            1000 instead of times up to `max_noise`.

    Returns:
        `(1 - t) latents + t noise`, or `alpha latents + sigma noise`, with some positions zero;
        same shape.

    Source: LetsTalk, arXiv:2411.16748, noise-regularised memory (diffusion noise t in [0, 50) of
    1000 and 25 % patch drop).
    """
    batch, _, _, height, width = latents.shape
    where = latents.device if generator is None else generator.device
    each = (batch, 1, 1, 1, 1)
    if diffusion:
        steps = torch.randint(NOISE_STEPS, each, generator=generator, device=where)
        amount = diffusion_sigma(steps)
        signal = (1 - amount**2).sqrt()
    else:
        amount = torch.rand(each, generator=generator, device=where) * max_noise
        signal = 1 - amount
    noise = torch.randn(latents.shape, generator=generator, device=where)
    kept = torch.rand(batch, 1, 1, height, width, generator=generator, device=where) >= drop
    signal, amount, noise, kept = (v.to(latents.device) for v in (signal, amount, noise, kept))
    return (signal * latents + amount * noise) * kept
