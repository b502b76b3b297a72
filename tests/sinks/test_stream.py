"""Pushing a session to RTMP, RTMPS and SRT servers, reconnecting, and refusals."""

import contextlib
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from support.certificates import self_signed
from support.packages import needs

from letstalk_rt.errors import ConfigError, DependencyError, EngineError
from letstalk_rt.portrait.watermark import STATEMENT
from letstalk_rt.recording.av_encoder import EncoderSettings
from letstalk_rt.sinks import srt, stream
from letstalk_rt.sinks.srt import SrtTarget
from letstalk_rt.sinks.stream import StreamPush
from letstalk_rt.sinks.stream_connection import StreamTarget, tee_name
from letstalk_rt.types import AVFrame

FLASH = 30
SETTINGS = EncoderSettings(16_000)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def frames(count: int) -> Iterator[AVFrame]:
    tone = (0.5 * np.sin(np.arange(640) * 0.3)).astype(np.float32)
    for index in range(count):
        level, pcm = (250, tone) if index == FLASH else (20, 0 * tone)
        yield AVFrame(np.full((96, 128, 3), level, np.uint8), pcm, index, 0, 0)


def until(condition: Callable[[], bool], limit_s: float = 30) -> None:
    """Wait for other threads and processes."""
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, "timed out"
        time.sleep(0.005)


def open_when_ready(url: str, **options: Any) -> StreamPush:
    """Open the sink, retrying until the listener is ready."""
    sink = StreamPush(url, **options)

    def is_open() -> bool:
        with contextlib.suppress(ConfigError):
            sink.open(128, 96)
            return True
        return False

    until(is_open)
    return sink


def push(sink: StreamPush, count: int = 60) -> None:
    for frame in frames(count):
        until(lambda: sink.waiting <= 20)
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
            pass  # the connection was cut
"""


@contextlib.contextmanager
def rtmp_listener(port: int, path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a server of one stream, by PyAV in a process of its own."""
    command = [sys.executable, "-c", LISTEN, f"rtmp://127.0.0.1:{port}/live/key", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_rtmp_arrives_in_sync_with_the_statement(tmp_path: Path) -> None:
    port = free_port()
    with rtmp_listener(port, tmp_path / "got.mkv") as listener:
        push(open_when_ready(f"rtmp://127.0.0.1:{port}/live/key"))
        assert STATEMENT in listener.communicate(timeout=30)[0]
    flash_s, beep_s = times_of_flash_and_beep(tmp_path / "got.mkv")
    assert flash_s == pytest.approx(FLASH / 25, abs=0.03)  # later by the lead-in of AAC
    assert beep_s == pytest.approx(flash_s, abs=0.02)


@needs("ffmpeg")
@needs("libsrt1.5-openssl")
@pytest.mark.parametrize("secret", ["", "&passphrase=0123456789abc"])
def test_srt_arrives_in_sync(tmp_path: Path, secret: str) -> None:
    port, path = free_port(), tmp_path / "got.mkv"
    url = f"srt://127.0.0.1:{port}?streamid=me{secret}"
    command = ["ffmpeg", "-v", "error", "-i", url.replace("?", "?mode=listener&")]
    listener = subprocess.Popen([*command, "-c", "copy", str(path)], stderr=subprocess.DEVNULL)
    try:
        push(open_when_ready(url))
        listener.wait(30)
    finally:
        listener.kill()
        listener.wait()
    flash_s, beep_s = times_of_flash_and_beep(path)
    assert beep_s == pytest.approx(flash_s, abs=0.03)


class Relay:
    """A TCP relay in this process that can be cut, or stop forwarding."""

    def __init__(self, port: int) -> None:
        self._to, self._held = port, threading.Event()
        self._held.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._ends.clear()

    def hold(self) -> None:
        self._held.clear()

    def close(self) -> None:
        self._held.set()
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                with contextlib.suppress(OSError), near:
                    with socket.create_connection(("127.0.0.1", self._to)) as far:
                        self._ends += [near, far]
                        back = threading.Thread(target=self._pass, args=(far, near), daemon=True)
                        back.start()
                        self._pass(near, far)
                        back.join()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                self._held.wait()
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


def noise(count: int) -> Iterator[AVFrame]:
    """Yield frames of noise, which fill any buffer on the way."""
    rng = np.random.default_rng(0)
    for index in range(count):
        rgb = rng.integers(0, 255, (96, 128, 3), dtype=np.uint8)
        yield AVFrame(rgb, np.zeros(640, np.float32), index, 0, 0)


def test_after_a_cut_it_reconnects_and_later_frames_arrive(tmp_path: Path) -> None:
    port = free_port()
    relay = Relay(port)
    with contextlib.closing(relay):
        with rtmp_listener(port, tmp_path / "first.mkv") as listener:
            sink = open_when_ready(f"rtmp://127.0.0.1:{relay.port}/live/key")
            for frame in frames(25):
                sink.show(frame)
            until(lambda: sink.waiting == 0)
            relay.cut()
            listener.wait(30)
        with rtmp_listener(port, tmp_path / "second.mkv") as listener:
            still = next(frames(1))

            def is_reconnected() -> bool:
                sink.show(still)
                return sink.connects == 2

            until(is_reconnected)
            push(sink)
            listener.wait(30)
    flash_s, beep_s = times_of_flash_and_beep(tmp_path / "second.mkv")
    assert beep_s == pytest.approx(flash_s, abs=0.03)


def test_a_stalled_server_does_not_block_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "STALL_S", 0.5)
    port = free_port()
    with contextlib.closing(Relay(port)) as relay, rtmp_listener(port, tmp_path / "got.mkv"):
        sink = open_when_ready(f"rtmp://127.0.0.1:{relay.port}/live/key", bit_rate=20_000_000)
        relay.hold()
        for frame in noise(1400):
            sink.show(frame)
        closing = threading.Thread(target=sink.close, daemon=True)
        closing.start()
        closing.join(60)
        assert not closing.is_alive()
    sink.close()


