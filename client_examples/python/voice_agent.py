"""Talk to an avatar: microphone -> recogniser -> language model -> the avatar speaks the answer.

    pip install websockets numpy av sounddevice pocketsphinx httpx
    python voice_agent.py --url http://localhost:8080 --avatar mira            # a canned brain
    python voice_agent.py --chat-url http://localhost:11434/v1 --model llama3.2
    python voice_agent.py --audio question.wav --save answer.mp4               # without devices

The server speaks the answers with its own voice (`speech.say`), so it needs one, such as espeak-ng.
Speak while the avatar speaks, and it stops and listens. Wear headphones: there is no echo
cancellation. The key of the language model is read from OPENAI_API_KEY. Press Ctrl-C to stop.
"""

import argparse
import asyncio
import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from letstalk_client import SAMPLE_RATE, AudioFrame, Client
from media import Recording, read_audio
from microphone import AudioDevices

BLOCK = SAMPLE_RATE // 50
VOICE_RMS = 0.02
"""Level of a block, of 1, from which somebody speaks; `--threshold` changes it."""

START_BLOCKS, END_BLOCKS = 5, 35
"""Loud blocks that begin an utterance (100 ms), and quiet ones that end it (700 ms)."""

KEPT_BLOCKS = 15
"""Blocks before the beginning of an utterance that belong to it (300 ms)."""

MAX_UTTERANCE_S = 15
MAX_TURNS = 20
SYSTEM_PROMPT = "You are a friendly talking avatar. Answer in one or two short spoken sentences."
ANSWERS = {
    "hello": "Hello! I am happy to meet you. What would you like to talk about?",
    "name": "I am an avatar, a single photograph that learned to talk.",
    "weather": "I cannot look outside, but I hope that the sun is shining where you are.",
    "bye": "Goodbye! It was nice to talk to you.",
}
NO_ANSWER = "That is interesting. Please tell me more about it."

Think = Callable[[str], Awaitable[str]]


class Recogniser(Protocol):
    """Turns an utterance into words. Any other recogniser with this method will do."""

    def recognise(self, pcm: np.ndarray) -> str:
        """Return the words in `(n,)` int16 audio of 16 kHz mono; it may block."""
        ...


class Sphinx:
    """CMU PocketSphinx: it needs no network, and knows English."""

    def __init__(self) -> None:
        from pocketsphinx import Decoder

        self._decoder = Decoder(samprate=SAMPLE_RATE, loglevel="FATAL")

    def recognise(self, pcm: np.ndarray) -> str:
        """Return the words of an utterance; none if nothing was understood."""
        self._decoder.start_utt()
        self._decoder.process_raw(pcm.tobytes(), full_utt=True)
        self._decoder.end_utt()
        best = self._decoder.hyp()
        return best.hypstr if best is not None else ""


