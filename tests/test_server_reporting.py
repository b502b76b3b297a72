"""What is shown reaches the engine, and what the engine says of it the clients."""

import numpy as np
import pytest

from letstalk_rt.events import Event
from letstalk_rt.metrics import Metrics
from letstalk_rt.types import AVFrame, Interrupted
from letstalk_server import events
from letstalk_server.playout import PulledPlayout, Slot
from letstalk_server.reporting import PlaybackReporter

RGB, PCM = np.zeros((2, 2, 3), np.uint8), np.zeros(640, np.float32)


class FakeEngine:
    """Notes what is reported; says and is what the test wants."""

    def __init__(self):
        self.metrics, self.backlog_ms, self.state = Metrics(), 120, "idle"
        self.played, self.on_played = [], lambda: None

    def on_event(self, listener):
        self.emit = listener

    def notify_played(self, frame):
        self.played.append(frame.index)
        self.on_played()


class Announced:
    """Notes what clients are told."""

    def __init__(self):
        self.segment_id, self.told = 0, []

    def tell(self, message, segment_id=None):
        self.told.append((message, self.segment_id if segment_id is None else segment_id))


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def announcer():
    return Announced()


@pytest.fixture
def voices():
    return []


@pytest.fixture
def reporter(announcer, engine, voices):
    reporter = PlaybackReporter(announcer, on_voice=lambda: voices.append(True))
    reporter.follow(engine)
    return reporter


def slot(number, segment_id=0, voiced=False):
    frame = AVFrame(RGB, PCM, number, segment_id, 0, spoken=640 * voiced, voiced=voiced)
    return Slot(number, RGB, PCM, False, frame)


def repeated(number):
    return Slot(number, RGB, PCM, True)


def test_frames_are_reported_and_repeats_are_not(reporter, engine, voices):
    for one in (slot(0), repeated(1), slot(2, voiced=True)):
        reporter.show(one)
    assert engine.played == [0, 2]
    assert voices == [True], "voice keeps a session"


def test_segments_are_told_with_their_own_number(reporter, announcer, engine):
    engine.on_played = lambda: engine.emit(Event("segment.finished", 3, 640))
    reporter.show(slot(0, segment_id=4))
    engine.on_played = lambda: None
    engine.emit(Event("segment.started", 5, 0))
    assert announcer.told == [(events.Finished(640), 3), (events.Started(), 5)]
    assert announcer.segment_id == 4, "the one on the screen"


def test_speaking_is_told_after_the_start_and_its_end_once_after_an_interrupt(
    reporter, announcer, engine
):
    def speak():
        engine.state = "speaking"
        engine.emit(Event("segment.started", 0, 0))
        engine.emit(Event("avatar.speaking"))

    engine.on_played = speak
    reporter.show(slot(0, voiced=True))
    engine.on_played, engine.state = lambda: None, "listening"
    engine.emit(Event("avatar.listening"))
    for number in (1, 2):
        reporter.show(slot(number))
    told = [type(message) for message, _ in announcer.told]
    assert told == [events.Started, events.Speaking, events.Listening, events.Idle]


@pytest.mark.parametrize(
    "cut, waiting_ms, told",
    [
        (Interrupted(0, 0), 0, []),
        (Interrupted(40, 0), 0, [events.SegmentInterrupted(40, 0)]),
        (Interrupted(40, 100), 500, [events.SegmentInterrupted(40, 600)]),
        (Interrupted(0, 0), 500, [events.SegmentInterrupted(0, 500)]),
    ],
)
def test_an_interrupt_is_told_to_all_if_it_cut_anything(reporter, announcer, cut, waiting_ms, told):
    answer = reporter.tell_interrupt(cut, waiting_ms)
    assert answer == events.WasInterrupted(cut.played_ms, cut.dropped_ms + waiting_ms)
    assert [message for message, _ in announcer.told] == told


def test_only_some_warnings_of_the_engine_are_for_clients(reporter, announcer, engine):
    for code in ("speech-late", "model-behind", "clipped"):
        engine.emit(Event("session.warning", code=code, message="look"))
    assert [message.code for message, _ in announcer.told] == ["speech-late", "clipped"]


def test_statistics_are_of_the_engine_and_of_the_slots(reporter, engine):
    engine.metrics.drops = 3
    now_s = 0.0
    playout = PulledPlayout(RGB, clock=lambda: now_s, on_slot=reporter.show)
    playout.now()
    playout.slot(49)
    now_s = 2.0
    stats = reporter.stats(playout)
    assert (stats.frames, stats.repeats, stats.fps) == (50, 50, 0.0)
    assert (stats.drops, stats.backlog_ms, stats.held_ms) == (3, 120, 0)
