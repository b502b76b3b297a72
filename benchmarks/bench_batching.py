"""Compares steps of several sessions one by one with steps in a batch.

Several live sessions share the model's thread, first with one step after another,
then with steps in a batch when they wait at the same time. Each gets live audio and is read at 25
frames per second. `step` is the time a session waits for its window, queueing included.

    python benchmarks/bench_batching.py --sessions 1 2 3 --seconds 20
    python benchmarks/bench_batching.py --size 512 384 720        # sizes by turns, in one batch

The last line is JSON: `step_ms` of each batch size, back to back; then, for each number of
sessions and each of both ways, `step_ms` (p50, p95, p99), `repeated_ratio`, `busy_ratio` and
`sessions_per_call`.
"""

import argparse
import asyncio
import json
import platform
import time
from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

import numpy as np

from letstalk_rt import __version__
from letstalk_rt.avatars import list_avatars
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.inference.protocol import Pipeline
from letstalk_rt.inference.worker import BATCHES, ModelWorker, measure_batches, worthwhile_batch
from letstalk_rt.metrics import Metrics, percentiles
from letstalk_rt.portrait.image import prepare_portrait
from letstalk_rt.session.avatar import Avatar, AvatarSession
from letstalk_rt.session.playout import Playout
from letstalk_rt.threads import in_own_thread
from letstalk_rt.types import SAMPLE_RATE, Portrait

CHUNK = SAMPLE_RATE // 50


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit status."""
    options = _parser().parse_args(arguments)
    pipeline = AvatarPipeline.load(options.preset, threads=options.threads)
    first = next(iter(list_avatars().values()))
    portraits = [prepare_portrait(first, pipeline.finder, size=size) for size in options.size]
    alone = in_own_thread(measure_batches)(pipeline, portraits, BATCHES, stop_early=False)
    result: dict[str, Any] = {
        "version": __version__,
        "machine": platform.processor() or platform.machine(),
        "preset": options.preset,
        "size": options.size,
        "step_ms": {str(count): round(1000 * took_s, 2) for count, took_s in alone.items()},
        "worthwhile_batch": worthwhile_batch(alone),
        "live": [],
    }
    for count in options.sessions:
        for batch in (1, max(BATCHES)):
            found = asyncio.run(live(pipeline, portraits, count, batch, options.seconds))
            result["live"].append({"sessions": count, "max_batch": batch} | found)
            if not options.json:
                print(result["live"][-1], flush=True)
    print(json.dumps(result))
    return 0


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
    add("--json", action="store_true", help="print the JSON line only")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