class Chat:
    """A language model with OpenAI's interface.

    Args:
        base_url: address up to and including `/v1`.
        model: name of the model.
    """

    def __init__(self, base_url: str, model: str) -> None:
        import httpx

        key = os.environ.get("OPENAI_API_KEY")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._httpx = httpx
        self._client = httpx.AsyncClient(base_url=base_url, headers=headers, timeout=60)
        self._model = model
        self._turns: deque[dict[str, str]] = deque(maxlen=MAX_TURNS)

    async def __call__(self, words: str) -> str:
        """Return the answer.

        Raises:
            RuntimeError: the model cannot be reached, or refused the request.
        """
        self._turns.append({"role": "user", "content": words})
        messages = [{"role": "system", "content": SYSTEM_PROMPT}, *self._turns]
        try:
            response = await self._client.post(
                "chat/completions", json={"model": self._model, "messages": messages}
            )
            response.raise_for_status()
            answer = str(response.json()["choices"][0]["message"]["content"])
        except (self._httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
            self._turns.pop()
            raise RuntimeError(f"the language model failed ({type(error).__name__})") from None
        self._turns.append({"role": "assistant", "content": answer})
        return answer


async def canned(words: str) -> str:
    """Answer without a language model."""
    return next((answer for key, answer in ANSWERS.items() if key in words.lower()), NO_ANSWER)


class Utterances:
    """Finds utterances in blocks of a microphone.

    Args:
        threshold: level from which somebody speaks.
        on_voice: called when an utterance begins.
    """

    def __init__(self, threshold: float, on_voice: Callable[[], Awaitable[None]]) -> None:
        self._threshold, self._on_voice = threshold, on_voice

    async def find(self, blocks: AsyncIterator[np.ndarray]) -> AsyncIterator[np.ndarray]:
        """Yield each utterance, `(n,)` int16."""
        kept: deque[np.ndarray] = deque(maxlen=KEPT_BLOCKS + START_BLOCKS)
        spoken: list[np.ndarray] = []
        loud = quiet = 0
        async for block in blocks:
            is_loud = np.sqrt(np.square(block / 32_768).mean()) >= self._threshold
            loud, quiet = (loud + 1, 0) if is_loud else (0, quiet + 1)
            if not spoken:
                kept.append(block)
                if loud < START_BLOCKS:
                    continue
                spoken = list(kept)
                kept.clear()
                await self._on_voice()
                continue
            spoken.append(block)
            if quiet >= END_BLOCKS or len(spoken) * BLOCK > MAX_UTTERANCE_S * SAMPLE_RATE:
                yield np.concatenate(spoken)
                spoken = []
        if spoken:
            yield np.concatenate(spoken)


class Agent:
    """Listens, thinks and lets the avatar speak.

    Args:
        client: the connection to the avatar.
        recogniser: turns utterances into words.
        think: turns words into an answer.
        threshold: see `Utterances`.
    """

    def __init__(
        self, client: Client, recogniser: Recogniser, think: Think, threshold: float
    ) -> None:
        self._client, self._recogniser, self._think = client, recogniser, think
        self._threshold = threshold
        self._is_speaking = False
        self._answers = 0  # asked for and not finished yet
        self._finished = asyncio.Event()
        self._answering: asyncio.Task[None] | None = None

    async def run(self, blocks: AsyncIterator[np.ndarray]) -> None:
        """Converse until the audio ends and the last answer was spoken."""
        async for utterance in Utterances(self._threshold, self._barge_in).find(blocks):
            await self._drop_answer()
            self._answering = asyncio.create_task(self._answer(utterance), name="answer")
        if self._answering is not None:
            await self._answering
            while self._answers:
                self._finished.clear()
                await self._finished.wait()

    def on_message(self, message: dict[str, Any]) -> None:
        """Follow the events of the session."""
        kind = message["type"]
        if kind in ("avatar.speaking", "avatar.idle", "avatar.listening"):
            self._is_speaking = kind == "avatar.speaking"
        if kind in ("segment.finished", "segment.interrupted") and self._answers:
            self._answers -= 1
            self._finished.set()
        if kind == "session.error":
            print(f"error: {message['detail']}", file=sys.stderr)
            self._answers = 0
            self._finished.set()

    async def _barge_in(self) -> None:
        """Somebody speaks: the avatar stops, also while its answer is still being made."""
        await self._drop_answer()
        if self._is_speaking or self._answers:
            await self._client.interrupt()

    async def _drop_answer(self) -> None:
        if self._answering is not None and not self._answering.done():
            self._answering.cancel()
            await asyncio.wait([self._answering])

    async def _answer(self, utterance: np.ndarray) -> None:
        words = await asyncio.to_thread(self._recogniser.recognise, utterance)
        print(f"you: {words or '(not understood)'}")
        if not words:
            return
        try:
            answer = await self._think(words)
        except RuntimeError as error:
            print(f"error: {error}", file=sys.stderr)
            return
        print(f"avatar: {answer}")
        self._answers += 1
        await self._client.say_text(answer)


async def microphone_blocks(audio: AudioDevices) -> AsyncIterator[np.ndarray]:
    """Yield the blocks of the microphone."""
    while True:
        yield await audio.recorded.get()


async def file_blocks(path: Path) -> AsyncIterator[np.ndarray]:
    """Yield a file in real time, as a microphone would, followed by a second of silence."""
    pcm = np.concatenate([read_audio(path), np.zeros(SAMPLE_RATE, np.int16)])
    for start in range(0, len(pcm) - BLOCK + 1, BLOCK):
        await asyncio.sleep(BLOCK / SAMPLE_RATE)
        yield pcm[start : start + BLOCK]


async def converse(options: argparse.Namespace, recogniser: Recogniser) -> None:
    """Open devices and session, and converse until the audio ends, or for ever."""
    think = Chat(options.chat_url, options.model) if options.chat_url else canned
    with ExitStack() as stack:
        saved = stack.enter_context(Recording(options.save)) if options.save else None
        audio = None
        if options.audio is None:
            audio = stack.enter_context(AudioDevices((options.input, options.output)))
        async with Client(options.url, token=options.token, avatar=options.avatar) as client:
            agent = Agent(client, recogniser, think, options.threshold)

            async def receive() -> None:
                async for item in client:
                    if isinstance(item, dict):
                        agent.on_message(item)
                        continue
                    if saved is not None:
                        saved.add(item)
                    if isinstance(item, AudioFrame) and audio is not None:
                        audio.play(item.pcm)

            if saved is None:  # audio comes with video; one small frame per second costs little
                minimal = {"format": "jpeg", "quality": 1, "max_fps": 1}
                await client.send(type="session.configure", frames=minimal)
            receiving = asyncio.create_task(receive(), name="receive")
            blocks = microphone_blocks(audio) if audio else file_blocks(options.audio)
            talking = asyncio.create_task(agent.run(blocks), name="talk")
            try:
                await asyncio.wait({receiving, talking}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (receiving, talking):
                    if not task.done():
                        task.cancel()
                        with suppress(asyncio.CancelledError):
                            await task
            for task in (receiving, talking):
                if not task.cancelled() and (error := task.exception()) is not None:
                    raise error


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--url", default="http://localhost:8080", help="address of the server")
    parser.add_argument("--token", help="access token, if the server requires one")
    parser.add_argument("--avatar", help="id of the avatar (default: the first one of the server)")
    parser.add_argument("--chat-url", help="OpenAI-compatible API, up to /v1 (default: canned)")
    parser.add_argument("--model", default="gpt-4o-mini", help="language model (%(default)s)")
    parser.add_argument("--audio", type=Path, help="audio file instead of the microphone")
    parser.add_argument("--save", type=Path, help="MP4 file to write")
    parser.add_argument("--threshold", type=float, default=VOICE_RMS, help="level of a voice")
    parser.add_argument("--input", help="part of the name of the microphone")
    parser.add_argument("--output", help="part of the name of the loudspeaker")
    options = parser.parse_args()
    try:
        asyncio.run(converse(options, Sphinx()))
    except KeyboardInterrupt:
        return 0
    except (OSError, ImportError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
