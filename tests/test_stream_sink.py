"""A session pushed to a server arrives there; what stands in the way is said."""

import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from letstalk_rt.badge import STATEMENT
from letstalk_rt.errors import ConfigError, DependencyError, EngineError
from letstalk_rt.sinks import srt
from letstalk_rt.sinks.srt import SrtTarget
from letstalk_rt.sinks.stream import StreamPush
from letstalk_rt.types import AVFrame

FLASH = 30


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def frames(count: int) -> Iterator[AVFrame]:
    tone = (0.5 * np.sin(np.arange(640) * 0.3)).astype(np.float32)
    for index in range(count):
        level, sound = (250, tone) if index == FLASH else (20, 0 * tone)
        yield AVFrame(np.full((96, 128, 3), level, np.uint8), sound, index, 0, 0)


def open_patiently(url: str, **options: bool) -> StreamPush:
    """Open as soon as the listener listens."""
    for attempt in range(100):
        sink = StreamPush(url, **options)
        try:
            sink.open(128, 96)
            return sink
        except ConfigError:
            if attempt == 99:
                raise
            time.sleep(0.2)
    raise AssertionError


def push(sink: StreamPush, count: int = 60) -> None:
    for frame in frames(count):
        while sink._items.qsize() > 20:
            time.sleep(0.01)
        sink.show(frame)
    sink.close()


def times_of_flash_and_beep(path: Path) -> tuple[float, float]:
    with av.open(str(path)) as container:
        assert (container.streams.video[0].name, container.streams.audio[0].name) == ("h264", "aac")
        assert container.streams.audio[0].rate == 48_000
        flash = [(f.to_ndarray(format="gray").mean(), f.time) for f in container.decode(video=0)]
    with av.open(str(path)) as container:
        beep = [
            f.time + int(np.argmax(np.abs(f.to_ndarray()[0]) > 0.2)) / 48_000
            for f in container.decode(audio=0)
            if np.abs(f.to_ndarray()).max() > 0.2
        ]
    return max(flash)[1], beep[0]


LISTEN = """
import sys, av
with av.open(sys.argv[1], options={"listen": "1"}) as source:
    print(source.metadata, flush=True)
    with av.open(sys.argv[2], "w") as copy:
        streams = {s: copy.add_stream_from_template(s) for s in source.streams}
        try:
            for packet in source.demux():
                if packet.dts is not None:
                    packet.stream = streams[packet.stream]
                    copy.mux(packet)
        except OSError:
            pass  # a line that ends hard
"""


