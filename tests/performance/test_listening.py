"""Listening: attention while somebody speaks, nods in their pauses, brows at a rising voice."""

import numpy as np
import pytest

from letstalk_rt.errors import ConfigError
from letstalk_rt.performance.direction import channel
from letstalk_rt.performance.listening import ATTENTION_S, LISTENING, Listener
from letstalk_rt.types import FPS


def talk(draw, seconds):
    """Return in which frames somebody speaks: phrases of 1.5 to 4 s, pauses up to a second."""
    pattern = []
    while len(pattern) < seconds * FPS:
        pattern += [True] * int(draw.uniform(1.5, 4) * FPS) + [False] * int(
            draw.uniform(0.4, 1) * FPS
        )
    return pattern[: int(seconds * FPS)]


def follow(listener, pattern, pitch=None, speaks=False):
    """Return what listening adds to each frame while somebody speaks in a pattern."""
    found = []
    for number, speaking in enumerate(pattern):
        listener.hear(speaking, None if pitch is None else pitch(number / FPS), number / FPS)
        found.append(listener.frame(number / FPS, speaks=speaks))
    return found


def begins(found, name):
    return [n for n, one in enumerate(found) if any(g.name == name for g in one.begun)]


@pytest.mark.parametrize("mode", ["calm", "attentive"])
@pytest.mark.parametrize("seed", range(5))
def test_nods_fall_into_pauses_three_to_ten_times_a_minute(mode, seed):
    pattern = talk(np.random.default_rng(seed), 120)
    nods = begins(follow(Listener(mode, seed), pattern), "nod")
    assert 3 <= len(nods) / 2 <= 10
    assert all(not pattern[place] for place in nods)


def test_attention_nods_more_than_calm():
    pattern = talk(np.random.default_rng(0), 120)
    calm, attentive = (begins(follow(Listener(m), pattern), "nod") for m in LISTENING[1:])
    assert len(attentive) > len(calm)


def test_nobody_nods_in_long_silence_or_when_nothing_was_said():
    pattern = talk(np.random.default_rng(1), 20) + [False] * 60 * FPS
    nods = begins(follow(Listener("attentive"), pattern), "nod")
    assert nods and max(nods) < 21 * FPS
    assert not begins(follow(Listener("attentive"), [False] * 3000), "nod")


def test_a_cough_is_no_reason_to_nod():
    pattern = ([True] * 10 + [False] * 60) * 10
    assert not begins(follow(Listener("attentive"), pattern), "nod")


def test_off_changes_nothing():
    found = follow(Listener("off"), talk(np.random.default_rng(0), 30))
    assert not any(one.attention or one.begun for one in found)
    assert all(one.blink_rate == 1 and (one.kept == 1).all() for one in found)


def test_an_avatar_that_speaks_does_not_listen():
    found = follow(Listener("attentive"), talk(np.random.default_rng(0), 30), speaks=True)
    assert not any(one.attention or one.begun for one in found)


def test_it_looks_at_whoever_speaks_and_idles_later():
    found = follow(Listener("calm"), [True] * 50 + [False] * 200)
    gaze = channel("gaze_x")
    assert found[40].kept[gaze] < 0.3 and found[-1].kept[gaze] == 1
    assert found[40].added.any() and not found[-1].added.any()
    levels = np.array([one.attention for one in found])
    assert np.abs(np.diff(levels)).max() < 0.2, "it comes and goes smoothly"
    lasts = np.flatnonzero(levels > 0.5)[-1] / FPS
    assert lasts == pytest.approx(50 / FPS + ATTENTION_S, abs=0.5)


def test_blinks_wait_for_pauses():
    found = follow(Listener("calm"), [True] * 50 + [False] * 40)
    assert found[30].blink_rate < 0.6 < 2 < found[53].blink_rate
    assert found[-1].blink_rate == 1


def test_brows_rise_with_the_voice():
    def rising(s):
        return 120 * 2 ** (s % 2.0)

    def falling(s):
        return 240 * 2 ** -(s % 2.0)

    assert begins(follow(Listener("attentive"), [True] * 100, rising), "raise_brows")
    assert not begins(follow(Listener("attentive"), [True] * 40, falling), "raise_brows")
    assert not begins(follow(Listener("attentive"), [True] * 100, lambda s: 140), "raise_brows")


def test_somebody_of_whom_nothing_is_heard_any_more_is_silent():
    listener, found = Listener("attentive"), []
    for number in range(100):
        if number < 50:
            listener.hear(True, None, number / FPS)
        found.append(listener.frame(number / FPS, speaks=False))
    (nod,) = begins(found, "nod")
    assert 50 < nod < 75
    assert found[99].blink_rate == 1


@pytest.mark.parametrize("pitch", [float("nan"), float("inf"), 0, -100, 1e6, "120"])
def test_a_pitch_that_is_none_is_refused(pitch):
    with pytest.raises(ConfigError, match="pitch_hz must be"):
        Listener("calm").hear(True, pitch, 0.0)


@pytest.mark.parametrize("mode", ["on", "", None, True, ["calm"]])
def test_an_unknown_mode_is_refused(mode):
    with pytest.raises(ConfigError, match="off, calm, attentive"):
        Listener(mode)
