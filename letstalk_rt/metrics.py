"""Metrics of a session: how long each stage takes, and counters of what went wrong."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Percentiles of a duration, in milliseconds."""

    p50: float
    p95: float
    p99: float


def percentiles(values_ms: Iterable[float]) -> Percentiles:
    """Return p50, p95 and p99 by nearest rank, so each is one of `values_ms`; NaN for no values."""
    ordered = sorted(values_ms)
    if not ordered:
        return Percentiles(math.nan, math.nan, math.nan)
    p50, p95, p99 = (ordered[max(0, math.ceil(len(ordered) * q / 100) - 1)] for q in (50, 95, 99))
    return Percentiles(p50, p95, p99)


@dataclass(frozen=True, slots=True)
class FrameStamps:
    """When a frame and its audio passed each stage, in monotonic seconds of the event loop.

    Attributes:
        audio_in_s: when the last of its speech was pushed; None if it has no speech.
        hop_complete_s: when the hop that it was generated from was complete.
        model_start_s: when the step was requested.
        model_end_s: when the frame was generated.
        released_s: when it was handed to the reader.
        captured_s: when what it shows of a camera was captured; None if no camera moves it.
    """

    audio_in_s: float | None
    hop_complete_s: float
    model_start_s: float
    model_end_s: float
    released_s: float
    captured_s: float | None = None


@dataclass(slots=True)
class Metrics:
    """Stage durations and counters of one session, in bounded memory.

    Stages of the engine, measured per frame unless noted otherwise: `hop`, from pushed speech to
    the completed hop; `queue`, a hop waits for the model; `step`, the model processes a hop,
    including the wait for other sessions; `wait`, a frame waits for the reader; `engine`, from
    pushed speech to the reader in total. Stages of playout: `playout`, a frame waits until it is
    due; `live`, from pushed speech to the sink in total.

    Attributes:
        frames: frames handed to the reader.
        steps: windows generated.
        missed: windows that took longer to compute than they play.
        stalls: how often the playout clock was moved.
        repeats: how often a frame was repeated because the next one was late.
        drops: frames generated but never shown, because of an interrupt.
        filled: hops within speech that were completed with silence, because speech was late.
        corrected: samples duplicated or left out to correct clock drift of the source.
        skipped: quiet samples left out to catch up after a stall.
        overflows: how often the source lost audio; see `sources.feed`.
        recoveries: how often the model failed and the session went on with a fresh state.
        quality_level: the present quality level; 0 is full quality.
        quality_changes: how often it has changed.
        reduced: frames handed out below full quality.
        media_s: playing time of all windows.
        model_s: computing time of all windows.
        keep: how many of the latest durations are kept per stage.
    """

    stalls: int = 0
    repeats: int = 0
    drops: int = 0
    keep: int = 1000
    frames: int = 0
    steps: int = 0
    missed: int = 0
    filled: int = 0
    corrected: int = 0
    skipped: int = 0
    overflows: int = 0
    recoveries: int = 0
    quality_level: int = 0
    quality_changes: int = 0
    reduced: int = 0
    media_s: float = 0.0
    model_s: float = 0.0
    _stages_ms: dict[str, deque[float]] = field(default_factory=dict)

    @property
    def real_time_factor(self) -> float:
        """Media time over compute time; above 1 is fast enough. NaN before the first window."""
        return self.media_s / self.model_s if self.model_s else math.nan

    def stamp(self, stage: str, duration_s: float) -> None:
        """Record one duration of `stage`."""
        if stage not in self._stages_ms:
            self._stages_ms[stage] = deque(maxlen=self.keep)
        self._stages_ms[stage].append(duration_s * 1000)

    def stamp_step(self, took_s: float, media_s: float) -> None:
        """Record one window."""
        self.steps += 1
        self.missed += took_s > media_s
        self.media_s += media_s
        self.model_s += took_s
        self.stamp("step", took_s)

    def stamp_frame(self, stamps: FrameStamps) -> None:
        """Record a frame that is handed to the reader."""
        self.frames += 1
        self.stamp("wait", stamps.released_s - stamps.model_end_s)
        if stamps.audio_in_s is not None:
            self.stamp("hop", max(0.0, stamps.hop_complete_s - stamps.audio_in_s))
            self.stamp("engine", stamps.released_s - stamps.audio_in_s)

    def stamp_shown(self, stamps: FrameStamps, shown_s: float) -> None:
        """Record that a frame reached its sink."""
        self.stamp("playout", shown_s - stamps.released_s)
        if stamps.audio_in_s is not None:
            self.stamp("live", shown_s - stamps.audio_in_s)
        if stamps.captured_s is not None:
            self.stamp("camera_wait", stamps.model_start_s - stamps.captured_s)
            self.stamp("camera", shown_s - stamps.captured_s)

    def stages_ms(self) -> dict[str, Percentiles]:
        """Return the percentiles of each stage recorded so far."""
        return {stage: percentiles(values) for stage, values in self._stages_ms.items()}

    def counts(self) -> dict[str, int]:
        """Return all counters by name."""
        names = (
            "frames", "steps", "missed", "stalls", "repeats", "drops", "filled", "corrected",
            "skipped", "overflows", "recoveries", "quality_level", "quality_changes", "reduced",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}


class StageTimer(Protocol):
    """Interface for timing the stages of a step: `with clock.stage("decode"): ...`."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Return a context manager that encloses stage `name`."""
        ...


class NoClock:
    """A `StageTimer` that measures nothing."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Return a context manager that does nothing."""
        return _NOTHING


class StageClock:
    """A `StageTimer` that keeps every duration; for benchmarks only, as its memory is not bounded.

    Args:
        synchronize: called before each reading of the clock, e.g. `torch.cuda.synchronize`, so that
            asynchronous work of a device counts in the stage that launched it.
    """

    def __init__(self, synchronize: Callable[[], object] | None = None) -> None:
        self._synchronize = synchronize
        self._stages_ms: dict[str, list[float]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the enclosed block as stage `name`."""
        started_s = self._now_s()
        try:
            yield
        finally:
            taken_ms = (self._now_s() - started_s) * 1000
            self._stages_ms.setdefault(name, []).append(taken_ms)

    def reset(self) -> None:
        """Discard all measurements, e.g. after the warm-up."""
        self._stages_ms.clear()

    def stages_ms(self) -> dict[str, Percentiles]:
        """Return the percentiles of each stage, in the order of their first runs."""
        return {name: percentiles(values) for name, values in self._stages_ms.items()}

    def _now_s(self) -> float:
        if self._synchronize is not None:
            self._synchronize()
        return time.perf_counter()


_NOTHING: AbstractContextManager[None] = nullcontext()
