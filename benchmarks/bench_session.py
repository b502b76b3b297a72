"""How live is a session? One session, sound pushed as a microphone does, frames played on time.

A voice is pushed in blocks of 10 ms at the pace of time; the frames leave by `play`, as into
a camera and a loudspeaker. From time to time the speech is interrupted.

    python benchmarks/bench_session.py                  # ten minutes with the embedded model
    python benchmarks/bench_session.py --seconds 1800   # the slope of memory needs half an hour
    python benchmarks/bench_session.py --fake           # the engine alone: no model

    mic_to_lips_ms            from a block's arrival to the release of the frame that shows it
      algorithmic_ms, queue_ms, compute_ms, playout_ms       what that is made of
    interrupt_to_last_frame_ms  until the last old picture was shown, or shown again
    interrupt_to_silence_ms     until the last old sound left the loudspeaker's buffer
    av_skew_ms                between a frame's picture and its sound, beyond the 35 ms that the
                              loudspeaker's buffer holds by intent
    loop_lag_ms               how late the event loop wakes a task while the model works
    engine_ms                 what the engine adds to a step of the model
    missed_windows            steps that took longer than their window lasts

The last line is JSON; each of the above with p50, p95 and p99.
"""

import argparse
import asyncio
import json
import math
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Hashable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from card import commit, processor_name

from letstalk_rt import __version__
from letstalk_rt.errors import PortraitError
from letstalk_rt.inference.protocol import DEFAULT_OPTIONS, Deliver, Pipeline, State, StateOptions
from letstalk_rt.metrics import percentiles
from letstalk_rt.session.avatar import Avatar, AvatarSession
from letstalk_rt.sinks.audio_buffer import AudioBuffer
from letstalk_rt.sinks.play import play
from letstalk_rt.sinks.speaker import BUFFER_S
from letstalk_rt.threads import shorten_openmp_spin
from letstalk_rt.types import FPS, SAMPLE_RATE, AVFrame, Portrait

BLOCK_MS = 10
BLOCKS = round(1000 / FPS / BLOCK_MS)
"""Of sound in a frame's time."""

PAUSE_S = 1.0  # of the voice, after an interrupt
FRAME_S = 1 / FPS
WARM_UP_S = 5.0
SPARE_S = 30.0
"""Room is taken for so much more than is measured."""

LAG_STEP_S = 0.005
WARM_STARTS = 5
MORE_SESSIONS = 3


def voice(seconds: float, seed: int = 0) -> np.ndarray:
    """Give noise with the rhythm of syllables: what is said does not change the work."""
    time_s = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    noise = np.random.default_rng(seed).standard_normal(len(time_s))
    return (0.1 * noise * (0.1 + np.sin(np.pi * 4 * time_s) ** 2)).astype(np.float32)


class FakePipeline(Pipeline[None]):
    """A model that costs nothing: grey frames of the right size."""

    frames_per_window, hop, lookahead_frames = 4, 4 * 640, 2
    partial_sizes, device = (4,), "cpu"

    def __init__(self, size: int) -> None:
        self._frames = np.full((1, 4, size, size, 3), 128, np.uint8)

    def init_state(self, portrait: Portrait, options: StateOptions = DEFAULT_OPTIONS) -> None:
        """Make nothing."""

    def interrupt(self, state: None, *, unseen: int = 0) -> None:
        """Forget nothing."""

    def change_portrait(self, state: None, portrait: Portrait) -> None:
        """Stay grey."""

    def batch_key(self, state: None) -> Hashable:
        """Never run together: the frames are those of one session."""
        return object()

    def step(
        self, pcm: np.ndarray, states: Sequence[None], deliver: Deliver | None = None
    ) -> np.ndarray:
        """Give a window."""
        window = self._frames.copy()
        if deliver is not None:
            deliver(window)
        return window


