"""Eases the border between windows, which are drawn one after another.

Within a window frames are made together and follow each other; its first frame knows the one before
only through memory, so it lands a little beside where the motion was going. The part of that jump
which no motion explains is taken out of the first frame, and less of it from each one after.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from letstalk_rt.models.memory import MemoryBank


def ease_seam(motion: Tensor, memory: MemoryBank, shares: Sequence[float]) -> Tensor:
    """Ease the border between memory and a new window.

    The jump is how far the first frame is from the last one in memory, less the mean of the motion
    on either side of the border.

    Args:
        motion: the window, `(B, N, C, h, w)`.
        memory: what came before it; a session whose last two frames are not filled is not changed.
        shares: of the jump that are taken from the first frames of the window; none leave it.

    Returns:
        As `motion`.
    """
    assert len(shares) <= motion.shape[1], (len(shares), motion.shape)
    if not shares or motion.shape[1] < 2 or memory.latents.shape[1] < 3:
        return motion
    before, last = memory.latents[:, -2].to(motion), memory.latents[:, -1].to(motion)
    pace = ((last - before) + (motion[:, 1] - motion[:, 0])) / 2
    known = memory.filled[:, -2:].all(1).view(-1, 1, 1, 1)
    jump = torch.where(known, motion[:, 0] - last - pace, torch.zeros_like(last))
    weights = motion.new_zeros(motion.shape[1])
    weights[: len(shares)] = motion.new_tensor(shares)
    return motion - weights.view(1, -1, 1, 1, 1) * jump[:, None]
