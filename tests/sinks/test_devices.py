"""Speaker, virtual camera, window, and playing in several sinks in sync."""

import asyncio
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from support.slow_opening import SlowOpening
from support.virtual_time import run, run_real

from letstalk_rt.errors import ConfigError, DependencyError, EngineError
from letstalk_rt.metrics import Metrics
from letstalk_rt.recording.threaded_sink import ThreadedSink
from letstalk_rt.session.events import Event, EventListener
from letstalk_rt.sinks import speaker as speaker_module
from letstalk_rt.sinks.audio_buffer import AudioBuffer
from letstalk_rt.sinks.play import play
from letstalk_rt.sinks.speaker import Speaker
from letstalk_rt.sinks.virtual_camera import VirtualCamera
from letstalk_rt.sinks.window import PreviewWindow
from letstalk_rt.types import AVFrame

RATE = 48_000
CHUNK = 1920


def frame(index: int = 0, level: int = 0, epoch: int = 0) -> AVFrame:
    rgb = np.full((96, 128, 3), level, np.uint8)
    return AVFrame(rgb, np.full(640, 0.5, np.float32), index, 0, epoch)


class TestAudioBuffer:
    def test_it_returns_audio_in_order_once_the_target_is_reached(self) -> None:
        buffer = AudioBuffer(RATE, 0.075)
        audio = np.arange(3 * CHUNK, dtype=np.float32)
        buffer.push(audio[:CHUNK])
        assert not buffer.pull(480).any()
        buffer.push(audio[CHUNK:])
        assert np.array_equal(np.concatenate([buffer.pull(480) for _ in range(12)]), audio)

    @pytest.mark.parametrize("ppm", [-300, 300])
    def test_ten_minutes_of_drift_cause_neither_gaps_nor_delay(self, ppm: int) -> None:
        buffer = AudioBuffer(RATE, 0.075)
        owed, levels = 0.0, []
        for index in range(600 * 25):
            buffer.push(np.ones(CHUNK, np.float32))
            owed += CHUNK * (1 + ppm * 1e-6)
            buffer.pull(int(owed))
            owed -= int(owed)
            if index > 25 * 60:
                levels.append(buffer.level)
        assert buffer.underruns == 0 and buffer.overruns == 0
        assert max(levels) < 0.1 * RATE

    def test_an_underrun_fades_out_and_refills(self) -> None:
        buffer = AudioBuffer(RATE, 0.04)
        buffer.push(np.ones(CHUNK, np.float32))
        heard = np.concatenate([buffer.pull(480) for _ in range(6)])
        assert np.abs(np.diff(heard)).max() < 0.05 and heard[-1] == 0 and heard[CHUNK - 1] == 1
        assert buffer.level == 0
        buffer.push(np.ones(CHUNK, np.float32))
        assert buffer.pull(10).all()

    def test_an_overrun_drops_audio(self) -> None:
        buffer = AudioBuffer(RATE, 0.04)
        for _ in range(20):
            buffer.push(np.ones(CHUNK, np.float32))
        assert buffer.overruns >= 1 and buffer.level < 0.35 * RATE

    @pytest.mark.parametrize("loud", [0.0, 0.5], ids=["in-a-pause", "in-speech"])
    def test_it_catches_up_after_frames_that_arrive_all_at_once(self, loud: float) -> None:
        buffer = AudioBuffer(RATE, 0.075)
        for _ in range(2):
            buffer.push(np.full(CHUNK, 0.5, np.float32))
        buffer.pull(3 * CHUNK)  # the next frames are late: it runs dry
        for _ in range(4):
            buffer.push(np.full(CHUNK, 0.5, np.float32))
        assert buffer.level == 4 * CHUNK, "80 ms behind"
        turns = 0
        while buffer.level > 0.095 * RATE:
            buffer.pull(CHUNK)
            buffer.push(np.full(CHUNK, loud, np.float32))
            turns += 1
        assert turns <= (3 if loud == 0 else 150)
        assert buffer.overruns == 0

    def test_a_pause_is_not_shortened_without_lag(self) -> None:
        buffer = AudioBuffer(RATE, 0.075)
        for _ in range(2):
            buffer.push(np.zeros(CHUNK, np.float32))
        for _ in range(100):
            buffer.pull(CHUNK)
            buffer.push(np.zeros(CHUNK, np.float32))
        assert buffer.level == pytest.approx(0.075 * RATE, abs=0.005 * RATE)

    def test_clear_fades_to_silence(self) -> None:
        buffer = AudioBuffer(RATE, 0.04)
        buffer.push(np.ones(CHUNK, np.float32))
        before = buffer.pull(100)
        buffer.clear()
        heard = np.concatenate([before, buffer.pull(300), buffer.pull(300)])
        assert buffer.level == 0 and not heard[200:].any()
        assert np.abs(np.diff(heard)).max() < 0.05


