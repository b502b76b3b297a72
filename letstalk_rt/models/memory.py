"""The memory bank: the latest clean latents and a pinned anchor, which connect the windows.

Source: LetsTalk, arXiv:2411.16748 (memory bank, noise-regularised training). The
pinned-plus-recent split follows SAM 2 (arXiv:2408.00714): the anchor is the portrait's own
latent and never a generated one, so errors do not accumulate in it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.models.layers.attention import KeysValues

NOISE_STEPS = 50
"""Noise of memory is that of the first 50 steps of DDPM's linear schedule of 1000."""

MAX_NOISE = 0.147
"""Rectified-flow time of step 49: sigma / (alpha + sigma) = .170 / (.985 + .170)."""

DROP = 0.25


@dataclass
class MemoryBank:
    """A pinned anchor and the last latents of each session, oldest first.

    New latents shift the bank instead of overwriting a ring: the bank is small, slot `i` is always
    at the same distance in time, so its temporal embedding and its address stay the same.

    Attributes:
        latents: `(B, 1 + M, C, h, w)`; slot 0 is the anchor.
        filled: `(B, 1 + M)` bool; False for an empty slot.
    """

    latents: Tensor
    filled: Tensor

    @classmethod
    def anchored(cls, anchor: Tensor, num_frames: int) -> "MemoryBank":
        """Return a bank of the anchors `(B, C, h, w)` and `M = num_frames` empty slots."""
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
        """Remove the `n` newest latents, at most all but the anchor."""
        shift_out(self.latents, n, 1)
        shift_out(self.filled, n, 1)

    def reset(self, mask: Tensor | None = None) -> None:
        """Clear all but the anchor, in all sessions or those where `mask`, `(B,)` bool, is True."""
        mask = _mask_or_all(mask, self.filled)
        self.latents[:, 1:].masked_fill_(mask.view(-1, 1, 1, 1, 1), 0)
        self.filled[:, 1:].masked_fill_(mask.view(-1, 1), False)


@dataclass
class TemporalCache:
    """Keys and values of memory in each block: the anchor, then the last frames, oldest first.

    Attributes:
        layers: one `(B, P, heads, 1 + M, d)` per block; empty if nothing is cached.
        filled: `(B, 1 + M)` bool.
    """

    layers: list[KeysValues]
    filled: Tensor

    @classmethod
    def empty(cls, batch: int, slots: int, device: torch.device) -> "TemporalCache":
        """Return a cache without layers, for a denoiser that caches nothing."""
        return cls([], torch.zeros(batch, slots, dtype=torch.bool, device=device))

    def padded(self, count: int) -> "TemporalCache":
        """Return a copy with `count` empty slots appended."""
        layers = [
            KeysValues(F.pad(kv.keys, (0, 0, 0, count)), F.pad(kv.values, (0, 0, 0, count)))
            for kv in self.layers
        ]
        return TemporalCache(layers, F.pad(self.filled, (0, count)))

    def extended(self, later: "TemporalCache") -> "TemporalCache":
        """Return a cache of these frames followed by later ones."""
        pairs = zip(self.layers, later.layers, strict=True)
        filled = torch.cat([self.filled, later.filled], 1)
        return TemporalCache([old.joined(new) for old, new in pairs], filled)

    def newest(self, count: int) -> "TemporalCache":
        """Return a cache of the anchor and the last `count` frames; all if there are fewer."""
        surplus = self.filled.shape[1] - 1 - count
        if surplus <= 0:
            return self
        layers = [
            KeysValues(without_oldest(kv.keys, surplus, -2), without_oldest(kv.values, surplus, -2))
            for kv in self.layers
        ]
        return TemporalCache(layers, without_oldest(self.filled, surplus, 1))

    def write(self, later: "TemporalCache") -> None:
        """Append frames in place and drop as many of the oldest; the anchor is kept."""
        for old, new in zip(self.layers, later.layers, strict=True):
            shift_in(old.keys, new.keys, -2)
            shift_in(old.values, new.values, -2)
        shift_in(self.filled, later.filled, 1)

    def rewind(self, n: int) -> None:
        """Remove the `n` newest frames, at most all but the anchor."""
        for layer in self.layers:
            shift_out(layer.keys, n, -2)
            shift_out(layer.values, n, -2)
        shift_out(self.filled, n, 1)

    def reset(self, mask: Tensor | None = None) -> None:
        """Clear all but the anchor, in all sessions or those where `mask`, `(B,)` bool, is True."""
        mask = _mask_or_all(mask, self.filled)
        for layer in self.layers:
            for part in (layer.keys, layer.values):
                part[..., 1:, :].masked_fill_(mask.view(-1, 1, 1, 1, 1), 0)
        self.filled[:, 1:].masked_fill_(mask.view(-1, 1), False)


def shift_in(slots: Tensor, new: Tensor, axis: int) -> None:
    """Append to slots along an axis in place and drop the oldest; slot 0, the anchor, is kept."""
    n, m = new.shape[axis], slots.shape[axis] - 1
    assert 1 <= n <= m, (n, m)
    # clone(): source and target overlap, and copy_ does not define an order.
    slots.narrow(axis, 1, m - n).copy_(slots.narrow(axis, 1 + n, m - n).clone())
    slots.narrow(axis, 1 + m - n, n).copy_(new)


def without_oldest(slots: Tensor, count: int, axis: int) -> Tensor:
    """Return a copy of slots along an axis without the `count` oldest; slot 0 is kept."""
    anchor = slots.narrow(axis, 0, 1)
    return torch.cat([anchor, slots.narrow(axis, 1 + count, slots.shape[axis] - 1 - count)], axis)


def shift_out(slots: Tensor, count: int, axis: int) -> None:
    """Drop the newest slots along an axis in place; the oldest become empty, slot 0 is kept."""
    m = slots.shape[axis] - 1
    n = min(count, m)
    slots.narrow(axis, 1 + n, m - n).copy_(slots.narrow(axis, 1, m - n).clone())
    slots.narrow(axis, 1, n).zero_()


def _mask_or_all(mask: Tensor | None, like: Tensor) -> Tensor:
    return like.new_ones(len(like), dtype=torch.bool) if mask is None else mask.to(like.device)


def diffusion_sigma(step: Tensor) -> Tensor:
    """Return the standard deviation of the noise at steps 0 to 999 of DDPM's linear schedule.

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
    """Corrupt memory latents in training, so that errors of earlier windows do not accumulate.

    Args:
        latents: `(B, M, C, h, w)`, unit variance.
        generator: random number generator.
        max_noise: upper bound of the noise's rectified-flow time, which is drawn per item; 0 for no
            noise.
        drop: share of spatial positions that are zeroed; drawn per item, the same in all frames.
        diffusion: draw the noise as published, for the model trained by diffusion: from steps 0 to
            49 of 1000 instead of times up to `max_noise`, unless that is 0.

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
        amount = diffusion_sigma(steps) * (max_noise > 0)
        signal = (1 - amount**2).sqrt()
    else:
        amount = torch.rand(each, generator=generator, device=where) * max_noise
        signal = 1 - amount
    noise = torch.randn(latents.shape, generator=generator, device=where)
    kept = torch.rand(batch, 1, 1, height, width, generator=generator, device=where) >= drop
    signal, amount, noise, kept = (v.to(latents.device) for v in (signal, amount, noise, kept))
    return (signal * latents + amount * noise) * kept
