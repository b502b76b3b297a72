"""Sources: the microphone (with a fake PortAudio), files in real time, and iterators."""

import asyncio
import sys
import types
import wave

import numpy as np
import pytest
from support.slow_opening import SlowOpening
from support.virtual_time import run, run_real

from letstalk_rt.errors import AudioFormatError, ConfigError, DependencyError, SessionClosed
from letstalk_rt.metrics import Metrics
from letstalk_rt.sources.feed import feed
from letstalk_rt.sources.file import FileSource
from letstalk_rt.sources.microphone import MAX_BUFFERED, Microphone


class FakeSession:
    """A session that records what was pushed and when."""

    def __init__(self):
        self.metrics, self.chunks, self.times_s, self.ends = Metrics(), [], [], 0

    async def push_audio(self, pcm, sample_rate):
        self.chunks.append((pcm, sample_rate))
        self.times_s.append(asyncio.get_running_loop().time())

    async def end_segment(self):
        self.ends += 1

    def pushed(self):
        return np.concatenate([pcm for pcm, _ in self.chunks])


async def chunks(count, samples=160):
    for number in range(count):
        yield np.full(samples, number, np.int16)


def write_wav(path, samples, rate, channels=1):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype(np.int16).tobytes())
    return path


# Iterators


def test_an_iterator_is_pushed_and_ends_the_segment():
    async def body():
        session = FakeSession()
        assert await feed(session, chunks(5), 16_000) == pytest.approx(0.05)
        assert [rate for _, rate in session.chunks] == [16_000] * 5
        assert session.pushed()[::160].tolist() == [0, 1, 2, 3, 4]
        assert session.ends == 1
        await feed(session, chunks(1), 16_000, end_segment=False)
        assert session.ends == 1

    run(body())


def test_a_source_without_a_sample_rate_is_refused():
    async def body():
        with pytest.raises(ConfigError, match="sample_rate"):
            await feed(FakeSession(), chunks(1))

    run(body())


# Files


@pytest.mark.parametrize("block_ms", [10, 40])
def test_a_file_is_paced_in_real_time(tmp_path, block_ms):
    samples = np.arange(8_000) % 1000
    path = write_wav(tmp_path / "a.wav", samples, 16_000)

    async def body():
        session, source = FakeSession(), FileSource(path, block_ms=block_ms)
        assert await feed(session, source) == pytest.approx(0.5) == source.seconds
        np.testing.assert_allclose(session.pushed() * 32768, samples, atol=0.5)
        expected = np.minimum(np.arange(1, len(session.times_s) + 1) * block_ms / 1000, 0.5)
        np.testing.assert_allclose(session.times_s, expected, atol=1e-6)

    run(body())


def test_an_unpaced_file_does_not_wait(tmp_path):
    path = write_wav(tmp_path / "a.wav", np.zeros(16_000), 16_000)

    async def body():
        session = FakeSession()
        await feed(session, FileSource(path, paced=False))
        assert session.times_s[-1] == 0

    run(body())


def test_the_rate_is_kept_and_channels_are_averaged(tmp_path):
    path = write_wav(tmp_path / "a.wav", np.full((11_025, 6), 8192), 11_025, channels=6)
    source = FileSource(path, paced=False)
    assert source.sample_rate == 11_025
    assert source.seconds == pytest.approx(1, abs=0.001)


def test_a_loop_restarts(tmp_path):
    path = write_wav(tmp_path / "a.wav", np.arange(1600), 16_000)

    async def body():
        session = FakeSession()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await feed(session, FileSource(path, loop=True))
        assert 15_000 < len(session.pushed()) <= 16_000
        assert session.ends == 0

    run(body())


def test_bad_files_and_blocks_are_refused(tmp_path):
    with pytest.raises(AudioFormatError):
        FileSource(tmp_path / "missing.wav")
    path = write_wav(tmp_path / "a.wav", np.zeros(160), 16_000)
    with pytest.raises(ConfigError, match="block_ms"):
        FileSource(path, block_ms=1)


# Microphones


