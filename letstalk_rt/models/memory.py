"""The memory bank: the latest clean latents and a pinned anchor, which tie windows together.

Source: LetsTalk, arXiv:2411.16748 (memory bank, noise-regularised training). The
pinned-plus-recent split follows SAM 2 (arXiv:2408.00714): the anchor is the portrait's own
latent, never a generated one, so errors cannot reach it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_NOISE = 0.147
"""Rectified-flow time that equals t = 49 of 1000 of DDPM's linear schedule:
sigma / (alpha + sigma) = .170 / (.985 + .170)."""

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
        # clone(): source and target overlap, and copy_ gives no order.
        self.latents[:, 1 : 1 + m - n] = self.latents[:, 1 + n :].clone()
        self.latents[:, 1 + m - n :] = latents
        self.filled[:, 1 : 1 + m - n] = self.filled[:, 1 + n :].clone()
        self.filled[:, 1 + m - n :] = True

    def reset(self, mask: Tensor | None = None) -> None:
        """Empty all but the anchor, or only in the sessions where `mask`, `(B,)` bool, is True."""
        if mask is None:
            mask = torch.ones(self.filled.shape[0], dtype=torch.bool, device=self.filled.device)
        self.latents[:, 1:].masked_fill_(mask.view(-1, 1, 1, 1, 1), 0)
        self.filled[:, 1:].masked_fill_(mask.view(-1, 1), False)


def regularize(
    latents: Tensor,
    generator: torch.Generator | None = None,
    *,
    max_noise: float = MAX_NOISE,
    drop: float = DROP,
) -> Tensor:
    """Corrupt memory latents in training, so that errors of earlier windows do not grow.

    Args:
        latents: `(B, M, C, h, w)`, unit variance.
        generator: source of chance.
        max_noise: largest rectified-flow time of the noise; drawn per item.
        drop: share of spatial positions that are zeroed; drawn per item and shared by frames.

    Returns:
        `(1 - t) latents + t noise` with some positions zero, same shape.

    Source: LetsTalk, arXiv:2411.16748, noise-regularised memory (diffusion noise t in [0, 50) of
    1000 and 25 % patch drop).
    """
    batch, _, _, height, width = latents.shape
    device = latents.device
    time = torch.rand(batch, 1, 1, 1, 1, generator=generator, device=device) * max_noise
    noise = torch.randn(latents.shape, generator=generator, device=device)
    kept = torch.rand(batch, 1, 1, height, width, generator=generator, device=device) >= drop
    return ((1 - time) * latents + time * noise) * kept