@contextlib.contextmanager
def rtmp_listener(port: int, path: Path) -> Iterator[subprocess.Popen[str]]:
    """A server of one stream, by PyAV in a process of its own."""
    words = [sys.executable, "-c", LISTEN, f"rtmp://127.0.0.1:{port}/live/key", str(path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_rtmp_arrives_in_sync_and_says_what_it_is(tmp_path: Path) -> None:
    port = free_port()
    with rtmp_listener(port, tmp_path / "got.mkv") as listener:
        push(open_patiently(f"rtmp://127.0.0.1:{port}/live/key"))
        assert STATEMENT in listener.communicate(timeout=30)[0]
    flash_s, beep_s = times_of_flash_and_beep(tmp_path / "got.mkv")
    assert flash_s == pytest.approx(FLASH / 25, abs=0.03)  # later by the lead-in of AAC
    assert beep_s == pytest.approx(flash_s, abs=0.02)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg to listen for SRT")
@pytest.mark.parametrize("secret", ["", "&passphrase=0123456789abc"])
def test_srt_arrives_in_sync(tmp_path: Path, secret: str) -> None:
    port, path = free_port(), tmp_path / "got.mkv"
    url = f"srt://127.0.0.1:{port}?streamid=me{secret}"
    words = ["ffmpeg", "-v", "error", "-i", url.replace("?", "?mode=listener&")]
    listener = subprocess.Popen([*words, "-c", "copy", str(path)], stderr=subprocess.DEVNULL)
    try:
        push(open_patiently(url))
        listener.wait(30)
    finally:
        listener.kill()
        listener.wait()
    flash_s, beep_s = times_of_flash_and_beep(path)
    assert beep_s == pytest.approx(flash_s, abs=0.03)


class Line:
    """Stands for the encoder and the line behind it."""

    def __init__(self) -> None:
        self.frames = 0
        self.broken = False

    def write(self, rgb: np.ndarray, pcm: np.ndarray) -> None:
        if self.broken:
            raise BrokenPipeError(32, "Broken pipe")
        self.frames += 1

    def finish(self) -> None:
        pass


def test_a_line_that_breaks_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[Line] = []

    def connect(sink: StreamPush) -> None:
        if lines and now_s < 5:
            raise ConnectionRefusedError(111, "Connection refused")
        lines.append(Line())
        sink._encoder = lines[-1]  # type: ignore[assignment]

    monkeypatch.setattr(StreamPush, "_connect", connect)
    now_s = 0.0
    sink = StreamPush("rtmp://127.0.0.1/x", clock=lambda: now_s)
    sink._connect()
    still = np.zeros((96, 128, 3), np.uint8), np.zeros(640, np.float32)
    sink._write(*still)
    lines[0].broken = True
    for second in range(12):
        now_s = float(second)
        sink._write(*still)
    assert len(lines) == 2 and lines[0].frames == 1
    assert lines[1].frames == 12 - 7  # tried at 1, 3 and 7 s


def test_a_line_that_stays_broken_ends_the_push() -> None:
    now_s = 0.0
    sink = StreamPush(f"rtmp://127.0.0.1:{free_port()}/x", clock=lambda: now_s)
    sink._size = 128, 96
    still = np.zeros((96, 128, 3), np.uint8), np.zeros(640, np.float32)
    for now_s in (1.0, 30.0, 90.0):  # noqa: B007
        sink._write(*still)
    now_s = 130.0
    with pytest.raises(EngineError, match="within 120 s: Connection refused"):
        sink._write(*still)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://example.com/live", "must begin with rtmp://"),
        ("rtmp:///live", "name a server"),
        ("srt://host", "srt://HOST:PORT"),
        ("srt://host:99999", "number"),
        ("srt://host:9000?mode=listener", "caller"),
        ("srt://host:9000?passphrase=short", "10 to 79"),
        ("srt://host:9000?pbkeylen=8", "16, 24 or 32"),
        ("srt://host:9000?color=red", "'color'"),
    ],
)
def test_addresses_that_cannot_be_used_are_refused(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StreamPush(url)


def test_an_srt_address_is_read_whole() -> None:
    url = "srt://[::1]:9000?streamid=%23!::r=live&passphrase=0123456789&latency=300&pbkeylen=32"
    assert SrtTarget.parse(url) == SrtTarget("::1", 9000, "#!::r=live", "0123456789", 32, 300)


@pytest.mark.parametrize("scheme", ["rtmp", "rtmps", "srt"])
def test_nobody_there_is_told_without_the_key(scheme: str) -> None:
    sink = StreamPush(f"{scheme}://127.0.0.1:{free_port()}" + "/live/secret" * (scheme != "srt"))
    with pytest.raises((ConfigError, DependencyError), match="Cannot connect") as caught:
        sink.open(128, 96)
    assert "secret" not in str(caught.value)
    sink.close()


def test_bit_rates_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="100k to 50M"):
        StreamPush("rtmp://127.0.0.1/x", bit_rate=5)


def test_without_libsrt_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    srt.load_libsrt.cache_clear()
    monkeypatch.setattr(srt.ctypes, "CDLL", missing)
    with pytest.raises(DependencyError, match="libsrt.*nstall"):
        StreamPush("srt://127.0.0.1:9").open(128, 96)
    monkeypatch.undo()
    srt.load_libsrt.cache_clear()
