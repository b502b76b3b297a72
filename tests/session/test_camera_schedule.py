"""Which frames of a camera are read, and at which age motion is shown."""

import numpy as np
import pytest

from letstalk_rt.session.camera_schedule import ReadSchedule

STEP_S = 0.16


def run(cost_s, *, asks_s=(0.0, 0.08), phase_s=0.0, interval_s=0.04, seconds=4.0):
    """Return when frames were read, and the age of the newest motion each time it was asked for.

    Args:
        cost_s: what a reading takes.
        asks_s: when motion is asked for in each step.
        phase_s: when the first frame comes.
        interval_s: time between frames.
        seconds: how long it runs.
    """
    schedule, reads_s, ages_s = ReadSchedule(STEP_S), [], []
    known_s, busy_until_s, reading = None, 0.0, None
    frames = [(float(t), "frame") for t in np.arange(phase_s, seconds, interval_s)]
    asks = [
        (float(t + ask_s), "ask")
        for t in np.arange(0.3, seconds - STEP_S, STEP_S)
        for ask_s in asks_s
    ]
    for now_s, kind in sorted(frames + asks):
        if reading is not None and now_s >= busy_until_s:
            schedule.note_reading(reading, busy_until_s)
            known_s, reading = reading, None
        if kind == "ask" and known_s is not None:
            ages_s.append(now_s - known_s)
            schedule.note_age(now_s, known_s)
        elif kind == "frame":
            schedule.note_frame(now_s)
            if reading is None and schedule.suits(now_s):
                reading, busy_until_s = now_s, now_s + cost_s
                reads_s.append(now_s)
    return np.array(reads_s), np.array(ages_s)


@pytest.mark.parametrize("phase_s", [0.0, 0.01, 0.02, 0.03])
def test_motion_is_as_new_as_one_frame_and_its_reading_allow(phase_s):
    reads_s, ages_s = run(0.03, phase_s=phase_s)
    assert ages_s[-20:].max() < 0.03 + 0.005 + 0.04 + 0.001
    assert np.median(np.diff(reads_s)) == pytest.approx(0.08)


def test_readings_leave_the_core_to_others():
    reads_s, _ = run(0.06)
    assert 0.06 * len(reads_s) / 4.0 < 0.45
    assert np.diff(reads_s).max() <= 0.25 + 0.04


def test_cheap_readings_are_made_of_every_frame():
    reads_s, _ = run(0.01)
    np.testing.assert_allclose(np.diff(reads_s), 0.04, atol=1e-6)


def test_frames_are_read_although_nobody_asks():
    reads_s, _ = run(0.03, asks_s=())
    assert 0.07 < np.median(np.diff(reads_s)) < 0.13


def test_motion_is_shown_at_an_age_that_nearly_all_have():
    schedule = ReadSchedule(STEP_S)
    ages_s = [schedule.note_age(1.0 + t, 1.0 + t - age_s) for t, age_s in enumerate([0.05] * 30)]
    assert ages_s[-1] == pytest.approx(0.05)
    assert schedule.note_age(40.0, 39.8) == pytest.approx(0.05)  # one that was late
    for number in range(6):
        age_s = schedule.note_age(41.0 + number, 40.8 + number)
    assert age_s == pytest.approx(0.2)
