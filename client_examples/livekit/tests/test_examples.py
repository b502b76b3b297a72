"""The example agent, from the dispatch of its job to speech."""

import asyncio
import math
import runpy
import shutil
from functools import partial
from pathlib import Path

import pytest
from livekit import api
from support.listener import Listener
from support.waiting import until

from letstalk_rt.speech import open_speech

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
async def test_the_typed_agent_says_what_can_be_spoken(house, avatar, caplog):
    create_server = runpy.run_path(str(EXAMPLES / "typed_agent.py"))["create_server"]
    key, url = house.server.key, house.server.url
    key.pop("url")
    agent = create_server(
        avatar,
        open_speech("system"),
        ws_url=url,
        **key,
        host="127.0.0.1",
        port=0,
        num_idle_processes=1,
        load_threshold=math.inf,  # this machine may be busy with other tests
    )
    registered = asyncio.Event()
    agent.on("worker_registered", lambda *_: registered.set())
    running = asyncio.create_task(agent.run(devmode=True))
    await registered.wait()
    try:
        room = await house.join("user")
        async with api.LiveKitAPI(url, **key) as server:
            await server.agent_dispatch.create_dispatch(
                api.CreateAgentDispatchRequest(agent_name="letstalk-example", room=house.name)
            )
        await until(lambda: bool(room.remote_participants))
        (identity,) = room.remote_participants
        async with Listener(room, identity) as user:
            await user.until_loud(0.2)
            await user.until_quiet(1.0)
            for text, reason in (("\N{GRINNING FACE}", "nothing"), ("x" * 100_000, "split it")):
                await room.local_participant.send_text(text, topic="lk.chat")
                await until(partial(_is_logged, caplog, reason))
            await room.local_participant.send_text("Hello again.", topic="lk.chat")
            await user.until_loud(0.2)
    finally:
        await agent.aclose()
        await asyncio.gather(running, return_exceptions=True)


def _is_logged(caplog, reason: str) -> bool:
    return any(reason in record.getMessage() for record in caplog.records)
