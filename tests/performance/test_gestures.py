"""Gestures: their curves begin and end at rest, are smooth, and meet their moment."""

import numpy as np
import pytest

from letstalk_rt.errors import ConfigError
from letstalk_rt.performance.direction import CHANNELS, EYES, channel
from letstalk_rt.performance.gestures import (
    GESTURES,
    RELEASE_FRAMES,
    SHAPES,
    Gesture,
    GestureBlend,
)
from letstalk_rt.types import FPS

ASKED_FOR = "nod shake tilt raise_brows frown wink smile look_left look_right blink".split()


def curve(name, amount=1.0):
    """Return what a gesture adds `(T, 15)`, and the closures `(T, 2)`."""
    gesture = Gesture(name, amount)
    pairs = [gesture.at(frame) for frame in range(gesture.frames + 1)]
    return tuple(np.stack(part) for part in zip(*pairs, strict=True))


def test_the_gestures_that_users_ask_for_exist():
    assert set(ASKED_FOR) <= set(GESTURES)


@pytest.mark.parametrize("name", GESTURES)
def test_a_gesture_begins_and_ends_at_rest_and_moves_between(name):
    added, closures = curve(name)
    for part in (added, closures):
        assert not part[0].any() and np.abs(part[-1]).max() < 1e-6
    assert added.any() or closures.any()
    assert 0 < SHAPES[name].apex_s < SHAPES[name].duration_s <= 2.5


@pytest.mark.parametrize("name", GESTURES)
def test_a_gesture_is_smooth(name):
    added, _ = curve(name)
    head = added[:, : channel("scale")]
    assert np.abs(np.diff(head, axis=0)).max() < 0.06, "radians a frame"
    jerk = np.abs(np.diff(head, n=2, axis=0)).max()
    assert jerk < 0.035


def test_a_nod_lowers_the_head_at_its_moment():
    pitch = curve("nod")[0][:, channel("pitch")]
    assert pitch.argmax() == pytest.approx(SHAPES["nod"].apex_s * FPS, abs=0.5)
    assert 4 <= np.degrees(pitch.max()) <= 10
    np.testing.assert_allclose(curve("nod", 0.5)[0], curve("nod")[0] / 2)


@pytest.mark.parametrize(("name", "side"), [("wink", "right"), ("wink_left", "left")])
def test_a_wink_closes_one_eye(name, side):
    closures = curve(name)[1]
    assert closures[:, EYES.index(side)].max() == 1
    assert not closures[:, 1 - EYES.index(side)].any()
    assert curve(name, 2.0)[1].max() == 1, "an eye cannot be more than closed"


def test_sides_are_those_of_the_viewer():
    left, right = curve("look_left")[0], curve("look_right")[0]
    for name in ("gaze_x", "yaw"):
        assert left[:, channel(name)].min() < 0 < right[:, channel(name)].max()
        np.testing.assert_allclose(left[:, channel(name)], -right[:, channel(name)])


@pytest.mark.parametrize("name", ["dance", "", "NOD", None, 7, ["nod"]])
def test_an_unknown_gesture_is_refused_with_the_names_of_all(name):
    with pytest.raises(ConfigError, match="nod, shake, tilt") as error:
        Gesture(name)
    assert "blink" in str(error.value)


@pytest.mark.parametrize("amount", [float("nan"), 0, -1, 2.5, "1", None])
def test_an_amount_out_of_range_is_refused(amount):
    with pytest.raises(ConfigError, match="amount must be"):
        Gesture("nod", amount)


class TestBlend:
    def run(self, blend, frames):
        return np.stack([blend.frame()[0] for _ in range(frames)])

    def test_gestures_of_different_kinds_add_up(self):
        both, nods = GestureBlend(), GestureBlend()
        nods.begin(Gesture("nod"))
        both.begin(Gesture("nod"))
        both.begin(Gesture("raise_brows"))
        pitch, brow = channel("pitch"), channel("brow_inner")
        mixed, alone = self.run(both, 30), self.run(nods, 30)
        np.testing.assert_allclose(mixed[:, pitch], alone[:, pitch])
        assert mixed[:, brow].max() > 0.3 and not alone[:, brow].any()

    def test_a_gesture_that_is_repeated_fades_the_one_before(self):
        blend, pitch = GestureBlend(), channel("pitch")
        blend.begin(Gesture("nod"))
        before = self.run(blend, 6)[:, pitch]
        blend.begin(Gesture("nod"))
        after = self.run(blend, 40)[:, pitch]
        assert np.abs(np.diff(np.r_[before, after])).max() < 0.06
        assert after.max() < 1.1 * curve("nod")[0][:, pitch].max()
        assert not after[-5:].any()

    def test_many_at_once_stay_within_limits(self):
        blend = GestureBlend()
        for name in GESTURES:
            blend.begin(Gesture(name, 2.0))
        head = np.abs(self.run(blend, 60))[:, : CHANNELS.index("scale")]
        assert head.max() <= 0.3

    def test_an_interrupt_fades_from_what_was_shown(self):
        blend, pitch = GestureBlend(), channel("pitch")
        blend.begin(Gesture("nod"))
        before = self.run(blend, 8)[:, pitch]
        blend.interrupt(unseen=3)
        after = self.run(blend, 12)[:, pitch]
        shown = np.r_[before[:5], after]
        assert np.abs(np.diff(shown)).max() < 0.06 and after[0] > 0
        assert not after[RELEASE_FRAMES:].any()

    def test_a_gesture_of_which_nothing_was_shown_is_forgotten(self):
        blend = GestureBlend()
        blend.begin(Gesture("nod"))
        self.run(blend, 3)
        blend.interrupt(unseen=4)
        assert not self.run(blend, 10).any()
