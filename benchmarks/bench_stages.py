"""How fast is the path from sound to composited frame, and where does the time go?

`AvatarPipeline.step` is called back to back for B sessions in one batch; nothing waits for a clock.
One window is `frames_per_window` frames of each session (160 ms), so a machine keeps up when a
window takes less than that: its real-time factor is above 1.

    python benchmarks/bench_stages.py --preset tiny --seconds 20
    python benchmarks/bench_stages.py --sessions 4 --steps 2 --json

Stages: audio (speech to audio tokens), sample (noise to latents), decode (latents to faces),
composite (faces into the portraits). The last line is JSON.
"""

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from letstalk_rt import __version__
from letstalk_rt.avatars import list_avatars
from letstalk_rt.errors import PortraitError
from letstalk_rt.metrics import StageClock, percentiles
from letstalk_rt.pipeline import AvatarPipeline
from letstalk_rt.portrait import prepare_portrait
from letstalk_rt.types import FPS, SAMPLE_RATE

WARM_UP_WINDOWS = 5


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    """Give noise with the rhythm of syllables: what is said does not change the work."""
    time_s = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    noise = np.random.default_rng(seed).standard_normal(len(time_s))
    return (0.1 * noise * np.sin(np.pi * 4 * time_s) ** 2).astype(np.float32)


def measure(
    pipeline: Any,
    states: Sequence[Any],
    seconds: float,
    clock: StageClock,
    now_s: Callable[[], float],
) -> list[float]:
    """Give the milliseconds of each window, for `seconds` after a warm-up at the same shape."""
    loop = speech(pipeline.hop * 50 / SAMPLE_RATE)
    windows_ms: list[float] = []
    index, end_s = 0, float("inf")
    while now_s() < end_s:
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
    return windows_ms


def report(pipeline: Any, windows_ms: list[float], clock: StageClock) -> dict[str, Any]:
    """Give what the last line says, without the card."""
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


def card(pipeline: Any, options: argparse.Namespace, size: tuple[int, int]) -> dict[str, Any]:
    """Say what is measured, on what."""
    device = torch.device(getattr(pipeline, "device", "cpu"))
    return {
        "preset": options.preset,
        "device": _device_name(device),
        "dtype": str(getattr(pipeline, "dtype", torch.float32)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "sessions": options.sessions,
        "steps": getattr(pipeline, "steps", options.steps),
        "size": list(size),
        "torch": torch.__version__,
        "version": __version__,
        "commit": _commit(),
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


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
    add("--sessions", type=int, default=1, help="sessions in one batch (%(default)s)")
    add("--size", type=int, default=512, help="longer side of the frames (%(default)s)")
    add("--portrait", type=Path, help="a picture (the first default avatar)")
    add("--seconds", type=float, default=20.0, help="how long to measure (%(default)s)")
    add("--json", action="store_true", help="print the JSON line only")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the card, the table and the JSON line."""
    options = _options(argv)
    started_s = time.perf_counter()
    pipeline = AvatarPipeline.load(
        preset=options.preset, device=options.device, steps=options.steps, threads=options.threads
    )
    portrait = prepare_portrait(
        _portrait_path(options.portrait), pipeline.finder, size=options.size
    )
    states = [pipeline.init_state(portrait, seed=seed) for seed in range(options.sessions)]
    loaded_s = time.perf_counter() - started_s
    facts = card(pipeline, options, portrait.canvas.shape[:2]) | {"load_s": round(loaded_s, 2)}
    if not options.json:
        _print_table(facts)
    clock = StageClock(torch.cuda.synchronize if torch.cuda.is_available() else None)
    windows_ms = measure(pipeline, states, options.seconds, clock, time.perf_counter)
    result = report(pipeline, windows_ms, clock)
    if not options.json:
        _print_result(result)
    print(json.dumps(facts | result))


def _print_table(facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        print(f"{name:>10}  {value}")


def _print_result(result: dict[str, Any]) -> None:
    window = result["window_ms"]
    print(f"\n{result['windows']} windows, {result['missed']} over {result['budget_ms']:.0f} ms")
    print(
        f"    window  p50 {window['p50']:.1f}  p95 {window['p95']:.1f}  p99 {window['p99']:.1f} ms"
    )
    for name, value in result["stages_ms"].items():
        print(f"{name:>10}  p50 {value:.1f} ms")
    print(f"{result['fps']:.1f} fps per session, real-time factor {result['rtf']:.2f}\n")


if __name__ == "__main__":
    main()
