"""Windows follow each other without a jump, and what moves on its own is left alone."""

import torch

from letstalk_rt.inference.seam_easing import ease_seam
from letstalk_rt.models.memory import MemoryBank

SHARES = (0.6, 0.3, 0.1, 0.0)


def bank(*frames):
    memory = MemoryBank.anchored(torch.zeros(1, 1, 1, 1), 4)
    if frames:
        memory.write(torch.tensor(frames).view(1, -1, 1, 1, 1))
    return memory


def window(*values):
    return torch.tensor(values).view(1, -1, 1, 1, 1)


def test_a_jump_is_spread_over_the_window():
    eased = ease_seam(window(1.0, 1.0, 1.0, 1.0), bank(0.0, 0.0), SHARES)
    torch.testing.assert_close(eased.flatten(), torch.tensor([0.4, 0.7, 0.9, 1.0]))


def test_a_steady_motion_is_left_alone():
    moving = window(0.3, 0.4, 0.5, 0.6)
    torch.testing.assert_close(ease_seam(moving, bank(0.1, 0.2), SHARES), moving)


def test_without_a_past_nothing_changes():
    first = window(1.0, 1.0, 1.0, 1.0)
    assert torch.equal(ease_seam(first, bank(), SHARES), first)
    assert torch.equal(ease_seam(first, bank(5.0), SHARES), first)
    assert torch.equal(ease_seam(first, bank(0.0, 0.0), ()), first)


def test_sessions_of_a_batch_do_not_mix():
    memory = MemoryBank.anchored(torch.zeros(2, 1, 1, 1), 4)
    memory.write(torch.tensor([[0.0, 0.0], [3.0, 3.0]]).view(2, 2, 1, 1, 1))
    both = torch.ones(2, 4, 1, 1, 1)
    eased = ease_seam(both, memory, SHARES)
    alone = ease_seam(both[:1], bank(0.0, 0.0), SHARES)
    assert torch.equal(eased[:1], alone)
    torch.testing.assert_close(eased[1].flatten(), torch.tensor([2.2, 1.6, 1.2, 1.0]))
