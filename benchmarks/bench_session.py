"""Measures the latency of a live session: microphone to lips, interrupts, skew, memory.

Speech is pushed in chunks of 10 ms in real time; `play` releases the frames, as to a camera and a
loudspeaker. From time to time the speech is interrupted.

    python benchmarks/bench_session.py                  # ten minutes with the embedded model
    python benchmarks/bench_session.py --seconds 1800   # the slope of memory needs half an hour
    python benchmarks/bench_session.py --fake           # the engine alone: no model
    python benchmarks/bench_session.py --isolate-model  # with the model in a process of its own
    python benchmarks/bench_session.py --isa avx2       # as on an older processor

    mic_to_lips_ms            from a chunk's arrival to the release of its frame
      algorithmic_ms, queue_ms, compute_ms, playout_ms       the parts of it
    interrupt_to_last_frame_ms  until the last stale frame was shown or repeated
    interrupt_to_silence_ms     until the last stale audio left the loudspeaker's buffer
    av_skew_ms                between a frame and its audio, beyond the 35 ms that the
                              loudspeaker's buffer holds
    loop_lag_ms               how late the event loop wakes a task while the model runs
    engine_ms                 what the engine adds to a step of the model
    missed_windows            steps that took longer than a window lasts

The last line is JSON; each of the above with p50, p95 and p99.
"""

import argparse
import asyncio
import json
import os
import pkgutil
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from card import commit, processor_name
from instruction_sets import add_option, is_emulated, run_limited
from session_probes import (
    CHUNK_MS,
    SPARE_S,
    Recorder,
    Series,
    TimedPipeline,
    voice,
)
from time_limit import add_limit, limit_s, time_limit

from letstalk_rt import __version__
from letstalk_rt.errors import PortraitError
from letstalk_rt.inference.isolated_pipeline import IsolatedPipeline
from letstalk_rt.metrics import percentiles
from letstalk_rt.session.avatar import Avatar, AvatarSession
from letstalk_rt.sinks.play import play
from letstalk_rt.threads import shorten_openmp_spin
from letstalk_rt.types import FPS, SAMPLE_RATE, Portrait

MODEL = "letstalk_rt.inference.pipeline:AvatarPipeline.load"
FAKE_MODEL = "session_probes:FakePipeline"
PAUSE_S = 1.0  # of the speech, after an interrupt
LAG_STEP_S = 0.005
WARM_STARTS = 5
MORE_SESSIONS = 3


async def speak(
    session: AvatarSession, recorder: Recorder, seconds: float, every_s: float
) -> float:
    """Push speech in real time, and interrupt it every `every_s` seconds.

    Returns:
        How many seconds of it were taken: less than `seconds` if the machine is behind, because
        the benchmark ends in time.
    """
    speech, chunk = voice(20), SAMPLE_RATE * CHUNK_MS // 1000
    started_s, silent_until, next_s = time.monotonic(), 0.0, every_s
    for number in range(int(seconds * 1000 / CHUNK_MS)):
        at_s = (number + 1) * CHUNK_MS / 1000
        if time.monotonic() - started_s > seconds + PAUSE_S:
            return number * CHUNK_MS / 1000
        await asyncio.sleep(max(0.0, started_s + at_s - time.monotonic()))
        if at_s >= next_s:
            session.interrupt()
            recorder.interrupted()
            silent_until, next_s = at_s + PAUSE_S, next_s + every_s
        if at_s >= silent_until:
            recorder.resumed()
            start = number * chunk % (len(speech) - chunk)
            await session.push_audio(speech[start : start + chunk], SAMPLE_RATE)
    return seconds


async def watch_loop(lags_ms: Series) -> None:
    """Record how late the event loop wakes this task, until cancelled."""
    while True:
        before_s = time.monotonic()
        await asyncio.sleep(LAG_STEP_S)
        lags_ms.append((time.monotonic() - before_s - LAG_STEP_S) * 1000)


def watch_memory(points_mb: Series, stop: threading.Event) -> None:
    """Record the resident memory every second; runs in a thread of its own."""
    while not stop.wait(1.0):
        points_mb.append(rss_mb())


