"""A local endpoint with OpenAI's interface for speech, over real HTTP."""

import asyncio
import json
from contextlib import asynccontextmanager

import numpy as np

TONE_HZ = 440


class SpeechEndpoint:
    """Answers `POST /v1/audio/speech` with a tone, as raw PCM unless told otherwise.

    `requests` holds the bodies that it received, `keys` the authorisations.
    """

    def __init__(self, status=200, seconds=1.0, body=None, content_type="audio/pcm", hold_s=0.0):
        self.status, self.content_type, self.hold_s = status, content_type, hold_s
        samples = np.arange(int(24_000 * seconds))
        tone = (8000 * np.sin(2 * np.pi * TONE_HZ * samples / 24_000)).astype("<i2").tobytes()
        self.body = tone if body is None else body
        self.requests, self.keys = [], []
        self.sent_bytes, self.aborted = 0, asyncio.Event()
        self.url = ""

    async def answer(self, reader, writer):
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
            body = await reader.readexactly(int(fields["content-length"]))
            self.requests.append((head.split()[1], json.loads(body)))
            self.keys.append(fields.get("authorization"))
            await self._send(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.aborted.set()
        finally:
            writer.close()

    async def _send(self, writer):
        start = f"HTTP/1.1 {self.status} X\r\ncontent-type: {self.content_type}\r\n"
        writer.write(f"{start}transfer-encoding: chunked\r\nconnection: close\r\n\r\n".encode())
        for first in range(0, len(self.body), 4801):  # odd, so that samples are split
            part = self.body[first : first + 4801]
            writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            await writer.drain()
            self.sent_bytes += len(part)
            if self.hold_s:
                await asyncio.sleep(self.hold_s)
        writer.write(b"0\r\n\r\n")
        await writer.drain()


@asynccontextmanager
async def endpoint(**options):
    """Serve on a free port of loopback."""
    served = SpeechEndpoint(**options)
    server = await asyncio.start_server(served.answer, "127.0.0.1", 0)
    served.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with server:
        yield served
