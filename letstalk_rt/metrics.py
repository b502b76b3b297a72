"""What a session measures of itself: how long each stage takes, and what went wrong how often."""

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
    """Give p50, p95 and p99 by nearest rank: each is a value that occurred; NaN when none did."""
    ordered = sorted(values_ms)
    if not ordered:
        return Percentiles(math.nan, math.nan, math.nan)
    p50, p95, p99 = (ordered[max(0, math.ceil(len(ordered) * q / 100) - 1)] for q in (50, 95, 99))
    return Percentiles(p50, p95, p99)


@dataclass(frozen=True, slots=True)
class FrameStamps:
    """When a frame and its sound passed each point; monotonic seconds of the event loop.

    Attributes:
        audio_in_s: the last of its speech was pushed; None where it has none.
        hop_complete_s: the hop that the model heard for it was full.
        model_start_s: the step was asked for.
        model_end_s: the frame was made.
        released_s: it was handed to the reader.
    """

    audio_in_s: float | None
    hop_complete_s: float
    model_start_s: float
    model_end_s: float
    released_s: float


@dataclass(slots=True)
class Metrics:
    """Stamps and counters of one session. Memory is bounded, however long it lasts.

    Stages of the engine, of each frame unless said otherwise: `hop`, its speech waits until the hop
    is full; `queue`, a hop waits for the model; `step`, the model works on a hop, its turn among
    the sessions included; `wait`, a frame waits for its reader; `engine`, from its speech to the
    reader in all. Of the playout: `playout`, it waits until it is due; `live`, from its speech to
    the sink in all.

    Attributes:
        frames: frames handed out.
        steps: windows made.
        missed: windows that took longer than they last.
        stalls: how often the playout clock was moved.
        repeats: how often a picture was shown again because the next was late.
        drops: frames made and never shown, because of an interrupt.
        filled: hops in the midst of speech that were filled up, because it came late.
        corrected: samples doubled or left out, because the source's clock is off.
        skipped: quiet samples left out, to catch up after a stall.
        overflows: how often the source lost sound, see `sources.feed`.
        media_s: how long the windows made last.
        model_s: how long the model took for them.
        keep: how many of the latest durations each stage remembers.
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
    media_s: float = 0.0
    model_s: float = 0.0
    _stages_ms: dict[str, deque[float]] = field(default_factory=dict)

    @property
    def real_time_factor(self) -> float:
        """Media time over compute time; above 1 keeps up. NaN before the first window."""
        return self.media_s / self.model_s if self.model_s else math.nan

    def stamp(self, stage: str, duration_s: float) -> None:
        """Record that `stage` took `duration_s` once."""
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
        """Record a frame that is handed out."""
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

    def stages_ms(self) -> dict[str, Percentiles]:
        """Give the percentiles of each stage seen so far."""
        return {stage: percentiles(values) for stage, values in self._stages_ms.items()}

    def counts(self) -> dict[str, int]:
        """Give all counters by name."""
        names = (
            "frames", "steps", "missed", "stalls", "repeats", "drops", "filled", "corrected",
            "skipped", "overflows",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}


class StageTimer(Protocol):
    """Is told when the stages of a step begin and end: `with clock.stage("decode"): ...`."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Give the context that stage `name` runs in."""
        ...


class NoClock:
    """Measures nothing and costs nothing: what a step uses when nobody asks."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Give a context that does nothing."""
        return _NOTHING


class StageClock:
    """Measures how long each stage of a step takes; keeps every value, so for benchmarks only.

    Args:
        synchronize: called before each reading of the clock, e.g. `torch.cuda.synchronize`, so that
            work a device still does is counted where it was ordered.
    """

    def __init__(self, synchronize: Callable[[], object] | None = None) -> None:
        self._synchronize = synchronize
        self._stages_ms: dict[str, list[float]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure one run of stage `name`."""
        started_s = self._now_s()
        try:
            yield
        finally:
            taken_ms = (self._now_s() - started_s) * 1000
            self._stages_ms.setdefault(name, []).append(taken_ms)

    def reset(self) -> None:
        """Forget what was measured, e.g. after the warm-up."""
        self._stages_ms.clear()

    def stages_ms(self) -> dict[str, Percentiles]:
        """Give the percentiles of each stage, in the order in which they first ran."""
        return {name: percentiles(values) for name, values in self._stages_ms.items()}

    def _now_s(self) -> float:
        if self._synchronize is not None:
            self._synchronize()
        return time.perf_counter()


_NOTHING: AbstractContextManager[None] = nullcontext()