def rss_mb() -> float:
    """Return the resident memory of this process; NaN without /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return float("nan")
    return pages * 4096 / 1e6


def slope_mb_per_h(points_mb: np.ndarray) -> float:
    """Return the slope over the last two thirds of values taken every second."""
    kept = points_mb[len(points_mb) // 3 :]
    if len(kept) < 3:
        return float("nan")
    return float(np.polyfit(np.arange(len(kept)), kept, 1)[0]) * 3600


async def run(
    avatar: Avatar,
    timed: TimedPipeline[Any],
    options: argparse.Namespace,
    result: dict[str, Any],
) -> None:
    """Measure one session for `options.seconds` and add its figures, even if it is cut short."""
    long_s = options.seconds + SPARE_S
    recorder, memory = Recorder(options.seconds), Series(int(long_s))
    lags_ms = Series(int(long_s / LAG_STEP_S))
    stop = threading.Event()
    threading.Thread(target=watch_memory, args=(memory, stop), daemon=True).start()
    activity = options.voice_activity
    async with avatar.session(voice_activity=activity, playback="reported") as session:
        playing = asyncio.create_task(play(session, [recorder], (options.size, options.size)))
        sounding = asyncio.create_task(recorder.speaker.run())
        watching = asyncio.create_task(watch_loop(lags_ms))
        cpu_s = time.thread_time()
        try:
            pushed_s = await speak(session, recorder, options.seconds, options.interrupt_every)
            if pushed_s < options.seconds:
                result["partial"] = f"behind: {pushed_s:.0f} s of speech were taken"
        finally:
            cpu_s = time.thread_time() - cpu_s
            for task in (playing, sounding, watching):
                task.cancel()
                await asyncio.wait([task])
            stop.set()
            result |= figures(recorder, lags_ms.values(), memory.values(), session, cpu_s)
            result["engine_ms"] = spread(added_ms(recorder, timed))
            result["model_ms"] = spread(timed.took_s.values() * 1000)
        if not playing.cancelled() and (error := playing.exception()):
            raise error


def figures(
    recorder: Recorder,
    lags_ms: np.ndarray,
    memory_mb: np.ndarray,
    session: AvatarSession,
    cpu_s: float,
) -> dict[str, Any]:
    """Return the measured figures."""
    metrics = session.metrics
    values = {f"{name}_ms": spread(part.values()) for name, part in recorder.parts_ms.items()}
    return values | {
        "interrupt_to_last_frame_ms": spread(recorder.last_frame_ms),
        "interrupt_to_silence_ms": spread(recorder.silence_ms),
        "interrupts": len(recorder.silence_ms),
        "loop_lag_ms": spread(lags_ms),
        "loop_cpu_ms_per_frame": round(cpu_s * 1000 / max(1, metrics.frames), 3),
        "missed_windows": metrics.missed,
        **metrics.counts(),
        "rtf": round(metrics.real_time_factor, 3),
        "rss_mb": round(rss_mb(), 1),
        "rss_slope_mb_per_h": round(slope_mb_per_h(memory_mb), 3),
    }


async def first_frame_ms(avatar: Avatar) -> float:
    """Return the time from opening a session to its first frame."""
    started_s = time.monotonic()
    async with avatar.session() as session:
        await anext(session)
    return (time.monotonic() - started_s) * 1000


async def more_sessions_mb(avatar: Avatar) -> float:
    """Return the memory that each further session takes."""
    before_mb = rss_mb()
    sessions = [avatar.session(seed=seed) for seed in range(MORE_SESSIONS)]
    for session in sessions:
        await session.__aenter__()
        for _ in range(2 * FPS // 5):
            await anext(session)
    grown_mb = rss_mb() - before_mb
    for session in sessions:
        await session.aclose()
    return grown_mb / MORE_SESSIONS


def spread(values_ms: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Return p50, p95 and p99."""
    found = asdict(percentiles(map(float, values_ms)))
    return {name: round(value, 2) for name, value in found.items()}


def open_avatar(options: argparse.Namespace) -> tuple[Avatar, TimedPipeline[Any], int | None]:
    """Return an avatar with its model, which may be the fake one, and its sampling steps."""
    if options.fake:
        canvas = np.zeros((options.size, options.size, 3), np.uint8)
        portrait = Portrait(canvas, canvas, (0.0, 0.0, float(options.size)))
        timed = TimedPipeline(load(options, FAKE_MODEL, size=options.size), options.seconds)
        return Avatar.from_pipeline(timed, portrait), timed, None
    from letstalk_rt.portrait.image import prepare_portrait

    names = ("preset", "device", "steps", "threads")
    pipeline = load(options, MODEL, **{name: getattr(options, name) for name in names})
    portrait = prepare_portrait(portrait_path(options.portrait), pipeline.finder, size=options.size)
    model = TimedPipeline(pipeline, options.seconds)
    return Avatar.from_pipeline(model, portrait), model, getattr(pipeline, "steps", None)


def load(options: argparse.Namespace, function: str, **named: Any) -> Any:
    """Return a pipeline, in this process or in one of its own, where it is ended with this one."""
    if options.isolate_model:
        return IsolatedPipeline(function, named)
    return pkgutil.resolve_name(function)(**named)


def portrait_path(given: Path | None) -> Path:
    """Return the image to animate: `given` or the first default avatar."""
    from letstalk_rt.avatars import list_avatars

    path = given or next(iter(list_avatars().values()), None)
    if path is None:
        raise PortraitError("The package holds no default avatar; give one with --portrait.")
    return path


