"""How long turns of a conversation take: from the user's last word to the avatar's first, and from
voice to silence.

espeak-ng is the user, a local stub with 40 tokens a second the chat model, pocketsphinx the
recogniser, the system's voice the voice; all run on this machine, beside the embedded model. A
WebRTC peer sends the microphone and listens to what comes back.

    python benchmarks/bench_conversation.py --turns 10 --output RESULT.json

The bars: an answer within 1.5 s and silence within 200 ms (p95), ten turns in a row with nothing
lost. The exit status is 1 if one is missed. The last line is JSON.
"""

import argparse
import asyncio
import json
import math
import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from bench_say import is_loud, post
from card import commit, processor_name
from chat_stub import TOKENS_PER_S, ChatStub, serving
from time_limit import add_limit, limit_s, time_limit

from letstalk_rt import __version__
from letstalk_rt.audio.resample import Resampler
from letstalk_rt.metrics import percentiles

ANSWER_BAR_MS, BARGE_IN_BAR_MS = 1500, 200
RATE = 48_000
BLOCK = RATE // 50
LIMIT_S = 15.0
EXPECTED_S = 25.0
"""What a turn and an interrupt take together."""

QUIET_S = 0.3
"""Time without a loud sample that counts as silence, longer than pauses between words."""

BARGE_IN_AFTER_S = 1.0
QUESTIONS = (
    "What is the weather like today?",
    "Can you tell me a story about a dog?",
    "How do I get to the station?",
    "Please give me a good book to read.",
    "What would you like to eat tonight?",
)
ANSWER = (
    "I would be happy to help you with that. First of all, let me think about it for a moment. "
    "Then I will tell you more about it, and answer all of your other questions."
)


def speak(text: str) -> np.ndarray:
    """Return a text as espeak-ng says it: `(n,)` int16 at 48 kHz, from its first loud sample to its
    last."""
    words = ["espeak-ng", "-v", "en-us", "-s", "150", "--stdout", text]
    done = subprocess.run(words, capture_output=True, check=True)
    resampler = Resampler(22_050, RATE)
    pcm = np.frombuffer(done.stdout[44:], np.int16)
    pcm = np.concatenate([resampler.push(pcm), resampler.flush()]) / 2
    loud = np.flatnonzero(np.abs(pcm) > 0.01)
    return (pcm[loud[0] : loud[-1] + 1] * 32_767).astype(np.int16)


