"""Peers that are not ours: another WebRTC stack, a TURN server; and very many of them."""

import asyncio
import base64
import ctypes
import gc
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import av
import numpy as np
import pytest
from aioice.ice import get_host_addresses
from aiortc import (
    RTCConfiguration,
    RTCIceServer,
    RTCIceTransportPolicy,
)
from support.leaks import certain_slope
from support.opus import opus_packets
from support.packages import needs
from support.server_fakes import Peer, Voice, serving, tone
from support.transport_stage import staged

from letstalk_server.auth import LOCAL
from letstalk_server.session.transport import PeerRole
from letstalk_server.settings import Settings
from letstalk_server.webrtc import turn

TESTS = Path(__file__).parents[2]
WERIFT = Path(os.environ.get("LETSTALK_WERIFT", TESTS.parent / ".venv" / "werift"))
WARM_UP_SESSIONS = 6
SECRET = "a secret of two servers that is long enough"


@contextmanager
def painted_server():
    """Run a server with the painted avatar in a process of its own; gives its address."""
    command = [sys.executable, "-m", "support.server_fakes", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=TESTS) as process:
        try:
            address = re.search(r"http://\S+", process.stdout.readline())
            assert address, "the server did not start"
            yield address.group()
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)


def decode_vp8(packets):
    """Put RTP packets together to pictures, as RFC 7741 says, and decode them."""
    decoder, data, pictures = av.CodecContext.create("vp8", "r"), b"", []
    for packet in packets:
        payload = base64.b64decode(packet["payload"])
        assert payload[0] & 0x80 and payload[1] == 0x80 and payload[2] & 0x80
        data += payload[4:]
        if packet["marker"]:
            pictures += [(packet["timestamp"], frame) for frame in decoder.decode(av.Packet(data))]
            data = b""
    return pictures


def decode_opus(packets):
    decoder = av.CodecContext.create("libopus", "r")
    decoder.format, decoder.layout, decoder.sample_rate = "s16", "mono", 48_000
    return [
        decoder.decode(av.Packet(base64.b64decode(packet["payload"])))[0].to_ndarray()[0]
        for packet in packets
    ]


@needs("nodejs")
@pytest.mark.skipif(
    not (WERIFT / "node_modules").is_dir(),
    reason="needs werift: npm, `make test`",
)
def test_another_webrtc_stack_plays_and_speaks(tmp_path):
    voice = tmp_path / "voice.json"
    packets = [base64.b64encode(packet).decode() for packet in opus_packets(2.0)]
    voice.write_text(json.dumps(packets))
    script = str(TESTS / "support" / "werift_peer.mjs")
    with painted_server() as address:
        command = ["node", script, str(WERIFT), address, str(voice), "2"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    got = json.loads(result.stdout)
    pictures = decode_vp8(got["video"])
    assert len(pictures) > 25
    assert all((frame.width, frame.height) == (512, 512) for _, frame in pictures)
    steps = np.diff([time for time, _ in pictures])
    assert (steps % 3600 == 0).all() and np.median(steps) == 3600
    audio = np.concatenate(decode_opus(got["audio"]))
    spectrum = np.abs(np.fft.rfft(audio))
    assert np.argmax(spectrum) * 48_000 / audio.size == pytest.approx(440, abs=5)
    grey = np.stack([frame.to_ndarray(format="gray").astype(float) for _, frame in pictures])
    assert grey.std(0).max() > 20, "the mouth never moved"
    assert got["deleted"] == [200, 200] or set(got["deleted"]) <= {200, 204}


@contextmanager
def turn_server():
    """Run coturn with a shared secret; gives its URL."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    host = get_host_addresses(use_ipv4=True, use_ipv6=False)[0]
    options = ["--listening-ip=127.0.0.1", f"--listening-port={port}", f"--relay-ip={host}"]
    options += ["--use-auth-secret", f"--static-auth-secret={SECRET}", "--realm=letstalk"]
    options += ["--no-tls", "--no-dtls", "--no-cli", "--log-file=stdout", "--pidfile="]
    command = ["turnserver", "-n", *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            wait_for_stun(port)
            yield f"turn:127.0.0.1:{port}?transport=udp"
        finally:
            process.terminate()


def wait_for_stun(port):
    """Ask a STUN server for our address until it answers."""
    request = b"\x00\x01\x00\x00\x21\x12\xa4\x42" + bytes(12)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(0.2)
        for _ in range(100):
            try:
                asking.sendto(request, ("127.0.0.1", port))
                assert asking.recv(1500)[:2] == b"\x01\x01"
                return
            except OSError:
                time.sleep(0.05)
    raise AssertionError("the TURN server did not start")


@needs("coturn")
async def test_a_session_goes_through_a_turn_server_alone():
    with turn_server() as url:
        settings = Settings(turn_urls=(url,), turn_secret=SECRET)
        (server,) = turn.ice_servers(settings, LOCAL)
        credentials = RTCIceServer(server.url, server.username, server.credential)
        async with staged() as stage:
            relayed = RTCConfiguration([credentials], RTCIceTransportPolicy.RELAY)
            guest = stage.guest(Voice(tone(1.0)), codec="VP8", configuration=relayed)
            offer = await guest.offer()
            kinds = set(re.findall(r"a=candidate.* typ (\w+)", offer))
            assert kinds == {"relay"}
            chunks = asyncio.Queue()
            peer = stage.open(PeerRole.TALKER, audio=chunks.put_nowait)
            await guest.accept(await peer.answer(offer))
            await guest.until(lambda: len(guest.video) > 25 and len(guest.audio) > 25)
            async with asyncio.timeout(20):
                assert (await chunks.get()).size == 320  # 20 ms at the engine's rate


def held():
    """Give what a process holds: tasks, threads, file handles, objects, resident bytes."""
    gc.collect()
    with suppress(OSError, AttributeError):  # what malloc keeps for later is not held; glibc only
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    status = Path("/proc/self/status").read_text()
    return {
        "tasks": len(asyncio.all_tasks()),
        "threads": threading.active_count(),
        "handles": len(os.listdir("/proc/self/fd")),
        "objects": len(gc.get_objects()),
        "bytes": int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) * 1024,
    }


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("count", "most_mb"), [(40, 0.1), pytest.param(400, 0.02, marks=pytest.mark.slow)]
)
async def test_sessions_opened_and_closed_in_a_row_leave_nothing_behind(count, most_mb):
    async def one(client):
        peer = await Peer(Voice(tone(0.5))).join(client)
        await peer.until(lambda: len(peer.video) > 2)
        await client.delete(f"/v1/sessions/{peer.session}")
        await peer.close()

    seen = []
    async with serving() as (_, client):
        for _ in range(WARM_UP_SESSIONS + count):
            await one(client)
            seen.append(held())
        await asyncio.sleep(0.5)
        after = held()
    before, *seen = seen[WARM_UP_SESSIONS - 1 :]
    assert after["tasks"] <= before["tasks"]
    assert after["threads"] <= before["threads"] + 2
    assert after["handles"] <= before["handles"] + 2
    assert certain_slope([one["objects"] for one in seen]) < 5
    # Between two sessions the resident memory goes up and down by 10 MB (docs/log.md).
    assert certain_slope([one["bytes"] / 1e6 for one in seen]) < most_mb
