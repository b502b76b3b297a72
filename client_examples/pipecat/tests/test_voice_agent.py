"""The example: a whole voice agent, with a canned server for recogniser, brain and voice."""

import asyncio
import importlib.util
import shutil
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer
from canned_openai import CannedServer, speak
from peer import MICROPHONE_HZ, Microphone, Peer, in_real_time
from pipecat.runner.types import SmallWebRTCRunnerArguments
from pipecat.transports.smallwebrtc.connection import SmallWebRTCConnection

pytestmark = pytest.mark.skipif(
    shutil.which("espeak-ng") is None, reason="the user speaks by espeak-ng"
)
EXAMPLE = Path(__file__).parents[1] / "examples" / "voice_agent.py"
LONG = "My answer is rather long, so that you have all the time that you need to interrupt me. "
ANSWERS = ("Hello there.", *[LONG * 4] * 9)
LONG_S = 16
"""The long answer takes longer than this."""

ASK_AGAIN_S = 10.0
"""On a busy machine the microphone's packets come too late, and a question is not understood."""


@pytest.fixture
def example(avatar, monkeypatch):
    """The example, with a painted avatar."""
    spec = importlib.util.spec_from_file_location("voice_agent", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "load_avatar", lambda portrait, size: avatar)
    return module


@asynccontextmanager
async def called(example, base_url):
    """Start the agent of the example as Pipecat's runner does; yield its caller."""
    peer, connection = Peer(Microphone()), SmallWebRTCConnection()
    offer = await peer.offer()
    await connection.initialize(sdp=offer.sdp, type=offer.type)
    arguments = SmallWebRTCRunnerArguments(webrtc_connection=connection)
    arguments.cli_args = example.command_line().parse_args(
        ["--base-url", base_url, "--api-key", "none"]
    )
    agent = asyncio.create_task(example.bot(arguments))
    await peer.answer(connection.get_answer())
    await connection.connect()
    try:
        yield peer
    finally:
        await peer.close()
        await asyncio.wait_for(agent, 20)


async def ask(peer, is_understood):
    """Ask a question, and ask again until it is understood."""
    question = await speak("What do you think about the weather today?", MICROPHONE_HZ)
    async with asyncio.timeout(6 * ASK_AGAIN_S):
        while not is_understood():
            peer.microphone.say(question)
            try:
                await peer.until(is_understood, ASK_AGAIN_S)
            except TimeoutError:
                continue


async def test_it_greets_answers_and_can_be_interrupted(example):
    server = CannedServer(ANSWERS, heard="What do you think?")
    async with (
        TestServer(server.app()) as http,
        called(example, str(http.make_url("/v1"))) as peer,
        in_real_time(),
    ):
        await peer.until(lambda: peer.loud_since(0) and peer.bright_since(0))
        await peer.until(lambda: peer.is_quiet_for(0.7))
        assert server.said == ["Hello there."]

        asked_s = time.monotonic()
        await ask(peer, lambda: len(server.said) > 1 and peer.loud_since(asked_s))
        assert {"role": "user", "content": server.heard} in server.conversations[1]

        conversations = len(server.conversations)
        await ask(peer, lambda: peer.is_quiet_for(0.5))
        assert time.monotonic() - peer.loud_since(asked_s)[0] < LONG_S
        await peer.until(lambda: len(server.conversations) > conversations)


async def test_a_server_that_is_not_there_does_not_end_the_call(example):
    async with called(example, "http://127.0.0.1:9/v1") as peer, in_real_time():
        await peer.until(lambda: len(peer.seen) > 10)
        count = len(peer.seen)
        await peer.until(lambda: len(peer.seen) > count + 30)
        assert peer.loud_since(0) == []
