"""Moods, gestures and listening over a real WebSocket and a real data channel."""

import asyncio
import json
import shutil
import subprocess
from contextlib import asynccontextmanager

import httpx
import numpy as np
import pytest
from support.chat_server import chat_model
from support.live_server import join, live
from support.packages import needs
from support.server_fakes import (
    DirectedPainter,
    Peer,
    Voice,
    patient,
    problem,
    serving,
    tone,
)

from letstalk_rt.performance import GESTURES, LISTENING, MOODS
from letstalk_rt.performance.direction import channel
from letstalk_server.settings import Settings


@pytest.fixture(scope="module")
def painter():
    return DirectedPainter()


@pytest.fixture(scope="module")
def address(painter):
    with live(patient(speech="auto", max_sessions=50, max_subject_sessions=50), painter) as served:
        yield served[1]


async def until(condition):
    """Wait for something that happens in the model's thread."""
    for _ in range(1500):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not happen")


async def until_shown(painter, name, wanted):
    """Wait until the newest frames of the painter have a value of a channel."""
    await until(lambda: painter.directed and wanted(painter.shown(name)[-1]))


async def nods(painter, since):
    await until(lambda: max(painter.shown("pitch")[since:], default=0) > 0.1)


async def test_a_websocket_directs_and_everybody_is_told(address, painter):
    client = await join(address)
    ready = await client.hear("session.ready")
    assert ready["performance"] == {"mood": "neutral", "strength": 1.0, "listening": "off"}
    watcher = await join(address, f"session={ready['session']}")
    await client.send({"type": "performance.mood", "mood": "cheerful", "strength": 0.8})
    for each in (client, watcher):
        told = await each.hear("performance.updated")
        assert (told["mood"], told["strength"], told["listening"]) == ("cheerful", 0.8, "off")
    await until_shown(painter, "smile", lambda value: value > 0.2)
    count = len(painter.shown("pitch"))
    await client.send({"type": "performance.gesture", "gesture": "nod"})
    await nods(painter, count)
    await client.send({"type": "performance.listening", "mode": "attentive"})
    assert (await client.hear("performance.updated", 2))["listening"] == "attentive"
    await client.send({"type": "performance.mood", "style": {"smile": -2}})
    told = await client.hear("performance.updated", 3)
    assert told["style"]["smile"] == -2 and "mood" not in told
    await until_shown(painter, "smile", lambda value: value < -0.1)
    for each in (client, watcher):
        await each.close()


@pytest.mark.parametrize(
    "message, words",
    [
        ({"type": "performance.mood", "mood": "furious"}, "cheerful"),
        ('{"type": "performance.mood", "mood": "warm", "strength": NaN}', "JSON"),
        ({"type": "performance.mood", "style": {"smile": 1e300}}, "from -3 to 3"),
        ({"type": "performance.gesture", "gesture": "somersault"}, "nod"),
        ({"type": "performance.gesture", "gesture": "nod", "amount": 9}, "from 0.1 to 2"),
        ({"type": "performance.gesture", "gesture": "nod", "at_ms": -1}, "at_ms"),
        ({"type": "performance.listening", "mode": "asleep"}, "attentive"),
    ],
)
async def test_what_is_wrong_is_said_and_the_session_lives(address, message, words):
    client = await join(address)
    text = message if isinstance(message, str) else json.dumps(message)
    await client.send(text)
    error = await client.hear("session.error")
    assert error["code"] == "bad-message" and words in error["detail"] and not error["fatal"]
    await client.send({"type": "session.ping"})
    await client.hear("session.pong")
    await client.close()


async def test_a_flood_of_gestures_is_limited_and_the_session_lives(address, painter):
    client = await join(address)
    await client.hear("session.ready")
    for number in range(600):
        gesture = GESTURES[number % len(GESTURES)]
        await client.send({"type": "performance.gesture", "gesture": gesture, "at_ms": number})
    await client.send({"type": "session.ping", "event_id": "after"})
    errors = client.said("session.error")
    assert all(each["code"] == "message-rate" for each in errors)
    await asyncio.sleep(1.0)  # the rate recovers
    await client.send({"type": "performance.mood", "mood": "warm"})
    assert (await client.hear("performance.updated"))["mood"] == "warm"
    await client.close()