def cold_start_ms(argv: Sequence[str]) -> float:
    """Return the time from the command to the first frame, in a process of its own."""
    command = [sys.executable, __file__, *argv, "--first-frame"]
    started_s = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        line = child.stdout.readline()
        taken_s = time.monotonic() - started_s
    if child.returncode or line.strip() != "first frame":
        raise RuntimeError("the cold start failed; run the command with --first-frame to see why")
    return taken_s * 1000


def card(avatar: Avatar, steps: int | None, options: argparse.Namespace) -> dict[str, Any]:
    """Return what is measured, and on which machine."""
    facts: dict[str, Any] = {
        "benchmark": "session",
        "preset": "fake" if options.fake else options.preset,
        "device": device_name(),
        "cores": os.cpu_count(),
        "seconds": options.seconds,
        "size": list(avatar.portrait.canvas.shape[:2]),
        "voice_activity": options.voice_activity,
        "isolate_model": options.isolate_model,
        "isa": options.isa,
        "emulated": is_emulated(options.isa),
        "python": platform.python_version(),
        "version": __version__,
        "commit": commit(),
    }
    if not options.fake:
        import torch

        facts |= {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "steps": steps,
        }
    return facts


def device_name() -> str:
    """Return the name of the GPU if torch uses one, else of the processor."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return processor_name()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--seconds", type=float, default=600.0, help="how long to measure (%(default)s)")
    add(
        "--fake",
        action="store_true",
        help="a model that takes no time: the engine alone",
    )
    add("--preset", default="tiny")
    add("--device", default="auto")
    add("--steps", type=int, help="denoiser calls per window (the preset's)")
    add("--threads", type=int, help="CPU threads (torch's choice)")
    add("--size", type=int, default=512, help="longer side of the frames (%(default)s)")
    add("--portrait", type=Path, help="an image (the first default avatar)")
    add("--voice-activity", default="energy", help="energy, silero or off (%(default)s)")
    add("--interrupt-every", type=float, default=7.3, metavar="S", help="(%(default)s)")
    add("--no-cold", action="store_true", help="leave out the cold start")
    add("-o", "--output", type=Path, help="write the JSON to a file as well")
    add_limit(parser)
    add("--json", action="store_true", help="print the JSON line only")
    add("--isolate-model", action="store_true", help="run the model in a process of its own")
    add_option(parser)
    add("--first-frame", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


async def measure(
    avatar: Avatar,
    timed: TimedPipeline[Any],
    options: argparse.Namespace,
    result: dict[str, Any],
) -> None:
    """Add all figures that are measured in this process."""
    warm_ms = [await first_frame_ms(avatar) for _ in range(WARM_STARTS)]
    timed.started_s.clear()
    timed.took_s.clear()
    result["first_frame_warm_ms"] = round(float(np.median(warm_ms)), 1)
    await run(avatar, timed, options, result)
    result["rss_mb_per_further_session"] = round(await more_sessions_mb(avatar), 1)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the card, the table and the JSON line."""
    shorten_openmp_spin()
    words = list(sys.argv[1:] if argv is None else argv)
    options = parse(words)
    run_limited(options.isa, __file__, words)
    avatar, timed, steps = open_avatar(options)
    with avatar:
        if options.first_frame:
            asyncio.run(first_frame_ms(avatar))
            print("first frame", flush=True)
            return
        facts = card(avatar, steps, options)
        result: dict[str, Any] = {"first_frame_cold_ms": None}
        with time_limit(limit_s(options, options.seconds), result):
            asyncio.run(measure(avatar, timed, options, result))
            if not options.no_cold:
                result["first_frame_cold_ms"] = round(cold_start_ms(words), 1)
    if not options.json:
        print_table(facts, result)
    text = json.dumps(facts | result)
    if options.output is not None:
        options.output.write_text(json.dumps(facts | result, indent=1) + "\n")
    print(text)


def added_ms(recorder: Recorder, timed: TimedPipeline[Any]) -> np.ndarray:
    """Return, for each step, the time from request to arrival minus the step itself."""
    asked_s, had_s = recorder.asked_s.values(), recorder.had_s.values()
    begun_s, took_s = timed.started_s.values(), timed.took_s.values()
    step = np.searchsorted(begun_s, asked_s)
    known = step < len(begun_s)
    step, asked_s, had_s = step[known], asked_s[known], had_s[known]
    own = begun_s[step] < had_s
    added: np.ndarray = (had_s - asked_s - took_s[step])[own] * 1000
    return added


def print_table(facts: dict[str, Any], result: dict[str, Any]) -> None:
    """Print a table."""
    for name, value in (facts | result).items():
        if isinstance(value, dict):
            value = "  ".join(f"{key} {number:8.2f}" for key, number in value.items())
        print(f"{name:>28}  {value}")


if __name__ == "__main__":
    main()
