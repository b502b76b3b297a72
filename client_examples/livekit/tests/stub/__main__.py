"""`python -m stub`: serve until the input is closed; the first line of output is the address."""

import asyncio
import sys

from stub.server import StubServer


async def _serve() -> None:
    async with StubServer() as server:
        print(server.url, flush=True)
        await asyncio.to_thread(sys.stdin.read)


asyncio.run(_serve())
