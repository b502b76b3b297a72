"""Recognisers that block, each in a process of its own: this module is its parent's side.

A recogniser holds the interpreter for seconds, which would stall the model, lose connections and
delay an interrupt. Audio goes to the process as it is spoken, so most of the work is done when the
utterance ends.
"""

import asyncio
import json
import struct
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

import numpy as np

from letstalk_rt.errors import RecognitionError

_WORKER = "letstalk_rt.conversation.recogniser_worker"
_START_S = 60.0
"""Longest time in which a model is loaded."""

_ANSWER_S = 30.0
"""Longest time from the end of an utterance to its words."""

_LENGTH = struct.Struct("<I")
"""Bytes of PCM that follow; 0 ends the utterance."""


class ProcessRecogniser:
    """A recogniser in a process of its own, which starts with `start` or the first utterance.

    Args:
        name: name of the recogniser, for messages.
        words: arguments of the process; see `recogniser_worker`.
    """

    def __init__(self, name: str, words: Sequence[str]) -> None:
        self.name = name
        self._words = words
        self._process: asyncio.subprocess.Process | None = None
        self._starting = asyncio.Lock()
        self._number = 0  # of the utterance

    async def start(self) -> None:
        """Start the process and wait until its model is loaded.

        Raises:
            RecognitionError: it cannot be started; the message has the reason.
        """
        async with self._starting:
            if self._process is not None and self._process.returncode is None:
                return
            self._number = 0
            self._process = await asyncio.create_subprocess_exec(
                *[sys.executable, "-m", _WORKER, *self._words],
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,  # it may hold what was said
            )
            answer = await self._read(_START_S)
            if "error" in answer:
                await self.aclose()
                raise RecognitionError(f"{self.name} cannot be started: {answer['error']}")

    async def transcribe(self, audio: AsyncIterator[np.ndarray]) -> AsyncIterator[str]:
        """Yield the words while the utterance is spoken; see `Recogniser.transcribe`."""
        await self.start()
        self._number += 1
        number = self._number
        sending = asyncio.create_task(self._send(audio), name="recogniser-audio")
        try:
            while True:
                answer = await self._read(None if not sending.done() else _ANSWER_S)
                if answer.get("utterance") != number:
                    continue  # of one that was abandoned
                yield str(answer["text"])
                if answer["final"]:
                    return
        finally:
            if not sending.done():
                sending.cancel()
                await asyncio.wait([sending])
                with suppress(RecognitionError):
                    self._write(b"")

    async def aclose(self) -> None:
        """End the process; may be called twice."""
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.kill()  # it has nothing to save
        ending = asyncio.ensure_future(process.wait())
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            await ending  # or its pipes would stay open
            raise

    async def _send(self, audio: AsyncIterator[np.ndarray]) -> None:
        assert self._process is not None and self._process.stdin is not None
        with suppress(RecognitionError, ConnectionError):  # noticed where words are read
            async for chunk in audio:
                if chunk.size:
                    self._write(chunk.astype("<i2").tobytes())
                    await self._process.stdin.drain()
            self._write(b"")

    def _write(self, pcm: bytes) -> None:
        if self._process is None or self._process.returncode is not None:
            raise RecognitionError(f"{self.name} has ended")
        assert self._process.stdin is not None
        self._process.stdin.write(_LENGTH.pack(len(pcm)) + pcm)

    async def _read(self, limit_s: float | None) -> dict[str, object]:
        assert self._process is not None and self._process.stdout is not None
        try:
            async with asyncio.timeout(limit_s):
                line = await self._process.stdout.readline()
        except TimeoutError:
            await self.aclose()
            raise RecognitionError(f"{self.name} did not answer for {limit_s:.0f} s") from None
        if not line:
            await self._process.wait()
            raise RecognitionError(f"{self.name} has ended; it is started again")
        answer: dict[str, object] = json.loads(line)
        return answer
