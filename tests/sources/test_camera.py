"""A camera, or a file in its place: frames in real time, with their times, until it ends."""

import asyncio
from types import SimpleNamespace

import av
import numpy as np
import pytest
from support.slow_opening import SlowOpening

from letstalk_rt import ConfigError, DependencyError
from letstalk_rt.sources import Camera, watch
from letstalk_rt.sources.camera import MOST_PX, parse_device


@pytest.fixture
def film(tmp_path):
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        for number in range(10):
            rgb = np.full((720, 1280, 3), 20 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())
    return path


class Receiver:
    def __init__(self):
        self.frames, self.times_s = [], []

    def push_video(self, frame, timestamp=None):
        self.frames.append(frame)
        self.times_s.append(timestamp)


async def test_a_file_is_shown_in_real_time_and_ends(film):
    receiver, loop = Receiver(), asyncio.get_running_loop()
    began_s = loop.time()
    async with Camera(film) as camera:
        count = await watch(receiver, camera)
    assert 1 <= count == len(receiver.frames) <= 10
    assert receiver.frames[0].shape == (360, MOST_PX, 3) and receiver.frames[0].dtype == np.uint8
    assert receiver.times_s == sorted(receiver.times_s)
    assert loop.time() - began_s >= 0.35
    assert receiver.times_s[-1] - receiver.times_s[0] <= 0.37


async def test_a_file_may_be_repeated_until_it_is_closed(film):
    times_s = []
    async with Camera(film, loop=True) as camera:
        async for _, captured_s in camera:
            times_s.append(captured_s)
            if times_s[-1] - times_s[0] > 0.6:
                break
    assert (np.diff(times_s) > 0).all()
    with pytest.raises(StopAsyncIteration):
        await anext(camera)


async def test_what_is_not_there_cannot_be_opened(tmp_path):
    with pytest.raises(DependencyError, match="cannot be opened"):
        async with Camera(str(tmp_path / "missing.mp4")):
            pass


async def test_a_camera_that_opens_for_nobody_is_closed(monkeypatch):
    slow = SlowOpening()
    streams = SimpleNamespace(video=["a track"])

    def open_slowly(*args, **options):
        slow.open()
        return SimpleNamespace(streams=streams, close=slow.close)

    monkeypatch.setattr(av, "open", open_slowly)
    await slow.cancel(Camera(0).__aenter__())
    assert slow.log == ["opened", "closed"]


async def test_a_file_without_video_is_refused(tmp_path):
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.int16), layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
    with pytest.raises(DependencyError, match="has no video"):
        async with Camera(path):
            pass


def test_a_device_is_a_number_or_a_name():
    assert parse_device("0") == 0 and parse_device("/dev/video2") == "/dev/video2"
    with pytest.raises(ConfigError, match="--webcam needs"):
        parse_device("")
