"""Sources whose clocks are a little off, for an hour, by their arrival times alone."""

import numpy as np
import pytest

from letstalk_rt.audio.clock_drift import ClockDriftCorrector

RATE = 16_000
PIECE = 1600


def hour(ppm, seconds=3600, jitter_s=0.0, pcm=None):
    """Samples given and samples left after each piece of a source that is `ppm` too fast."""
    rng, corrector = np.random.default_rng(0), ClockDriftCorrector()
    pcm = np.zeros(PIECE, np.float32) if pcm is None else pcm
    given = kept = 0
    errors_s = []
    for number in range(1, int(seconds * RATE / PIECE)):
        true_s = number * PIECE / RATE / (1 + ppm * 1e-6)
        corrector.observe(PIECE, true_s + rng.uniform(0, jitter_s))
        given, kept = given + PIECE, kept + len(corrector.correct(pcm))
        errors_s.append(kept / RATE - true_s)
    return np.array(errors_s), corrector


@pytest.mark.parametrize("ppm", [200, -200])
@pytest.mark.parametrize("jitter_s", [0.0, 0.03])
def test_in_an_hour_a_clock_that_is_off_neither_gains_nor_loses(ppm, jitter_s):
    errors_s, corrector = hour(ppm, jitter_s=jitter_s)
    assert corrector.corrected == pytest.approx(0.72 * RATE, rel=0.02 if not jitter_s else 0.2)
    assert np.abs(errors_s).max() < 0.012


def test_a_true_clock_is_left_alone():
    pcm = np.random.default_rng(1).normal(size=PIECE).astype(np.float32)
    corrector = ClockDriftCorrector()
    for number in range(1, 600):
        corrector.observe(PIECE, number * 0.1)
        assert corrector.correct(pcm) is pcm
    assert corrector.corrected == 0


def test_jitter_alone_corrects_next_to_nothing():
    _, corrector = hour(0, seconds=600, jitter_s=0.05)
    assert corrector.corrected < 100


def test_a_source_in_a_hurry_is_not_corrected():
    corrector = ClockDriftCorrector()
    for number in range(1, 600):
        corrector.observe(PIECE, number * 0.08)
        assert len(corrector.correct(np.zeros(PIECE, np.float32))) == PIECE
    assert not corrector.live


def test_a_pause_or_a_loss_is_no_drift():
    for pause_s in (0.3, 2.0):
        corrector = ClockDriftCorrector()
        for number in range(1, 600):
            corrector.observe(PIECE, number * 0.1 + pause_s * (number > 300))
            corrector.correct(np.zeros(PIECE, np.float32))
        assert corrector.corrected == 0
        assert corrector.live


def test_a_correction_is_made_where_the_sound_is_still():
    tone = np.sin(2 * np.pi * 200 * np.arange(PIECE) / RATE).astype(np.float32)
    for ppm, length in ((200, 640 - 1), (-200, 640 + 1)):
        corrector = ClockDriftCorrector()
        for number in range(1, 400):  # 40 s, of which nothing has been corrected yet
            corrector.observe(PIECE, number * PIECE / RATE / (1 + ppm * 1e-6))
        new = corrector.correct(tone[:640])
        assert len(new) == length
        assert np.abs(np.diff(new)).max() <= np.abs(np.diff(tone)).max() * 1.01


def test_forgetting_a_source_keeps_the_count():
    _, corrector = hour(200, seconds=60)
    count = corrector.corrected
    corrector.reset()
    assert corrector.corrected == count > 0
    assert corrector.live
