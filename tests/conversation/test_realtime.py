"""A conversation through a real WebSocket with a server that speaks the Realtime interface."""

import asyncio
import logging
from contextlib import asynccontextmanager
from itertools import groupby

import numpy as np
import pytest
from support.realtime_server import RATE, realtime_server

from letstalk_rt.conversation import RealtimeConversation
from letstalk_rt.conversation.interface import Caption, Failure, StateChange
from letstalk_rt.errors import ConfigError
from letstalk_rt.session.events import Event
from letstalk_rt.types import Interrupted

KEY = "sk-key-of-the-operator"
MIC_HZ = 16_000
LIMIT_S = 20


class Avatar:
    """A session that plays what is pushed when the test says so."""

    def __init__(self):
        self.epoch, self.segments, self.listeners = 0, [], []
        self.pushed = 0
        self.listened = []

    async def push_audio(self, pcm, sample_rate):
        assert pcm.dtype == np.int16 and sample_rate == RATE
        self.pushed += len(pcm)
        if self.pushed == len(pcm):
            self._emit("segment.started")

    async def end_segment(self):
        self.segments.append(self.pushed)
        self.pushed = 0

    def interrupt(self):
        self.epoch += 1
        self.pushed, self.segments = 0, []
        return Interrupted(700, 1300)

    def push_listened(self, speaking, pitch_hz=None):
        self.listened.append(speaking)

    def on_event(self, listener):
        self.listeners.append(listener)
        return lambda: self.listeners.remove(listener)

    def play(self):
        """Play all that was pushed to its end."""
        for _ in self.segments:
            self._emit("segment.finished")
        self.segments = []

    def _emit(self, kind):
        for listener in list(self.listeners):
            listener(Event(kind))


class Talk:
    """A conversation with what it tells."""

    def __init__(self, url, **options):
        self.avatar, self.events = Avatar(), []
        self.conversation = RealtimeConversation(
            self.avatar, url, on_event=self.events.append, **options
        )

    def speak(self, seconds, level=0.5):
        """Speak, or be silent at level 0, in pieces of a microphone."""
        tone = level * np.sin(np.arange(round(seconds * MIC_HZ)) * 0.3)
        for piece in np.array_split(tone.astype(np.float32), round(seconds * 25)):
            self.conversation.hear(piece, MIC_HZ)

    def states(self):
        return [event.state for event in self.events if isinstance(event, StateChange)]

    def captions(self):
        seen = [event for event in self.events if isinstance(event, Caption) and event.final]
        return [(caption.speaker, caption.text) for caption in seen]

    def failures(self):
        return [event.message for event in self.events if isinstance(event, Failure)]


@asynccontextmanager
async def talking(url, **options):
    talk = Talk(url, **options)
    async with talk.conversation:
        yield talk


async def until(condition):
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110  # of several clients and servers
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("released", [True, False], ids=["released", "beta"])
async def test_a_question_is_heard_answered_and_spoken(released):
    async with realtime_server(released=released) as (server, url), talking(url) as talk:
        await until(lambda: server.said("session.update"))
        talk.speak(0.5)
        talk.speak(0.8, level=0)
        await until(lambda: talk.avatar.segments)
        assert talk.avatar.segments == [2 * RATE], "all of the tone, as one segment"
        assert talk.captions() == [
            ("user", "Hello there."),
            ("avatar", "How are you?"),
            ("avatar", "I am fine."),
        ]
        partial = [e.text for e in talk.events if isinstance(e, Caption) and not e.final]
        assert partial == ["Hello", "Hello there."]
        talk.avatar.play()
        assert talk.states() == ["hearing", "thinking", "speaking", "listening"]
        heard = [speaking for speaking, _ in groupby(talk.avatar.listened)]
        assert heard == [True, False], "the avatar listens while the user speaks"
        assert abs(server.heard - 1.3 * RATE) < 0.05 * RATE
        assert not talk.failures()


@pytest.mark.parametrize("released", [True, False], ids=["released", "beta"])
async def test_the_server_is_configured_in_its_own_words(released):
    async with realtime_server(released=released) as (server, url):
        options = {"voice": "verse", "prompt": "You are a gardener.", "model": "small one"}
        async with talking(url, **options) as talk:
            await until(lambda: server.said("session.update"))
            talk.conversation.prompt = "You are a cook."
            await until(lambda: len(server.said("session.update")) == 2)
    first, second = (message["session"] for message in server.said("session.update"))
    assert first["instructions"] == "You are a gardener."
    assert second == first | {"instructions": "You are a cook."}
    assert server.paths == ["/v1/realtime?model=small+one"]
    if released:
        assert first["audio"]["output"]["voice"] == "verse" and first["type"] == "realtime"
        assert first["audio"]["input"]["turn_detection"]["type"] == "server_vad"
        assert first["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": RATE}
    else:
        assert first["voice"] == "verse" and first["input_audio_format"] == "pcm16"
        assert first["turn_detection"]["type"] == "server_vad"