async def test_settings_outlive_the_connection(address, painter):
    async with httpx.AsyncClient(base_url=f"http://{address}") as http:
        session = (await http.post("/v1/sessions", json={})).json()["session"]
    client = await join(address, f"session={session}")
    await client.send({"type": "performance.mood", "mood": "serious"})
    await client.send({"type": "performance.listening", "mode": "calm"})
    await client.hear("performance.updated", 2)
    await client.socket.close()
    again = await join(address, f"session={session}")
    ready = await again.hear("session.ready")
    assert ready["resumed"]
    assert ready["performance"] == {"mood": "serious", "strength": 1.0, "listening": "calm"}
    count = len(painter.directed)
    await until_shown(painter, "brow_down", lambda value: value > 0.2)
    async with httpx.AsyncClient(base_url=f"http://{address}") as http:
        shown = (await http.get(f"/v1/sessions/{session}")).json()["performance"]
    assert shown["mood"] == "serious" and len(painter.directed) >= count
    await again.close()


async def test_a_session_begins_as_its_options_say(address, painter):
    async with httpx.AsyncClient(base_url=f"http://{address}") as http:
        options = {"style": {"smile": 3, "brows": 1}, "mood_strength": 0.5, "listening": "calm"}
        made = await http.post("/v1/sessions", json={"options": options})
        assert made.status_code == 201
        settings = made.json()["performance"]
        assert settings["style"]["brows"] == 1 and settings["strength"] == 0.5
        for wrong in (
            {"mood": "furious"},
            {"mood": "warm", "style": {}},
            {"mood_strength": 2},
            {"listening": 1},
            {"style": {"smile": "much"}},
        ):
            detail = problem(
                await http.post("/v1/sessions", json={"options": wrong}), 400, "bad-request"
            )
            assert "options are wrong" in detail
        config = (await http.get("/v1/config")).json()["performance"]
        assert config == {
            "available": True,
            "moods": list(MOODS),
            "gestures": list(GESTURES),
            "listening": list(LISTENING),
        }
        await http.delete(f"/v1/sessions/{made.json()['session']}")


async def test_a_data_channel_directs_and_an_early_gesture_is_not_lost():
    painter = DirectedPainter()
    async with serving(pipeline=painter) as (_, client):
        peer = await Peer().join(client)
        peer.send({"type": "performance.gesture", "gesture": "nod"})
        peer.send({"type": "performance.mood", "mood": "warm"})
        await peer.until(lambda: peer.said("performance.updated"))
        await nods(painter, 0)
        await until_shown(painter, "smile", lambda value: value > 0.15)
        peer.send({"type": "performance.mood", "mood": "furious"})
        await peer.until(lambda: peer.said("session.error"))
        assert peer.said("session.error")[0]["code"] == "bad-message"
        await peer.until(lambda: green_of(peer.video[-1]) > 40)  # it is seen in the video
        await peer.close()


def green_of(frame):
    """Return how far the patch at the right edge of a frame is green."""
    _, green, blue = frame.to_ndarray(format="rgb24")[8:24, -24:-8].mean((0, 1))
    return green - blue


async def test_a_model_without_moods_refuses_and_speaks_texts_without_their_tags():
    async with serving() as (_, client):
        peer = await Peer().join(client)
        for message in (
            {"type": "performance.mood", "mood": "warm"},
            {"type": "performance.gesture", "gesture": "nod", "at_ms": 100},
            {"type": "performance.listening", "mode": "calm"},
        ):
            peer.send(message)
        await peer.until(lambda: len(peer.said("session.error")) == 3)
        assert {each["code"] for each in peer.said("session.error")} == {"not-directable"}
        refused = await client.post("/v1/sessions", json={"options": {"mood": "warm"}})
        assert "tiny" in problem(refused, 409, "not-directable")
        config = (await client.get("/v1/config")).json()["performance"]
        assert config["available"] is False
        await peer.close()


async def test_a_gesture_with_a_time_comes_in_the_segment_that_is_pushed(address, painter):
    client = await join(address, "frames=jpeg&max_fps=25")
    await client.hear("session.ready")
    count = len(painter.directed)
    await client.send({"type": "performance.gesture", "gesture": "nod", "at_ms": 1500})
    await client.send((0.2 * tone(3.0)).astype("<i2")[::3].tobytes())
    await client.send({"type": "segment.end"})
    await client.hear("segment.finished")
    assert max(painter.shown("pitch")[4 * count :]) > 0.1
    await client.close()


