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


@dataclass(slots=True)
class Metrics:
    """Stamps and counters of one session. Memory is bounded, however long it lasts.

    Stages of the engine: `queue`, a hop waits for the model; `step`, the model works on it, its
    turn among the sessions included; `wait`, a frame waits for its reader.

    Attributes:
        stalls: how often the playout clock was moved.
        repeats: how often a picture was shown again because the next was late.
        drops: frames made and never shown, because of an interrupt.
        keep: how many of the latest durations each stage remembers.
    """

    stalls: int = 0
    repeats: int = 0
    drops: int = 0
    keep: int = 1000
    _stages_ms: dict[str, deque[float]] = field(default_factory=dict)

    def stamp(self, stage: str, duration_s: float) -> None:
        """Record that `stage` took `duration_s` once."""
        if stage not in self._stages_ms:
            self._stages_ms[stage] = deque(maxlen=self.keep)
        self._stages_ms[stage].append(duration_s * 1000)

    def stages_ms(self) -> dict[str, Percentiles]:
        """Give the percentiles of each stage seen so far."""
        return {stage: percentiles(values) for stage, values in self._stages_ms.items()}


class Stages(Protocol):
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
