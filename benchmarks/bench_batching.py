"""Measures how many sessions one process holds, and what it saves that their steps are batched.

How many: batches of one session, of two and so on run back to back with open mouths, at each
quality level, until windows of 160 ms take longer than they play. Then several live sessions share
the model's thread, first with one step after another, then with steps in a batch when they wait at
the same time. Each gets live audio and is read at 25 frames per second. `step` is the time a
session waits for its window, queueing included.

    python benchmarks/bench_batching.py --sessions 1 2 3 --seconds 20
    python benchmarks/bench_batching.py --size 512 384 720        # sizes by turns, in one batch
    python benchmarks/bench_batching.py --isa avx2 --json         # as on an older processor

The last line is JSON: `sessions_at_25_fps`, the most sessions in a batch of which 95 % of the
windows take less than 160 ms, at full quality, and in `held` the same for each quality level;
`step_ms` of each batch size with silence, as the server measures it when it starts; then, for each
number of sessions and each of both ways, `step_ms` (p50, p95, p99), `repeated_ratio`, `busy_ratio`
and `sessions_per_call`.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from card import commit, processor_name
from instruction_sets import add_option, is_emulated, run_limited
from time_limit import add_limit, limit_s, time_limit

from letstalk_rt import __version__
from letstalk_rt.avatars import list_avatars
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.inference.protocol import Pipeline, StateOptions
from letstalk_rt.inference.quality import FULL_QUALITY, Quality
from letstalk_rt.inference.worker import BATCHES, ModelWorker, measure_batches, worthwhile_batch
from letstalk_rt.metrics import Metrics, percentiles
from letstalk_rt.portrait.image import prepare_portrait
from letstalk_rt.session.avatar import Avatar, AvatarSession
from letstalk_rt.session.playout import Playout
from letstalk_rt.threads import in_own_thread
from letstalk_rt.types import FPS, SAMPLE_RATE, Portrait

CHUNK = SAMPLE_RATE // 50
WARM_UP_WINDOWS = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(words)
    run_limited(options.isa, __file__, words)
    pipeline = AvatarPipeline.load(options.preset, threads=options.threads)
    first = next(iter(list_avatars().values()))
    portraits = [prepare_portrait(first, pipeline.finder, size=size) for size in options.size]
    result: dict[str, Any] = {
        "version": __version__,
        "commit": commit(),
        "device": processor_name() if pipeline.device.type == "cpu" else str(pipeline.device),
        "dtype": str(pipeline.variant),
        "isa": options.isa,
        "emulated": is_emulated(options.isa),
        "threads": torch.get_num_threads(),
        "preset": options.preset,
        "size": options.size,
        "held": [],
        "live": [],
    }
    with time_limit(limit_s(options, 2 * options.seconds * len(options.sessions)), result):
        measure(pipeline, portraits, options, result)
    text = json.dumps(result)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


def measure(
    pipeline: AvatarPipeline,
    portraits: Sequence[Portrait],
    options: argparse.Namespace,
    result: dict[str, Any],
) -> None:
    """Add all figures to the result, one after the other."""
    for quality in pipeline.quality_levels:
        most = in_own_thread(held)(pipeline, portraits, quality, options.windows, options.most)
        result["held"].append(most)
        result.setdefault("sessions_at_25_fps", most["sessions_at_25_fps"])
    alone = in_own_thread(measure_batches)(pipeline, portraits, BATCHES, stop_early=False)
    result["step_ms"] = {str(n): round(1000 * took_s, 2) for n, took_s in alone.items()}
    result["worthwhile_batch"] = worthwhile_batch(alone)
    for count in options.sessions:
        for batch in (1, max(BATCHES)):
            found = asyncio.run(live(pipeline, portraits, count, batch, options.seconds))
            result["live"].append({"sessions": count, "max_batch": batch} | found)
            if not options.json:
                print(result["live"][-1], flush=True)


def held(
    pipeline: Pipeline[Any],
    portraits: Sequence[Portrait],
    quality: Quality,
    windows: int,
    most: int,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Return how many sessions a process holds at a quality.

    Args:
        pipeline: the model.
        portraits: the portraits, which the sessions take by turns.
        quality: what is computed for each frame.
        windows: how many windows of each batch are measured.
        most: the largest batch.
        clock: returns monotonic seconds.
    """
    budget_ms = pipeline.frames_per_window * 1000 / FPS
    count = 0
    step_ms: dict[str, dict[str, float]] = {}
    while count < most:
        states = _states(pipeline, portraits, quality, count + 1)
        taken = percentiles(_windows_ms(pipeline, states, windows, clock))
        step_ms[str(count + 1)] = {name: round(ms, 2) for name, ms in asdict(taken).items()}
        if taken.p95 >= budget_ms:
            break
        count += 1
    return {"quality": asdict(quality), "sessions_at_25_fps": count, "step_ms": step_ms}


