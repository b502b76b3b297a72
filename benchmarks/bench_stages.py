"""Measures the speed from audio to composited frame, and the time of each stage.

`AvatarPipeline.step` is called back to back for B sessions in one batch, without a clock. A window
is `frames_per_window` frames of each session (160 ms), so a machine is fast enough if a window
takes less than that: its real-time factor is above 1.

    python benchmarks/bench_stages.py --preset tiny --seconds 20
    python benchmarks/bench_stages.py --sessions 1,2,4,8 --json    one batch after the other
    python benchmarks/bench_stages.py --windows 2000               constant time and memory?
    python benchmarks/bench_stages.py --isa avx2 --json            as on an older processor
    python benchmarks/bench_stages.py --preset b --device cuda --steps 2 --compile \
        --sessions 1,2,4,8,16 -o b-2-steps.json

Stages: audio (speech to audio tokens), sample (noise to latents), decode (latents to faces),
composite (faces into the portraits). The last line is JSON. A preset without weights in the package
is measured with random ones: the work is the same. `peak_mb` is the most memory that the GPU held
in a batch, decoder included; without a GPU, the most resident memory at any sample. `steady`
compares the first and the last tenth of the windows. `work` has GFLOP and megabytes moved of one
window of one session by stage, see `work_counter.py`: they hold on every processor.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from card import commit, processor_name
from instruction_sets import add_option, is_emulated, run_limited
from time_limit import add_limit, limit_s, time_limit
from work_counter import Work, WorkCounter

from letstalk_rt import __version__
from letstalk_rt.avatars import list_avatars
from letstalk_rt.errors import PortraitError
from letstalk_rt.inference.audio_stage import AudioState
from letstalk_rt.inference.motion_stage import MotionState
from letstalk_rt.inference.picture_state import PictureState
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.inference.protocol import StateOptions
from letstalk_rt.inference.sample_stage import LatentState
from letstalk_rt.inference.session_state import SessionState
from letstalk_rt.metrics import StageClock, percentiles
from letstalk_rt.models.batch_state import tensors
from letstalk_rt.models.loading import packaged_weights
from letstalk_rt.portrait.image import prepare_portrait
from letstalk_rt.types import FPS, SAMPLE_RATE

WARM_UP_WINDOWS = 5
WORK_WINDOWS = 4
"""Windows over which work is counted: mouths differ from one to the next."""


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    """Return noise with the rhythm of syllables; the content does not change the work."""
    time_s = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    noise = np.random.default_rng(seed).standard_normal(len(time_s))
    audio: np.ndarray = (0.1 * noise * np.sin(np.pi * 4 * time_s) ** 2).astype(np.float32)
    return audio


def measure(
    pipeline: AvatarPipeline,
    states: Sequence[SessionState],
    seconds: float,
    clock: StageClock,
    now_s: Callable[[], float],
    windows: int | None = None,
    watch: Callable[[], None] = lambda: None,
    windows_ms: list[float] | None = None,
) -> list[float]:
    """Return the milliseconds of each window, after a warm-up with the same shapes.

    Args:
        pipeline: The pipeline to measure.
        states: The session states of the batch.
        seconds: How long to measure.
        clock: Measures the stages.
        now_s: Returns the time in seconds.
        windows: The number of windows to measure, instead of `seconds`.
        watch: Called every 20 windows.
        windows_ms: Takes what is returned, as it is measured.
    """
    loop = speech(pipeline.hop * 50 / SAMPLE_RATE)
    windows_ms = [] if windows_ms is None else windows_ms
    index, end_s = 0, float("inf")
    while index < WARM_UP_WINDOWS + windows if windows else now_s() < end_s:
        start = index % 50 * pipeline.hop
        pcm = np.repeat(loop[None, start : start + pipeline.hop], len(states), 0)
        started_s = now_s()
        pipeline.step(pcm, states, clock=clock)
        windows_ms.append((now_s() - started_s) * 1000)
        index += 1
        if index == WARM_UP_WINDOWS:
            windows_ms.clear()
            clock.reset()
            end_s = now_s() + seconds
        if index % 20 == WARM_UP_WINDOWS:
            watch()
    return windows_ms


def report(pipeline: AvatarPipeline, windows_ms: list[float], clock: StageClock) -> dict[str, Any]:
    """Return the figures of the last line, without the card."""
    budget_ms = pipeline.frames_per_window * 1000 / FPS
    frames = len(windows_ms) * pipeline.frames_per_window
    fps = frames / (sum(windows_ms) / 1000)
    return {
        "fps": round(fps, 2),
        "rtf": round(fps / FPS, 3),
        "window_ms": _rounded(asdict(percentiles(windows_ms))),
        "stages_ms": _rounded({name: p.p50 for name, p in clock.stages_ms().items()}),
        "windows": len(windows_ms),
        "missed": sum(taken > budget_ms for taken in windows_ms),
        "budget_ms": budget_ms,
    }


def steady(windows_ms: list[float], memory_mb: list[float]) -> dict[str, float]:
    """Return time and memory of the first and the last tenth of a run."""
    tenth = max(1, len(windows_ms) // 10)
    return _rounded(
        {
            "first_ms": statistics.median(windows_ms[:tenth]),
            "last_ms": statistics.median(windows_ms[-tenth:]),
            "first_mb": memory_mb[0],
            "last_mb": memory_mb[-1],
            "most_mb": max(memory_mb),
        }
    )


def memory_mb() -> float:
    """Return the GPU memory in use, or the resident memory without a GPU."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated() / 2**20
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return float("nan")
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak_mb(held_mb: Sequence[float]) -> float:
    """Return the most GPU memory since the last reset, or the most of what was sampled."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return max(held_mb)


class _ThisThread:
    """Runs jobs in the thread that submits them; takes the place of a `DecodePool`."""

    def __init__(self, model_threads: int) -> None:
        self.model_threads = model_threads

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(function(*arguments))
        return done


def work(pipeline: AvatarPipeline, state: SessionState) -> dict[str, Any]:
    """Return parameters, the work of a window by stage, and the memory of a session."""
    windows = WARM_UP_WINDOWS + WORK_WINDOWS  # of a session that speaks: the mouth is open
    loud = np.split(speech(windows * pipeline.hop / SAMPLE_RATE)[None], windows, axis=1)
    decoder = pipeline.frame_decoder
    decode_pool, counter = decoder.decode_pool, WorkCounter()
    if decode_pool is not None:  # the counter does not see operations in other threads
        decoder.decode_pool = _ThisThread(decode_pool.model_threads)
    for pcm in loud[:WARM_UP_WINDOWS]:
        pipeline.step(pcm, [state])
    with counter:
        for pcm in loud[WARM_UP_WINDOWS:]:
            pipeline.step(pcm, [state], clock=counter)
    decoder.decode_pool = decode_pool
    parts: list[Any] = [state[AudioState].encoder, state[PictureState].features]
    if MotionState in state:
        parts += [state[MotionState].speech.encoder, state[MotionState].memory]
    if LatentState in state:
        latents = state[LatentState]
        parts += [latents.memory, latents.cache, latents.portrait]
    held = sum(t.nbytes for t in tensors(parts))
    count = {
        n: sum(p.numel() for p in part.parameters()) for n, part in pipeline.model.named_children()
    }
    whole = _per_window(counter.total)
    return {
        "gflop_per_window": whole["gflop"],
        "mb_moved_per_window": whole["mb_moved"],
        "work": {name: _per_window(one) for name, one in counter.stages.items() if any(one)},
        "session_mb": round(held / 2**20, 2),
        "million_parameters": _rounded({n: v / 1e6 for n, v in count.items()}),
    }


def _per_window(done: Work) -> dict[str, float]:
    flops, moved = done
    each = {"gflop": flops / 1e9, "mb_moved": moved / 1e6}
    return _rounded({name: value / WORK_WINDOWS for name, value in each.items()})


def load(options: argparse.Namespace) -> tuple[AvatarPipeline, str]:
    """Return the pipeline and the origin of its weights."""
    same = {"steps": options.steps, "dtype": options.dtype, "compiled": options.compile or None}
    if packaged_weights(options.preset).is_file():
        pipeline = AvatarPipeline.load(
            preset=options.preset, device=options.device, threads=options.threads, **same
        )
        return pipeline, "packaged"
    from letstalk_rt.inference.devices import choose_device
    from letstalk_rt.models.avatar_model import AvatarModel
    from letstalk_rt.models.presets import get_preset

    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = AvatarModel(get_preset(options.preset)).eval().requires_grad_(False)
    return AvatarPipeline.on(model.to(choose_device(options.device)), **same), "random"


def card(
    pipeline: AvatarPipeline, options: argparse.Namespace, size: tuple[int, int]
) -> dict[str, Any]:
    """Return what is measured, and on which machine."""
    device = torch.device(pipeline.device)
    return {
        "preset": options.preset,
        "device": _device_name(device),
        "dtype": str(pipeline.variant),
        "isa": options.isa,
        "emulated": is_emulated(options.isa),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "steps": pipeline.steps,
        "size": list(size),
        "torch": torch.__version__,
        "version": __version__,
        "commit": commit(),
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in values.items()}


def _portrait_path(given: Path | None) -> Path:
    path = given or next(iter(list_avatars().values()), None)
    if path is None:
        raise PortraitError("The package holds no default avatar; give one with --portrait.")
    return path


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--preset", default="tiny")
    add("--device", default="auto")
    add("--steps", type=int, help="denoiser calls per window (the preset's)")
    add("--threads", type=int, help="CPU threads (torch's choice)")
    add("--sessions", type=_counts, default=[1], help="sessions in a batch, e.g. 1,2,4,8 (1)")
    add("--dtype", default="auto", help="float32, bfloat16, float16, int8 or auto (%(default)s)")
    add("--compile", action="store_true", help="torch.compile; on CUDA also graphs")
    add("--windows", type=int, help="number of windows to measure, instead of --seconds")
    add("--size", type=int, default=512, help="longer side of the frames (%(default)s)")
    add("--portrait", type=Path, help="an image (the first default avatar)")
    add("--seconds", type=float, default=20.0, help="how long to measure (%(default)s)")
    add("-o", "--output", type=Path, help="also write the JSON line into this file")
    add_limit(parser)
    add("--json", action="store_true", help="print the JSON line only")
    add_option(parser)
    return parser.parse_args(argv)


def _counts(text: str) -> list[int]:
    counts = [int(part) for part in text.split(",")]
    if min(counts) < 1:
        raise argparse.ArgumentTypeError("a batch has at least 1 session")
    return counts


def main(argv: Sequence[str] | None = None) -> None:
    """Print the card, a table for each batch and the JSON line."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = _options(words)
    run_limited(options.isa, __file__, words)
    started_s = time.perf_counter()
    pipeline, weights = load(options)
    portrait = prepare_portrait(
        _portrait_path(options.portrait), pipeline.finder, size=options.size
    )
    states = [
        pipeline.init_state(portrait, StateOptions(seed)) for seed in range(max(options.sessions))
    ]
    loaded_s = time.perf_counter() - started_s
    facts = card(pipeline, options, portrait.canvas.shape[:2])
    facts |= {"weights": weights, "load_s": round(loaded_s, 2)} | work(pipeline, states[0])
    if not options.json:
        _print_table(facts)
    batches: list[dict[str, Any]] = []
    ended: dict[str, Any] = {}
    with time_limit(limit_s(options, options.seconds * len(options.sessions)), ended):
        for count in options.sessions:
            _batch(pipeline, states[:count], options, batches)
    for result in batches if not options.json else ():
        _print_result(result)
    one = batches[0] if len(batches) == 1 else {"batches": batches}
    text = json.dumps(facts | one | ended)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")
    print(text)


