"""Clock drift over an hour, simulated by arrival times alone."""

import numpy as np
import pytest

from letstalk_rt.audio.clock_drift import ClockDriftCorrector

RATE = 16_000
CHUNK = 1600


def correct(corrector, pcm, block=1):
    """Return the samples of the blocks that the corrector keeps."""
    blocks = corrector.kept_blocks(pcm)
    return pcm if blocks is None else pcm.reshape(-1, block)[blocks].ravel()


def simulate(ppm, seconds=3600, jitter_s=0.0, block=1):
    """Return the error in seconds after each chunk of a source that is `ppm` too fast."""
    rng, corrector = np.random.default_rng(0), ClockDriftCorrector(block)
    pcm = np.zeros(CHUNK, np.float32)
    kept = 0
    errors_s = []
    for number in range(1, int(seconds * RATE / CHUNK)):
        true_s = number * CHUNK / RATE / (1 + ppm * 1e-6)
        corrector.observe(CHUNK, true_s + rng.uniform(0, jitter_s))
        kept += len(correct(corrector, pcm, block))
        errors_s.append(kept / RATE - true_s)
    return np.array(errors_s), corrector


@pytest.mark.parametrize("ppm", [200, -200])
@pytest.mark.parametrize("jitter_s", [0.0, 0.03])
@pytest.mark.parametrize("block", [1, 2])
def test_drift_does_not_accumulate_over_an_hour(ppm, jitter_s, block):
    errors_s, corrector = simulate(ppm, jitter_s=jitter_s, block=block)
    assert corrector.corrected == pytest.approx(0.72 * RATE, rel=0.02 if not jitter_s else 0.2)
    assert np.abs(errors_s).max() < 0.012


def test_an_exact_clock_is_not_corrected():
    pcm = np.random.default_rng(1).normal(size=CHUNK).astype(np.float32)
    corrector = ClockDriftCorrector()
    for number in range(1, 600):
        corrector.observe(CHUNK, number * 0.1)
        assert corrector.kept_blocks(pcm) is None
    assert corrector.corrected == 0


def test_jitter_alone_causes_few_corrections():
    _, corrector = simulate(0, seconds=600, jitter_s=0.05)
    assert corrector.corrected < 100


def test_a_non_live_source_is_not_corrected():
    corrector = ClockDriftCorrector()
    for number in range(1, 600):
        corrector.observe(CHUNK, number * 0.08)
        assert corrector.kept_blocks(np.zeros(CHUNK, np.float32)) is None
    assert not corrector.live


def test_a_pause_or_a_loss_is_not_drift():
    for pause_s in (0.3, 2.0):
        corrector = ClockDriftCorrector()
        for number in range(1, 600):
            corrector.observe(CHUNK, number * 0.1 + pause_s * (number > 300))
            corrector.kept_blocks(np.zeros(CHUNK, np.float32))
        assert corrector.corrected == 0
        assert corrector.live


@pytest.mark.parametrize("block", [1, 2])
def test_a_correction_is_made_where_the_signal_changes_least(block):
    tone = np.sin(2 * np.pi * 200 * np.arange(CHUNK) / RATE).astype(np.float32)
    for ppm, length in ((200, 640 - block), (-200, 640 + block)):
        corrector = ClockDriftCorrector(block)
        for number in range(1, 400):  # 40 s without a correction
            corrector.observe(CHUNK, number * CHUNK / RATE / (1 + ppm * 1e-6))
        new = correct(corrector, tone[:640], block)
        assert len(new) == length
        assert np.abs(np.diff(new)).max() <= np.abs(np.diff(tone)).max() * 1.01


def test_a_reset_keeps_the_count():
    _, corrector = simulate(200, seconds=60)
    count = corrector.corrected
    corrector.reset()
    assert corrector.corrected == count > 0
    assert corrector.live


def test_a_chunk_of_which_nothing_is_left_needs_no_correction():
    """A backlog in a pause may swallow whole chunks while a correction is due."""
    corrector, pcm = ClockDriftCorrector(), np.zeros(CHUNK, np.float32)
    for number in range(1, 200):
        corrector.observe(CHUNK, number * 0.1 * 1.0005)
    assert corrector.kept_blocks(pcm[:0]) is None
    assert corrector.kept_blocks(pcm) is not None, "one was due"