class Series:
    """Numbers in the order in which they came, in memory that is taken beforehand.

    Lists that grow with every frame look like a leak of the engine: 55 MB an hour.

    Args:
        most: how many there can be; of more, the oldest are forgotten.
    """

    def __init__(self, most: int) -> None:
        self._numbers = np.full(most, math.nan)
        self._count = 0

    def append(self, number: float) -> None:
        """Take the next one."""
        self._numbers[self._count % len(self._numbers)] = number
        self._count += 1

    def clear(self) -> None:
        """Forget all."""
        self._count = 0

    def values(self) -> np.ndarray:
        """Give them all, `(n,)`."""
        kept = min(self._count, len(self._numbers))
        return np.roll(self._numbers, -self._count)[-kept:] if kept else self._numbers[:0]


class TimedPipeline(Pipeline[State]):
    """A model whose steps are timed where they run."""

    def __init__(self, inner: Pipeline[State], seconds: float) -> None:
        self._inner = inner
        self.frames_per_window, self.hop = inner.frames_per_window, inner.hop
        self.lookahead_frames, self.partial_sizes = inner.lookahead_frames, inner.partial_sizes
        most = int((seconds + SPARE_S) * FPS / inner.frames_per_window)
        self.started_s, self.took_s = Series(most), Series(most)

    @property
    def device(self) -> object:
        """Where the model runs."""
        return self._inner.device

    def init_state(self, portrait: Portrait, options: StateOptions = DEFAULT_OPTIONS) -> State:
        """Make a state."""
        return self._inner.init_state(portrait, options)

    def interrupt(self, state: State, *, unseen: int = 0) -> None:
        """Forget the speech."""
        self._inner.interrupt(state, unseen=unseen)

    def change_portrait(self, state: State, portrait: Portrait) -> None:
        """Go on with another face."""
        self._inner.change_portrait(state, portrait)

    def batch_key(self, state: State) -> Hashable:
        """Return what sessions of one step have in common."""
        return self._inner.batch_key(state)

    def step(
        self, pcm: np.ndarray, states: Sequence[State], deliver: Deliver | None = None
    ) -> np.ndarray:
        """Run a step and note how long it took."""
        started_s = time.monotonic()
        frames = self._inner.step(pcm, states, deliver)
        self.started_s.append(started_s)
        self.took_s.append(time.monotonic() - started_s)
        return frames


class Loudspeaker:
    """The sound path of `letstalk_rt.sinks.speaker`: its buffer, and a device that takes from it.

    What a device holds itself is left out: 10 to 30 ms that no program can take back.
    """

    def __init__(self, skews_ms: Series) -> None:
        self.heard_s = 0.0  # until then sound came out
        self._buffer = AudioBuffer(SAMPLE_RATE, BUFFER_S)
        self._skews_ms = skews_ms
        self._coming: list[tuple[float, int]] = []  # shown when, and behind how much sound

    def push(self, pcm: np.ndarray, now_s: float) -> None:
        """Take the sound of a picture that is shown now."""
        self._coming.append((now_s, self._buffer.level))
        self._buffer.push(pcm)
        if self._buffer.running:
            for shown_s, before in self._coming:
                heard_s = now_s + before / SAMPLE_RATE
                self._skews_ms.append(abs(heard_s - shown_s - (BUFFER_S - FRAME_S)) * 1000)
            self._coming.clear()

    def flush(self) -> None:
        """Fall silent."""
        self._buffer.clear()
        self._coming.clear()

    async def run(self) -> None:
        """Take sound at the pace of time, for ever."""
        started_s, taken = time.monotonic(), 0
        while True:
            await asyncio.sleep(BLOCK_MS / 1000)
            now_s = time.monotonic()
            count = int((now_s - started_s) * SAMPLE_RATE) - taken
            taken += count
            loud = np.flatnonzero(self._buffer.pull(count))
            if loud.size:
                self.heard_s = now_s + int(loud[-1]) / SAMPLE_RATE


