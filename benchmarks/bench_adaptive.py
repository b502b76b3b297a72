"""Measures a live session on a machine that becomes too slow for a while: delay, images, level.

Speech with pauses is pushed in real time, as from a microphone that keeps its newest half second.
In the middle third of the time, other processes take the processor. Runs with adaptive quality and
without follow each other by turns.

    python benchmarks/bench_adaptive.py --isa avx2 --busy 2 --seconds 90

    delay_ms     from microphone to screen, in each third of the load and before and after it
    images_per_s different images that were shown
    repeated     frames that were not ready in time
    levels       quality level at the end of each second; 0 is full quality

The last line is JSON, with all figures second by second.
"""

import argparse
import asyncio
import bisect
import contextlib
import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import instruction_sets
import numpy as np
from bench_session import MODEL, load, portrait_path
from card import commit, processor_name
from session_probes import voice
from time_limit import add_limit, limit_s, time_limit

from letstalk_rt import __version__
from letstalk_rt.metrics import percentiles
from letstalk_rt.portrait.image import prepare_portrait
from letstalk_rt.session.avatar import Avatar, AvatarSession
from letstalk_rt.session.playout import Playout
from letstalk_rt.threads import shorten_openmp_spin
from letstalk_rt.types import SAMPLE_RATE, AVFrame

CHUNK_S, KEPT_S = 0.02, 0.5
SPEECH_S, PAUSE_S = 3.2, 0.8
SPIN = "while True: pass"


@dataclass
class Second:
    """What happened in one second."""

    delays_ms: list[float] = field(default_factory=list)
    images: int = 0
    repeated: int = 0
    level: int = 0
    step_ms: float = 0.0


class Microphone:
    """A microphone that keeps its newest half second, and knows when each chunk was recorded."""

    def __init__(self, session: AvatarSession) -> None:
        self.dropped = 0
        self._session = session
        self._waiting: deque[tuple[np.ndarray, float]] = deque()
        self._pushed_s: list[float] = []
        self._recorded_s: list[float] = []
        self._arrived = asyncio.Event()

    async def record(self) -> None:
        """Record until cancelled."""
        loop, speech = asyncio.get_running_loop(), spoken()
        chunk, began_s, number = int(CHUNK_S * SAMPLE_RATE), loop.time(), 0
        while True:
            start = number * chunk % (len(speech) - chunk)
            number += 1
            await asyncio.sleep(began_s + number * CHUNK_S - loop.time())
            self._waiting.append((speech[start : start + chunk], began_s + number * CHUNK_S))
            if len(self._waiting) > KEPT_S / CHUNK_S:
                self._waiting.popleft()
                self.dropped += 1
            self._arrived.set()

    async def push(self) -> None:
        """Push what was recorded until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            while not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            pcm, recorded_s = self._waiting.popleft()
            self._pushed_s.append(loop.time())
            self._recorded_s.append(recorded_s)
            await self._session.push_audio(pcm, SAMPLE_RATE)

    def recorded_s(self, pushed_s: float) -> float:
        """Return when the audio was recorded that was pushed at a time."""
        return self._recorded_s[max(0, bisect.bisect_right(self._pushed_s, pushed_s + 1e-4) - 1)]


def spoken() -> np.ndarray:
    """Return speech with pauses, in which only the noise of a room is heard."""
    speech = voice(5 * (SPEECH_S + PAUSE_S))
    at_s = np.arange(len(speech)) / SAMPLE_RATE % (SPEECH_S + PAUSE_S)
    return np.where(at_s < SPEECH_S, speech, 0.001 * speech).astype(np.float32)


class Load:
    """Processes that take the processor."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start the processes."""
        command = [sys.executable, "-c", SPIN]
        self._processes = [subprocess.Popen(command) for _ in range(self._count)]

    def stop(self) -> None:
        """End the processes. May be called twice."""
        for process in self._processes:
            process.kill()
            process.wait()
        self._processes.clear()