class Voice(MediaStreamTrack):
    """A microphone in real time: what is queued, else silence."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self._queued: deque[np.ndarray] = deque()
        self._sent = 0
        self._start_s: float | None = None

    def say(self, pcm: np.ndarray) -> float:
        """Queue an utterance; return its duration in seconds."""
        padded = np.concatenate([pcm, np.zeros(-len(pcm) % BLOCK, np.int16)])
        self._queued.extend(padded.reshape(-1, BLOCK))
        return len(pcm) / RATE

    async def recv(self) -> av.AudioFrame:
        """Return the next 20 ms when they are due."""
        if self._start_s is None:
            self._start_s = time.perf_counter()
        await asyncio.sleep(self._start_s + self._sent / RATE - time.perf_counter())
        pcm = self._queued.popleft() if self._queued else np.zeros(BLOCK, np.int16)
        frame = av.AudioFrame.from_ndarray(pcm[None], "s16", "mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, self._sent, Fraction(1, RATE)
        self._sent += BLOCK
        return frame


class User:
    """A WebRTC peer that talks with the avatar and notes what it hears.

    Attributes:
        captions: final captions, `(speaker, text)`.
        problems: warnings and errors of the server.
    """

    def __init__(self) -> None:
        self.captions: list[tuple[str, str]] = []
        self.problems: list[str] = []
        self.voice = Voice()
        self._pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._changed = asyncio.Event()
        self._state, self._is_on = "", False
        self._loud_s = self._first_loud_s = 0.0  # the last, and the first after a pause
        self._tasks: list[asyncio.Task[None]] = []
        self._channel = self._pc.createDataChannel("control")
        self._channel.on("open", lambda: self._send(type="conversation.configure"))
        self._channel.on("message", self._on_message)
        self._pc.addTransceiver(self.voice, "sendrecv")
        self._pc.addTransceiver("video", "recvonly")
        self._pc.on("track", self._on_track)

    async def connect(self, address: str) -> None:
        """Open a session and begin a conversation."""
        session = await asyncio.to_thread(post, f"{address}v1/sessions", {})
        await self._pc.setLocalDescription(await self._pc.createOffer())
        offer = {"type": "offer", "sdp": self._pc.localDescription.sdp}
        answer = await asyncio.to_thread(
            post, f"{address}v1/offer", offer | {"session": session["session"]}
        )
        await self._pc.setRemoteDescription(RTCSessionDescription(answer["sdp"], "answer"))
        await self.until(lambda: self._is_on)
        self._tasks.append(asyncio.create_task(self._ping(), name="ping"))
        await asyncio.sleep(3)  # the recogniser is loaded

    async def ask(self, pcm: np.ndarray) -> float | None:
        """Say something; return the seconds from its end to the answer, None if none came."""
        ends_s = time.perf_counter() + self.voice.say(pcm)
        await asyncio.sleep(ends_s - time.perf_counter())
        try:
            await self.until(lambda: self._loud_s > ends_s)
        except TimeoutError:
            return None
        return self._first_loud_s - ends_s

    async def interrupt(self, pcm: np.ndarray) -> float:
        """Speak while the avatar speaks; return the seconds until it is silent."""
        begins_s = time.perf_counter()
        ends_s = begins_s + self.voice.say(pcm)
        with suppress(TimeoutError):
            while True:
                async with asyncio.timeout(QUIET_S):
                    await self._loud_again()
        silent_s = self._loud_s
        await asyncio.sleep(ends_s - time.perf_counter())
        return max(0.0, silent_s - begins_s)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so."""
        async with asyncio.timeout(LIMIT_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def _loud_again(self) -> None:
        before_s = self._loud_s
        await self.until(lambda: self._loud_s > before_s)

    async def listening(self) -> None:
        """Wait until the avatar has said all."""
        await self.until(lambda: self._state == "listening")

    async def aclose(self) -> None:
        """Close the connection."""
        for task in self._tasks:
            task.cancel()
        await self._pc.close()

    def _send(self, **message: Any) -> None:
        self._channel.send(json.dumps(message))

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(1.5)
            self._send(type="session.ping")

    def _on_message(self, data: str) -> None:
        message = json.loads(data)
        match message["type"]:
            case "conversation.configured":
                self._is_on = True
            case "conversation.state":
                self._state = message["state"]
            case "conversation.caption" if message["final"]:
                self.captions.append((message["speaker"], message["text"]))
            case "session.warning" | "session.error":
                self.problems.append(message["code"])
            case "session.ended":
                self.problems.append(f"ended: {message['reason']}")
        self._changed.set()

    def _on_track(self, track: Any) -> None:
        hear = self._hear if track.kind == "audio" else self._watch
        self._tasks.append(asyncio.create_task(hear(track), name=track.kind))

    async def _hear(self, track: Any) -> None:
        with suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                now_s = time.perf_counter()
                if is_loud(frame.to_ndarray()):
                    if now_s - self._loud_s > QUIET_S:
                        self._first_loud_s = now_s
                    self._loud_s = now_s
                    self._changed.set()

    async def _watch(self, track: Any) -> None:
        with suppress(MediaStreamError):
            while True:
                await track.recv()


@contextmanager
def server(chat_url: str) -> Iterator[str]:
    """Run a server with the embedded model; yield its address."""
    words = [sys.executable, "-m", "letstalk_server", "--port", "0", "--chat-model", "stub"]
    words += ["--chat-url", chat_url, "--stt", "pocketsphinx", "--speech", "system"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http://\S+", process.stdout.readline())
            if found is None:
                raise SystemExit("the server did not start")
            yield found.group()
        finally:
            process.terminate()


async def measure(turns: int, tokens_per_s: float, result: dict[str, Any]) -> None:
    """Add the times of a conversation: turns that are answered, then as many interrupts."""
    questions = [speak(text) for text in QUESTIONS]
    asked = [questions[number % len(questions)] for number in range(turns)]
    async with serving(ChatStub((ANSWER,), tokens_per_s).app) as chat_url:
        with server(chat_url) as address:
            user = User()
            try:
                await user.connect(address)
                answers = [await _turn(user, pcm, number) for number, pcm in enumerate(asked)]
                result |= {"answer_ms": _spread(answers), "lost": answers.count(None)}
                stops = [await _barge_in(user, pcm, number) for number, pcm in enumerate(asked)]
                result |= {"barge_in_ms": _spread(stops), "problems": sorted(set(user.problems))}
                result["lost"] += stops.count(None)
            finally:
                await user.aclose()


async def _turn(user: User, question: np.ndarray, number: int) -> float | None:
    await asyncio.sleep(0.6 + 0.037 * (number % 5))  # at any phase of a window
    took_s = await user.ask(question)
    await user.listening()
    return took_s


async def _barge_in(user: User, question: np.ndarray, number: int) -> float | None:
    await asyncio.sleep(0.6 + 0.037 * (number % 5))
    if await user.ask(question) is None:
        return None
    await asyncio.sleep(BARGE_IN_AFTER_S + 0.037 * (number % 7))
    took_s = await user.interrupt(speak("Wait a moment, please."))
    await user.listening()
    return took_s


def _spread(seconds: Sequence[float | None]) -> dict[str, float]:
    took_ms = [1000 * value for value in seconds if value is not None] or [math.inf]
    spread = percentiles(took_ms)
    return {
        "p50": round(spread.p50, 1),
        "p95": round(spread.p95, 1),
        "max": round(max(took_ms), 1),
    }


def is_good(result: dict[str, Any]) -> bool:
    """Return whether a whole result meets the bars."""
    return bool(
        "partial" not in result
        and result["answer_ms"]["p95"] <= ANSWER_BAR_MS
        and result["barge_in_ms"]["p95"] <= BARGE_IN_BAR_MS
        and result["lost"] == 0
        and not result["problems"]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the result, last as JSON, and write it to a file if one is named."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=10, help="turns in a row (%(default)s)")
    parser.add_argument("--tokens-per-s", type=float, default=TOKENS_PER_S)
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="also write it here")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    add_limit(parser)
    options = parser.parse_args(argv)
    result: dict[str, Any] = {
        "benchmark": "bench_conversation",
        "version": __version__,
        "commit": commit(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "load_1min": round(os.getloadavg()[0], 2),
        "tokens_per_s": options.tokens_per_s,
        "turns": options.turns,
    }
    with time_limit(limit_s(options, EXPECTED_S * options.turns), result):
        asyncio.run(measure(options.turns, options.tokens_per_s, result))
    result["good"] = is_good(result)
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    if not options.json:
        print("\n".join(f"{name:16} {value}" for name, value in result.items()))
    print(json.dumps(result))
    return 0 if result["good"] else 1


if __name__ == "__main__":
    sys.exit(main())
