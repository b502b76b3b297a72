"""Measures text to speech: from sending a text to the first loud sample at the receiver.

A server runs in a process of its own; the receiver is a WebRTC peer in this one, which sends texts
on its data channel while the avatar idles, and decodes what it hears. Its jitter buffer is part of
the figures.

    python benchmarks/bench_say.py                               # the voice of the system
    python benchmarks/bench_say.py --engine openai --url http://localhost:8000/v1
    python benchmarks/bench_say.py --output benchmarks/results/bench_say.json

The last line is JSON.
"""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from card import commit, processor_name
from time_limit import add_limit, limit_s, time_limit

from letstalk_rt import __version__
from letstalk_rt.metrics import percentiles

LOUD = 0.02
"""Level, of 1, from which a sample is loud; idle audio is exactly silent."""

WARM_UP = 3
PAUSE_S = 1.0
LIMIT_S = 30.0
PING_S = 1.5
TEXTS = (
    "Hello, nice to meet you.",
    "What can I do for you today?",
    "Let me think about that for a moment.",
    "Of course, here is what I found for you.",
    "Good morning, and thank you for waiting.",
)


class Receiver:
    """A WebRTC peer that notes when it hears something.

    Attributes:
        heard: set with the first loud sample after `listen`.
        heard_s: when that was.
    """

    def __init__(self) -> None:
        self.pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.heard, self.opened, self.idle = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.heard_s = 0.0
        self.errors: list[str] = []
        self._is_listening = False
        self._tasks: list[asyncio.Task[None]] = []
        self._channel = self.pc.createDataChannel("control")
        self._channel.on("open", self.opened.set)
        self._channel.on("message", self._on_message)
        self.pc.addTransceiver("audio", "recvonly")
        self.pc.addTransceiver("video", "recvonly")
        self.pc.on("track", self._on_track)

    async def connect(self, address: str) -> None:
        """Connect to a new session, whose audio leaves at 24 kHz."""
        session = await asyncio.to_thread(
            post, f"{address}v1/sessions", {"options": {"sample_rate": 24_000}}
        )
        await self.pc.setLocalDescription(await self.pc.createOffer())
        offer = {"type": "offer", "sdp": self.pc.localDescription.sdp}
        answer = await asyncio.to_thread(
            post, f"{address}v1/offer", offer | {"session": session["session"]}
        )
        await self.pc.setRemoteDescription(RTCSessionDescription(answer["sdp"], "answer"))
        await asyncio.wait_for(self.opened.wait(), LIMIT_S)
        self._tasks.append(asyncio.create_task(self._ping(), name="ping"))

    async def say(self, text: str) -> float:
        """Send a text; return the seconds until it is heard, once it is finished."""
        self.heard.clear()
        self.idle.clear()
        self._is_listening = True
        sent_s = time.perf_counter()
        self._channel.send(json.dumps({"type": "speech.say", "text": text}))
        await asyncio.wait_for(self.heard.wait(), LIMIT_S)
        await asyncio.wait_for(self.idle.wait(), LIMIT_S)
        return self.heard_s - sent_s

    async def aclose(self) -> None:
        """Close the connection."""
        for task in self._tasks:
            task.cancel()
        await self.pc.close()

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(PING_S)
            self._channel.send('{"type": "session.ping"}')

    def _on_message(self, data: str) -> None:
        message = json.loads(data)
        if message["type"] == "segment.finished":
            self.idle.set()
        if message["type"] == "session.error":
            self.errors.append(message["code"])

    def _on_track(self, track: Any) -> None:
        hear = self._hear if track.kind == "audio" else self._watch
        self._tasks.append(asyncio.create_task(hear(track), name=track.kind))

    async def _hear(self, track: Any) -> None:
        with suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                if self._is_listening and is_loud(frame.to_ndarray()):
                    self.heard_s = time.perf_counter()
                    self._is_listening = False
                    self.heard.set()

    async def _watch(self, track: Any) -> None:
        with suppress(MediaStreamError):
            while True:
                await track.recv()


def is_loud(pcm: np.ndarray) -> bool:
    """Return whether int16 samples hold a loud one."""
    return bool(np.abs(pcm.astype(np.int32)).max() > LOUD * 32_768)


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Post JSON and return the JSON of the response."""
    headers = {"content-type": "application/json"}
    with urlopen(Request(url, json.dumps(body).encode(), headers), timeout=60) as response:
        return dict(json.load(response))


@contextmanager
def server(options: argparse.Namespace) -> Iterator[str]:
    """Run a server; yield its address."""
    words = [sys.executable, "-m", "letstalk_server", "--port", "0", "--speech", options.engine]
    words += ["--speech-voice", options.voice] if options.voice else []
    words += ["--speech-url", options.url] if options.url else []
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http://\S+", process.stdout.readline())
            if found is None:
                raise SystemExit("the server did not start")
            yield found.group()
        finally:
            process.terminate()


async def measure(address: str, texts: int, took_ms: list[float]) -> None:
    """Add the milliseconds of each text after the first ones."""
    receiver = Receiver()
    try:
        await receiver.connect(address)
        for number in range(WARM_UP + texts):
            await asyncio.sleep(PAUSE_S + 0.037 * (number % 5))  # at any phase of a window
            took_s = await receiver.say(TEXTS[number % len(TEXTS)])
            if number >= WARM_UP:
                took_ms.append(took_s * 1000)
        if receiver.errors:
            raise SystemExit(f"the server refused a text: {receiver.errors[0]}")
    finally:
        await receiver.aclose()


def summary(took_ms: Sequence[float]) -> dict[str, Any]:
    """Return the distribution of the measured times."""
    spread = percentiles(took_ms)
    return {
        "texts": len(took_ms),
        "text_to_loud_ms": {
            "p50": round(spread.p50, 1),
            "p95": round(spread.p95, 1),
            "max": round(max(took_ms), 1) if took_ms else None,
        },
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Print the result, last as JSON, and write it to a file if one is named."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--engine", default="system", choices=("system", "openai", "piper"))
    parser.add_argument("--voice", help="name or file of the voice")
    parser.add_argument("--url", help="base URL of an OpenAI-compatible endpoint")
    parser.add_argument("--texts", type=int, default=40, help="texts to speak (%(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="also write it here")
    add_limit(parser)
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    options = parser.parse_args(argv)
    took_ms: list[float] = []
    result: dict[str, Any] = {}
    with time_limit(limit_s(options, 10.0 * options.texts), result), server(options) as address:
        asyncio.run(measure(address, options.texts, took_ms))
    result = {
        "benchmark": "bench_say",
        "version": __version__,
        "commit": commit(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "load_1min": round(os.getloadavg()[0], 2),
        "engine": options.engine,
        **summary(took_ms),
        **result,
    }
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    if not options.json:
        print("\n".join(f"{name:16} {value}" for name, value in result.items()))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
