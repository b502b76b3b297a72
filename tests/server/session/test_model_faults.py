"""Faults of the model while four sessions speak: what viewers, sockets and statistics see."""

import asyncio
import os
import signal
import urllib.request
from contextlib import asynccontextmanager

import numpy as np
import pytest
from support.isolated_models import FAULTS, isolated
from support.live_server import join, live
from support.server_fakes import Peer, Voice, patient, serving, tone

from letstalk_rt.inference.protocol import Fault
from letstalk_rt.inference.supervisor import IsolationLimits
from letstalk_rt.types import SAMPLE_RATE, SAMPLES_PER_FRAME
from letstalk_server.http.binary_frames import REPEATED, PayloadType

KEY = "k" * 32
HEADERS = {"Authorization": f"Bearer {KEY}"}
FRAMES, LEVEL = 50, 300
LIMIT_S = 90
OPTIONS = {"size": 256, "max_sessions": 8, "model_recovery_s": 60.0, "badge": "off"}

KINDS = {
    "raise": Fault.RAISED,
    "kill": Fault.DIED,
    "memory": Fault.MEMORY,
    "hang-2": None,
    "hang-60": Fault.HUNG,
}
"""The fault that the model's health counts; a hang of 2 s is waited for."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def server(folder):
    """A server whose model runs in a process of its own, its address and that model."""
    pipeline = isolated(folder, IsolationLimits(step_s=3.0, memory_mb=200))
    settings = patient(auth="on", api_key=KEY, **OPTIONS)
    with live(settings, pipeline) as (_, address):
        yield address, pipeline
    assert not pipeline.is_running, "the server ends its model"


async def speaking_client(address):
    """Return a client whose avatar speaks, with frames, audio and statistics."""
    client = await join(address, "frames=jpeg&quality=50", additional_headers=HEADERS)
    await client.hear("session.ready", limit_s=LIMIT_S)
    await client.send({"type": "session.configure", "stats_s": 1})
    await client.send(speech().tobytes())
    await client.send({"type": "segment.end"})
    return client


def is_repeated(packet):
    return bool(packet[1] & REPEATED)


async def metric(address, name):
    return await asyncio.to_thread(read_metric, address, name)


def read_metric(address, name):
    request = urllib.request.Request(f"http://{address}/metrics", headers=HEADERS)
    with urllib.request.urlopen(request) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault in KINDS])
async def test_four_sessions_survive(server, folder, fault):
    address, pipeline = server
    before, restarts = dict(pipeline.health.faults), pipeline.health.restarts
    async with four_clients(address) as clients:
        (folder / fault).touch()
        for client in clients:
            finished = await client.hear("segment.finished", limit_s=LIMIT_S)
            assert finished["played_ms"] == FRAMES * 40, "no speech is lost"
        assert not (folder / fault).exists(), "the fault has happened"
        wanted = KINDS[fault]
        is_lost = wanted not in (None, Fault.RAISED)
        counted = {kind: n - before[kind] for kind, n in pipeline.health.faults.items()}
        assert counted == {kind: int(kind == wanted) for kind in Fault}
        assert pipeline.health.restarts == restarts + is_lost
        assert await metric(address, "letstalk_model_up") == 1
        name = f'letstalk_model_faults_total{{kind="{wanted}"}}'
        assert await metric(address, name) == pipeline.health.faults.get(wanted, 0)
        for client in clients:
            await check_client(client, wanted)


@asynccontextmanager
async def four_clients(address):
    """Yield the clients of four sessions whose avatars speak."""
    clients = await asyncio.gather(*[speaking_client(address) for _ in range(4)])
    try:
        for client in clients:
            await client.hear("avatar.speaking", limit_s=LIMIT_S)
        yield clients
    finally:
        for client in clients:
            await client.close()


async def check_client(client, fault):
    """Check what a viewer, its socket and the statistics of its session say of a fault."""
    await client.until(lambda: not any(client.kinds(PayloadType.PCM16)[-1][-1]), LIMIT_S)
    check_video(client)
    seen = len(client.said("session.stats"))
    stats = await client.hear("session.stats", seen + 1, LIMIT_S)
    warnings = [message["code"] for message in client.said("session.warning")]
    if fault not in (None, Fault.RAISED):
        assert stats["recoveries"] == 1 and "model-failed" in warnings
    else:  # steps that raise in a batch are run again one by one
        assert stats["recoveries"] <= (fault is Fault.RAISED)
    assert client.socket.close_code is None and not client.said("session.error")


def speech():
    """Return speech as int16 whose level tells which frame it is: 1, 2, ... times `LEVEL`."""
    sample = np.arange(FRAMES * SAMPLES_PER_FRAME)
    sign = np.where(np.sin(2 * np.pi * 220.5 * sample / SAMPLE_RATE) < 0, -1, 1)
    return (sign * LEVEL * (sample // SAMPLES_PER_FRAME + 1)).astype("<i2")


def check_video(client):
    """Check what a viewer saw and heard: all speech, and in an outage the last frame, silent."""
    audio = [
        (packet, np.frombuffer(packet[-1], "<i2")) for packet in client.kinds(PayloadType.PCM16)
    ]
    assert not any(pcm.any() for packet, pcm in audio if is_repeated(packet))
    heard = np.concatenate([pcm for _, pcm in audio])
    levels = np.round(np.abs(heard[heard != 0]) / LEVEL).astype(int)
    assert (np.diff(levels) >= 0).all(), "speech keeps its order"
    counts = np.bincount(levels, minlength=FRAMES + 1)[1:]
    assert (counts <= SAMPLES_PER_FRAME).all(), "nothing is heard twice"
    numbers = [packet[4] for packet, _ in audio]
    if numbers == list(range(numbers[0], numbers[0] + len(numbers))):  # it read fast enough
        assert (counts == SAMPLES_PER_FRAME).all(), "nothing is lost"
    frames = client.kinds(PayloadType.JPEG)
    numbers = [packet[4] for packet in frames]
    assert numbers == sorted(set(numbers)), "their numbers go on"
    for earlier, later in zip(frames, frames[1:], strict=False):
        if is_repeated(later) and later[4] == earlier[4] + 1:
            assert later[-1] == earlier[-1], "the last frame stands"


async def test_the_tracks_of_a_viewer_live_on(tmp_path):
    pipeline = isolated(tmp_path)
    async with serving(patient(**OPTIONS), pipeline) as (_, client):
        peer = await Peer(Voice(tone(2))).join(client)
        await peer.until(lambda: len(peer.video) > 10 and len(peer.audio) > 10, LIMIT_S)
        os.kill(pipeline.pid, signal.SIGKILL)
        await peer.until(lambda: not pipeline.is_running, LIMIT_S)
        shown = len(peer.video)
        await peer.until(lambda: pipeline.health.restarts == 1, LIMIT_S)
        await peer.until(lambda: len(peer.video) > shown + 10, LIMIT_S)
        assert not peer.said("session.error") and not peer.said("session.ended")
        assert peer.pc.connectionState == "connected"
        await peer.close()


async def test_a_session_whose_model_stays_away_ends_with_the_reason(tmp_path):
    pipeline = isolated(tmp_path, IsolationLimits(memory_mb=200, standby=False))
    settings = patient(**OPTIONS | {"model_recovery_s": 1.0})
    async with serving(settings, pipeline) as (app, client):
        answer = await client.post("/v1/sessions", json={})
        (session,) = app.state.sessions
        assert answer.status_code == 201 and (await client.get("/readyz")).status_code == 200
        await until(lambda: session.stats().frames)
        (tmp_path / "refuse").touch()
        os.kill(pipeline.pid, signal.SIGKILL)
        await until(lambda: session.end_reason is not None)
        assert session.end_reason == "model-lost"
        assert (await client.get("/readyz")).status_code == 503
        refused = await client.post("/v1/sessions", json={})
        assert refused.status_code == 503 and refused.json()["code"] == "not-ready"
        (tmp_path / "refuse").unlink()
        await until(lambda: pipeline.is_running)
        assert (await client.get("/readyz")).status_code == 200
        metrics = (await client.get("/metrics")).text
        assert 'letstalk_sessions_ended_total{reason="model-lost"} 1.0' in metrics
        assert "letstalk_recoveries_total 1.0" in metrics
        assert "letstalk_model_restarts_total 1.0" in metrics


async def until(condition):
    for _ in range(LIMIT_S * 20):
        if condition():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it did not happen")
