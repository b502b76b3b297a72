"""A session speaks text, and an interrupt stops the synthesis."""

import asyncio

import numpy as np
import pytest
from support.fakes import FakePipeline, InlineWorker, portrait
from support.packages import needs
from support.sessions import offline, until_end

from letstalk_rt.errors import SynthesisError, TextError
from letstalk_rt.session.session import AvatarSession
from letstalk_rt.sources import say
from letstalk_rt.speech.system import SystemSpeech


class ManySeconds:
    """An engine that speaks for as long as somebody listens."""

    name = "endless"

    def __init__(self, fail_after=None):
        self.made, self.closed, self.fail_after = 0, False, fail_after

    async def stream(self, text):
        try:
            while True:
                if self.made == self.fail_after:
                    raise SynthesisError("the endpoint died")
                self.made += 1
                await asyncio.sleep(0)
                yield np.full(2205, 8000, np.int16), 22_050
        finally:
            self.closed = True


@needs("espeak-ng")
async def test_a_text_becomes_one_segment():
    async with offline() as session:
        reading = asyncio.create_task(until_end(session))
        assert await say(session, SystemSpeech(platform="linux"), "Hello there, how are you?")
        frames = await reading
    heard = np.concatenate([frame.pcm for frame in frames])
    assert heard.size > 16_000 and np.abs(heard).max() > 0.1
    assert {frame.segment_id for frame in frames} == {0}


async def test_an_interrupt_stops_the_synthesis():
    session = AvatarSession(InlineWorker(FakePipeline()), portrait(), idle=False)
    async with session:
        engine = ManySeconds()
        saying = asyncio.create_task(say(session, engine, "for ever"))
        for _ in range(3):
            await anext(session)
        session.interrupt()
        assert await asyncio.wait_for(saying, 10) is False
        assert engine.closed and engine.made < 50
        reading = asyncio.create_task(until_end(session))
        await session.push_audio(np.full(16_000, 0.5, np.float32), 16_000)
        await session.end_segment()
        assert len(await reading) >= 25, "the session lives on"


async def test_what_was_spoken_before_a_failure_is_a_segment():
    async with offline() as session:
        reading = asyncio.create_task(until_end(session))
        with pytest.raises(SynthesisError):
            await say(session, ManySeconds(fail_after=5), "and then")
        frames = await asyncio.wait_for(reading, 10)
    assert sum(frame.spoken for frame in frames) == pytest.approx(8000, abs=2)


@needs("espeak-ng")
async def test_bad_text_leaves_the_session_as_it_was():
    async with offline() as session:
        for text in ("", "\U0001f600", "x" * 1_000_000):
            with pytest.raises(TextError):
                await say(session, SystemSpeech(platform="linux"), text)
        assert session.backlog_ms == 0 and session.epoch == 0
