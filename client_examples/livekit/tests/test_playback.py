"""How much was heard, from what was queued and when."""

import pytest
from livekit.plugins.letstalk.playback import PlaybackMeter


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meter(clock: Clock) -> PlaybackMeter:
    return PlaybackMeter(clock)


def test_what_is_queued_counts_as_it_is_heard(meter, clock):
    meter.note_queued(0.04, 0.04)
    meter.note_queued(0.04, 0.04)
    assert meter.position_s == pytest.approx(0.0)
    clock.now_s += 0.05
    assert meter.position_s == pytest.approx(0.05)
    assert meter.remaining_s == pytest.approx(0.03)
    clock.now_s += 1
    assert meter.position_s == pytest.approx(0.08)


def test_padding_does_not_count(meter, clock):
    meter.note_queued(0.04, 0.01)
    clock.now_s += 1
    assert meter.position_s == meter.spoken_s == 0.01


def test_a_gap_is_not_heard(meter, clock):
    meter.note_queued(0.04, 0.04)
    clock.now_s += 1
    meter.note_queued(0.04, 0.04)
    clock.now_s += 0.01
    assert meter.position_s == pytest.approx(0.05)


def test_the_next_segment_counts_from_zero_behind_what_is_queued(meter, clock):
    meter.note_queued(0.08, 0.08)
    meter.begin_segment()
    meter.note_queued(0.04, 0.04)
    clock.now_s += 0.1
    assert meter.position_s == pytest.approx(0.02)


def test_after_a_clear_nothing_is_queued(meter, clock):
    meter.note_queued(0.4, 0.4)
    meter.clear()
    assert meter.position_s == meter.spoken_s == 0.0
    meter.note_queued(0.04, 0.04)
    clock.now_s += 0.04
    assert meter.position_s == pytest.approx(0.04)