@needs("espeak-ng")
async def test_tags_of_a_text_are_performed_and_unknown_ones_are_told_to_the_sender(
    address, painter
):
    client = await join(address, "frames=jpeg&max_fps=1")
    session = (await client.hear("session.ready"))["session"]
    watcher = await join(address, f"session={session}")
    count = len(painter.shown("pitch"))
    text = "[warm] This is a sentence with a nod [nods] in its middle. [wobbles] Bye."
    await client.send({"type": "speech.say", "text": text, "event_id": "t1"})
    warning = await client.hear("session.warning")
    assert warning["code"] == "unknown-tags" and "wobbles" in warning["detail"]
    assert warning["re"] == "t1"
    assert (await watcher.hear("performance.updated"))["mood"] == "warm"
    await client.hear("segment.finished")
    assert max(painter.shown("pitch")[count:]) > 0.1
    assert watcher.said("session.warning") == []
    await client.send({"type": "speech.say", "text": "[wobbles]"})
    assert (await client.hear("session.error"))["code"] == "bad-text"
    count = len(painter.shown("pitch"))
    await client.send({"type": "speech.say", "text": "[nods]"})
    await nods(painter, count)
    for each in (client, watcher):
        await each.close()


@asynccontextmanager
async def conversing(painter, *answers):
    """Serve a conversation with a stub of a chat model and a painted avatar."""
    pytest.importorskip("pocketsphinx")
    if shutil.which("espeak-ng") is None:
        pytest.skip("no espeak-ng")
    async with chat_model(*answers) as (stub, url):
        settings = patient(chat_url=url, chat_model="small")
        async with serving(settings, painter) as (_, client):
            yield stub, client


def call(name, **arguments):
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": function}]}


async def test_a_chat_model_directs_by_tools_and_tags():
    painter = DirectedPainter()
    calls = call("set_mood", mood="cheerful"), call("gesture", gesture="somersault")
    async with conversing(painter, *calls, "[nods] How nice.") as (stub, client):
        peer = await Peer().join(client)
        peer.send({"type": "conversation.configure"})
        await peer.until(lambda: peer.said("conversation.configured"))
        await asyncio.sleep(1.0)  # the conversation opens its recogniser
        peer.send({"type": "conversation.say", "text": "Hello"})
        await peer.until(lambda: peer.said("segment.finished"))
        await nods(painter, 0)
        told = peer.said("performance.updated")
        assert [each["mood"] for each in told] == ["cheerful"]
        captions = [each["text"] for each in peer.said("conversation.caption")]
        assert captions[-1] == "How nice."
        await peer.close()
    names = [tool["function"]["name"] for tool in stub.requests[0]["tools"]]
    assert names == ["set_mood", "gesture"]
    assert "[smiles]" in stub.requests[0]["messages"][0]["content"]
    results = [m["content"] for m in stub.requests[2]["messages"] if m["role"] == "tool"]
    assert results[0] == "done" and "raise_brows" in results[1]


@needs("espeak-ng")
async def test_the_avatar_listens_to_the_microphone_of_a_conversation(speech):
    painter = DirectedPainter()
    async with conversing(painter, "Yes.") as (_, client):
        peer = Peer(Voice(speech))
        await peer.join(client, options={"listening": "attentive"})
        peer.send({"type": "conversation.configure"})
        await peer.until(lambda: peer.said("conversation.configured"))
        gaze = channel("gaze_x")  # the avatar looks at whoever speaks
        await until(lambda: any(each.kept[:, gaze].min() < 0.5 for each in painter.directed))
        await peer.close()


@needs("espeak-ng")
async def test_a_microphone_that_moves_the_lips_is_not_listened_to(speech):
    painter = DirectedPainter()
    async with serving(Settings(), painter) as (_, client):
        peer = Peer(Voice(speech))
        await peer.join(client, options={"listening": "attentive"})
        await peer.until(lambda: peer.said("avatar.speaking"))
        await asyncio.sleep(2.0)
        assert all((window.kept == 1).all() for window in painter.directed)
        await peer.close()


@pytest.fixture(scope="module")
def speech():
    """A spoken sentence and then silence, 48 kHz int16."""
    words = ["espeak-ng", "-v", "en-us", "--stdout", "Good morning, I would like to tell you this."]
    done = subprocess.run(words, capture_output=True, check=True)
    pcm = np.frombuffer(done.stdout[44:], np.int16) / 2
    at = np.arange(int(len(pcm) * 48_000 / 22_050)) * 22_050 / 48_000
    spoken = np.interp(at, np.arange(len(pcm)), pcm).astype(np.int16)
    return np.concatenate([spoken, np.zeros(48_000, np.int16)])
