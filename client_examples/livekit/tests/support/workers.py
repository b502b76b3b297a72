"""Avatar workers, and what the stub knows of them."""

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from livekit import api
from livekit.plugins import letstalk

from letstalk_rt import Avatar
from support.servers import Server


@asynccontextmanager
async def avatar_worker(server: Server, avatar: Avatar, capacity: int = 1) -> AsyncIterator[str]:
    """Run a worker and yield its name, which no other test uses."""
    name = f"worker-{secrets.token_hex(4)}"
    worker = letstalk.avatar_server(
        avatar,
        capacity=capacity,
        worker=name,
        host="127.0.0.1",
        port=0,
        ws_url=server.url,
        api_key=server.api_key,
        api_secret=server.api_secret,
    )
    registered = asyncio.Event()
    worker.on("worker_registered", lambda *_: registered.set())
    running = asyncio.create_task(worker.run())
    try:
        await asyncio.wait(
            {running, asyncio.create_task(registered.wait())},
            return_when=asyncio.FIRST_COMPLETED,
        )
        yield name
    finally:
        await worker.aclose()
        await asyncio.gather(running, return_exceptions=True)


async def until_reported(server: Server, worker: str, status: str) -> int:
    """Wait until a worker has told the stub its status; return how often workers have refused.

    Raises:
        TimeoutError: it does not report it.
    """
    token = api.AccessToken(server.api_key, server.api_secret).to_jwt()
    url = f"{server.url.replace('ws', 'http', 1)}/stub/workers"
    async with aiohttp.ClientSession() as session, asyncio.timeout(20):
        for _ in itertools.count():
            async with session.get(url, headers={"Authorization": f"Bearer {token}"}) as response:
                told = await response.json()
            if told["statuses"].get(worker, [])[-1:] == [status]:
                break
            await asyncio.sleep(0.2)
    refused: int = told["refused"]
    return refused
