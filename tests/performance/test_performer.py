"""The performer: moods ease, gestures meet their moment in the audio, interrupts, floods."""

import logging
from dataclasses import dataclass

import numpy as np
import pytest

from letstalk_rt.errors import ConfigError
from letstalk_rt.performance.cue_queue import MAX_WAITING
from letstalk_rt.performance.direction import channel
from letstalk_rt.performance.gestures import GESTURES
from letstalk_rt.performance.mirroring import Seen
from letstalk_rt.performance.moods import Style
from letstalk_rt.performance.performer import EASE_FRAMES, Performer
from letstalk_rt.types import FPS, SAMPLES_PER_FRAME

PITCH, SMILE = channel("pitch"), channel("smile")


@dataclass(frozen=True)
class Spoken:
    segment_id: int = 0
    spoken: int = SAMPLES_PER_FRAME


def show(performer, windows, frame=Spoken(), **times):
    """Return what is added to each frame of some windows, `(T, 15)`."""
    rows = []
    for _ in range(windows):
        found = performer.window([frame] * 4, **times)
        rows.append(np.zeros((4, 15)) if found is None else found.added)
    return np.concatenate(rows)


def test_without_direction_nothing_is_changed():
    performer = Performer()
    assert all(performer.window([Spoken()] * 4) is None for _ in range(10))


def test_a_mood_from_the_start_is_there_in_the_first_frame():
    found = Performer("cheerful").window([Spoken()] * 4)
    assert found.added[0, SMILE] > 0 and found.style.any()
    np.testing.assert_array_equal(found.added[0], found.added[3])


def test_a_mood_eases_in_over_half_a_second_and_out_again():
    performer = Performer()
    show(performer, 2)
    performer.set_mood("cheerful", 0.7)
    smile = show(performer, 6)[:, SMILE]
    assert 0 < smile[0] < 0.1 * smile[-1] and np.diff(smile).min() >= 0
    assert smile[EASE_FRAMES - 1] == pytest.approx(smile[-1]) and len(smile) > EASE_FRAMES
    assert np.diff(smile).max() < 0.2 * smile[-1]
    performer.set_mood("neutral")
    assert not show(performer, 4)[-1].any() and performer.window([Spoken()] * 4) is None


def test_a_mood_that_changes_while_it_eases_goes_on_from_where_it_is():
    performer = Performer()
    performer.set_mood("cheerful")
    before = show(performer, 1)
    performer.set_mood("serious")
    course = np.concatenate([before, show(performer, 4)])
    assert np.abs(np.diff(course, axis=0)).max() < 0.15


def test_a_gesture_begins_with_the_next_window():
    performer = Performer()
    performer.gesture("nod")
    assert show(performer, 3)[:, PITCH].argmax() == 5


@pytest.mark.parametrize("at_s", [0.3, 1.0, 2.52])
def test_a_gesture_meets_its_moment_in_the_audio(at_s):
    performer = Performer()
    show(performer, 2, Spoken(spoken=0))  # silence before the speech
    performer.gesture("nod", at_s and 1.0, 0, at_s)
    pitch = show(performer, 25)[:, PITCH]
    assert pitch.argmax() / FPS == pytest.approx(at_s, abs=0.05)


def test_the_audio_is_counted_while_nothing_is_asked_for():
    waiting, late = Performer(), Performer()
    waiting.gesture("nod", at_s=2.0)
    show(waiting, 6)
    show(late, 6)
    late.gesture("nod", at_s=2.0)
    np.testing.assert_array_equal(show(late, 12), show(waiting, 12))


def test_a_smile_that_is_seen_after_a_rest_is_answered():
    performer = Performer()
    show(performer, 3, now_s=0.0)
    performer.see(Seen(1.0, 0.8, 0.0))
    assert show(performer, 2, now_s=1.5)[:, SMILE].max() > 0
    assert not show(performer, 20, now_s=9.0)[-1].any()


def test_pauses_in_the_audio_do_not_count():
    performer = Performer()
    performer.gesture("nod", 1.0, 0, 1.0)
    parts = [show(performer, 3), show(performer, 5, Spoken(spoken=0)), show(performer, 10)]
    assert np.concatenate(parts)[:, PITCH].argmax() / FPS == pytest.approx(1.0 + 0.8, abs=0.05)


def test_a_gesture_waits_for_its_segment():
    performer = Performer()
    performer.gesture("nod", 1.0, 1, 0.4)
    assert not show(performer, 10).any()
    pitch = show(performer, 10, Spoken(segment_id=1))[:, PITCH]
    assert pitch.argmax() / FPS == pytest.approx(0.4, abs=0.05)