class FakePortAudio(types.ModuleType):
    """`sounddevice` with one microphone, whose blocks come from the test."""

    class PortAudioError(Exception):
        pass

    def __init__(self, rate=44_100.0, broken=False):
        super().__init__("sounddevice")
        self.stream = None
        self.rate, self.broken = rate, broken
        fake = self

        class InputStream:
            def __init__(self, **options):
                if fake.broken:
                    raise fake.PortAudioError("busy")
                self.options, self.closed = options, False
                fake.stream = self

            def start(self):
                pass

            def close(self):
                self.closed = True
                self.options["finished_callback"]()

            def deliver(self, level, overflow=False):
                data = np.full((self.options["blocksize"], 1), level, np.int16)
                status = types.SimpleNamespace(input_overflow=overflow)
                self.options["callback"](data, len(data), None, status)
                data[:] = -1  # PortAudio reuses its buffers

        self.InputStream = InputStream

    def query_devices(self, device=None, kind=None):
        known = {
            "index": 3,
            "name": "Desk",
            "default_samplerate": self.rate,
            "max_input_channels": 1,
            "max_output_channels": 0,
        }
        if kind is None and device is None:
            return [known]
        if device not in (None, 3, "Desk"):
            raise ValueError("no such device")
        return known


@pytest.fixture
def portaudio(monkeypatch):
    fake = FakePortAudio()
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    return fake


def test_a_microphone_yields_blocks_of_10_ms_at_its_own_rate(portaudio):
    async def body():
        async with Microphone() as microphone:
            assert microphone.sample_rate == 44_100
            portaudio.stream.deliver(7)
            portaudio.stream.deliver(8)
            first, second = await anext(microphone), await anext(microphone)
        assert first.shape == (441,) and first.dtype == np.int16
        assert (first[0], second[0]) == (7, 8)
        assert microphone.overflows == 0
        assert portaudio.stream.closed
        with pytest.raises(StopAsyncIteration):
            await anext(microphone)
        await microphone.aclose()

    run_real(body())


def test_the_device_and_the_rate_can_be_chosen(portaudio):
    async def body():
        async with Microphone("Desk", sample_rate=16_000):
            assert portaudio.stream.options["device"] == 3
            assert portaudio.stream.options["blocksize"] == 160

    run_real(body())


def test_lost_audio_is_counted_in_the_metrics_of_the_session(portaudio):
    async def body():
        session = FakeSession()
        async with Microphone() as microphone:
            portaudio.stream.deliver(0, overflow=True)
            for level in range(1, MAX_BUFFERED + 5):
                portaudio.stream.deliver(level)
            await asyncio.sleep(0)  # the loop queues the blocks
            feeding = asyncio.create_task(feed(session, microphone))
            await asyncio.sleep(0)  # the task reads the queue
        await feeding
        assert microphone.overflows == 1 + 5
        assert session.metrics.overflows == 6
        assert session.pushed()[::441].tolist() == list(range(5, MAX_BUFFERED + 5))

    run_real(body())


def test_an_unplugged_microphone_raises(portaudio):
    async def body():
        async with Microphone() as microphone:
            portaudio.stream.options["finished_callback"]()
            with pytest.raises(DependencyError, match="disconnected"):
                await anext(microphone)

    run_real(body())


def test_a_device_that_cannot_be_opened_raises(portaudio):
    async def body():
        with pytest.raises(ConfigError, match="Desk"):
            async with Microphone("Attic"):
                pass
        portaudio.broken = True
        with pytest.raises(DependencyError, match="Close the program"):
            async with Microphone():
                pass
        with pytest.raises(AudioFormatError):
            Microphone(sample_rate=7_999)

    run_real(body())


def test_a_microphone_that_opens_for_nobody_is_closed(portaudio):
    slow = SlowOpening()

    class SlowStream(portaudio.InputStream):
        def start(self):
            slow.open()

        def close(self):
            slow.close()

    portaudio.InputStream = SlowStream
    run_real(slow.cancel(Microphone().__aenter__()))
    assert slow.log == ["opened", "closed"]


def test_feeding_ends_with_the_session(portaudio):
    class Closed(FakeSession):
        async def push_audio(self, pcm, sample_rate):
            raise SessionClosed("the session was closed; open another")

    async def body():
        async with Microphone() as microphone:
            portaudio.stream.deliver(1)
            with pytest.raises(SessionClosed):
                await feed(Closed(), microphone)

    run_real(body())
