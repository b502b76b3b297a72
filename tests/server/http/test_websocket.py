"""The WebSocket against a real server: sound up, events and pictures down, and hostile clients."""

import asyncio
import base64
import io
import json
import time
from contextlib import suppress

import av
import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as tries
from hypothesis import strategies as st
from PIL import Image
from support.live_server import join, live, speech
from support.server_fakes import BACKDROPS
from websockets.exceptions import ConnectionClosed, InvalidStatus

from letstalk_server.http.binary_frames import BADGE, PayloadType
from letstalk_server.protocol.audio_payload import to_int16
from letstalk_server.settings import Settings

SETTINGS = Settings(max_sessions=6, max_connections=4, max_message_bytes=65_536, grace_s=0.5)


@pytest.fixture(scope="module")
def address():
    options = {"ws_max_size": 131_072, "ws_ping_interval": 0.5, "ws_ping_timeout": 0.5}
    with live(SETTINGS, **options) as (_, found):
        yield found


def types(client):
    return [message["type"] for message in client.messages]


async def test_an_utterance_is_followed_by_its_events(address):
    client = await join(address, "avatar=blue")
    ready = await client.hear("session.ready")
    assert ready["avatar"] == "blue" and not ready["resumed"] and ready["disclosure"]["badge"]
    await client.send(speech(0.6))
    await client.send({"type": "segment.end"})
    finished = await client.hear("segment.finished")
    assert 500 <= finished["played_ms"] <= 1000
    told = [name for name in types(client) if name.startswith(("segment.", "avatar."))]
    assert told[:2] == ["segment.started", "avatar.speaking"]
    await client.hear("avatar.idle")
    ids = [message["event_id"] for message in client.messages]
    assert len(set(ids)) == len(ids)
    assert {message["session"] for message in client.messages} == {ready["session"]}
    await client.send(speech(0.4))
    second = await client.hear("segment.started", 2)
    assert second["segment_id"] > finished["segment_id"]
    await client.close()


async def test_pictures_come_with_their_sound(address):
    client = await join(address, "avatar=amber&frames=jpeg&quality=85")
    await client.hear("session.ready")
    await client.send(speech(1.0))
    await client.until(
        lambda: any(np.frombuffer(p[-1], "<i2").any() for p in client.kinds(PayloadType.PCM16))
    )
    await client.until(lambda: len(client.kinds(PayloadType.JPEG)) > 20)
    pictures, sounds = client.kinds(PayloadType.JPEG), client.kinds(PayloadType.PCM16)
    numbers = [packet[4] for packet in pictures]
    assert numbers == sorted(set(numbers))
    heard = [packet[4] for packet in sounds]
    assert heard == sorted(set(heard))
    assert set(numbers[:-1]) <= set(heard), "only the newest may be ahead of its sound"
    assert all(len(packet[-1]) == 2 * 640 and packet[7] == 16_000 for packet in sounds)
    image = Image.open(io.BytesIO(pictures[-1][-1]))
    assert image.size == (512, 512) and (pictures[-1][5], pictures[-1][6]) == (512, 512)
    assert b"generated" in image.info["comment"] and pictures[-1][1] & BADGE
    backdrop = np.array(image)[8:24, 8:24].mean((0, 1))
    assert np.abs(backdrop - BACKDROPS["amber"]).max() < 20
    await client.close()


async def test_opus_up_and_raw_pictures_with_opus_down(address):
    client = await join(address, "audio=opus&frames=rgb&sound=opus&max_fps=5")
    await client.hear("session.ready")
    for packet in opus_packets(0.8):
        await client.send(packet)
    await client.hear("avatar.speaking")
    await client.until(
        lambda: len(client.kinds(PayloadType.RGB)) > 2 and len(client.kinds(PayloadType.OPUS)) > 40
    )
    picture = client.kinds(PayloadType.RGB)[-1]
    assert len(picture[-1]) == 3 * picture[5] * picture[6]
    steps = np.diff([packet[4] for packet in client.kinds(PayloadType.RGB)])
    assert steps.min() >= 5
    decoder = av.CodecContext.create("opus", "r")
    frames = [f for p in client.kinds(PayloadType.OPUS) for f in decoder.decode(av.Packet(p[-1]))]
    assert frames and frames[0].sample_rate == 48_000
    await client.send(b"")
    assert (await client.hear("session.error"))["code"] == "bad-audio"
    await client.close()


