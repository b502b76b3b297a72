"""The order of what the generator yields, and what it reports, without a room."""

import asyncio
from dataclasses import dataclass, field

import numpy as np
import pytest
from livekit import rtc
from livekit.agents.voice.avatar import AudioSegmentEnd
from livekit.plugins.letstalk import LetsTalkGenerator
from support.agents import tone
from support.fake_avatar import SIZE

from letstalk_rt import SessionClosed

_RATE = 16_000


@dataclass
class Reports:
    """Notes what the generator reports."""

    told: list[tuple[object, ...]] = field(default_factory=list)

    def report_started(self) -> None:
        self.told.append(("started",))

    def report_finished(self, position_s: float) -> None:
        self.told.append(("finished", round(position_s, 3)))

    def report_interrupted(self, position_s: float, segments: int) -> None:
        self.told.append(("interrupted", segments))

    def report_failure(self, error: Exception, position_s: float, segments: int) -> None:
        self.told.append(("failed", type(error).__name__, segments))


class Synchronizer:
    """Counts how often it was emptied."""

    def __init__(self) -> None:
        self.cleared = 0

    async def clear_queue(self) -> None:
        self.cleared += 1


@pytest.fixture
async def session(avatar):
    async with avatar.session(playback="reported") as opened:
        yield opened


@pytest.fixture
def reports() -> Reports:
    return Reports()


@pytest.fixture
def generator(session, reports) -> LetsTalkGenerator:
    return LetsTalkGenerator(session, reports=reports)


async def push(generator: LetsTalkGenerator, seconds: float, rate: int = _RATE) -> None:
    async for frame in tone(seconds, rate):
        await generator.push_audio(frame)
    await generator.push_audio(AudioSegmentEnd())


async def take(generator: LetsTalkGenerator, ends: int = 0, frames: int = 0) -> list[object]:
    """Return what is yielded until so many ends of segments or video frames have come."""
    items: list[object] = []
    async with asyncio.timeout(20):
        async for item in generator:
            items.append(item)
            seen = sum(isinstance(item, rtc.VideoFrame) for item in items)
            ended = sum(isinstance(item, AudioSegmentEnd) for item in items)
            if (ends and ended == ends) or (frames and seen == frames):
                return items
    raise AssertionError("the generator has ended")


async def test_idle_frames_carry_video_only(generator, reports):
    items = await take(generator, frames=12)
    assert {type(item) for item in items} == {rtc.VideoFrame}
    assert {(item.width, item.height) for item in items} == {(SIZE, SIZE)}
    assert reports.told == []


async def test_audio_follows_its_video_and_the_end_follows_both(generator, reports):
    pushing = asyncio.create_task(push(generator, 0.5))
    items = await take(generator, ends=1)
    await pushing
    audio = [n for n, item in enumerate(items) if isinstance(item, rtc.AudioFrame)]
    assert all(isinstance(items[n - 1], rtc.VideoFrame) for n in audio)
    assert sum(items[n].duration for n in audio) == pytest.approx(0.5, abs=0.04)
    assert isinstance(items[-1], AudioSegmentEnd)
    assert reports.told == [("started",), ("finished", 0.5)]


async def test_each_segment_is_reported_by_itself(generator, reports):
    async def push_two() -> None:
        await push(generator, 0.3)
        await push(generator, 0.2)

    pushing = asyncio.create_task(push_two())
    await take(generator, ends=2)
    await pushing
    assert reports.told == [("started",), ("finished", 0.3), ("started",), ("finished", 0.2)]


async def test_a_segment_without_usable_audio_ends_too(generator, reports):
    silence = rtc.AudioFrame(bytes(200), 4_000, 1, 100)

    async def push_both() -> None:
        await push(generator, 0.2)
        await generator.push_audio(silence)
        await generator.push_audio(AudioSegmentEnd())

    pushing = asyncio.create_task(push_both())
    await take(generator, ends=2)
    await pushing
    assert reports.told == [("started",), ("finished", 0.2), ("finished", 0.0)]


async def test_a_clear_drops_speech_and_empties_the_synchronizer(generator, reports):
    generator.av_sync = synchronizer = Synchronizer()
    pushing = asyncio.create_task(push(generator, 5.0))
    stream = aiter(generator)
    while not isinstance(await anext(stream), rtc.AudioFrame):
        pass
    await generator.clear_buffer()
    pushing.cancel()
    later = [await anext(stream) for _ in range(10)]
    assert {type(item) for item in later} == {rtc.VideoFrame}
    assert synchronizer.cleared == 1
    assert reports.told == [("started",), ("interrupted", 1)]


async def test_the_end_of_a_cleared_segment_does_not_end_the_next(generator, reports):
    async for frame in tone(0.2):
        await generator.push_audio(frame)
    await generator.clear_buffer()
    await generator.push_audio(AudioSegmentEnd())  # of the cleared one: the receiver was late
    pushing = asyncio.create_task(push(generator, 0.2))
    await take(generator, ends=1)
    await pushing
    assert reports.told == [("interrupted", 1), ("started",), ("finished", 0.2)]


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
async def test_speech_may_have_any_rate(generator, reports, rate):
    pushing = asyncio.create_task(push(generator, 0.3, rate))
    await take(generator, ends=1)
    await pushing
    (_, (_, position_s)) = reports.told
    assert position_s == pytest.approx(0.3, abs=0.01)


async def test_audio_that_cannot_be_used_is_dropped_and_the_session_lives(
    generator, reports, caplog
):
    pcm = np.zeros(400, np.int16)
    for rate, channels in ((4_000, 1), (16_000, 4)):
        frame = rtc.AudioFrame(pcm.tobytes(), rate, channels, pcm.size // channels)
        await generator.push_audio(frame)
    assert "8000 to 192000" in caplog.text and "(n, 2)" in caplog.text
    pushing = asyncio.create_task(push(generator, 0.3))
    await take(generator, ends=1)
    await pushing
    assert reports.told == [("started",), ("finished", 0.3)]


async def test_stereo_is_mixed(generator, reports):
    pcm = np.full(3200, 8000, np.int16)
    await generator.push_audio(rtc.AudioFrame(pcm.tobytes(), _RATE, 2, 1600))
    await generator.push_audio(AudioSegmentEnd())
    await take(generator, ends=1)
    assert reports.told == [("started",), ("finished", 0.1)]


async def test_a_model_that_fails_ends_all_segments_and_refuses_speech(avatar, generator, reports):
    await generator.push_audio(await anext(tone(0.1)))
    avatar.pipeline.is_broken = True
    assert all([isinstance(item, rtc.VideoFrame) async for item in generator])
    assert reports.told == [("failed", "EngineError", 1)]
    with pytest.raises(SessionClosed, match="the avatar has failed"):
        await generator.push_audio(await anext(tone(0.1)))
