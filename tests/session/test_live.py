"""Sessions that idle: what comes out while speech comes late, early or not at all.

Everything runs in virtual time: the model takes `STEP_S` a call, the microphone 20 ms a piece.
"""

import asyncio

import numpy as np
import pytest
from support.fakes import (
    FRAME,
    HOP,
    LOOKAHEAD,
    FakePipeline,
    PartedPipeline,
    PartedWorker,
    TimedWorker,
    paint,
    portrait,
)
from support.virtual_time import run

from letstalk_rt.session.playout import Playout
from letstalk_rt.session.session import AvatarSession
from letstalk_rt.types import AVFrame, SegmentEnd

RATE = 16_000
STEP_S = 0.06
WINDOW_S = 0.16
PIECE = 320


def live(pipeline=None, step_s=STEP_S, worker=None, playback="reported"):
    """A session for a `Screen`, which reports what it plays."""
    worker = worker or TimedWorker(pipeline or FakePipeline(), step_s)
    return AvatarSession(worker, portrait(), idle=True, playback=playback)


PARTS_S = (0.04, 0.056, 0.083)


def live_in_parts(pipeline=None, parts_s=PARTS_S):
    return live(worker=PartedWorker(pipeline or PartedPipeline(), parts_s))


def speech(seconds, seed=0):
    return np.random.default_rng(seed).uniform(0.1, 1, int(seconds * RATE)).astype(np.float32)


class Screen:
    """Plays a session at 25 frames a second and remembers what was shown when."""

    def __init__(self, session):
        self.clock = asyncio.get_running_loop().time
        self.frames, self.times_s, self.ends = [], [], []
        self.metrics = session.metrics
        self._playout = Playout(
            self._show,
            played=session.notify_played,
            end_segment=lambda end: self.ends.append((end, len(self.frames))),
            epoch=lambda: session.epoch,
            metrics=session.metrics,
            clock=self.clock,
        )
        self._task = asyncio.create_task(self._playout.run(session))

    def _show(self, frame):
        self.frames.append(frame)
        self.times_s.append(self.clock())

    async def close(self):
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled() and (error := self._task.exception()):
            raise error

    def sound(self):
        return np.concatenate([frame.pcm for frame in self.frames])

    def speech(self):
        """From the first to the last sample that is not silence."""
        sound = self.sound()
        (loud,) = np.nonzero(sound)
        return sound[loud[0] : loud[-1] + 1]

    def shown_at_s(self, sample):
        """When the frame was shown that carries this sample value."""
        for frame, time_s in zip(self.frames, self.times_s, strict=True):
            if sample in frame.pcm:
                return time_s
        raise AssertionError("never shown")


async def microphone(session, pcm, late_s=None, piece=PIECE):
    """Push as a microphone does: each piece when it was spoken, or `late_s[i]` after."""
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    for number, start in enumerate(range(0, pcm.size, piece)):
        spoken_s = started_s + (start + piece) / RATE
        await asyncio.sleep(spoken_s + (late_s[number] if late_s is not None else 0) - loop.time())
        await session.push_audio(pcm[start : start + piece], RATE)
        await session.push_audio(pcm[:0], RATE)


def check_frames(screen):
    indices = [frame.index for frame in screen.frames]
    assert indices == list(range(len(indices)))
    for frame in screen.frames:
        np.testing.assert_array_equal(frame.rgb, paint(frame.pcm))


def test_the_avatar_idles_steadily():
    async def body():
        async with live() as session:
            screen = Screen(session)
            await asyncio.sleep(20)
            await screen.close()
        check_frames(screen)
        assert not screen.sound().any()
        assert (screen.metrics.repeats, screen.metrics.stalls) == (0, 0)
        np.testing.assert_allclose(np.diff(screen.times_s), 0.04, atol=1e-6)
        assert {frame.segment_id for frame in screen.frames} == {0}

    run(body())