def opus_packets(seconds):
    encoder = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.layout, encoder.format = 48_000, "mono", "s16"
    samples = np.frombuffer(speech(seconds, 48_000), "<i2")
    for start in range(0, samples.size - 959, 960):
        frame = av.AudioFrame.from_ndarray(samples[None, start : start + 960], "s16", "mono")
        frame.sample_rate, frame.pts = 48_000, start
        for packet in encoder.encode(frame):
            yield bytes(packet)


async def test_an_interrupt_tells_how_much_was_shown(address):
    client = await join(address)
    await client.send(speech(2.0))
    await client.send({"type": "audio.append", "audio": base64.b64encode(speech(1)).decode()})
    await client.hear("avatar.speaking")
    await client.send({"type": "avatar.interrupt", "event_id": "i1"})
    answer = await client.hear("avatar.interrupted")
    assert answer["re"] == "i1" and answer["played_ms"] > 0
    assert answer["played_ms"] + answer["dropped_ms"] == pytest.approx(3000, abs=400)
    assert await client.hear("segment.interrupted")
    await client.hear("avatar.idle", limit_s=5)
    await client.close()


async def test_speech_may_have_any_whole_rate(address):
    client = await join(address, "sample_rate=22050")
    await client.send(speech(1.0, 22_050))
    await client.send({"type": "segment.end"})
    assert (await client.hear("segment.finished"))["played_ms"] == pytest.approx(1000, abs=2)
    await client.close()


async def test_a_session_may_keep_the_quality_that_comes_in(address):
    async with httpx.AsyncClient(base_url=f"http://{address}") as http:
        made = await http.post("/v1/sessions", json={"options": {"sample_rate": 24_000}})
    session = made.json()
    assert session["audio"] == {"sample_rate": 24_000}
    query = f"session={session['session']}&sample_rate=24000&frames=jpeg&max_fps=1"
    client = await join(address, query)
    tone = (8000 * np.sin(2 * np.pi * 10_000 * np.arange(24_000) / 24_000)).astype("<i2")
    await client.send(tone.tobytes())
    await client.send({"type": "segment.end"})
    await client.hear("segment.finished")
    sounds = [packet for packet in client.kinds(PayloadType.PCM16)]
    assert {(packet[5], packet[7]) for packet in sounds} == {(960, 24_000)}
    heard = np.frombuffer(b"".join(packet[-1] for packet in sounds), "<i2").astype(float)
    spectrum = np.abs(np.fft.rfft(heard))
    hz = np.fft.rfftfreq(heard.size, 1 / 24_000)
    assert abs(hz[spectrum.argmax()] - 10_000) < 20, "above what the model hears"
    await client.close()


async def test_what_a_connection_wants_may_change(address):
    client = await join(address)
    await client.send({"type": "session.configure", "audio": {"sample_rate": 24_000}, "stats_s": 1})
    told = await client.hear("session.configured")
    assert told["audio"] == {"format": "pcm16", "sample_rate": 24_000, "channels": 1}
    stats = await client.hear("session.stats")
    assert stats["frames"] > 0 and "step" in stats["stages_ms"]
    await client.send({"type": "session.configure", "frames": {"format": "jpeg"}})
    await client.until(lambda: client.kinds(PayloadType.JPEG))
    await client.send({"type": "avatar.select", "avatar": "blue"})
    assert (await client.hear("avatar.selected"))["avatar"] == "blue"

    def is_blue():
        image = Image.open(io.BytesIO(client.kinds(PayloadType.JPEG)[-1][-1]))
        return np.abs(np.array(image)[8:24, 8:24].mean((0, 1)) - BACKDROPS["blue"]).max() < 20

    await client.until(is_blue)
    await client.close()