def test_what_falls_behind_the_end_of_its_segment_is_shown_at_its_end():
    performer = Performer()
    performer.gesture("nod", 1.0, 0, 60.0)
    assert not show(performer, 10).any()
    assert show(performer, 4, Spoken(segment_id=1, spoken=0))[:, PITCH].max() > 0.1


def test_a_mood_may_wait_for_its_word():
    performer = Performer()
    performer.cue("cheerful", 0, 1.0)
    smile = show(performer, 12)[:, SMILE]
    assert not smile[: FPS - 1].any() and smile[FPS + EASE_FRAMES] > 0.1
    assert performer.mood.name == "cheerful"


def test_an_interrupt_drops_what_waits_and_ends_what_runs():
    performer = Performer("warm")
    performer.gesture("nod")
    performer.gesture("shake", 1.0, 0, 1.0)
    performer.cue("serious", 0, 1.0)
    before = show(performer, 1)
    performer.interrupt(unseen=2)
    course = np.concatenate([before[:2], show(performer, 20)])
    assert np.abs(np.diff(course[:, PITCH])).max() < 0.06
    assert np.abs(course[10:, PITCH]).max() < 1e-6 and not course[:, channel("yaw")].any()
    assert performer.mood.name == "warm" and course[-1, SMILE] > 0, "the mood stays"


def test_a_flood_drops_the_oldest_and_says_so_once(caplog):
    performer = Performer()
    with caplog.at_level(logging.WARNING):
        for name in (GESTURES * 10)[:100]:
            performer.gesture(name, 1.0, 0, 5.0)
        performer.gesture("nod", 1.0, 0, 0.4)
    assert len(caplog.records) == 1
    assert show(performer, 5)[:, PITCH].max() > 0.1, "the newest is kept"
    rest = show(performer, 60)
    assert rest.any() and np.isfinite(rest).all()
    assert MAX_WAITING == 8


def test_a_flood_of_gestures_at_once_stays_within_limits():
    performer = Performer("surprised")
    rows = []
    for _ in range(50):
        for name in GESTURES:
            performer.gesture(name, 2.0)
        rows.append(show(performer, 1))
    course = np.concatenate(rows)
    assert np.isfinite(course).all()
    assert np.abs(course[:, : channel("scale")]).max() < 0.45


@pytest.mark.parametrize("at_s", [float("nan"), -0.1, float("inf"), 1e9, "1"])
def test_a_time_out_of_range_is_refused(at_s):
    performer = Performer()
    with pytest.raises(ConfigError, match="at must be"):
        performer.gesture("nod", 1.0, 0, at_s)
    with pytest.raises(ConfigError, match="at must be"):
        performer.set_mood("warm", 1.0, 0, at_s)
    assert not show(performer, 5).any()


def test_a_refused_mood_leaves_the_one_before():
    performer = Performer("warm")
    with pytest.raises(ConfigError):
        performer.set_mood("angry")
    with pytest.raises(ConfigError):
        performer.cue("dances", 0, None)
    assert performer.mood.name == "warm"


def test_a_style_may_be_given_for_a_mood():
    performer = Performer(Style(smile=2.0))
    assert performer.window([Spoken()] * 4).style.tolist() == [2, 0, 0, 0, 0, 0]


def test_listening_shows_while_somebody_speaks():
    performer, quiet = Performer(listening="attentive"), [Spoken(spoken=0)] * 4
    assert performer.window(quiet, now_s=0.0) is None
    kept = []
    for number in range(1, 8):
        performer.hear(True, None, 0.16 * number)
        kept.append(performer.window(quiet, now_s=0.16 * number).kept)
    assert kept[-1][-1, channel("gaze_x")] < 0.3
    assert performer.window(quiet, now_s=1.3).blink_rate < 1
    performer.set_listening("off")
    for number in range(4):
        last = performer.window(quiet, now_s=1.4 + 0.16 * number)
    assert last is None


def test_the_same_calls_give_the_same_performance():
    courses = []
    for _ in range(2):
        performer = Performer("lively", listening="attentive", seed=3)
        rows = []
        for number in range(400):
            performer.hear(number % 20 < 15, None, 0.16 * number)
            rows.append(performer.window([Spoken(spoken=0)] * 4, now_s=0.16 * number).added)
        courses.append(np.concatenate(rows))
    np.testing.assert_array_equal(*courses)
    assert courses[0][:, PITCH].any()