class Recorder:
    """The sink: notes when everything was released."""

    latency_s = 0.0

    def __init__(self, seconds: float) -> None:
        frames = int((seconds + SPARE_S) * FPS)
        self.parts_ms = {name: Series(frames) for name in ("queue", "compute", "playout")}
        self.parts_ms["av_skew"] = Series(frames)
        for name in ("mic_to_lips", "algorithmic"):
            self.parts_ms[name] = Series(BLOCKS * frames)
        # When each step was asked for, and when its last frame was had.
        self.asked_s, self.had_s = Series(frames), Series(frames)
        self._step = (0.0, 0.0)  # the latest
        self.last_frame_ms: list[float] = []
        self.silence_ms: list[float] = []
        self.first_s = time.monotonic()
        self.speaker = Loudspeaker(self.parts_ms["av_skew"])
        self._interrupted_s: float | None = None
        self._stale_s = 0.0

    def open(self, width: int, height: int) -> None:
        """Nothing to open."""

    def show(self, frame: AVFrame) -> None:
        """Take a frame that is due."""
        now_s = time.monotonic()
        self.speaker.push(frame.pcm, now_s)
        assert frame.stamps is not None
        if self._interrupted_s is not None and frame.stamps.model_start_s < self._interrupted_s:
            self._stale_s = now_s
        if now_s - self.first_s > WARM_UP_S:
            self._note_path(frame, now_s)

    def repeat(self, frame: AVFrame) -> None:
        """Take a picture that is shown again."""
        assert frame.stamps is not None
        if self._interrupted_s is not None and frame.stamps.model_start_s < self._interrupted_s:
            self._stale_s = time.monotonic()

    def flush(self) -> None:
        """Drop the sound that is not heard yet."""
        self.speaker.flush()

    def close(self) -> None:
        """Nothing to close."""

    def interrupted(self) -> None:
        """Note an interrupt that was just made."""
        self._interrupted_s = self._stale_s = time.monotonic()

    def resumed(self) -> None:
        """Note that speech goes on after the pause of an interrupt."""
        if self._interrupted_s is not None:
            since_s = self._interrupted_s
            self.last_frame_ms.append((self._stale_s - since_s) * 1000)
            self.silence_ms.append(max(0.0, self.speaker.heard_s - since_s) * 1000)
            self._interrupted_s = None

    def _note_path(self, frame: AVFrame, now_s: float) -> None:
        stamps = frame.stamps
        if stamps is None or stamps.audio_in_s is None:
            return
        parts = self.parts_ms
        asked_s, had_s = self._step
        if stamps.model_start_s != asked_s and asked_s:
            self.asked_s.append(asked_s)
            self.had_s.append(had_s)
        self._step = stamps.model_start_s, stamps.model_end_s
        parts["queue"].append((stamps.model_start_s - stamps.hop_complete_s) * 1000)
        parts["compute"].append((stamps.model_end_s - stamps.model_start_s) * 1000)
        parts["playout"].append((now_s - stamps.model_end_s) * 1000)
        for block in range(BLOCKS):  # the stamp is that of the last one
            arrived_s = stamps.audio_in_s - block * BLOCK_MS / 1000
            parts["algorithmic"].append((stamps.hop_complete_s - arrived_s) * 1000)
            parts["mic_to_lips"].append((now_s - arrived_s) * 1000)


async def speak(session: AvatarSession, recorder: Recorder, seconds: float, every_s: float) -> None:
    """Push a voice at the pace of time, and interrupt it every `every_s` seconds."""
    sound, block = voice(20), SAMPLE_RATE * BLOCK_MS // 1000
    started_s, silent_until, next_s = time.monotonic(), 0.0, every_s
    for number in range(int(seconds * 1000 / BLOCK_MS)):
        at_s = (number + 1) * BLOCK_MS / 1000
        await asyncio.sleep(max(0.0, started_s + at_s - time.monotonic()))
        if at_s >= next_s:
            session.interrupt()
            recorder.interrupted()
            silent_until, next_s = at_s + PAUSE_S, next_s + every_s
        if at_s >= silent_until:
            recorder.resumed()
            start = number * block % (len(sound) - block)
            await session.push_audio(sound[start : start + block], SAMPLE_RATE)


