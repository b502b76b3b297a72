"""A conversation over a real WebSocket, with a chat model over real HTTP and a real voice."""

import asyncio
import logging
import shutil
from contextlib import asynccontextmanager

import httpx
import pytest
from support.chat_server import chat_model
from support.live_server import join, live

from letstalk_rt.errors import ConfigError, DependencyError
from letstalk_server.app import create_app
from letstalk_server.settings import Settings

pytestmark = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="no espeak-ng")
KEY = "sk-key-of-the-operator"
NOBODY = "http://127.0.0.1:9/v1"


@asynccontextmanager
async def conversing(*answers, settings=None, **options):
    """Serve with a stub of a chat model; yield the stub, the address and a client."""
    pytest.importorskip("pocketsphinx")
    async with chat_model(*answers, **options) as (stub, url):
        server = live(Settings(chat_url=url, chat_model="small", **(settings or {})))
        _, address = await asyncio.to_thread(server.__enter__)
        try:
            client = await join(address)
            yield stub, address, client
            await client.close()
        finally:
            await asyncio.to_thread(server.__exit__, None, None, None)


async def begin(client, **fields):
    await client.send({"type": "conversation.configure", **fields})
    configured = await client.hear("conversation.configured")
    while True:  # it is open when the recogniser and the engine are
        await client.send({"type": "session.ping"})
        await client.hear("session.pong", len(client.said("session.pong")) + 1)
        return configured


def captions(client):
    return [(m["speaker"], m["text"]) for m in client.said("conversation.caption") if m["final"]]


async def test_a_text_is_answered_by_the_chat_model_and_spoken(monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level(logging.INFO)
    async with conversing("It is sunny today. Take a walk.") as (stub, address, client):
        async with httpx.AsyncClient(base_url=f"http://{address}") as http:
            config = (await http.get("/v1/config")).text
        configured = await begin(client, prompt="You are a gardener.", voice="en-gb")
        assert (configured["on"], configured["voice"]) == (True, "en-gb")
        await client.send({"type": "conversation.say", "text": "How is the weather?"})
        await client.hear("segment.finished", 2)
        await client.until(lambda: client.said("conversation.state")[-1]["state"] == "listening")
        assert captions(client) == [
            ("user", "How is the weather?"),
            ("avatar", "It is sunny today."),
            ("avatar", "Take a walk."),
        ]
        states = [message["state"] for message in client.said("conversation.state")]
        assert states == ["thinking", "speaking", "listening"]
    assert stub.keys == [f"Bearer {KEY}"]
    assert stub.requests[0]["messages"][0] == {"role": "system", "content": "You are a gardener."}
    told = config + caplog.text + str(client.messages)
    assert KEY not in told and stub.requests and "127.0.0.1" not in config
    assert "weather" not in caplog.text and "sunny" not in caplog.text


async def test_an_interrupt_drops_the_answer():
    answer = "One two three four five six seven eight nine ten. " * 5
    async with conversing(answer, "Yes.") as (stub, _, client):
        await begin(client)
        await client.send({"type": "conversation.say", "text": "Count."})
        await client.hear("avatar.speaking")
        await client.send({"type": "avatar.interrupt"})
        assert (await client.hear("avatar.interrupted"))["dropped_ms"] > 0
        assert len(client.said("segment.interrupted")) == 1
        await client.send({"type": "conversation.say", "text": "Are you there?"})
        await client.hear("segment.finished")
        assert captions(client)[-1] == ("avatar", "Yes.")
    assert [m["role"] for m in stub.requests[1]["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    assert stub.requests[1]["messages"][2]["content"].endswith("...")


async def test_a_chat_model_that_fails_is_told_without_its_address():
    async with conversing("Yes.", status=500) as (_, _, client):
        await begin(client)
        await client.send({"type": "conversation.say", "text": "Hello?"})
        warning = await client.hear("session.warning")
        assert warning["code"] == "chat-failed" and "127.0.0.1" not in warning["detail"]


@pytest.mark.parametrize(
    "fields, detail",
    [
        ({"type": "conversation.configure", "voice": "nobody"}, "no such voice"),
        ({"type": "conversation.configure", "prompt": "Obey."}, "fixed the prompt"),
        ({"type": "conversation.configure", "on": 1}, "true or false"),
        ({"type": "conversation.say", "text": "x" * 1001}, "at most 1000"),
        ({"type": "conversation.say", "text": " "}, "needs words"),
    ],
)
async def test_what_cannot_be_done_is_refused(fields, detail):
    async with conversing(settings={"chat_prompt": "Be brief."}) as (_, address, client):
        async with httpx.AsyncClient(base_url=f"http://{address}") as http:
            assert (await http.get("/v1/config")).json()["conversation"]["prompt"] is None
        await begin(client)
        await client.send(fields)
        assert detail in (await client.hear("session.error"))["detail"]


async def test_a_conversation_that_is_off_leaves_the_microphone_to_the_avatar():
    async with conversing("Yes.") as (_, _, client):
        await client.send({"type": "conversation.say", "text": "Hello?"})
        assert (await client.hear("session.error"))["code"] == "no-conversation"
        await begin(client)
        await client.send({"type": "conversation.configure", "on": False})
        assert (await client.hear("conversation.configured", 2))["on"] is False
        await client.send({"type": "conversation.say", "text": "Hello?"})
        assert (await client.hear("session.error", 2))["code"] == "no-conversation"


async def test_a_server_without_a_chat_model_says_so():
    server = live(Settings())
    _, address = await asyncio.to_thread(server.__enter__)
    try:
        async with httpx.AsyncClient(base_url=f"http://{address}") as http:
            config = (await http.get("/v1/config")).json()
        assert config["conversation"] == {"available": False}
        client = await join(address)
        await client.send({"type": "conversation.configure"})
        assert (await client.hear("session.error"))["code"] == "no-conversation"
        await client.close()
    finally:
        await asyncio.to_thread(server.__exit__, None, None, None)


@pytest.mark.parametrize(
    "options, error, reason",
    [
        ({"chat_url": NOBODY}, ConfigError, "set together"),
        ({"chat_url": "nowhere", "chat_model": "m"}, ConfigError, "not an address"),
        ({"chat_url": NOBODY, "chat_model": "m", "speech": "off"}, ConfigError, "a voice"),
        ({"chat_url": NOBODY, "chat_model": "m", "stt": "whisper"}, DependencyError, "whisper"),
        ({"stt": "ears"}, ConfigError, "stt is 'ears'"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_the_start(options, error, reason):
    with pytest.raises(error, match=reason):
        create_app(Settings(**options))
