"""What is shown reaches the engine, and what the engine says of it the clients."""

import asyncio

import numpy as np
import pytest
from support import virtual_time
from support.fakes import FakePipeline, TimedWorker, portrait

from letstalk_rt.inference.quality import Quality
from letstalk_rt.metrics import Metrics
from letstalk_rt.session.events import Event
from letstalk_rt.session.session import AvatarSession
from letstalk_rt.types import AVFrame, Interrupted
from letstalk_server.protocol import server_messages
from letstalk_server.session.playout import SLOT_S, PlayoutSlot, SlotPlayout
from letstalk_server.session.reporting import PlaybackReporter

RGB, PCM = np.zeros((2, 2, 3), np.uint8), np.zeros(640, np.float32)


class FakeEngine:
    """Notes what is reported; says and is what the test wants."""

    def __init__(self):
        self.metrics, self.backlog_ms, self.state = Metrics(), 120, "idle"
        self.quality = Quality(fps=20)
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

    def broadcast(self, message, segment_id=None):
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


def slot(number, segment_id=0, voiced=False, **options):
    spoken = 640 * voiced
    frame = AVFrame(RGB, PCM, number, segment_id, 0, spoken=spoken, voiced=voiced, **options)
    return PlayoutSlot(number, RGB, PCM, False, frame)


def repeated(number):
    return PlayoutSlot(number, RGB, PCM, True)


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
    assert announcer.told == [(server_messages.Finished(640), 3), (server_messages.Started(), 5)]
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
    assert told == [
        server_messages.Started,
        server_messages.Speaking,
        server_messages.Listening,
        server_messages.Idle,
    ]


@pytest.mark.parametrize(
    "cut, waiting_ms, told",
    [
        (Interrupted(0, 0), 0, []),
        (Interrupted(40, 0), 0, [server_messages.SegmentInterrupted(40, 0)]),
        (Interrupted(40, 100), 500, [server_messages.SegmentInterrupted(40, 600)]),
        (Interrupted(0, 0), 500, [server_messages.SegmentInterrupted(0, 500)]),
    ],
)
def test_an_interrupt_is_told_to_all_if_it_cut_anything(reporter, announcer, cut, waiting_ms, told):
    answer = reporter.announce_interrupt(cut, waiting_ms)
    assert answer == Interrupted(cut.played_ms, cut.dropped_ms + waiting_ms)
    assert [message for message, _ in announcer.told] == told


def test_only_some_warnings_of_the_engine_are_for_clients(reporter, announcer, engine):
    for code in ("speech-late", "model-behind", "clipped"):
        engine.emit(Event("session.warning", code=code, message="look"))
    assert [message.code for message, _ in announcer.told] == ["speech-late", "clipped"]


def test_changes_of_the_quality_are_told_with_the_frame_rate(reporter, announcer, engine):
    engine.emit(Event("session.quality", message="busy", quality_level=4))
    assert announcer.told == [(server_messages.QualityChanged(4, 20, "busy"), 0)]


def test_the_frame_rate_counts_images_and_not_frames_that_repeat_one(reporter, engine):
    engine.metrics.quality_level, engine.metrics.quality_changes = 4, 3
    now_s = 0.0
    playout = SlotPlayout(RGB, clock=lambda: now_s, on_slot=reporter.show)
    playout.now()
    for number in range(25):
        reporter.show(slot(number, repeated=number % 5 == 4))
    now_s = 1.0
    stats = reporter.stats(playout)
    assert (stats.fps, stats.frames, stats.quality_level, stats.quality_changes) == (20, 25, 4, 3)


def test_statistics_are_of_the_engine_and_of_the_slots(reporter, engine):
    engine.metrics.drops = 3
    now_s = 0.0
    playout = SlotPlayout(RGB, clock=lambda: now_s, on_slot=reporter.show)
    playout.now()
    playout.read_slot(49)
    now_s = 2.0
    stats = reporter.stats(playout)
    assert (stats.frames, stats.repeats, stats.fps) == (50, 50, 0.0)
    assert (stats.drops, stats.backlog_ms, stats.held_ms) == (3, 120, 0)


class Show:
    """An engine whose frames are pulled by the server's clock and reported, in virtual time."""

    def __init__(self, worker, announcer):
        self.clock = asyncio.get_running_loop().time
        self.session = AvatarSession(worker, portrait(), playback="reported")
        self.reporter = PlaybackReporter(announcer)
        self.reporter.follow(self.session)
        self.delays_s = []
        self.playout = SlotPlayout(RGB, is_live=lambda: True, on_slot=self._show, clock=self.clock)

    def _show(self, slot):
        self.reporter.show(slot)
        if slot.frame is not None and slot.frame.stamps.audio_in_s is not None:
            self.delays_s.append(self.clock() - slot.frame.stamps.audio_in_s)

    async def talk(self, seconds, level=0.3):
        """Speak into it as a microphone does."""
        began_s = self.clock()
        for piece in range(1, round(seconds * 50) + 1):
            await asyncio.sleep(began_s + piece * 0.02 - self.clock())
            await self.session.push_audio(np.full(320, level, np.float32), 16_000)

    async def read(self):
        async for item in self.session:
            if isinstance(item, AVFrame):
                await self.playout.put(item)

    async def pull(self):
        number = 0
        while True:
            await self.playout.wait_until(number * SLOT_S)
            self.playout.read_slot(number)
            number += 1


def perform(scene, worker, announcer):
    """Run a scene while frames are read and pulled."""

    async def body():
        show = Show(worker, announcer)
        async with show.session:
            tasks = [asyncio.create_task(work) for work in (show.read(), show.pull())]
            await asyncio.sleep(1)
            await scene(show)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    virtual_time.run(body())


def test_slow_steps_now_and_then_do_not_add_up(announcer):
    worker = TimedWorker(FakePipeline(), 0.06)

    async def scene(show):
        async def stumble():
            for _ in range(40):
                await asyncio.sleep(2.9)
                worker.timed.call_s = 0.15
                await asyncio.sleep(0.1)
                worker.timed.call_s = 0.06

        stumbling = asyncio.create_task(stumble())
        await show.talk(120)
        await stumbling
        assert np.median(show.delays_s[-500:]) < np.median(show.delays_s[500:1000]) + 0.02
        assert max(show.delays_s) < 0.4
        assert show.playout.repeats < 10

    perform(scene, worker, announcer)


def test_played_and_dropped_are_all_that_was_said(announcer):
    async def scene(show):
        said = asyncio.create_task(
            show.session.push_audio(np.full(16_000, 0.3, np.float32), 16_000)
        )
        await asyncio.sleep(1)
        shown = len(show.delays_s)
        answer = show.reporter.announce_interrupt(show.session.interrupt(), 0)
        show.playout.silence(show.session.epoch)
        await said
        assert answer.played_ms == pytest.approx(40 * shown, abs=40)
        assert answer.played_ms + answer.dropped_ms == 1000
        await asyncio.sleep(1)
        told = [type(message) for message, _ in announcer.told]
        assert told[:2] == [server_messages.Started, server_messages.Speaking]
        assert told[2:] == [
            server_messages.Listening,
            server_messages.SegmentInterrupted,
            server_messages.Idle,
        ]

    perform(scene, TimedWorker(FakePipeline(), 0.06), announcer)
