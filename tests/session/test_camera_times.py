"""Which moments of a camera are shown: steadily, and soon those that are wanted."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from letstalk_rt.session.camera_times import FASTEST, JUMP_S, CameraTimes

FRAMES = 4
STEP_S = FRAMES / 25


def course(delays_s):
    """Return all times of steps that want their first frame so long before their time."""
    times = CameraTimes()
    return np.concatenate(
        [times.window(number * STEP_S - delay, FRAMES) for number, delay in enumerate(delays_s)]
    )


def test_what_is_wanted_is_shown_if_it_is_steady():
    np.testing.assert_allclose(course([0.2] * 5), np.arange(20) / 25 - 0.2, atol=1e-9)


def test_another_delay_is_reached_within_half_a_second_without_a_jump():
    shown = course([0.1] * 3 + [0.2] * 6)
    steps = np.diff(shown)
    assert (steps > (1 - FASTEST) / 25 - 1e-9).all() and (steps < (1 + FASTEST) / 25 + 1e-9).all()
    np.testing.assert_allclose(shown[24:], np.arange(24, 36) / 25 - 0.2)


def test_a_change_as_after_a_stall_is_made_at_once():
    shown = course([0.1] * 3 + [0.1 + 1.5 * JUMP_S] * 2)
    np.testing.assert_allclose(shown[12:], np.arange(12, 20) / 25 - 0.1 - 1.5 * JUMP_S)


@given(st.lists(st.floats(0.1, 0.1 + JUMP_S), min_size=1, max_size=30))
def test_time_goes_on_by_a_bounded_rate_whatever_is_wanted(delays_s):
    steps = 25 * np.diff(course(delays_s))
    assert ((steps > 1 - FASTEST - 1e-6) & (steps < 1 + FASTEST + 1e-6)).all()
