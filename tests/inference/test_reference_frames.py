"""Which reference frame is shown for a pose of the head, and when it changes."""

from typing import Any

import numpy as np
import pytest

from letstalk_rt.inference.reference_frames import FADE_FRAMES, Reference, ReferenceMixer

UNIT = 0.05
"""A difference of poses that is seen."""


def reference(turn: float, cost: float) -> Reference:
    """Return a reference whose head is turned by so many units."""
    unused: Any = None
    return Reference(unused, np.zeros((1, 1, 3), np.uint8), unused, pose(turn), cost)


def pose(turn: float) -> np.ndarray:
    return np.array([turn * UNIT, 0.0])


@pytest.mark.parametrize(("turn", "chosen"), [(0.4, 0), (2.0, 1)])
def test_a_better_picture_counts_for_small_turns_and_the_pose_for_large_ones(turn, chosen):
    references = [reference(0.0, 0.0), reference(2.2, 1.5)]
    (shown, weight), *others = ReferenceMixer().mix(references, [pose(turn)])
    assert shown is references[chosen]
    assert weight == 1 and not others


def test_the_fade_begins_before_the_head_turns():
    references = [reference(0.0, 0.0), reference(4.0, 0.0)]
    turns = [0.0] * 12 + [4.0] * 12
    mixer, shares = ReferenceMixer(), []
    for index in range(len(turns)):
        poses = [pose(turn) for turn in turns[index : index + FADE_FRAMES + 1]]
        mixed = mixer.mix(references, poses)
        assert sum(weight for _, weight in mixed) == pytest.approx(1)
        shares.append(sum(weight for one, weight in mixed if one is references[1]))
    assert shares[6] == 0 and 0.2 < shares[11] < 0.8 and shares[15] == 1
    assert max(np.diff(shares)) < 0.3, "it changes over several frames"