async def test_whoever_speaks_silences_the_avatar_and_the_server_knows_what_was_heard():
    async with realtime_server(answer_s=61) as (server, url), talking(url) as talk:
        talk.conversation.say("Count.")  # also before there is a connection
        await until(lambda: talk.states() == ["thinking", "speaking"])
        talk.speak(0.3)
        await until(lambda: server.said("conversation.item.truncate"))
        assert talk.avatar.epoch == 1 and talk.avatar.pushed == 0
        assert len(server.said("response.cancel")) == 1
        (truncated,) = server.said("conversation.item.truncate")
        assert (truncated["item_id"], truncated["audio_end_ms"]) == ("a1", 700)
        assert talk.conversation.state == "hearing"
        talk.speak(0.8, level=0)
        await until(lambda: talk.conversation.state == "speaking")
        assert not talk.failures()


async def test_an_answer_that_was_cancelled_is_not_heard_any_more():
    async with realtime_server(answer_s=61) as (server, url), talking(url) as talk:
        talk.conversation.say("Count.")
        await until(lambda: talk.avatar.pushed)
        talk.conversation.interrupt()
        pushed = talk.avatar.pushed
        await until(lambda: server.said("response.cancel"))
        await asyncio.sleep(0.1)
        assert talk.avatar.pushed == pushed == 0
        assert talk.conversation.state == "listening"


async def test_a_text_is_answered():
    async with realtime_server() as (server, url), talking(url) as talk:
        talk.conversation.say("How are you?")
        await until(lambda: talk.avatar.segments)
        (item,) = server.said("conversation.item.create")
        assert item["item"]["content"] == [{"type": "input_text", "text": "How are you?"}]
        assert talk.captions()[0] == ("user", "How are you?")


async def test_a_tool_is_run_and_its_result_told():
    async def run(name, arguments):
        return f"{name} of {arguments['city']}: 21 degrees"

    tool = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
    async with realtime_server(call="weather") as (server, url):
        async with talking(url, tools=[tool], on_tool_call=run) as talk:
            talk.conversation.say("How warm is it?")
            await until(lambda: talk.avatar.segments)
    assert server.said("session.update")[0]["session"]["tools"] == [tool]
    result = server.said("conversation.item.create")[1]["item"]
    assert result["output"] == "weather of Rome: 21 degrees" and result["call_id"] == "c1"


async def test_a_source_is_heard_to_its_end_and_the_last_answer_played():
    class Microphone:
        sample_rate = MIC_HZ

        async def __aiter__(self):
            for number in range(20):
                await asyncio.sleep(0.01)
                yield np.full(640, 0.5 * (-1) ** number, np.float32)

    async with realtime_server() as (server, url), talking(url) as talk:
        await until(lambda: server.said("session.update"))
        listening = asyncio.create_task(talk.conversation.listen(Microphone()))
        await until(lambda: talk.avatar.segments)
        assert not listening.done()
        talk.avatar.play()
        await asyncio.wait_for(listening, LIMIT_S)


async def test_a_lost_connection_is_reported_and_opened_again():
    async with realtime_server() as (server, url), talking(url) as talk:
        await until(lambda: server.said("session.update"))
        await server.sockets[0].close(1011)
        await until(lambda: len(server.said("session.update")) == 2)
        talk.conversation.say("Are you there?")
        await until(lambda: talk.avatar.segments)
    (failure,) = talk.failures()
    assert "the Realtime server at 127.0.0.1" in failure


async def test_a_refused_key_is_said_once_and_neither_logged_nor_told(monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    async with realtime_server(refuse=401) as (server, url), talking(url) as talk:
        await until(talk.failures)
    assert server.keys == [f"Bearer {KEY}"]
    assert "refused the key" in talk.failures()[0] and "OPENAI_API_KEY" in talk.failures()[0]
    client_logs = [r.getMessage() for r in caplog.records if r.name != "websockets.server"]
    assert KEY not in str(talk.events) + str(client_logs)


async def test_a_server_that_speaks_something_else_is_named():
    async with realtime_server() as (server, url):
        async with talking(url) as talk:
            await until(lambda: server.sockets)
            await server.sockets[0].send("[1, 2]")
            await until(talk.failures)
    assert "not the Realtime interface" in talk.failures()[0]


async def test_nobody_at_the_address_is_a_failure_not_an_end():
    async with talking("ws://127.0.0.1:9/v1/realtime") as talk:
        await until(talk.failures)
    assert "cannot be reached" in talk.failures()[0]


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://host/v1/realtime"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ConfigError, match="is not an address like ws://"):
        RealtimeConversation(Avatar(), url)


def test_tools_need_a_callback():
    with pytest.raises(ConfigError, match="on_tool_call"):
        RealtimeConversation(Avatar(), "ws://host/v1/realtime", tools=[{"name": "weather"}])
