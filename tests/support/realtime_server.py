"""A small server with OpenAI's Realtime interface, over a real WebSocket on a free port.

It hears by level, writes down prepared words and answers with a tone. It keeps what it was sent.
"""

import asyncio
import base64
import json
from contextlib import asynccontextmanager

import numpy as np
from websockets.asyncio.server import serve

RATE = 24_000
PIECE = RATE // 10
QUIET = 6 * PIECE
"""Samples of silence that end an utterance."""


class RealtimeServer:
    """What it does with each client.

    Args:
        words: what it understands, and says.
        answer_s: length of each answer, which is sent at once, as real servers nearly do.
        released: whether its events are those of the released interface, or of the beta.
        call: name of a tool that it calls before its first answer.
        refuse: status with which it refuses connections.

    Attributes:
        keys: the `Authorization` of each connection.
        paths: the address that each asked for.
        sent: all messages of the clients but audio, without a limit.
        heard: samples of audio.
    """

    def __init__(
        self,
        words=("Hello there.", "How are you? I am fine."),
        answer_s=2.0,
        *,
        released=True,
        call=None,
        refuse=None,
    ):
        self.words, self.answer_s, self.released = words, answer_s, released
        self.call, self.refuse = call, refuse
        self.keys, self.paths, self.sent, self.heard = [], [], [], 0
        self.sockets = []
        self._answers = 0

    def said(self, kind):
        return [message for message in self.sent if message["type"] == kind]

    def check(self, connection, request):
        self.keys.append(request.headers.get("authorization"))
        self.paths.append(request.path)
        if self.refuse is not None:
            return connection.respond(self.refuse, "no\n")
        return None

    async def talk(self, socket):
        """Serve one connection."""
        self.sockets.append(socket)
        self._quiet, self._speaks, self._answering = 0, False, None
        session = {"type": "realtime"} if self.released else {"modalities": ["audio"]}
        await self._send(socket, type="session.created", session=session)
        async for text in socket:
            message = json.loads(text)
            if message["type"] == "input_audio_buffer.append":
                await self._hear(socket, np.frombuffer(base64.b64decode(message["audio"]), "<i2"))
                continue
            self.sent.append(message)
            await self._obey(socket, message)

    async def _obey(self, socket, message):
        match message["type"]:
            case "session.update":
                await self._send(socket, type="session.updated", session=message["session"])
            case "response.create":
                await self._answer(socket)
            case "response.cancel":
                if self._answering is None:
                    error = {"type": "invalid_request_error", "code": "response_cancel_not_active"}
                    await self._send(socket, type="error", error=error)
                else:
                    await self._done(socket, "cancelled")

    async def _hear(self, socket, pcm):
        self.heard += len(pcm)
        if np.abs(pcm).max(initial=0) > 3000:
            self._quiet = 0
            if not self._speaks:
                self._speaks = True
                await self._send(socket, type="input_audio_buffer.speech_started", item_id="u")
            return
        self._quiet += len(pcm)
        if self._speaks and self._quiet >= QUIET:
            self._speaks = False
            await self._send(socket, type="input_audio_buffer.speech_stopped", item_id="u")
            kind = "conversation.item.input_audio_transcription"
            for word in self.words[0].split(" "):
                await self._send(socket, type=f"{kind}.delta", item_id="u", delta=f"{word} ")
            await self._send(
                socket, type=f"{kind}.completed", item_id="u", transcript=self.words[0]
            )
            await self._answer(socket)

    async def _answer(self, socket):
        self._answers += 1
        self._answering = f"r{self._answers}"
        await self._send(socket, type="response.created", response={"id": self._answering})
        if self.call is not None:
            call, self.call = self.call, None
            fields = {"name": call, "arguments": '{"city": "Rome"}', "call_id": "c1"}
            await self._say(socket, "response.function_call_arguments.done", **fields)
            return await self._done(socket)
        for word in self.words[1].split(" "):
            await self._say(socket, self._audio("_transcript.delta"), delta=f"{word} ")
        tone = np.sin(np.arange(round(self.answer_s * RATE)) * 2 * np.pi * 220 / RATE)
        pcm = (8000 * tone).astype("<i2")
        for start in range(0, len(pcm), PIECE):
            delta = base64.b64encode(pcm[start : start + PIECE].tobytes()).decode()
            await self._say(socket, self._audio(".delta"), delta=delta)
        if self.answer_s < 60:
            await self._done(socket)

    async def _done(self, socket, status="completed"):
        number, self._answering = self._answering, None
        await self._send(socket, type="response.done", response={"id": number, "status": status})

    async def _say(self, socket, kind, **fields):
        item = {"response_id": self._answering, "item_id": f"a{self._answers}", "content_index": 0}
        await self._send(socket, type=kind, **item, **fields)

    def _audio(self, ending):
        return f"response.{'output_' if self.released else ''}audio{ending}"

    async def _send(self, socket, **event):
        await socket.send(json.dumps(event))


@asynccontextmanager
async def realtime_server(*args, **options):
    """Serve; yield the server and its address."""
    server = RealtimeServer(*args, **options)
    async with serve(server.talk, "127.0.0.1", 0, process_request=server.check) as running:
        port = running.sockets[0].getsockname()[1]
        yield server, f"ws://127.0.0.1:{port}/v1/realtime"
        await asyncio.sleep(0)
