"""The pulled playout and the media tracks: one clock, no waiting past a due time, no drift."""

import asyncio

import numpy as np
import pytest
from aiortc.mediastreams import MediaStreamError
from fakes import FakeClock

from letstalk_rt.types import SAMPLES_PER_FRAME, AVFrame
from letstalk_server.playout import MAX_WAITING, STALL_SLOTS, PulledPlayout
from letstalk_server.tracks import (
    MAX_HEARD,
    PIECE,
    VIDEO_TICKS,
    AudioTrack,
    Microphone,
    Upsampler,
    VideoTrack,
)

STILL = np.full((6, 8, 3), 9, np.uint8)


def frame(index, level=0.0, epoch=0):
    rgb = np.full((6, 8, 3), 10 + index % 200, np.uint8)
    return AVFrame(rgb, np.full(SAMPLES_PER_FRAME, level, np.float32), index, 0, epoch)


def playout_at(clock, **options):
    return PulledPlayout(STILL, clock=clock, sleep=clock.sleep, **options)


def shade(slot):
    return int(slot.rgb[0, 0, 0])


async def test_both_tracks_show_the_same_frame_at_the_same_time():
    clock = FakeClock()
    playout = playout_at(clock)
    video, audio = VideoTrack(playout), AudioTrack(playout)
    for index in range(12):
        await playout.put(frame(index, level=index / 20))
        picture = await video.recv()
        due_s = clock()
        pieces = [await audio.recv() for _ in range(2)]
        assert picture.pts == index * VIDEO_TICKS and pieces[0].pts == 2 * index * PIECE
        assert picture.pts * picture.time_base == pieces[0].pts * pieces[0].time_base
        assert due_s == pytest.approx(index * 0.04)
        assert abs(int(picture.to_ndarray(format="rgb24")[0, 0, 0]) - (10 + index)) <= 1
        samples = np.concatenate([piece.to_ndarray().ravel() for piece in pieces])
        assert samples.size == 3 * SAMPLES_PER_FRAME
        assert samples[200:].mean() == pytest.approx(index / 20 * 32_767, abs=60)


async def test_a_missing_frame_repeats_the_last_picture_in_silence():
    playout = playout_at(FakeClock())
    assert shade(playout.slot(0)) == 9  # the still, before anything came
    await playout.put(frame(5, level=0.5))
    assert shade(playout.slot(1)) == 15
    missed = playout.slot(2)
    assert shade(missed) == 15 and missed.repeated and not missed.pcm.any()
    assert playout.repeats == 2


async def test_a_slot_asked_for_twice_is_the_same_and_late_questions_are_answered():
    playout = playout_at(FakeClock())
    for index in range(4):
        await playout.put(frame(index))
    first = [playout.slot(number) for number in range(4)]
    assert [playout.slot(number) for number in range(4)] == first
    playout.slot(500)
    assert playout.slot(0).number > 400  # history is bounded; the oldest known stands in


async def test_a_late_video_track_takes_the_present_picture_and_no_burst_follows():
    clock = FakeClock()
    playout = playout_at(clock)
    video = VideoTrack(playout)
    await video.recv()
    clock.now_s += 1.01
    late, following = await video.recv(), await video.recv()
    assert late.pts == 25 * VIDEO_TICKS and following.pts == 26 * VIDEO_TICKS
    assert clock() == pytest.approx(26 * 0.04)


async def test_late_sound_is_caught_up_when_little_and_skipped_when_much():
    clock = FakeClock()
    audio = AudioTrack(playout_at(clock))
    await audio.recv()
    clock.now_s += 0.1
    assert [(await audio.recv()).pts // PIECE for _ in range(3)] == [1, 2, 3]
    clock.now_s += 5
    assert (await audio.recv()).pts // PIECE > 200


async def test_a_full_window_makes_the_engine_wait():
    playout = playout_at(FakeClock())
    for index in range(MAX_WAITING):
        await playout.put(frame(index))
    waiting = asyncio.create_task(playout.put(frame(MAX_WAITING)))
    await asyncio.sleep(0)
    assert not waiting.done()
    playout.slot(0)
    await waiting


async def test_an_interrupt_drops_what_waits_and_what_is_on_its_way():
    playout = playout_at(FakeClock())
    for index in range(MAX_WAITING):
        await playout.put(frame(index, level=0.5))
    on_its_way = asyncio.create_task(playout.put(frame(50, level=0.5)))
    await asyncio.sleep(0)
    playout.clear(epoch=1)
    await on_its_way
    await playout.put(frame(51, level=0.5))  # still of the old epoch
    await playout.put(frame(60, epoch=1))
    assert shade(playout.slot(0)) == 70
    assert playout.slot(1).repeated


async def test_frames_that_wait_for_nothing_are_left_out_in_silence_only():
    for level, skipped in ((0.5, False), (0.0, True)):
        playout = playout_at(FakeClock())
        index = 0
        for number in range(100):
            while playout._frames.qsize() < MAX_WAITING:
                await playout.put(frame(index, level))
                index += 1
            playout.slot(number)
        assert (playout.skips > 0) == skipped


async def test_speech_and_stalls_are_reported_once():
    said, stalls = [], []
    playout = playout_at(FakeClock(), on_speaking=said.append, on_stall=lambda: stalls.append(True))
    number = 0
    for level in [0.0] * 3 + [0.3] * 5 + [0.0] * 15:
        await playout.put(frame(number, level))
        playout.slot(number)
        number += 1
    assert said == [True, False]
    playout.slot(number + 2 * STALL_SLOTS)
    assert stalls == [True]


async def test_a_stopped_track_ends():
    for track in (VideoTrack(playout_at(FakeClock())), AudioTrack(playout_at(FakeClock()))):
        track.stop()
        with pytest.raises(MediaStreamError):
            await track.recv()


@pytest.mark.parametrize("sizes", [(640,) * 10, (1, 39, 600, 5000, 760)])
def test_upsampling_in_pieces_equals_the_whole_and_keeps_the_count(sizes):
    sound = np.sin(np.arange(sum(sizes)) * 2 * np.pi * 440 / 16_000).astype(np.float32)
    whole, piecewise = Upsampler(3), Upsampler(3)
    pieces = np.split(sound, np.cumsum(sizes)[:-1])
    joined = np.concatenate([piecewise(piece) for piece in pieces])
    np.testing.assert_allclose(joined, whole(sound), atol=1e-6)
    assert joined.size == 3 * sound.size
    delay = 3 * Upsampler.TAPS // 2
    true = np.sin((np.arange(joined.size) - delay) * 2 * np.pi * 440 / 48_000)
    np.testing.assert_allclose(joined[200:-200], true[200:-200], atol=2e-3)


class Chatter:
    """A track that says the numbers 0, 1, 2 ... as loud as they are."""

    def __init__(self, count):
        self.left = list(range(count))

    async def recv(self):
        import av

        if not self.left:
            raise MediaStreamError
        samples = np.full((1, 2 * 960), self.left.pop(0) * 100, np.int16)
        sound = av.AudioFrame.from_ndarray(samples, "s16", "stereo")
        sound.sample_rate = 48_000
        return sound


async def test_a_microphone_nobody_hears_is_drained_and_keeps_the_newest_half_second():
    microphone = Microphone(Chatter(MAX_HEARD + 7))
    await microphone.listen()
    assert microphone.dropped == 7
    piece = await microphone.take()
    assert piece.shape == (960,) and piece.dtype == np.float32
    assert piece[0] == pytest.approx(7 * 100 / 32_768)