def test_idle_is_never_faster_than_real_time():
    async def body():
        async with live(step_s=0.001, playback="on_read") as session:
            loop, frames = asyncio.get_running_loop(), 0
            started_s = loop.time()
            while loop.time() < started_s + 20:  # a reader in a hurry
                await anext(session)
                frames += 1
            assert 20 * 25 <= frames <= 20 * 25 + 2 * 4

    run(body())


@pytest.mark.parametrize("step_s", [0.001, 0.15])
def test_nothing_is_made_for_a_reader_that_does_not_come(step_s):
    async def body():
        pipeline = FakePipeline()
        async with live(pipeline, step_s, playback="on_read") as session:
            await asyncio.sleep(20)
            assert pipeline.steps <= 2
            frame = await anext(session)
            assert frame.index == 0

    run(body())


@pytest.mark.parametrize("step_s", [0.001, 0.14])
def test_pictures_wait_no_longer_than_one_window_and_what_is_played_while_a_step_runs(step_s):
    async def body():
        async with live(step_s=step_s) as session:
            screen = Screen(session)
            await asyncio.sleep(20)
            await screen.close()
        waited_ms = screen.metrics.stages_ms()["wait"]
        assert waited_ms.p99 <= 160 + 40
        assert screen.metrics.repeats == 0

    run(body())


def test_speech_is_shown_whole_after_idle():
    async def body():
        pcm = speech(3)
        async with live() as session:
            screen = Screen(session)
            await asyncio.sleep(1.23)
            await microphone(session, pcm)
            await session.end_segment()
            await asyncio.sleep(2)
            await screen.close()
        check_frames(screen)
        np.testing.assert_array_equal(screen.speech(), pcm)
        assert screen.metrics.stalls == 0
        ((end, position),) = screen.ends
        assert end == SegmentEnd(0, epoch=0)
        assert pcm[-1] in screen.frames[position - 1].pcm
        assert screen.frames[position].segment_id == 1

    run(body())


@pytest.mark.parametrize("start_s", [1.0, 1.1])
def test_live_speech_is_shown_soon(start_s):
    async def body():
        pcm = speech(3)
        async with live() as session:
            screen = Screen(session)
            await asyncio.sleep(start_s)
            said_s = screen.clock()
            await microphone(session, pcm)
            await asyncio.sleep(1)
            await screen.close()
        delays_s = [
            screen.shown_at_s(pcm[i]) - (said_s + (i + 1) / RATE) for i in range(0, pcm.size, 1000)
        ]
        algorithmic_s = WINDOW_S + LOOKAHEAD * 0.04
        spare_s = 0.02 + PIECE / RATE  # against jitter; to the next piece
        assert max(delays_s) <= algorithmic_s + STEP_S + spare_s
        assert min(delays_s) > 0
        assert screen.metrics.repeats == 0

    run(body())


@pytest.mark.parametrize("start_s", [1.0, 1.1])
def test_speech_is_shown_as_soon_as_the_first_part_of_its_window_is_made(start_s):
    async def body():
        pcm = speech(3)
        async with live_in_parts() as session:
            screen = Screen(session)
            await asyncio.sleep(start_s)
            said_s = screen.clock()
            await microphone(session, pcm)
            await session.end_segment()
            await asyncio.sleep(1)
            await screen.close()
        delays_s = [
            screen.shown_at_s(pcm[i]) - (said_s + (i + 1) / RATE) for i in range(0, pcm.size, 1000)
        ]
        spare_s = 0.02 + PIECE / RATE  # against jitter; to the next piece
        assert max(delays_s) <= WINDOW_S + LOOKAHEAD * 0.04 + PARTS_S[0] + spare_s
        check_frames(screen)
        np.testing.assert_array_equal(screen.speech(), pcm)
        assert screen.metrics.repeats == 0

    run(body())


