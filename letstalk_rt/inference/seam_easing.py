"""Seam easing: reducing the jump of motion between two windows.

The frames of a window are denoised together, so their motion is smooth; the first one depends on
the previous window only through the memory bank, so it deviates from where the motion was going.
The part of this jump that the motion on both sides does not explain is subtracted from the first
frame, and a smaller share of it from each following one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from letstalk_rt.models.memory import MemoryBank


def ease_seam(motion: Tensor, memory: MemoryBank, shares: Sequence[float]) -> Tensor:
    """Ease the seam between the memory bank and a new window.

    The jump is the difference of the first frame and the last one in memory, minus the mean of the
    frame-to-frame motion on both sides of the seam.

    Args:
        motion: motion of the window, `(B, N, C, h, w)`.
        memory: memory banks of B sessions; where the last two entries are not filled yet, the
            motion is not changed.
        shares: share of the jump that is subtracted from each of the first frames; empty for none.

    Returns:
        The eased motion, `(B, N, C, h, w)`.
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