async def test_several_are_told_of_one_session_and_one_holds_the_floor(address):
    async with httpx.AsyncClient(base_url=f"http://{address}") as http:
        session = (await http.post("/v1/sessions", json={"options": {"badge": False}})).json()
        query = f"session={session['session']}"
        agent, screen = await join(address, query), await join(address, query)
        assert not (await screen.hear("session.ready"))["disclosure"]["badge"]
        assert (await screen.hear("session.ready"))["resumed"]
        await agent.send(speech(1.5))
        await screen.hear("avatar.speaking")
        await screen.send(speech(0.2))
        assert (await screen.hear("session.error"))["code"] == "floor-taken"
        await screen.send({"type": "overlay.update", "overlay": {"bg": "green", "size": 3}})
        assert (await agent.hear("overlay.updated"))["overlay"] == {"bg": "green", "size": 3}
        late = await join(address, query)
        assert (await late.hear("session.ready"))["overlay"]["bg"] == "green"
        shown = (await http.get(f"/v1/sessions/{session['session']}")).json()
        assert [one["kind"] for one in shown["connections"]] == ["ws"] * 3
        await http.delete(f"/v1/sessions/{session['session']}")
        for client in (agent, screen, late):
            assert await client.ended() == 1000
            assert client.said("session.ended")[0]["reason"] == "deleted"


async def test_a_session_takes_so_many_connections_and_no_more(address):
    first = await join(address)
    name = (await first.hear("session.ready"))["session"]
    others = [await join(address, f"session={name}") for _ in range(SETTINGS.max_connections)]
    assert await others.pop().ended() == 1013
    await asyncio.gather(first.close(), *[client.close() for client in others])


@pytest.mark.parametrize(
    ("query", "origin", "status", "code"),
    [
        ("session=none", None, 404, "unknown-session"),
        ("avatar=none", None, 404, "unknown-avatar"),
        ("frames=gif", None, 400, "bad-request"),
        ("sample_rate=x", None, 400, "bad-request"),
        ("", "https://evil.example", 403, "foreign-origin"),
    ],
)
async def test_handshakes_are_refused_with_a_problem(address, query, origin, status, code):
    with pytest.raises(InvalidStatus) as refused:
        await join(address, query, origin=origin)
    response = refused.value.response
    assert response.status_code == status and json.loads(response.body)["code"] == code


async def test_a_client_that_vanishes_is_noticed_and_its_session_goes(address):
    client = await join(address)
    await client.hear("session.ready")
    client.socket.transport.pause_reading()  # answers no ping any more
    async with httpx.AsyncClient(base_url=f"http://{address}") as http:
        for _ in range(100):
            if not (await http.get("/healthz")).json()["sessions"]:
                break
            await asyncio.sleep(0.1)
        else:
            raise AssertionError("the session is still there")
    client.socket.transport.abort()
    await client.ended()


@pytest.fixture(scope="module")
def patient_address():
    """A server that waits for clients that vanished, and whose pings find none of them."""
    settings = Settings(max_sessions=6, grace_s=60, heartbeat_timeout_s=1)
    with live(settings, ws_ping_interval=None) as (_, found):
        yield found


async def connections_of(http, session):
    """Wait until a session has no connections; return its status: 404 if it has ended."""
    for _ in range(200):
        answer = await http.get(f"/v1/sessions/{session}")
        if answer.status_code == 404 or not answer.json()["connections"]:
            return answer.status_code
        await asyncio.sleep(0.1)
    raise AssertionError("the connection is still there")


@pytest.mark.parametrize(("query", "vanish"), [("", "abort"), ("frames=rgb", "pause_reading")])
async def test_a_client_that_vanishes_or_takes_no_frames_may_join_again(
    patient_address, query, vanish
):
    client = await join(patient_address, query)
    name = (await client.hear("session.ready"))["session"]
    getattr(client.socket.transport, vanish)()
    async with httpx.AsyncClient(base_url=f"http://{patient_address}") as http:
        assert await connections_of(http, name) == 200
    again = await join(patient_address, f"session={name}")
    assert (await again.hear("session.ready"))["resumed"]
    await again.close()
    client.socket.transport.abort()
    await client.ended()


CLOSE_WITHOUT_CODE = b"\x88\x80" + bytes(4)


@pytest.mark.parametrize("code", [1000, 1001, None])
async def test_a_client_that_closes_ends_the_session_that_it_opened(patient_address, code):
    client = await join(patient_address)
    name = (await client.hear("session.ready"))["session"]
    if code is None:
        client.socket.transport.write(CLOSE_WITHOUT_CODE)
    else:
        await client.socket.close(code)
    async with httpx.AsyncClient(base_url=f"http://{patient_address}") as http:
        await connections_of(http, name)
        for _ in range(100):
            if (await http.get(f"/v1/sessions/{name}")).status_code == 404:
                break
            await asyncio.sleep(0.1)
        else:
            raise AssertionError("the session is still there")
    await client.ended()