@pytest.mark.parametrize("after_ms", range(0, 170, 30))
def test_made_pictures_bridge_an_interrupt_in_silence(after_ms):
    async def body():
        pipeline = PartedPipeline()
        async with live_in_parts(pipeline) as session:
            screen = Screen(session)
            await microphone(session, speech(2))
            talk = asyncio.create_task(microphone(session, speech(1, seed=1)))
            await asyncio.sleep(0.3 + after_ms / 1000)
            session.interrupt()
            cut_s, shown = screen.clock(), len(screen.frames)
            await talk
            await asyncio.sleep(1)
            await screen.close()
            await asyncio.sleep(1)
        after = list(zip(screen.frames, screen.times_s, strict=True))[shown:]
        stale_s = [at_s for f, at_s in after if f.stamps.model_start_s < cut_s]
        assert max(stale_s, default=cut_s) - cut_s <= 0.16
        assert screen.metrics.repeats == 0 and screen.metrics.stalls == 0
        assert not any(frame.pcm.any() for frame, at_s in after if at_s < cut_s + 0.2)
        assert [frame.index for frame in screen.frames] == list(range(len(screen.frames)))
        assert {frame.epoch for frame, _ in after} == {1}
        waiting = 4 * pipeline.steps - pipeline.states[0].unseen - session.metrics.frames
        assert 0 <= waiting <= 2 * 4, "a frame was shown, dropped and told of, or waits"

    run(body())


def test_the_bridge_ends_where_the_model_is_too_slow_to_take_over():
    async def body():
        async with live_in_parts(parts_s=(0.3, 0.35, 0.4)) as session:
            screen = Screen(session)
            await asyncio.sleep(2)
            session.interrupt()
            cut_s = screen.clock()
            await asyncio.sleep(2)
            await screen.close()
        stale_s = [
            at_s
            for frame, at_s in zip(screen.frames, screen.times_s, strict=True)
            if at_s > cut_s and frame.stamps.model_start_s < cut_s
        ]
        assert max(stale_s, default=cut_s) - cut_s <= 0.2

    run(body())


LATE_S = {
    "always": np.random.default_rng(1).uniform(0, 0.06, 300),
    "now-and-then": np.where(np.arange(300) % 27 == 26, 0.09, 0),
}


@pytest.mark.parametrize("late_s", LATE_S.values(), ids=LATE_S.keys())
def test_speech_that_comes_a_little_late_is_not_cut(late_s):
    async def body():
        pcm = speech(6)
        async with live() as session:
            screen = Screen(session)
            await asyncio.sleep(1)
            await microphone(session, pcm, late_s)
            await asyncio.sleep(1)
            await screen.close()
        np.testing.assert_array_equal(screen.speech(), pcm)
        assert screen.metrics.stalls == 0

    run(body())


@pytest.mark.parametrize("piece_s", [0.01, 0.1, 0.25])
def test_live_pieces_of_any_length_are_not_cut(piece_s):
    async def body():
        pcm = speech(5)
        async with live() as session:
            screen = Screen(session)
            await asyncio.sleep(1)
            await microphone(session, pcm, piece=int(piece_s * RATE))
            await asyncio.sleep(1)
            await screen.close()
        np.testing.assert_array_equal(screen.speech(), pcm)

    run(body())


def test_speech_that_stops_without_an_end_is_shown_and_the_avatar_lives_on():
    async def body():
        pcm = speech(1.01)
        async with live() as session:
            screen = Screen(session)
            await asyncio.sleep(1)
            await microphone(session, pcm)
            stopped_s = screen.clock()
            await asyncio.sleep(3)
            count = len(screen.frames)
            await asyncio.sleep(1)
            await screen.close()
            np.testing.assert_array_equal(screen.speech(), pcm)
            assert screen.shown_at_s(pcm[-1]) - stopped_s < 0.6
            assert 24 <= len(screen.frames) - count <= 26
            assert session.backlog_ms == 0
            check_frames(screen)

    run(body())


def test_a_voice_agent_in_a_hurry_is_held_back_to_real_time():
    async def body():
        pcm = speech(10)
        async with live() as session:
            screen = Screen(session)
            await asyncio.sleep(1)
            started_s = screen.clock()
            await session.push_audio(pcm, RATE)
            taken_s = screen.clock() - started_s
            await session.end_segment()
            await asyncio.sleep(5)
            await screen.close()
        assert 8.5 < taken_s < 10
        np.testing.assert_array_equal(screen.speech(), pcm)
        assert (screen.metrics.repeats, screen.metrics.stalls) == (0, 0)

    run(body())


