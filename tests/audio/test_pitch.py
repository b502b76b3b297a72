"""The pitch of voices is followed; noise and silence have none."""

import numpy as np
import pytest

from letstalk_rt.audio.pitch import PitchTracker

RATE = 16_000


def voice(hz, seconds=0.5, harmonics=12):
    """Return a buzz like that of vocal cords, weaker towards high frequencies."""
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(hz, int(seconds * RATE))) / RATE
    return sum(np.sin(k * phase) / k for k in range(1, harmonics)).astype(np.float32) / 4


def follow(pcm, size=320):
    tracker = PitchTracker()
    return [tracker.push(pcm[start : start + size]) for start in range(0, len(pcm), size)]


@pytest.mark.parametrize("hz", [85, 120, 180, 240, 330])
def test_the_pitch_of_a_voice_is_found(hz):
    noise = np.random.default_rng(0).normal(0, 0.01, RATE // 2).astype(np.float32)
    found = follow(voice(hz) + noise)[8:]
    assert np.array(found) == pytest.approx(hz, rel=0.04)


def test_a_rising_voice_rises():
    found = np.array(follow(voice(np.linspace(120, 180, RATE // 2)))[8:])
    assert found[-1] > 1.25 * found[0]


def test_noise_and_silence_have_no_pitch():
    draw = np.random.default_rng(0)
    assert follow(np.zeros(RATE, np.float32)) == [None] * 50
    found = follow(draw.normal(0, 0.2, RATE).astype(np.float32))
    assert sum(value is not None for value in found) <= 3


def test_pieces_of_any_size_are_taken():
    pcm = voice(150)
    assert PitchTracker().push(pcm) == pytest.approx(150, rel=0.04)
    tracker = PitchTracker()
    assert tracker.push(pcm[:0]) is None
    for start in range(0, len(pcm), 7):
        last = tracker.push(pcm[start : start + 7])
    assert last == pytest.approx(150, rel=0.04)