def _batch(
    pipeline: AvatarPipeline,
    states: Sequence[SessionState],
    options: argparse.Namespace,
    batches: list[dict[str, Any]],
) -> None:
    """Measure one size of batch, and add its result, even if it is cut short."""
    clock = StageClock(torch.cuda.synchronize if torch.cuda.is_available() else None)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    held_mb, windows_ms = [memory_mb()], list[float]()
    try:
        measure(
            pipeline,
            states,
            options.seconds,
            clock,
            time.perf_counter,
            options.windows,
            lambda: held_mb.append(memory_mb()),
            windows_ms,
        )
    finally:
        if windows_ms:
            result = {"sessions": len(states)} | report(pipeline, windows_ms, clock)
            result["peak_mb"] = round(peak_mb(held_mb), 2)
            batches.append(result | {"steady": steady(windows_ms, held_mb[1:] or held_mb)})


def _print_table(facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        print(f"{name:>10}  {value}")


def _print_result(result: dict[str, Any]) -> None:
    window = result["window_ms"]
    late = f"{result['missed']} over {result['budget_ms']:.0f} ms"
    print(f"\n{result['sessions']} sessions: {result['windows']} windows, {late}")
    print(
        f"    window  p50 {window['p50']:.1f}  p95 {window['p95']:.1f}  p99 {window['p99']:.1f} ms"
    )
    for name, value in result["stages_ms"].items():
        print(f"{name:>10}  p50 {value:.1f} ms")
    print(f"{result['fps']:.1f} fps per session, real-time factor {result['rtf']:.2f}\n")


if __name__ == "__main__":
    main()