async def watch_loop(lags_ms: Series) -> None:
    """Note how late the event loop wakes this task, for ever."""
    while True:
        before_s = time.monotonic()
        await asyncio.sleep(LAG_STEP_S)
        lags_ms.append((time.monotonic() - before_s - LAG_STEP_S) * 1000)


def watch_memory(points_mb: Series, stop: threading.Event) -> None:
    """Note the resident memory every second, in a thread of its own."""
    while not stop.wait(1.0):
        points_mb.append(rss_mb())


def rss_mb() -> float:
    """Give the resident memory of this process; NaN where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return float("nan")
    return pages * 4096 / 1e6


def slope_mb_per_h(points_mb: np.ndarray) -> float:
    """Fit a line to the last two thirds of what was noted every second; the first is warm-up."""
    kept = points_mb[len(points_mb) // 3 :]
    if len(kept) < 3:
        return float("nan")
    return float(np.polyfit(np.arange(len(kept)), kept, 1)[0]) * 3600


async def run(
    avatar: Avatar, timed: TimedPipeline[Any], options: argparse.Namespace
) -> dict[str, Any]:
    """Measure one session, for as long as asked for."""
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
        await speak(session, recorder, options.seconds, options.interrupt_every)
        cpu_s = time.thread_time() - cpu_s
        for task in (playing, sounding, watching):
            task.cancel()
            await asyncio.wait([task])
        if not playing.cancelled() and (error := playing.exception()):
            raise error
    stop.set()
    found = figures(recorder, lags_ms.values(), memory.values(), session, cpu_s)
    return found | {"engine_ms": spread(added_ms(recorder, timed))}


def figures(
    recorder: Recorder,
    lags_ms: np.ndarray,
    memory_mb: np.ndarray,
    session: AvatarSession,
    cpu_s: float,
) -> dict[str, Any]:
    """Give what was measured."""
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
    """Give the time from opening a session to its first frame."""
    started_s = time.monotonic()
    async with avatar.session() as session:
        await anext(session)
    return (time.monotonic() - started_s) * 1000


async def more_sessions_mb(avatar: Avatar) -> float:
    """Give the memory that each further session takes."""
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
    """Give p50, p95 and p99."""
    found = asdict(percentiles(map(float, values_ms)))
    return {name: round(value, 2) for name, value in found.items()}


def open_avatar(options: argparse.Namespace) -> tuple[Avatar, TimedPipeline[Any], int | None]:
    """Load the model, or make the fake one; the number is its sampler steps."""
    if options.fake:
        picture = np.zeros((options.size, options.size, 3), np.uint8)
        portrait = Portrait(picture, picture, (0.0, 0.0, float(options.size)))
        timed = TimedPipeline(FakePipeline(options.size), options.seconds)
        return Avatar.from_pipeline(timed, portrait), timed, None
    from letstalk_rt.inference.pipeline import AvatarPipeline
    from letstalk_rt.portrait.image import prepare_portrait

    pipeline = AvatarPipeline.load(
        preset=options.preset, device=options.device, steps=options.steps, threads=options.threads
    )
    portrait = prepare_portrait(portrait_path(options.portrait), pipeline.finder, size=options.size)
    model = TimedPipeline(pipeline, options.seconds)
    return Avatar.from_pipeline(model, portrait), model, pipeline.steps


def portrait_path(given: Path | None) -> Path:
    """Give the picture to animate: the first default avatar when none is given."""
    from letstalk_rt.avatars import list_avatars

    path = given or next(iter(list_avatars().values()), None)
    if path is None:
        raise PortraitError("The package holds no default avatar; give one with --portrait.")
    return path


def cold_start_ms(argv: Sequence[str]) -> float:
    """Give the time from the command to the first frame, in a process of its own."""
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
    """Say what is measured, on what."""
    facts: dict[str, Any] = {
        "benchmark": "session",
        "preset": "fake" if options.fake else options.preset,
        "device": device_name(),
        "cores": os.cpu_count(),
        "seconds": options.seconds,
        "size": list(avatar.portrait.canvas.shape[:2]),
        "voice_activity": options.voice_activity,
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
    """Name the processor, or the GPU where torch is loaded and uses one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return processor_name()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--seconds", type=float, default=600.0, help="how long to measure (%(default)s)")
    add("--fake", action="store_true", help="a model that costs nothing: the engine alone")
    add("--preset", default="tiny")
    add("--device", default="auto")
    add("--steps", type=int, help="denoiser calls per window (the preset's)")
    add("--threads", type=int, help="CPU threads (torch's choice)")
    add("--size", type=int, default=512, help="longer side of the frames (%(default)s)")
    add("--portrait", type=Path, help="a picture (the first default avatar)")
    add("--voice-activity", default="energy", help="energy, silero or off (%(default)s)")
    add("--interrupt-every", type=float, default=7.3, metavar="S", help="(%(default)s)")
    add("--no-cold", action="store_true", help="leave out the cold start")
    add("-o", "--output", type=Path, help="write the JSON there too")
    add("--json", action="store_true", help="print the JSON line only")
    add("--first-frame", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


async def measure(
    avatar: Avatar, timed: TimedPipeline[Any], options: argparse.Namespace
) -> dict[str, Any]:
    """Do all that runs in this process."""
    warm_ms = [await first_frame_ms(avatar) for _ in range(WARM_STARTS)]
    timed.started_s.clear()
    timed.took_s.clear()
    result = await run(avatar, timed, options)
    result["model_ms"] = spread(timed.took_s.values() * 1000)
    result["first_frame_warm_ms"] = round(float(np.median(warm_ms)), 1)
    result["rss_mb_per_further_session"] = round(await more_sessions_mb(avatar), 1)
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Print the card, the table and the JSON line."""
    shorten_openmp_spin()
    words = list(sys.argv[1:] if argv is None else argv)
    options = parse(words)
    avatar, timed, steps = open_avatar(options)
    with avatar:
        if options.first_frame:
            asyncio.run(first_frame_ms(avatar))
            print("first frame", flush=True)
            return
        facts = card(avatar, steps, options)
        result = asyncio.run(measure(avatar, timed, options))
    result["first_frame_cold_ms"] = None if options.no_cold else round(cold_start_ms(words), 1)
    if not options.json:
        print_table(facts, result)
    text = json.dumps(facts | result)
    if options.output is not None:
        options.output.write_text(json.dumps(facts | result, indent=1) + "\n")
    print(text)


def added_ms(recorder: Recorder, timed: TimedPipeline[Any]) -> np.ndarray:
    """Give, for each step, what is between asking for it and having it, less the step itself."""
    asked_s, had_s = recorder.asked_s.values(), recorder.had_s.values()
    begun_s, took_s = timed.started_s.values(), timed.took_s.values()
    step = np.searchsorted(begun_s, asked_s)
    known = step < len(begun_s)
    step, asked_s, had_s = step[known], asked_s[known], had_s[known]
    own = begun_s[step] < had_s
    added: np.ndarray = (had_s - asked_s - took_s[step])[own] * 1000
    return added


def print_table(facts: dict[str, Any], result: dict[str, Any]) -> None:
    """Print for people."""
    for name, value in (facts | result).items():
        if isinstance(value, dict):
            value = "  ".join(f"{key} {number:8.2f}" for key, number in value.items())
        print(f"{name:>28}  {value}")


if __name__ == "__main__":
    main()