async def run(avatar: Avatar, preference: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one session of `options.seconds` and return its figures."""
    seconds = [Second() for _ in range(int(options.seconds))]
    loop = asyncio.get_running_loop()
    async with avatar.session(
        playback="reported",
        degradation_preference=preference,  # type: ignore[typeddict-item]
    ) as session:
        microphone = Microphone(session)
        began_s = loop.time()

        def show(frame: AVFrame) -> None:
            now_s = loop.time()
            second = seconds[min(int(now_s - began_s), len(seconds) - 1)]
            second.images += not frame.repeated
            if frame.stamps is not None and frame.stamps.audio_in_s is not None:
                recorded_s = microphone.recorded_s(frame.stamps.audio_in_s)
                second.delays_ms.append(1000 * (now_s - recorded_s))

        playout = Playout(
            show, played=session.notify_played, metrics=session.metrics, clock=loop.time
        )
        works = (playout.run(session), microphone.record(), microphone.push())
        tasks = [asyncio.create_task(work) for work in works]
        await watch(session, seconds, options, began_s)
        ended = [task for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in ended:
            task.result()  # a session that has failed has no figures
    return figures(preference, seconds, microphone.dropped, session)


async def watch(
    session: AvatarSession, seconds: Sequence[Second], options: argparse.Namespace, began_s: float
) -> None:
    """Note level and repeated frames each second, and take the processor in the middle third."""
    clock, metrics = asyncio.get_running_loop().time, session.metrics
    first, last = len(seconds) // 3, 2 * len(seconds) // 3
    others = Load(options.busy)
    try:
        for number, second in enumerate(seconds):
            if number == first:
                others.start()
            if number == last:
                others.stop()
            repeats, steps, model_s = metrics.repeats, metrics.steps, metrics.model_s
            await asyncio.sleep(began_s + number + 1 - clock())
            second.repeated, second.level = metrics.repeats - repeats, metrics.quality_level
            second.step_ms = 1000 * (metrics.model_s - model_s) / max(1, metrics.steps - steps)
    finally:
        others.stop()


def figures(
    preference: str, seconds: Sequence[Second], dropped: int, session: AvatarSession
) -> dict[str, Any]:
    """Return the figures of a run."""
    third = len(seconds) // 3
    ninth = third // 3
    parts = {
        "before": seconds[ninth:third],
        "load_first": seconds[third : third + ninth],
        "load_second": seconds[third + ninth : third + 2 * ninth],
        "load_last": seconds[third + 2 * ninth : 2 * third],
        "after": seconds[-2 * ninth :],
    }
    return {
        "preference": preference,
        "parts": {name: summary(part) for name, part in parts.items()},
        "dropped_s": round(dropped * CHUNK_S, 2),
        "quality_changes": session.metrics.quality_changes,
        "stalls": session.metrics.stalls,
        "levels": [second.level for second in seconds],
        "images_per_s": [second.images for second in seconds],
        "repeated": [second.repeated for second in seconds],
        "delay_p95_ms": [
            round(percentiles(s.delays_ms).p95) if s.delays_ms else None for s in seconds
        ],
    }


def summary(seconds: Sequence[Second]) -> dict[str, Any]:
    """Return the figures of some seconds."""
    delays = percentiles([value for second in seconds for value in second.delays_ms])
    return {
        "delay_ms": {name: round(value, 1) for name, value in asdict(delays).items()},
        "images_per_s": round(sum(s.images for s in seconds) / max(1, len(seconds)), 2),
        "repeated_per_s": round(sum(s.repeated for s in seconds) / max(1, len(seconds)), 2),
        "step_ms": round(sum(s.step_ms for s in seconds) / max(1, len(seconds)), 1),
        "level": round(sum(s.level for s in seconds) / max(1, len(seconds)), 2),
    }


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--seconds", type=float, default=90.0, help="of each run (%(default)s)")
    add("--busy", type=int, default=2, help="processes that take the processor (%(default)s)")
    add("--turns", type=int, default=1, help="runs of each preference (%(default)s)")
    add("--preferences", nargs="+", default=["disabled", "balanced"], help="(%(default)s)")
    add("--preset", default="tiny")
    add("--threads", type=int, help="CPU threads (torch's choice)")
    add("--size", type=int, default=512, help="longer side of the frames (%(default)s)")
    add("--portrait", type=Path, help="an image (the first default avatar)")
    add("--isolate-model", action=argparse.BooleanOptionalAction, default=True)
    add("--note", default="", help="a remark for the result, such as what else ran")
    add("-o", "--output", type=Path, help="write the JSON to a file as well")
    add_limit(parser)
    add("--json", action="store_true", help="print the JSON line only")
    instruction_sets.add_option(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the figures of each run and the JSON line."""
    shorten_openmp_spin()
    words = list(sys.argv[1:] if argv is None else argv)
    options = parse(words)
    instruction_sets.run_limited(options.isa, __file__, words)
    pipeline = load(options, MODEL, preset=options.preset, threads=options.threads)
    portrait = prepare_portrait(portrait_path(options.portrait), pipeline.finder, size=options.size)
    result: dict[str, Any] = {
        "device": processor_name(),
        "isa": options.isa,
        "emulated": instruction_sets.is_emulated(options.isa),
        "busy": options.busy,
        "size": options.size,
        "isolated": options.isolate_model,
        "note": options.note,
        "load_1min": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "version": __version__,
        "commit": commit(),
        "runs": [],
    }
    with contextlib.ExitStack() as stack:
        if options.isolate_model:
            stack.callback(pipeline.close)
        avatar = stack.enter_context(Avatar.from_pipeline(pipeline, portrait))
        stack.enter_context(
            time_limit(
                limit_s(options, options.seconds * options.turns * len(options.preferences)), result
            )
        )
        for preference in options.preferences * options.turns:
            found = asyncio.run(run(avatar, preference, options))
            result["runs"].append(found)
            if not options.json:
                print_run(found)
    text = json.dumps(result)
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(text)


def print_run(found: dict[str, Any]) -> None:
    """Print a table of one run."""
    print(f"{found['preference']}: levels {found['levels']}")
    for name, part in found["parts"].items():
        print(f"{name:>12}  {part}", flush=True)


if __name__ == "__main__":
    main()
