"""Text over a real WebSocket is spoken by a real voice, an endpoint, or refused with a reason."""

import asyncio
import json
import logging

import httpx
import numpy as np
import pytest
from support.live_server import join, live
from support.packages import needs
from support.speech_endpoint import endpoint

from letstalk_rt.errors import ConfigError, DependencyError
from letstalk_server.app import create_app
from letstalk_server.http.binary_frames import PayloadType
from letstalk_server.settings import Settings

needs_espeak = needs("espeak-ng")
SECRET = "My secret number is four seven eleven."


@pytest.fixture(scope="module")
def address():
    with live(Settings(speech="auto", max_say_chars=200)) as (_, address):
        yield address


def heard(client):
    return np.frombuffer(b"".join(p[-1] for p in client.kinds(PayloadType.PCM16)), "<i2")


@needs_espeak
async def test_a_text_is_spoken_and_finished(address, caplog):
    caplog.set_level(logging.INFO)
    client = await join(address, "frames=jpeg&max_fps=1")
    await client.send({"type": "speech.say", "text": SECRET})
    await client.hear("avatar.speaking")
    finished = await client.hear("segment.finished")
    assert finished["played_ms"] > 1500
    assert np.abs(heard(client).astype(int)).max() > 2000
    assert "secret" not in caplog.text and "eleven" not in caplog.text
    await client.close()


@needs_espeak
async def test_texts_are_spoken_one_after_the_other(address):
    client = await join(address)
    await client.send({"type": "speech.say", "text": "one"})
    await client.send({"type": "speech.say", "text": "two"})
    await client.hear("segment.finished", 2)
    assert [m["segment_id"] for m in client.said("segment.finished")] == [0, 1]
    await client.close()


@needs_espeak
async def test_a_text_is_spoken_with_the_voice_that_it_names_if_the_server_has_that(address):
    async with httpx.AsyncClient(base_url=f"http://{address}") as http:
        voices = (await http.get("/v1/config")).json()["speech"]["voices"]
    assert {"de", "en-gb"} <= set(voices)
    client = await join(address, "frames=jpeg&max_fps=1")
    lengths = []
    for voice in ("", "de", "de"):
        await client.send({"type": "speech.say", "text": "My name is Mary.", "voice": voice})
        lengths.append((await client.hear("segment.finished", len(lengths) + 1))["played_ms"])
    default, german, again = lengths
    assert german == again != default
    for voice in ("klingon", "../voice.onnx", 5):
        await client.send({"type": "speech.say", "text": "Hello.", "voice": voice})
    await client.hear("session.error", 3)
    assert {error["code"] for error in client.said("session.error")} == {"bad-message"}
    await client.close()


@needs_espeak
async def test_an_interrupt_stops_what_is_still_synthesised_and_what_waits(address):
    client = await join(address)
    for _ in range(3):
        await client.send({"type": "speech.say", "text": "one two three four five six seven " * 5})
    await client.hear("avatar.speaking")
    await client.send({"type": "avatar.interrupt"})
    assert (await client.hear("avatar.interrupted"))["dropped_ms"] > 1000
    await client.send({"type": "speech.say", "text": "again"})
    finished = await client.hear("segment.finished")
    assert finished["played_ms"] < 2000, "only the new text"
    await client.close()


@needs_espeak
@pytest.mark.parametrize(
    "message, code",
    [
        ({"text": ""}, "bad-text"),
        ({"text": "\U0001f600\U0001f680"}, "bad-text"),
        ({"text": "\x00\x1b\x07"}, "bad-text"),
        ({"text": "x" * 201}, "bad-text"),
        ({"text": "é" * 50_000}, "bad-text"),
        ({"text": 5}, "bad-message"),
        ({}, "bad-message"),
        ({"text": ["a"]}, "bad-message"),
    ],
)
async def test_bad_texts_are_refused_and_the_session_lives(address, message, code):
    client = await join(address)
    await client.send({"type": "speech.say", "event_id": "t1", **message})
    error = await client.hear("session.error")
    assert (error["code"], error["re"], error["fatal"]) == (code, "t1", False)
    assert len(error["detail"]) < 200
    await client.send({"type": "speech.say", "text": "well"})
    await client.hear("segment.finished")
    await client.close()