@pytest.fixture
def tls_server(tmp_path: Path) -> Iterator[tuple[str, list[bool]]]:
    """Run a server with an unknown certificate; record whether clients accept it."""
    certificate, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = socket.create_server(("127.0.0.1", 0))
    accepted: list[bool] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                try:
                    with context.wrap_socket(connection, server_side=True) as secure:
                        accepted.append(len(secure.recv(1)) == 1)
                except OSError:
                    accepted.append(False)

    threading.Thread(target=serve, daemon=True).start()
    with contextlib.closing(listener):
        yield f"rtmps://localhost:{listener.getsockname()[1]}/live/key", accepted


@pytest.mark.parametrize("verify", [True, False])
def test_an_unknown_certificate_is_accepted_only_without_verification(
    tls_server: tuple[str, list[bool]], verify: bool
) -> None:
    url, accepted = tls_server
    with pytest.raises(ConfigError, match="Cannot connect"):  # it does not speak RTMP
        StreamPush(url, verify=verify).open(128, 96)
    assert accepted == [not verify]


def test_addresses_and_options_are_escaped_for_ffmpegs_tee() -> None:
    target = StreamTarget("rtmp://h/a/k|'\\", "flv", {"ca_file": "C:\\a]b"}, (2, 2), SETTINGS, 5.0)
    name = tee_name(target)
    assert name.startswith("[ca_file=C") and name.endswith(r"rtmp://h/a/k\|\'\\")
    assert r"ca_file=C\\:\\\\a\\]b:f=flv:rw_timeout=5000000" in name


class FakeConnection:
    """A connection that counts frames."""

    def __init__(self) -> None:
        self.frames = 0
        self.broken = False

    def write(self, rgb: np.ndarray, pcm: np.ndarray) -> None:
        if self.broken:
            raise BrokenPipeError(32, "Broken pipe")
        self.frames += 1

    def finish(self) -> None:
        pass

    def abort(self) -> None:
        pass


class Network:
    """A fake network with its own clock, which refuses to reconnect before a given time."""

    def __init__(self, restored_s: float) -> None:
        self.now_s, self._restored_s = 0.0, restored_s
        self.connections: list[FakeConnection] = []

    def connect(self, target: StreamTarget) -> Any:
        if self.connections and self.now_s < self._restored_s:
            raise ConnectionRefusedError(111, "Connection refused")
        self.connections.append(FakeConnection())
        return self.connections[-1]

    def push(self) -> StreamPush:
        sink = StreamPush("rtmp://127.0.0.1/x", clock=lambda: self.now_s, connect=self.connect)
        sink.open(128, 96)
        self.show(sink)
        return sink

    def show(self, sink: StreamPush) -> None:
        """Show one frame, and wait until it is written or dropped."""
        sink.show(next(frames(1)))
        until(lambda: sink.waiting == 0)


def test_a_lost_connection_is_restored() -> None:
    network = Network(restored_s=5)
    sink = network.push()
    network.connections[0].broken = True
    for network.now_s in map(float, range(12)):
        network.show(sink)
    sink.close()
    first, second = network.connections
    assert first.frames == 1 and sink.connects == 2
    assert second.frames == 12 - 7  # tried at 1, 3 and 7 s


def test_a_connection_that_stays_lost_ends_the_push() -> None:
    network = Network(restored_s=1000)
    sink = network.push()
    network.connections[0].broken = True
    for network.now_s in (1.0, 30.0, 90.0, 130.0):
        network.show(sink)
    with pytest.raises(EngineError, match="within 120 s: Connection refused"):
        sink.close()


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
def test_invalid_addresses_are_refused(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StreamPush(url)


def test_all_parts_of_an_srt_address_are_parsed() -> None:
    url = "srt://[::1]:9000?streamid=%23!::r=live&passphrase=0123456789&latency=300&pbkeylen=32"
    assert SrtTarget.parse(url) == SrtTarget("::1", 9000, "#!::r=live", "0123456789", 32, 300)


@pytest.mark.parametrize(
    "scheme", ["rtmp", "rtmps", pytest.param("srt", marks=needs("libsrt1.5-openssl"))]
)
def test_a_failed_connection_is_reported_without_the_key(scheme: str) -> None:
    sink = StreamPush(f"{scheme}://127.0.0.1:{free_port()}" + "/live/secret" * (scheme != "srt"))
    with pytest.raises((ConfigError, DependencyError), match="Cannot connect") as caught:
        sink.open(128, 96)
    assert "secret" not in str(caught.value)
    sink.close()


def test_bit_rates_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="100k to 50M"):
        StreamPush("rtmp://127.0.0.1/x", bit_rate=5)


def test_without_libsrt_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    srt.load_libsrt.cache_clear()
    monkeypatch.setattr(srt.ctypes, "CDLL", missing)
    with pytest.raises(DependencyError, match="libsrt.*nstall"):
        StreamPush("srt://127.0.0.1:9").open(128, 96)
    monkeypatch.undo()
    srt.load_libsrt.cache_clear()