def test_an_interrupt_silences_at_once_and_the_avatar_lives_on():
    async def body():
        async with live() as session:
            screen = Screen(session)
            await asyncio.sleep(1)
            talk = asyncio.create_task(session.push_audio(speech(10), RATE))
            await asyncio.sleep(2)
            cut = session.interrupt()
            shown, cut_s = len(screen.frames), screen.clock()
            await talk
            await asyncio.sleep(2)
            await screen.close()
        assert cut.played_ms + cut.dropped_ms == 10_000
        before = screen.sound()[: shown * FRAME]
        assert cut.played_ms == pytest.approx(np.count_nonzero(before) / 16, abs=40)
        after = screen.frames[shown:]
        assert not any(frame.pcm.any() for frame in after)
        assert {frame.epoch for frame in after} == {1}
        assert screen.times_s[shown] - cut_s <= 2 * STEP_S + STEP_S + 0.04
        assert screen.metrics.stalls == 0

    run(body())


def test_new_speech_after_an_interrupt_is_shown_soon():
    async def body():
        new = speech(2, seed=9)
        async with live() as session:
            screen = Screen(session)
            talk = asyncio.create_task(session.push_audio(speech(10), RATE))
            await asyncio.sleep(2)
            session.interrupt()
            asked_s = screen.clock()
            await talk
            await session.push_audio(new, RATE)
            await asyncio.sleep(3)
            await screen.close()
        assert screen.shown_at_s(new[0]) - asked_s < 0.5
        sound = screen.sound()
        start = int(np.flatnonzero(sound == new[0])[0])
        np.testing.assert_array_equal(sound[start : start + new.size], new)

    run(body())


def test_a_long_speech_that_was_cut_is_not_waited_for():
    async def body():
        async with live() as session:
            screen = Screen(session)
            talk = asyncio.create_task(session.push_audio(speech(30), RATE))
            await asyncio.sleep(2)
            session.interrupt()
            await talk
            await microphone(session, speech(1))
            count = len(screen.frames)
            await asyncio.sleep(2)
            await screen.close()
        assert len(screen.frames) - count >= 40

    run(body())


def test_a_stalled_model_is_not_followed_by_a_burst():
    class Stalling(TimedWorker):
        def step(self, pcm, state, deliver=None):
            self.timed.call_s = 2.0 if 5 < asyncio.get_running_loop().time() < 5.3 else STEP_S
            return super().step(pcm, state, deliver)

    async def body():
        async with live(worker=Stalling(FakePipeline(), STEP_S)) as session:
            screen = Screen(session)
            await asyncio.sleep(15)
            await screen.close()
        assert screen.metrics.stalls >= 1
        assert screen.metrics.repeats > 20
        late = [b - a for a, b in zip(screen.times_s, screen.times_s[1:], strict=False) if a > 9]
        np.testing.assert_allclose(late, 0.04, atol=1e-6)
        check_frames(screen)

    run(body())


def test_idle_frames_of_two_sessions_are_made_in_turn():
    async def body():
        worker = TimedWorker(FakePipeline(), STEP_S)
        async with live(worker=worker) as one, live(worker=worker) as other:
            screens = [Screen(one), Screen(other)]
            await asyncio.sleep(20)
            for screen in screens:
                await screen.close()
        for screen in screens:
            assert len(screen.frames) == pytest.approx(500, abs=8)
            assert isinstance(screen.frames[-1], AVFrame)
            assert screen.metrics.stalls == 0

    run(body())


def test_a_full_hop_never_waits_for_the_clock():
    async def body():
        async with live(playback="on_read") as session:
            loop = asyncio.get_running_loop()
            for _ in range(8):
                await anext(session)
            await session.push_audio(speech(HOP / RATE), RATE)
            asked_s = loop.time()
            while not (await anext(session)).pcm.any():
                pass
            assert loop.time() - asked_s <= STEP_S + WINDOW_S

    run(body())
