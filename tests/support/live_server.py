"""The real server, uvicorn with WebSockets, in a thread of the test process."""

import asyncio
import json
import threading
from contextlib import contextmanager, suppress

import numpy as np
import uvicorn
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from letstalk_server.app import create_app
from letstalk_server.http.binary_frames import HEADER
from letstalk_server.settings import Settings
from support.server_fakes import Painter, model_of


class Server(uvicorn.Server):
    """Sets `is_up` when it has started or has failed to."""

    def __init__(self, config):
        super().__init__(config)
        self.is_up = threading.Event()

    async def startup(self, sockets=None):
        try:
            await super().startup(sockets)
        finally:
            self.is_up.set()


@contextmanager
def live(settings=None, pipeline=None, **uvicorn_options):
    """Serve on a free port; yield the application and `host:port`."""
    app = create_app(settings or Settings(), model_of(pipeline or Painter()))
    options = {"ws": "websockets-sansio", "log_level": "error", "access_log": False}
    config = uvicorn.Config(app, port=0, **(options | uvicorn_options))
    server = Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert server.is_up.wait(120) and server.started
        port = server.servers[0].sockets[0].getsockname()[1]
        yield app, f"127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


class Client:
    """A WebSocket client that records messages and binary packets."""

    def __init__(self, socket):
        self.socket = socket
        self.messages, self.packets = [], []
        self.changed = asyncio.Event()
        self.reader = asyncio.create_task(self._read())

    async def _read(self):
        with suppress(ConnectionClosed):
            async for data in self.socket:
                if isinstance(data, str):
                    self.messages.append(json.loads(data))
                else:
                    self.packets.append((*HEADER.unpack_from(data), data[HEADER.size :]))
                self.changed.set()
        self.changed.set()

    async def send(self, data):
        await self.socket.send(data if isinstance(data, bytes | str) else json.dumps(data))

    async def until(self, wanted, limit_s=30):
        async with asyncio.timeout(limit_s):
            while not wanted():
                assert not self.reader.done() or wanted(), self.messages[-3:]
                self.changed.clear()
                await self.changed.wait()

    def said(self, kind):
        return [message for message in self.messages if message["type"] == kind]

    async def hear(self, kind, count=1, limit_s=30):
        await self.until(lambda: len(self.said(kind)) >= count, limit_s)
        return self.said(kind)[count - 1]

    async def ended(self, limit_s=30):
        async with asyncio.timeout(limit_s):
            await asyncio.wait([self.reader])
        return self.socket.close_code

    def kinds(self, kind):
        return [packet for packet in self.packets if packet[0] == kind]

    async def close(self):
        await self.socket.close()
        await asyncio.wait([self.reader])


async def join(address, query="", **options):
    return Client(await connect(f"ws://{address}/v1/ws?{query}", max_size=None, **options))


def speech(seconds, rate=16_000, hz=220, level=0.4):
    t = np.arange(int(rate * seconds)) / rate
    return (np.sin(2 * np.pi * hz * t) * level * 32_767).astype("<i2").tobytes()
