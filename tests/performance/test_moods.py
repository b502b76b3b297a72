"""Moods: names, styles, strengths, and what may not be asked for."""

import numpy as np
import pytest

from letstalk_rt.errors import ConfigError
from letstalk_rt.models.motion.code import MOTION_NAMES, REST, STYLE_NAMES
from letstalk_rt.performance.direction import CHANNELS, channel
from letstalk_rt.performance.moods import MOODS, Style, mood

ASKED_FOR = "neutral warm cheerful serious concerned surprised tired lively".split()


def test_the_moods_that_users_ask_for_exist():
    assert list(MOODS) == ASKED_FOR and all(name == MOODS[name].name for name in MOODS)


def test_channels_and_styles_are_those_of_the_motion_code():
    assert MOTION_NAMES[REST] == CHANNELS
    assert tuple(Style.__dataclass_fields__) == STYLE_NAMES


def test_neutral_changes_nothing_and_all_others_differ():
    still = mood("neutral").levels
    assert not still.style.any() and not still.added.any()
    assert (still.kept == 1).all() and still.blink_rate == 1
    found = [mood(name).levels.values for name in MOODS]
    for one in range(len(found)):
        for other in range(one):
            assert not np.array_equal(found[one], found[other]), (ASKED_FOR[one], ASKED_FOR[other])


def test_strength_scales_a_mood():
    full, half = mood("tired").levels, mood("tired", 0.5).levels
    assert full.added.any()
    np.testing.assert_allclose(half.added, full.added / 2)
    np.testing.assert_allclose(half.style, full.style / 2)
    np.testing.assert_allclose(half.kept, (full.kept + 1) / 2)
    assert half.blink_rate == pytest.approx((full.blink_rate + 1) / 2)
    assert not mood("tired", 0).levels.added.any()


def test_a_style_is_a_mood_whose_numbers_add_up():
    one, two = mood(Style(smile=1.0)).levels, mood(Style(smile=2.0, brows=-1.0)).levels
    assert one.style.tolist() == [1, 0, 0, 0, 0, 0]
    assert 2 * one.added[channel("smile")] == pytest.approx(two.added[channel("smile")])
    assert two.added[channel("brow_inner")] < 0 < one.added[channel("smile")]


@pytest.mark.parametrize("name", ["angry", "", "Warm", None, 3, ["warm"]])
def test_an_unknown_mood_is_refused_with_the_names_of_all(name):
    with pytest.raises(ConfigError, match="neutral, warm, cheerful") as error:
        mood(name)
    assert "lively" in str(error.value)


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), -0.1, 1.1, "1", None, True])
def test_a_strength_out_of_range_is_refused(strength):
    with pytest.raises(ConfigError, match="strength must be"):
        mood("warm", strength)


@pytest.mark.parametrize("value", [float("nan"), 3.1, -4, "2", None])
def test_a_style_out_of_range_is_refused(value):
    with pytest.raises(ConfigError, match="smile must be"):
        Style(smile=value)