async def test_speech_beyond_the_limit_is_refused_and_blocks_nothing():
    with live(Settings(max_speech_s=2)) as (_, address):
        client = await join(address)
        await client.hear("session.ready")
        for _ in range(80):  # 20 s at line speed, in chunks that divide the limit exactly
            await client.send(speech(0.25))
        await client.send({"type": "session.ping", "event_id": "p"})
        await client.send({"type": "segment.end"})
        assert (await client.hear("session.pong"))["re"] == "p"
        assert {error["code"] for error in client.said("session.error")} == {"speech-overflow"}
        finished = await client.hear("segment.finished")
        assert 1800 < finished["played_ms"] < 19_000
        await client.close()


async def test_a_flood_of_messages_holds_up_no_frames_of_others():
    with live(SETTINGS) as (_, address):  # pongs may wait for longer than with the others
        await flood_beside_a_viewer(address)


async def flood_beside_a_viewer(address):
    watching, flood = await join(address, "frames=jpeg"), await join(address)
    await watching.until(lambda: watching.kinds(1))

    async def send():
        with suppress(ConnectionClosed):
            while True:
                await flood.send('{"type": "session.configure", "x": "' + "y" * 1000 + '"}')

    sending = asyncio.create_task(send())
    await flood.hear("session.error")
    refused, began_s = len(flood.said("session.error")), time.monotonic()
    await asyncio.sleep(2)
    passed_s = time.monotonic() - began_s
    assert len(flood.said("session.error")) - refused <= 25 * passed_s
    count = len(watching.kinds(1))
    await watching.until(lambda: len(watching.kinds(1)) > count + 5, 3)
    sending.cancel()
    flood.socket.transport.abort()
    await flood.ended()
    await watching.close()


async def test_floods_and_giants_hurt_only_themselves(address):
    quiet, flood, giant = [await join(address) for _ in range(3)]
    for _ in range(1500):
        await flood.send('{"type": "session.ping"}')
    assert (await flood.hear("session.error"))["code"] == "message-rate"
    await giant.send(bytes(100_000))
    assert (await giant.hear("session.error"))["code"] == "message-too-large"
    with suppress(ConnectionClosed):
        await giant.send(bytes(1_000_000))
    assert await giant.ended() == 1009
    await quiet.send({"type": "session.ping", "event_id": "p"})
    assert (await quiet.hear("session.pong"))["re"] == "p"
    await quiet.close()
    await flood.close()


NAMES = st.sampled_from(
    ["session.ping", "session.configure", "avatar.interrupt", "avatar.select", "audio.append"]
    + ["segment.end", "overlay.update", "x.y", "session.ready"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=30) | st.sampled_from(
        ["pcm16", "opus", "jpeg", "rgb", "none", "amber", "AAAA", 8000, 48_000]
    ),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["format", "sample_rate", "channels", "a"]), inner),
    max_leaves=8,
)  # fmt: skip
FIELDS = st.dictionaries(
    st.sampled_from(["audio", "frames", "stats_s", "avatar", "overlay", "event_id"]), VALUES
)
MESSAGES = st.one_of(
    st.binary(max_size=400),
    st.text(max_size=100),
    st.builds(lambda name, fields: json.dumps({"type": name, **fields}), NAMES, FIELDS),
)


def test_whatever_a_client_says_the_others_go_on(address):
    bystander_said = []

    @tries(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(MESSAGES, max_size=12))
    def speak(messages):
        asyncio.run(one_hostile_client(address, messages, bystander_said))

    speak()
    assert bystander_said and not any("session.error" in told for told in bystander_said)


async def one_hostile_client(address, messages, bystander_said):
    bystander, hostile = await join(address, "avatar=blue"), await join(address)
    for message in messages:
        await hostile.send(message)
    await hostile.send({"type": "session.ping", "event_id": "last"})
    await bystander.send({"type": "session.ping", "event_id": "mine"})
    await hostile.until(
        lambda: any(one.get("re") == "last" for one in hostile.said("session.pong"))
    )
    await bystander.hear("session.pong")
    assert not any(told.get("fatal") for told in hostile.said("session.error"))
    bystander_said.append(types(bystander))
    await asyncio.gather(hostile.close(), bystander.close())


def test_sound_beyond_full_scale_is_clipped():
    assert to_int16(np.array([-3.0, 0.0, 2.0], np.float32)).tolist() == [-32_767, 0, 32_767]