def _states(
    pipeline: Pipeline[Any], portraits: Sequence[Portrait], quality: Quality, count: int
) -> list[Any]:
    taken = islice(cycle(portraits), count)
    states = [pipeline.init_state(each, StateOptions(n)) for n, each in enumerate(taken)]
    for state in states if quality != FULL_QUALITY else ():
        pipeline.set_quality(state, quality)
    return states


def _windows_ms(
    pipeline: Pipeline[Any], states: Sequence[Any], windows: int, clock: Callable[[], float]
) -> list[float]:
    """Return how long each window of a batch took, after a warm-up."""
    voices = np.stack(
        [voice((WARM_UP_WINDOWS + windows) * pipeline.hop, n) for n in range(len(states))]
    )
    taken_ms = []
    for pcm in np.split(voices, WARM_UP_WINDOWS + windows, axis=1):
        began_s = clock()
        pipeline.step(np.ascontiguousarray(pcm), states)
        taken_ms.append(1000 * (clock() - began_s))
    return taken_ms[WARM_UP_WINDOWS:]


def voice(count: int, seed: int) -> np.ndarray:
    """Return `(count,)` float32 that sounds like vowels: mouths open, which noise does less."""
    time_s = np.arange(count) / SAMPLE_RATE
    partials = [np.sin(2 * np.pi * (110 + 15 * (seed % 6)) * k * time_s) / k for k in range(1, 20)]
    swell = 0.5 - 0.5 * np.cos(2 * np.pi * 3.1 * time_s + seed)
    breath = 0.02 * np.random.default_rng(seed).standard_normal(count)
    sound: np.ndarray = (0.1 * swell * np.sum(partials, 0) + breath).astype(np.float32)
    return sound


async def live(
    pipeline: Pipeline[Any], portraits: Sequence[Portrait], count: int, batch: int, seconds: float
) -> dict[str, Any]:
    """Run `count` sessions at the same time; return their waiting times and repeated frames."""
    worker = ModelWorker(pipeline, max_batch=batch)
    taken = islice(cycle(portraits), count)
    avatars = [Avatar.from_pipeline(pipeline, each, worker=worker) for each in taken]
    sessions = [one.session(seed=n, playback="reported") for n, one in enumerate(avatars)]
    began_s = time.monotonic()
    try:
        shown = await asyncio.gather(
            *[_converse(session, 0.037 * i, seconds) for i, session in enumerate(sessions)]
        )
        busy = worker.load.busy_s / (time.monotonic() - began_s)
    finally:
        worker.shutdown()
    return {
        "step_ms": _steps([session.metrics for session in sessions]),
        "repeated_ratio": round(
            sum(session.metrics.repeats for session in sessions) / max(1, sum(shown)), 4
        ),
        "busy_ratio": round(busy, 3),
        "sessions_per_call": round(worker.load.steps / max(1, worker.load.batches), 2),
    }


async def _converse(session: AvatarSession, start_s: float, seconds: float) -> int:
    """Push speech into a session and play it; return the number of frames shown."""
    await asyncio.sleep(start_s)  # sessions do not start at the same time
    frames = 0

    def show(frame: object) -> None:
        nonlocal frames
        frames += 1

    async with session:
        playout = Playout(show, played=session.notify_played, metrics=session.metrics)
        tasks = [asyncio.create_task(playout.run(session)), asyncio.create_task(_speak(session))]
        await asyncio.sleep(seconds)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    return frames


async def _speak(session: AvatarSession) -> None:
    random, loop = np.random.default_rng(0), asyncio.get_running_loop()
    began_s, chunks = loop.time(), 0
    while True:
        chunks += 1
        await asyncio.sleep(began_s + chunks * CHUNK / SAMPLE_RATE - loop.time())
        noise = 0.1 * random.standard_normal(CHUNK)
        await session.push_audio(noise.astype(np.float32), SAMPLE_RATE)


def _steps(metrics: Sequence[Metrics]) -> dict[str, float]:
    worst = [each.stages_ms().get("step", percentiles([])) for each in metrics]
    return {
        name: round(max(getattr(one, name) for one in worst), 1) for name in ("p50", "p95", "p99")
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    add = parser.add_argument
    add("--preset", default="tiny", help="the model (%(default)s)")
    add("--size", type=int, nargs="+", default=[512], help="longer sides, px, by turns (512)")
    add("--threads", type=int, help="CPU threads of the model (torch's choice)")
    add("--seconds", type=float, default=20.0, help="of each run (%(default)s)")
    add("--sessions", type=int, nargs="+", default=[1, 2, 3], help="at the same time (1 2 3)")
    add(
        "--windows", type=int, default=50, help="of each batch, for how many are held (%(default)s)"
    )
    add("--most", type=int, default=32, help="sessions in the largest batch (%(default)s)")
    add("-o", "--output", type=Path, help="also write the JSON line into this file")
    add_limit(parser)
    add_option(parser)
    add("--json", action="store_true", help="print the JSON line only")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
