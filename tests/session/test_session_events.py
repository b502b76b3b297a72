"""Events of a session: segments, the avatar state and warnings."""

import asyncio
import gc
import weakref

import numpy as np
import pytest
from support.fakes import HOP
from support.live_sessions import (
    Screen,
    event_types,
    live_session,
    microphone,
    record_all,
    session_of,
    speech_of,
)
from support.sessions import RATE
from support.virtual_time import run

from letstalk_rt.errors import (
    ConfigError,
)
from letstalk_rt.session.events import MAX_WAITING
from letstalk_rt.types import Interrupted


def test_a_segment_is_told_from_its_first_to_its_last_sound():
    async def body():
        events = []
        async with session_of() as session:
            session.on_event(events.append)
            for seconds in (0.5, 0.25):
                await record_all(session, speech_of(seconds))
        segments = [e for e in events if e.type.startswith("segment")]
        assert [(e.type, e.segment_id, e.played_ms) for e in segments] == [
            ("segment.started", 0, 0),
            ("segment.finished", 0, 500),
            ("segment.started", 1, 0),
            ("segment.finished", 1, 250),
        ]

    run(body())


def test_the_avatar_speaks_and_idles():
    async def body():
        events = []
        async with live_session() as session:
            session.on_event(lambda event: events.append((event.type, len(screen.frames))))
            screen = Screen(session)
            await asyncio.sleep(1)
            assert session.state == "idle"
            await microphone(session, speech_of(1))
            assert session.state == "speaking"
            await session.end_segment()
            await asyncio.sleep(2)
            assert session.state == "idle"
            await screen.close()
        moods = [(kind, at) for kind, at in events if kind.startswith("avatar")]
        assert [kind for kind, _ in moods] == ["avatar.speaking", "avatar.idle"]
        loud = [i for i, frame in enumerate(screen.frames) if frame.pcm.any()]
        assert abs(moods[0][1] - loud[0]) <= 2
        assert 0 < moods[1][1] - loud[-1] < 25

    run(body())


def test_an_interrupt_is_told_and_the_avatar_listens():
    async def body():
        events = []
        async with live_session() as session:
            session.on_event(events.append)
            screen = Screen(session)
            talk = asyncio.create_task(session.push_audio(speech_of(10), RATE))
            await asyncio.sleep(2)
            cut = session.interrupt()
            await talk
            assert session.state == "listening"
            (told,) = [e for e in events if e.type == "segment.interrupted"]
            assert (told.segment_id, told.played_ms, told.dropped_ms) == (
                0,
                cut.played_ms,
                cut.dropped_ms,
            )
            await asyncio.sleep(1)
            assert session.state == "listening", "until it is told otherwise, or speaks"
            session.listen(False)
            assert session.state == "idle"
            session.interrupt()
            await microphone(session, speech_of(1, seed=1))
            assert session.state == "speaking"
            await screen.close()
        assert event_types(events).count("segment.interrupted") == 1, "nothing spoke at the second"

    run(body())


def test_a_player_that_reports_decides_what_was_played():
    async def body():
        events = []
        async with session_of(playback="reported") as session:
            session.on_event(events.append)
            frames = await record_all(session, speech_of(0.5))
            assert events == [] and session.backlog_ms == 500
            loud = [frame for frame in frames if frame.spoken]
            assert sum(frame.spoken for frame in loud) == RATE // 2
            session.notify_played(loud[2])
            assert session.backlog_ms == 380
            assert session.interrupt() == Interrupted(played_ms=120, dropped_ms=380)
            session.notify_played(frames[-1])
        assert event_types(events) == [
            "segment.started",
            "avatar.speaking",
            "segment.interrupted",
            "avatar.listening",
        ]

    run(body())


def test_a_session_that_counts_what_is_read_takes_no_reports():
    async def body():
        async with session_of() as session:
            (first, *_) = await record_all(session, speech_of(0.3))
            with pytest.raises(ConfigError, match="playback='reported'"):
                session.notify_played(first)

    run(body())


def test_events_can_be_iterated_until_the_session_closes():
    async def body():
        async def read(session):
            return [event.type async for event in session.events()]

        async with session_of() as session:
            reading = asyncio.create_task(read(session))
            await asyncio.sleep(0)
            await record_all(session, speech_of(0.3))
        assert await reading == ["segment.started", "avatar.speaking", "segment.finished"]

    run(body())


def test_events_are_kept_from_the_call_on_not_from_the_first_read():
    async def body():
        async with session_of() as session:
            events = session.events()
            await record_all(session, speech_of(0.3))
        told = [event.type async for event in events]
        assert told == ["segment.started", "avatar.speaking", "segment.finished"]

    run(body())


def test_a_stream_of_events_that_is_dropped_or_closed_keeps_none():
    async def body():
        async with session_of() as session:
            closed, dropped = session.events(), session.events()
            gone = weakref.ref(dropped)
            del dropped
            gc.collect()
            assert gone() is None
            session.listen()
            await closed.aclose()
            session.listen(False)
            assert [event async for event in closed] == []

    run(body())


def test_a_reader_of_events_who_sleeps_loses_the_oldest():
    async def body():
        async with session_of() as session:
            stream = session.events()
            first = asyncio.create_task(anext(stream))
            await asyncio.sleep(0)
            for listening in [True, False] * MAX_WAITING:
                session.listen(listening)
            await first
        assert len([event async for event in stream]) == MAX_WAITING - 1

    run(body())


def test_a_listener_that_fails_disturbs_nobody():
    async def body():
        events = []

        def fail(event):
            raise RuntimeError("mine")

        async with session_of() as session:
            session.on_event(fail)
            stop = session.on_event(events.append)
            assert len(await record_all(session, speech_of(0.3))) > 4
            stop()
            stop()
            count = len(events)
            await record_all(session, speech_of(0.3))
        assert len(events) == count > 0

    run(body())


def test_warnings_say_what_is_wrong_and_not_too_often():
    async def body():
        warnings = []
        async with live_session(step_s=0.5) as session:
            session.on_event(lambda event: warnings.append(event.code) if event.code else None)
            screen = Screen(session)
            await asyncio.sleep(9)
            await session.push_audio(np.full(HOP, 3.0, np.float32), RATE)
            await session.push_audio(np.full(HOP, 3.0, np.float32), RATE)
            await screen.close()
        assert warnings == ["model-behind", "clipped"]

    run(body())


def test_speech_with_gaps_is_warned_of():
    async def body():
        events = []
        async with live_session() as session:
            session.on_event(events.append)
            screen = Screen(session)
            for _ in range(3):
                await microphone(session, speech_of(1))
                await asyncio.sleep(0.6)
            await screen.close()
        assert [e.code for e in events if e.type == "session.warning"] == ["speech-late"]
        assert session.metrics.filled > 0

    run(body())
