"""A session is recorded in a block, while its reader goes on."""

import asyncio
from dataclasses import replace

import av
import numpy as np
import pytest
from support.fakes import FakePipeline, InlineWorker, portrait
from support.live_sessions import Screen
from support.sessions import RATE, offline, say, until_end

from letstalk_rt.audio.files import read_audio
from letstalk_rt.errors import ConfigError, EngineError
from letstalk_rt.recording.file import Recording
from letstalk_rt.session.avatar import AvatarSession


class Wide(FakePipeline):
    """A fake pipeline with frames of 64x48 px that are as bright as its face."""

    def _window(self, pcm, state):
        small = super()._window(pcm, state)
        return np.broadcast_to(small[:, :1, :1], (4, 48, 64, 3)).copy()


def wide(level=0):
    return replace(portrait(level), canvas=np.full((48, 64, 3), level, np.uint8))


def session_of(**options):
    return AvatarSession(InlineWorker(Wide()), wide(), **{"idle": False, **options})


def images_of(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_the_file_holds_what_was_read_and_reading_goes_on(tmp_path):
    async def body():
        path, pcm = tmp_path / "talk.mp4", np.full(RATE, 0.25, np.float32)
        async with session_of() as session:
            await asyncio.gather(until_end(session), say(session, pcm))
            async with session.record(path) as recording:
                inside, _ = await asyncio.gather(until_end(session), say(session, pcm))
            await asyncio.gather(until_end(session), say(session, pcm))
        assert len(inside) == len(images_of(path)) > 25
        samples, rate = await asyncio.to_thread(read_audio, path)
        assert rate == RATE and abs(np.median(np.abs(samples)) - 0.25) < 0.05
        assert recording.skipped == 0

    asyncio.run(body())


def test_with_a_player_it_holds_what_was_played(tmp_path):
    async def body():
        path = tmp_path / "talk.mp4"
        async with session_of(idle=True, playback="reported") as session:
            async with session.record(path):
                screen = Screen(session)
                await asyncio.sleep(1)
                await screen.close()
        assert len(screen.frames) == len(images_of(path)) > 10

    asyncio.run(body())


def test_two_recordings_do_not_mind_each_other_nor_a_change_of_the_portrait(tmp_path):
    async def body():
        one, two, pcm = tmp_path / "one.mp4", tmp_path / "two.mkv", np.zeros(RATE, np.float32)
        async with session_of() as session, session.record(one, badge=False):
            await asyncio.gather(until_end(session), say(session, pcm))
            await session.change_portrait(wide(200))
            async with session.record(two, badge=False):
                frames, _ = await asyncio.gather(until_end(session), say(session, pcm))
        assert len(images_of(two)) == len(frames) and len(images_of(one)) > len(frames)
        assert images_of(one)[-1][..., 0].mean() > 150 > 60 > images_of(one)[0][..., 0].mean()

    asyncio.run(body())


def test_a_path_that_cannot_be_written_is_reported_at_once_and_the_session_lives(tmp_path):
    async def body():
        async with session_of() as session:
            with pytest.raises(ConfigError, match="mp4"):
                session.record(tmp_path / "talk.txt")
            with pytest.raises(ConfigError, match="No such file"):
                async with session.record(tmp_path / "missing" / "talk.mp4"):
                    pytest.fail("the block must not run")
            frames, _ = await asyncio.gather(
                until_end(session), say(session, np.zeros(RATE, np.float32))
            )
            assert frames

    asyncio.run(body())


def test_a_failure_ends_the_recording_and_not_the_session(tmp_path, monkeypatch):
    def fail(self, frame):
        raise EngineError("the disk is full")

    async def body():
        events = []
        async with offline() as session:
            session.on_event(events.append)
            with pytest.raises(EngineError, match="disk is full"):
                async with session.record(tmp_path / "talk.mp4"):
                    monkeypatch.setattr(Recording, "show", fail)
                    frames, _ = await asyncio.gather(
                        until_end(session), say(session, np.zeros(RATE, np.float32))
                    )
            assert frames
        assert [event.code for event in events if event.code] == ["recording-failed"]

    asyncio.run(body())
