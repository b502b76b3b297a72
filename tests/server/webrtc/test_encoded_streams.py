"""Encoded streams: one clock, one encoding for all subscribers, key frames and bitrates."""

import asyncio
import gc
import os
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
from support.fakes import FakeClock

from letstalk_rt.errors import ConfigError
from letstalk_rt.types import SAMPLES_PER_FRAME, AVFrame
from letstalk_server.session.playout import SlotPlayout
from letstalk_server.settings import Bitrates
from letstalk_server.webrtc.bandwidth_estimate import BandwidthEstimate
from letstalk_server.webrtc.encoded_streams import (
    SCENE_CHANGE,
    EncodedAudio,
    EncodedVideo,
    SharedMedia,
    is_scene_change,
)
from letstalk_server.webrtc.encoders import PACKET_TICKS, VIDEO_TICKS, open_encoder

SIDE = 64
STILL = np.full((SIDE, SIDE, 3), 9, np.uint8)
BITRATES = Bitrates(start=1_000_000, minimum=200_000, maximum=2_000_000)


class SteppedClock(FakeClock):
    """Moves when somebody sleeps, as far as `run_for` allows."""

    def __init__(self):
        super().__init__()
        self.stop_s = 0.0
        self.goes_on, self.stands_still = asyncio.Event(), asyncio.Event()

    async def sleep(self, delay_s):
        while self.now_s + delay_s > self.stop_s:
            self.goes_on.clear()
            self.stands_still.set()
            await self.goes_on.wait()
        await asyncio.sleep(0)
        self.now_s += delay_s


def noise(seed=0, shape=(SIDE, SIDE, 3)):
    return np.random.default_rng(seed).integers(0, 255, shape, np.uint8)


@pytest.fixture
def executor():
    with ThreadPoolExecutor(1) as executor:
        yield executor


def playout_at(clock, **options):
    return SlotPlayout(STILL, clock=clock, sleep=clock.sleep, **options)


class Viewer:
    """Subscribes to a stream and records the units, unless it is `behind`."""

    def __init__(self, stream):
        self.units, self.ends, self.behind = [], 0, False
        self.ended = asyncio.Event()
        self.subscription = stream.subscribe(self._deliver, self._end)

    def _deliver(self, unit):
        if not self.behind:
            self.units.append(unit)
        return not self.behind

    def _end(self):
        self.ends += 1
        self.ended.set()


async def run_for(clock, seconds, *viewers):
    """Let the stream run for `seconds` of its clock; return what each viewer received."""
    before = [len(viewer.units) for viewer in viewers]
    clock.stop_s = clock.now_s + seconds
    clock.stands_still.clear()
    clock.goes_on.set()
    async with asyncio.timeout(30):
        await clock.stands_still.wait()
    for _ in range(3):
        await asyncio.sleep(0)
    return [viewer.units[count:] for viewer, count in zip(viewers, before, strict=True)]


def depayload_vp8(unit):
    """Join the payloads of a frame: each begins with a descriptor of 4 bytes."""
    return b"".join(payload[4:] for payload in unit.payloads)