class FakeStream:
    """An output device that requests audio when the test says so."""

    latency = 0.02
    newest: "FakeStream"

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.closed = False
        FakeStream.newest = self

    def start(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def take(self, count: int) -> np.ndarray:
        out = np.zeros((count, self.options["channels"]), np.float32)
        self.options["callback"](out, count, None, None)
        return out


@pytest.fixture
def sounddevice(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("sounddevice")
    module.OutputStream = FakeStream  # type: ignore[attr-defined]
    module.PortAudioError = RuntimeError  # type: ignore[attr-defined]
    device = {"index": 3, "name": "Cable", "default_samplerate": 48_000.0, "max_output_channels": 2}
    monkeypatch.setattr(speaker_module, "load_sounddevice", lambda: module)
    monkeypatch.setattr(speaker_module, "find_device", lambda kind, wanted: device)
    return module


class TestSpeaker:
    def test_it_plays_on_all_channels_at_the_rate_of_the_device(
        self, sounddevice: ModuleType
    ) -> None:
        speaker = Speaker("Cable")
        speaker.open(512, 512)
        for index in range(6):
            speaker.show(frame(index))
        stream = FakeStream.newest
        heard = stream.take(9600)
        assert stream.options["device"] == 3 and stream.options["samplerate"] == 48_000
        assert heard[4000:9000].min() > 0.45 and np.array_equal(heard[:, 0], heard[:, 1])
        speaker.close()
        speaker.close()
        assert stream.closed

    def test_an_interrupt_drops_queued_audio(self, sounddevice: ModuleType) -> None:
        speaker = Speaker()
        speaker.open(512, 512)
        for index in range(6):
            speaker.show(frame(index))
        for index in range(6, 9):
            new = frame(index, epoch=1)
            speaker.show(replace(new, pcm=-new.pcm))
        heard = FakeStream.newest.take(4800)
        assert heard.min() < -0.45 and heard.max() < 0.1, "no audio from before the interrupt"
        speaker.flush()
        FakeStream.newest.take(480)  # it fades out
        assert not FakeStream.newest.take(480).any()

    def test_the_delay_is_applied(self, sounddevice: ModuleType) -> None:
        speaker = Speaker(delay_ms=200)
        speaker.open(512, 512)
        for index in range(6):
            speaker.show(frame(index))
        assert not FakeStream.newest.take(480).any()
        for index in range(6, 9):
            speaker.show(frame(index))
        assert FakeStream.newest.take(4800).any()

    def test_delays_out_of_range_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="0 to 2000"):
            Speaker(delay_ms=-1)

    def test_a_device_that_cannot_be_opened_raises(
        self, sounddevice: ModuleType, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def busy(**options: Any) -> None:
            raise RuntimeError("Device unavailable")

        monkeypatch.setattr(sounddevice, "OutputStream", busy)
        with pytest.raises(DependencyError, match="'Cable' cannot be opened"):
            Speaker().open(1, 1)


class FakeCamera:
    def __init__(self, width: int, height: int, fps: float, **options: Any) -> None:
        self.size, self.device, self.sent = (width, height), "fake", []
        FakeCamera.newest = self

    def send(self, rgb: np.ndarray) -> None:
        self.sent.append(rgb.copy())

    def close(self) -> None:
        self.closed = True


class TestVirtualCamera:
    @pytest.fixture
    def module(self, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
        module = ModuleType("pyvirtualcam")
        module.Camera = FakeCamera  # type: ignore[attr-defined]
        module.PixelFormat = type("PixelFormat", (), {"RGB": "rgb"})  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "pyvirtualcam", module)
        return module

    def test_frames_are_sent_with_the_badge(self, module: ModuleType) -> None:
        camera = VirtualCamera()
        camera.open(128, 96)
        camera.show(frame(level=200))
        camera.repeat(frame(level=200))
        camera.close()
        sent = FakeCamera.newest.sent
        assert len(sent) == 2 and sent[0].shape == (96, 128, 3)
        assert sent[0].max() >= 200 and sent[0].min() < 120  # the badge

    @pytest.mark.parametrize("rate", [16_000, 24_000, 48_000])
    def test_frames_of_any_sample_rate_are_shown(self, module: ModuleType, rate: int) -> None:
        camera = VirtualCamera()
        camera.open(128, 96)
        shown = replace(frame(), pcm=np.zeros(rate // 25, np.float32), sample_rate=rate)
        camera.show(shown)
        camera.repeat(shown)
        camera.close()
        assert len(FakeCamera.newest.sent) == 2

    def test_a_camera_of_another_shape_shows_the_frame_on_black(self, module: ModuleType) -> None:
        camera = VirtualCamera(size=(320, 180), badge=False)
        camera.open(128, 96)
        camera.show(frame(level=200))
        camera.close()
        (sent,) = FakeCamera.newest.sent
        assert sent.shape == (180, 320, 3)
        assert sent[90, 160, 0] == 200 and sent[90, 5, 0] == 0

    def test_without_a_camera_the_error_says_what_to_install(
        self, module: ModuleType, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def none(*a: Any, **options: Any) -> None:
            raise RuntimeError("No device found")

        monkeypatch.setattr(module, "Camera", none)
        with pytest.raises(DependencyError, match=r"No device found.*(v4l2loopback|OBS)"):
            VirtualCamera().open(128, 96)

    def test_a_missing_package_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pyvirtualcam", None)
        with pytest.raises(DependencyError, match=r"pip install '\.\[camera\]'"):
            VirtualCamera().open(128, 96)

    @pytest.mark.parametrize("size", [(0, 100), (641, 480), (9000, 100)])
    def test_sizes_out_of_range_are_refused(self, size: tuple[int, int]) -> None:
        with pytest.raises(ConfigError, match="64 to 4096"):
            VirtualCamera(size=size)


class TestThreadedSink:
    def test_a_failure_is_raised_once(self) -> None:
        class Broken(ThreadedSink):
            def _write(self, rgb: np.ndarray | None, pcm: np.ndarray) -> None:
                raise ConfigError("the disk is full")

        sink = Broken("broken")
        sink.open(1, 1)
        sink.show(frame())
        with pytest.raises(ConfigError, match="full"):
            sink.close()

    def test_a_full_queue_raises(self) -> None:
        sink = ThreadedSink("slow", max_audio_frames=2)
        sink.show(frame())
        sink.show(frame())
        with pytest.raises(EngineError, match="behind"):
            sink.show(frame())


class FakeSession:
    """Yields frames at once; playout paces them."""

    def __init__(self, count: int) -> None:
        self.metrics, self.epoch, self._left = Metrics(), 0, count
        self.listeners: list[EventListener] = []
        self.played: list[AVFrame] = []
        self.played_s: list[float] = []

    def on_event(self, listener: EventListener) -> Callable[[], None]:
        self.listeners.append(listener)
        return lambda: self.listeners.remove(listener)

    def notify_played(self, frame: AVFrame) -> None:
        self.played.append(frame)
        self.played_s.append(asyncio.get_running_loop().time())

    def interrupt(self) -> None:
        self.epoch += 1
        for listener in self.listeners:
            listener(Event("segment.interrupted", 0, 0, 0))

    def __aiter__(self) -> "FakeSession":
        return self

    async def __anext__(self) -> AVFrame:
        if not self._left:
            raise StopAsyncIteration
        self._left -= 1
        return frame(index=5 - self._left, epoch=0)


class FakeSink:
    def __init__(self, latency_s: float | None, fails: bool = False) -> None:
        self.latency_s, self._fails = latency_s, fails
        self.times_s: list[float] = []
        self.log: list[str] = []
        self.frames: list[AVFrame] = []
        self._received = asyncio.Semaphore(0)

    def open(self, width: int, height: int) -> None:
        self.log.append(f"open {width}x{height}")

    def show(self, frame: AVFrame) -> None:
        if self._fails:
            raise ConfigError("disk full")
        self.times_s.append(asyncio.get_running_loop().time())
        self.frames.append(frame)
        self._received.release()

    async def received(self, count: int) -> None:
        for _ in range(count):
            await self._received.acquire()

    def repeat(self, frame: AVFrame) -> None:
        pass

    def flush(self) -> None:
        self.log.append("flush")

    def close(self) -> None:
        self.log.append("close")


class TestPlay:
    def test_video_is_delayed_by_the_latency_of_the_speaker(self) -> None:
        speaker, camera, file = FakeSink(0.08), FakeSink(0.0), FakeSink(None)
        session = FakeSession(5)
        run(play(session, [speaker, camera, file], (64, 48)))
        assert [frame.index for frame in session.played] == [1, 2, 3, 4, 5]
        assert len(speaker.times_s) == 5
        assert file.times_s == speaker.times_s
        visible_s = np.add(speaker.times_s, 0.08)
        np.testing.assert_allclose(camera.times_s, visible_s)
        np.testing.assert_allclose(session.played_s, visible_s)
        assert all(sink.log == ["open 64x48", "close"] for sink in (speaker, camera, file))

    def test_an_interrupt_flushes_the_sinks_at_once_and_keeps_the_frames(self) -> None:
        speaker, camera = FakeSink(0.08), FakeSink(0.0)
        session = FakeSession(5)

        async def body() -> int:
            playing = asyncio.create_task(play(session, [speaker, camera], (64, 48)))
            await speaker.received(3)
            session.interrupt()
            assert speaker.log[-1] == camera.log[-1] == "flush"
            seen = len(camera.frames)
            await playing
            return seen

        seen = run(body())
        assert [frame.index for frame in camera.frames] == [1, 2, 3, 4, 5]
        assert not any(frame.pcm.any() for frame in camera.frames[seen:] + speaker.frames[3:])
        assert session.listeners == []

    def test_a_failing_sink_ends_playing_and_all_sinks_are_closed(self) -> None:
        good, bad = FakeSink(None), FakeSink(None, fails=True)
        with pytest.raises(ConfigError, match="disk full"):
            run(play(FakeSession(5), [good, bad], (64, 48)))
        assert good.log[-1] == bad.log[-1] == "close"

    def test_the_failure_of_a_delayed_frame_is_raised_too(self) -> None:
        with pytest.raises(ConfigError, match="disk full"):
            run(play(FakeSession(5), [FakeSink(0.05), FakeSink(0.0, fails=True)], (64, 48)))

    def test_cancelling_while_a_sink_opens_closes_it(self) -> None:
        slow, first = SlowOpening(), FakeSink(None)

        class SlowSink(FakeSink):
            def open(self, width: int, height: int) -> None:
                slow.open()

            def close(self) -> None:
                slow.close()

        run_real(slow.cancel(play(FakeSession(5), [first, SlowSink(None)], (64, 48))))
        assert slow.log[:2] == ["opened", "closed"]
        assert first.log == ["open 64x48", "close"]

    def test_cancelling_closes_the_sinks(self) -> None:
        sink = FakeSink(None)
        session = FakeSession(10_000)

        async def body() -> None:
            task = asyncio.create_task(play(session, [sink], (64, 48)))
            await sink.received(2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        run(body())
        assert sink.log[-1] == "close"


@pytest.mark.skipif(importlib.util.find_spec("tkinter") is None, reason="this Python has no Tk")
def test_a_window_without_a_display_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":987")
    if not sys.platform.startswith("linux"):
        pytest.skip("a display is always there")
    with pytest.raises(DependencyError, match="no display"):
        PreviewWindow().run(lambda: None)


class Shown(PreviewWindow):
    """A window without a display: it closes when the session ends, or at once by its user."""

    closed_by_user = False

    def run(self, on_close):
        if self.closed_by_user:
            on_close()
        assert self._ended.wait(30)


def test_a_window_runs_a_session_beside_it_until_either_ends():
    async def play_for_a_while():
        await asyncio.sleep(0)
        return "played"

    async def fail():
        raise DependencyError("no camera")

    async def endless():
        await asyncio.Event().wait()

    assert Shown().run_beside(play_for_a_while()) == "played"
    with pytest.raises(DependencyError, match="no camera"):
        Shown().run_beside(fail())
    window = Shown()
    window.closed_by_user = True
    assert window.run_beside(endless()) is None