@needs_espeak
async def test_a_text_of_a_megabyte_leaves_the_session_alive(address):
    async with httpx.AsyncClient(base_url=f"http://{address}") as http:
        session = (await http.post("/v1/sessions", json={})).json()["session"]
        client = await join(address, f"session={session}")
        await client.hear("session.ready")
        await client.send(json.dumps({"type": "speech.say", "text": "x" * 1_000_000}))
        await client.until(lambda: client.said("session.error") or client.reader.done())
        assert (await http.get(f"/v1/sessions/{session}")).status_code == 200
    await client.close()
    again = await join(address, f"session={session}")
    await again.send({"type": "speech.say", "text": "still here"})
    await again.hear("segment.finished")
    await again.close()


@needs_espeak
async def test_texts_have_a_rate_and_a_queue(address):
    client = await join(address)
    for _ in range(12):
        await client.send({"type": "speech.say", "text": "one two three four five six seven eight"})
    await client.until(lambda: len(client.said("session.error")) >= 3)
    codes = {message["code"] for message in client.said("session.error")}
    assert codes == {"speech-overflow", "message-rate"}
    await client.send({"type": "avatar.interrupt"})
    await client.hear("avatar.interrupted")
    await client.close()


async def test_an_endpoint_speaks_and_its_death_is_no_end():
    async with endpoint(seconds=2.0) as served:
        settings = Settings(speech="openai", speech_url=served.url, speech_voice="nova")
        server = live(settings)
        _, address = await asyncio.to_thread(server.__enter__)
        try:
            client = await join(address)
            await client.send({"type": "speech.say", "text": SECRET})
            finished = await client.hear("segment.finished")
            assert finished["played_ms"] == pytest.approx(2000, abs=2)
            assert served.requests[0][1]["input"] == SECRET
            served.status = 401
            await client.send({"type": "speech.say", "text": SECRET, "event_id": "t2"})
            error = await client.hear("session.error")
            assert (error["code"], error["re"]) == ("speech-failed", "t2")
            assert "127.0.0.1" not in error["detail"], "where the endpoint is, is not told"
            served.status = 200
            await client.send({"type": "speech.say", "text": SECRET})
            await client.hear("segment.finished", 2)
            await client.close()
        finally:
            await asyncio.to_thread(server.__exit__, None, None, None)


async def test_a_server_without_a_voice_says_so():
    server = live(Settings(speech="off"))
    _, address = await asyncio.to_thread(server.__enter__)
    try:
        async with httpx.AsyncClient(base_url=f"http://{address}") as http:
            speech = (await http.get("/v1/config")).json()["speech"]
        assert speech == {"available": False, "max_chars": 1000, "voices": []}
        client = await join(address)
        await client.send({"type": "speech.say", "text": "hello"})
        assert (await client.hear("session.error"))["code"] == "no-speech-engine"
        await client.close()
    finally:
        await asyncio.to_thread(server.__exit__, None, None, None)


@needs_espeak
async def test_what_a_viewer_types_is_not_spoken():
    server = live(Settings(auth="on", secret="s" * 32, api_key="k" * 32))
    _, address = await asyncio.to_thread(server.__enter__)
    try:
        async with httpx.AsyncClient(base_url=f"http://{address}") as http:
            http.headers["authorization"] = "Bearer " + "k" * 32
            session = (await http.post("/v1/sessions", json={})).json()
        protocols = ["letstalk.v1", f"bearer.{session['viewer_token']}"]
        client = await join(address, f"session={session['session']}", subprotocols=protocols)
        await client.send({"type": "speech.say", "text": "hello"})
        assert (await client.hear("session.error"))["code"] == "not-allowed"
        await client.close()
    finally:
        await asyncio.to_thread(server.__exit__, None, None, None)


def test_an_engine_that_cannot_be_used_is_an_error_at_the_start(monkeypatch):
    with pytest.raises(ConfigError, match="onnx"):
        create_app(Settings(speech="piper"))
    with pytest.raises(ConfigError, match="base URL"):
        create_app(Settings(speech="openai", speech_url="nowhere"))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(DependencyError, match="espeak-ng"):
        create_app(Settings(speech="system"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert create_app(Settings()).state.text_to_speech is None