@pytest.mark.parametrize("codec", ["VP8", "H264"])
def test_pictures_come_back_as_they_were_and_sizes_may_change(codec):
    encoder = open_encoder(codec, 1_000_000)
    number = 0
    for height, width in [(64, 48), (81, 63), (96, 96)]:
        ramp = np.linspace(20, 230, width).astype(np.uint8)
        rgb = np.broadcast_to(np.stack([ramp, 128 - ramp // 4, ramp // 2], 1), (height, width, 3))
        units = [encoder.encode(rgb, number + count, key_frame=False) for count in range(3)]
        number += 3
        assert [unit.key_frame for unit in units] == [True, False, False]
        assert [unit.timestamp for unit in units] == [
            (number - 3 + count) * VIDEO_TICKS for count in range(3)
        ]
        if codec == "VP8":
            decoder = av.CodecContext.create("vp8", "r")
            shown = [
                frame for unit in units for frame in decoder.decode(av.Packet(depayload_vp8(unit)))
            ][-1]
            assert (shown.width, shown.height) == (width & ~1, height & ~1)
            seen = shown.to_ndarray(format="rgb24").astype(int)
            assert np.abs(seen - rgb[: height & ~1, : width & ~1]).mean() < 6


@pytest.mark.parametrize("codec", ["VP8", "H264"])
def test_a_face_that_hardly_moves_takes_less_than_it_may(codec):
    encoder = open_encoder(codec, 2_000_000)
    y, x = np.mgrid[:256, :256]
    smooth = (128 + 100 * np.sin(x / 20) * np.cos(y / 30)).astype(np.uint8)[..., None]
    pictures = [np.roll(smooth, i, 1).repeat(3, 2) for i in range(50)]
    units = [encoder.encode(picture, n, key_frame=False) for n, picture in enumerate(pictures)]
    assert sum(len(p) for unit in units[25:] for p in unit.payloads) * 8 < 500_000


@pytest.mark.parametrize("codec", ["VP8", "H264"])
def test_the_bitrate_is_kept_and_followed(codec):
    encoder = open_encoder(codec, 800_000)
    pictures = [np.roll(noise(1, (256, 256, 3)) // 2 + 60, 2 * i, 1) for i in range(25)]

    def bits_per_s(count=75):
        units = [
            encoder.encode(pictures[i % 25], next(numbers), key_frame=False) for i in range(count)
        ]
        return sum(len(p) for unit in units[25:] for p in unit.payloads) * 8 * 25 / (count - 25)

    numbers = iter(range(10_000))
    assert 0.6 * 800_000 < bits_per_s() < 1.3 * 800_000
    encoder.set_bitrate(300_000)
    assert 0.6 * 300_000 < bits_per_s() < 1.3 * 300_000


async def test_several_viewers_share_one_encoding_and_a_late_one_gets_a_key_frame(executor):
    clock = SteppedClock()
    stream = EncodedVideo(playout_at(clock), "VP8", BITRATES, executor, clock)
    first = Viewer(stream)
    (alone,) = await run_for(clock, 1, first)
    second = Viewer(stream)
    with_first, with_second = await run_for(clock, 1, first, second)
    assert alone[0].key_frame and not any(unit.key_frame for unit in alone[1:])
    assert with_second[0].key_frame
    shared = {id(unit) for unit in with_first} & {id(unit) for unit in with_second}
    assert len(shared) == len(with_second)
    await stream.unsubscribe(first.subscription)
    await stream.unsubscribe(second.subscription)
    assert not any(task.get_name().startswith("stream") for task in asyncio.all_tasks())


async def test_pictures_and_sound_carry_the_time_of_one_clock(executor):
    clock = SteppedClock()
    playout = playout_at(clock)
    pictures = EncodedVideo(playout, "VP8", BITRATES, executor, clock)
    (seen,) = await run_for(clock, 0.5, Viewer(pictures))
    steps = np.diff([unit.timestamp for unit in seen])
    assert (steps > 0).all() and (steps % VIDEO_TICKS == 0).all()
    present_s = pictures.current_timestamp() / 90_000
    assert present_s == pytest.approx(playout.now(), abs=1e-4)
    await pictures.aclose()
    voice = EncodedAudio(playout)
    (heard,) = await run_for(clock, 0.5, Viewer(voice))
    assert (np.diff([unit.timestamp for unit in heard]) == PACKET_TICKS).all()
    assert 0 < voice.current_timestamp() / 48_000 - playout.now() < 0.01  # Opus delays it
    await voice.aclose()


async def test_an_image_that_a_frame_repeats_is_not_encoded_again_unless_somebody_comes(executor):
    clock = SteppedClock()
    playout = playout_at(clock)
    stream = EncodedVideo(playout, "VP8", BITRATES, executor, clock)

    async def fill():
        image = STILL
        for index in range(60):
            image = image if index % 5 == 4 else noise(index % 7)
            pcm = np.zeros(SAMPLES_PER_FRAME, np.float32)
            await playout.put(AVFrame(image, pcm, index, 0, 0, repeated=index % 5 == 4))

    filling = asyncio.create_task(fill())
    (seen,) = await run_for(clock, 1.6, Viewer(stream))
    steps = np.diff([unit.timestamp for unit in seen][10:]) // VIDEO_TICKS
    assert set(steps) == {1, 2}, "frames that are sent keep their times"
    assert abs((steps == 2).mean() - 0.25) < 0.1
    (late,) = await run_for(clock, 0.4, Viewer(stream))
    assert late[0].key_frame
    filling.cancel()
    await stream.aclose()


async def test_a_sender_that_does_not_take_misses_pictures_and_goes_on_with_a_key_frame(executor):
    clock = SteppedClock()
    stream = EncodedVideo(playout_at(clock), "VP8", BITRATES, executor, clock)
    slow, quick = Viewer(stream), Viewer(stream)
    await run_for(clock, 0.5, slow)
    slow.behind = True
    (seen,) = await run_for(clock, 0.5, quick)
    assert len(seen) > 5
    slow.behind = False
    after, seen = await run_for(clock, 1, slow, quick)
    assert after[0].key_frame and after == seen[-len(after) :]
    await stream.aclose()


async def test_a_viewer_that_fails_is_left_alone_and_the_others_go_on(executor, caplog):
    clock = SteppedClock()
    stream = EncodedVideo(playout_at(clock), "VP8", BITRATES, executor, clock)
    ends = []

    def fail(unit):
        raise AttributeError("what somebody said")

    stream.subscribe(fail, lambda: ends.append(True))
    healthy = Viewer(stream)
    (units,) = await run_for(clock, 0.5, healthy)
    assert len(units) > 5 and (len(ends), healthy.ends) == (1, 0)
    assert "AttributeError" in caplog.text and "somebody" not in caplog.text
    await stream.aclose()


async def test_key_frames_come_when_asked_for_but_not_in_a_flood(executor):
    clock = SteppedClock()
    stream = EncodedVideo(playout_at(clock), "VP8", BITRATES, executor, clock)
    viewer = Viewer(stream)
    await run_for(clock, 0.5, viewer)
    keys = 0
    for _ in range(20):
        stream.request_key_frame()
        (units,) = await run_for(clock, 0.08, viewer)
        keys += sum(unit.key_frame for unit in units)
    assert 1 <= keys <= 6
    await stream.aclose()


@pytest.mark.parametrize(
    "change, expected", [(0, False), (SCENE_CHANGE - 1, False), (SCENE_CHANGE + 1, True)]
)
def test_pictures_that_differ_by_more_than_the_bound_are_of_two_scenes(change, expected):
    before = noise() // 2
    assert is_scene_change(before, before + np.uint8(change)) == expected
    assert is_scene_change(before, before[:32]) and is_scene_change(None, before)


async def test_each_slot_is_spoken_in_two_pieces_one_after_the_other():
    clock = SteppedClock()
    playout = playout_at(clock)
    voice = EncodedAudio(playout)
    sound = np.linspace(0, 0.5, SAMPLES_PER_FRAME, dtype=np.float32)
    for index in range(3):
        await playout.put(AVFrame(STILL, sound + np.float32(index / 10), index, 0, 0))
    pieces = np.concatenate([voice.packet_pcm(number) for number in range(6)])
    wanted = np.concatenate([sound + np.float32(index / 10) for index in range(3)])
    np.testing.assert_array_equal(pieces, wanted)


@pytest.mark.parametrize("rate, heard", [(16_000, False), (24_000, True), (48_000, True)])
async def test_opus_carries_what_the_session_rate_can_hold(rate, heard):
    clock = SteppedClock()
    playout = playout_at(clock, sample_rate=rate)
    voice = EncodedAudio(playout)
    listener = Viewer(voice)
    tone = 0.3 * np.sin(2 * np.pi * 10_000 * np.arange(rate) / rate).astype(np.float32)
    if rate == 16_000:
        tone[:] = 0  # a tone above 8 kHz cannot be in it
    for index, pcm in enumerate(tone.reshape(25, -1)[:3]):
        await playout.put(AVFrame(STILL, pcm, index, 0, 0, sample_rate=rate))
    (units,) = await run_for(clock, 0.1, listener)
    await voice.aclose()
    decoder = av.CodecContext.create("opus", "r")
    frames = [f for u in units for f in decoder.decode(av.Packet(u.payloads[0]))]
    spectrum = np.abs(np.fft.rfft(np.concatenate([f.to_ndarray()[0] for f in frames])))
    hz = np.fft.rfftfreq(2 * spectrum.size - 2, 1 / 48_000)
    assert (spectrum[(hz > 9_800) & (hz < 10_200)].max() > 50) == heard


async def test_another_scene_begins_with_a_key_frame(executor):
    clock = SteppedClock()
    playout = playout_at(clock)
    stream = EncodedVideo(playout, "VP8", BITRATES, executor, clock)
    viewer = Viewer(stream)
    await run_for(clock, 0.4, viewer)
    silence = np.zeros(SAMPLES_PER_FRAME, np.float32)
    await playout.put(AVFrame(np.full_like(STILL, 200), silence, 0, 0, 0))
    (units,) = await run_for(clock, 0.4, viewer)
    assert sum(unit.key_frame for unit in units) == 1
    await stream.aclose()


async def test_the_bitrate_follows_the_weakest_viewer_within_its_bounds(executor):
    clock = SteppedClock()
    stream = EncodedVideo(playout_at(clock), "VP8", BITRATES, executor, clock)
    strong, weak = Viewer(stream), Viewer(stream)
    strong.subscription.bitrate, weak.subscription.bitrate = 5_000_000, 500_000
    await run_for(clock, 0.5, strong, weak)
    assert stream.bitrate == 500_000
    weak.subscription.bitrate = 1_000
    await run_for(clock, 3, strong, weak)
    assert stream.bitrate == BITRATES.minimum
    await stream.unsubscribe(weak.subscription)
    await run_for(clock, 8, strong)
    assert stream.bitrate == BITRATES.maximum
    await stream.aclose()


async def test_a_late_picture_gives_way_to_the_present_one_and_no_burst_follows(executor):
    clock = SteppedClock()
    stream = EncodedVideo(playout_at(clock), "VP8", BITRATES, executor, clock)
    viewer = Viewer(stream)
    await run_for(clock, 0.2, viewer)
    clock.now_s += 1.01
    (units,) = await run_for(clock, 0.2, viewer)
    numbers = [unit.timestamp // VIDEO_TICKS for unit in units]
    late = int(np.argmax(np.diff(numbers)))
    assert np.diff(numbers)[late] >= 24
    assert (np.diff(numbers)[late + 1 :] == 1).all()
    await stream.aclose()


@pytest.mark.parametrize("late_s, skipped", [(0.1, False), (5.0, True)])
async def test_late_sound_is_caught_up_when_little_and_skipped_when_much(late_s, skipped):
    clock = SteppedClock()
    stream = EncodedAudio(playout_at(clock))
    viewer = Viewer(stream)
    (first,) = await run_for(clock, 0.1, viewer)
    clock.now_s += late_s
    (units,) = await run_for(clock, 0.1, viewer)
    steps = np.diff([unit.timestamp // PACKET_TICKS for unit in first + units])
    assert (steps.max() > 200) == skipped and np.median(steps) == 1
    await stream.aclose()


async def test_the_voice_is_sent_redundantly_while_a_viewer_misses_packets():
    clock = SteppedClock()
    playout = playout_at(clock)
    stream = EncodedAudio(playout)
    fine, poor = Viewer(stream), Viewer(stream)

    async def speak(seconds):
        """Return which packets have FEC: Opus has it in its SILK modes only, 0 to 15."""
        for index in range(4):
            voice = 0.3 * np.sin(np.arange(SAMPLES_PER_FRAME) / 9).astype(np.float32)
            await playout.put(AVFrame(STILL, voice, index, 0, 0))
        (units,) = await run_for(clock, seconds, fine)
        return [unit.payloads[0][0] >> 3 < 16 for unit in units]

    assert not any(await speak(0.2))
    poor.subscription.lost_ratio = 0.05
    assert all(await speak(0.2))
    poor.subscription.lost_ratio = 0.003  # may yet be lossy
    assert all(await speak(0.2))
    await stream.unsubscribe(poor.subscription)
    assert not any(await speak(0.2))
    await stream.aclose()


class FailingExecutor(Executor):
    def submit(self, call, *arguments):
        future = Future()
        future.set_exception(ValueError("what somebody said"))
        return future


async def test_a_failing_encoder_ends_the_stream_for_everybody(caplog):
    clock = SteppedClock()
    stream = EncodedVideo(playout_at(clock), "VP8", BITRATES, FailingExecutor(), clock)
    clock.stop_s = 1.0
    one, other = Viewer(stream), Viewer(stream)
    async with asyncio.timeout(10):
        await one.ended.wait()
    assert (one.ends, other.ends, Viewer(stream).ends) == (1, 1, 1)
    assert "ValueError" in caplog.text and "somebody" not in caplog.text


async def test_media_makes_one_stream_for_each_codec_and_stops_all(executor):
    media = SharedMedia(SlotPlayout(STILL), BITRATES, executor)
    assert media.video("VP8") is media.video("VP8") is not media.video("H264")
    assert media.audio() is media.audio()
    viewers = [Viewer(media.audio()), Viewer(media.video("VP8"))]
    await media.aclose()
    await media.aclose()
    assert [viewer.ends for viewer in viewers] == [1, 1]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
async def test_media_that_was_closed_keeps_no_thread_of_a_codec(executor):
    clock = SteppedClock()
    media = SharedMedia(playout_at(clock), BITRATES, executor)
    executor.submit(int).result()  # its own thread has started
    gc.disable()  # the threads end at once, and not when cycles are collected
    try:
        before = len(os.listdir("/proc/self/task"))
        streams = [media.video("VP8"), media.video("H264"), media.audio()]
        viewers = [Viewer(stream) for stream in streams]
        async with asyncio.timeout(30):
            while not all(viewer.units for viewer in viewers):
                await run_for(clock, 0.1, *viewers)
        await media.aclose()
        assert len(os.listdir("/proc/self/task")) <= before
    finally:
        gc.enable()


def test_estimates_fall_with_loss_rise_without_and_stay_under_the_receivers_own():
    estimate = BandwidthEstimate(BITRATES)
    assert estimate.bitrate == BITRATES.start
    estimate.update_loss(0.4)
    assert estimate.bitrate == 800_000
    for _ in range(200):
        estimate.update_loss(0.0)
    assert estimate.bitrate == BITRATES.maximum
    estimate.update_remb(400_000, sent=250_000)  # it only says that little came
    assert estimate.bitrate == BITRATES.maximum
    estimate.update_remb(90_000, sent=150_000)  # too little to tell
    assert estimate.bitrate == BITRATES.maximum
    estimate.update_remb(700_000, sent=1_500_000)
    assert estimate.bitrate == 700_000
    estimate.update_remb(300_000, sent=200_000)
    assert estimate.bitrate == 700_000
    estimate.update_remb(900_000, sent=700_000)
    assert estimate.bitrate == 900_000
    for ratio in (1.0,) * 50:
        estimate.update_loss(ratio)
    assert estimate.bitrate == BITRATES.minimum


@pytest.mark.parametrize("start, low, high", [(1, 2, 3), (10**6, 10**7, 10**5), (0, 0, 0)])
def test_bitrates_out_of_order_are_refused(start, low, high):
    with pytest.raises(ConfigError, match="minimum"):
        Bitrates(start=start, minimum=low, maximum=high)
