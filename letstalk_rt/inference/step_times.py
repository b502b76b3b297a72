"""How long a step takes on this machine at each quality level: measured once, then cached.

A session that knows it begins at a level that fits, instead of falling behind in front of its first
visitor. It is also a promise: a session that is slower for long has it measured again. Nothing here
imports torch.
"""

import logging
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from letstalk_rt.inference.machine_cache import MachineCache
from letstalk_rt.inference.protocol import Pipeline
from letstalk_rt.inference.quality import FULL_QUALITY, Quality
from letstalk_rt.types import FPS, Portrait

FITS = 0.75
"""Share of the playing time of its frames below which a step surely fits."""

STEPS = 5
MEASURE_S = 3.0
"""After this time no further level is measured."""

SLOWER = 1.5
"""How many times the measured duration steps must take for the measurement to be doubted."""

WATCHED = 64
"""Steps of a session alone, in a row, whose median must be that slow: ten seconds."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepTimes:
    """How long a step of one session takes, alone on this machine.

    Attributes:
        machine: hash of the machine.
        step_s: seconds by quality level, from full quality down; not of levels below the first that
            surely fits.
        window_s: playing time of the frames of a step.
    """

    machine: str
    step_s: tuple[float, ...]
    window_s: float

    @property
    def load(self) -> float:
        """Share of its playing time that a step of full quality takes; above 1 it is too slow."""
        return self.step_s[0] / self.window_s

    def with_costs(self, levels: Sequence[Quality]) -> tuple[Quality, ...]:
        """Return a model's quality levels with their measured costs.

        Levels that were not measured keep their cost relative to the last one that was.
        """
        costs = [step_s / self.step_s[0] for step_s in self.step_s]
        last = levels[len(costs) - 1].cost
        costs += [costs[-1] * level.cost / last for level in levels[len(costs) :]]
        return tuple(replace(one, cost=cost) for one, cost in zip(levels, costs, strict=False))

    def expected_s(self, quality: Quality) -> float:
        """Return the seconds of a step at a level of `with_costs`."""
        return self.step_s[0] * quality.cost

    @classmethod
    def of(
        cls,
        pipeline: Pipeline[Any],
        portrait: Portrait,
        run: Callable[..., Any],
        *,
        anew: bool = False,
        cache: MachineCache | None = None,
        now_s: Callable[[], float] = time.perf_counter,
    ) -> Self | None:
        """Return the step times of a model, from the cache or by measuring them for some seconds.

        Args:
            pipeline: the model.
            portrait: a portrait; times depend on the size of its canvas, and on whether it is a
                film.
            run: calls a function with arguments in the thread of the model; returns its result.
            anew: measure, whatever is cached.
            cache: where they are kept; None for the user's cache folder.
            now_s: returns the time in seconds.

        Returns:
            None for a model that is not known in caches.
        """
        if not pipeline.machine:
            return None
        cache = cache or MachineCache()
        height, width = portrait.canvas.shape[:2]
        name = f"{pipeline.machine} {width}x{height}" + " film" * (portrait.footage is not None)
        step_s = () if anew else _parsed(cache.get(name), len(pipeline.quality_levels))
        if not step_s:
            step_s = run(_measure, pipeline, portrait, now_s)
            cache.put(name, {"step_ms": [round(1000 * one, 2) for one in step_s]})
        return cls(pipeline.machine.split()[0], step_s, pipeline.frames_per_window / FPS)


def _parsed(entry: dict[str, Any], levels: int) -> tuple[float, ...]:
    """Return the seconds of a cached entry; none if it is damaged."""
    try:
        step_s = tuple(float(one) / 1000 for one in entry["step_ms"])
    except (KeyError, TypeError, ValueError):
        return ()
    return step_s if 1 <= len(step_s) <= levels and min(step_s) > 0 else ()


def _measure(
    pipeline: Pipeline[Any], portrait: Portrait, now_s: Callable[[], float]
) -> tuple[float, ...]:
    """Return the seconds of a step by quality level, down to one that surely fits."""
    window_s = pipeline.frames_per_window / FPS
    began_s, found = now_s(), list[float]()
    for quality in pipeline.quality_levels:
        found.append(_measure_level(pipeline, portrait, quality, now_s))
        if found[-1] < FITS * window_s or now_s() - began_s > MEASURE_S:
            break
    return tuple(found)


def _measure_level(
    pipeline: Pipeline[Any], portrait: Portrait, quality: Quality, now_s: Callable[[], float]
) -> float:
    """Return the median seconds of a few live steps, in which an avatar speaks."""
    state = pipeline.init_state(portrait)
    if quality != FULL_QUALITY:
        pipeline.set_quality(state, quality)
    noise = np.random.default_rng(0).standard_normal((1 + STEPS, 1, pipeline.hop))
    taken_s = []
    for pcm in (0.1 * noise).astype(np.float32):
        began_s = now_s()
        pipeline.step(pcm, [state], lambda part: None)
        taken_s.append(now_s() - began_s)
        if sum(taken_s) > MEASURE_S:
            break
    return statistics.median(taken_s[1:] or taken_s)


class SlownessWatch:
    """Finds out that the steps of a session take far longer than they were measured to take.

    Args:
        times: the measured times; None watches nothing.
        cache: where they are kept; None for the user's cache folder.
    """

    def __init__(self, times: StepTimes | None, cache: MachineCache | None = None) -> None:
        self._times, self._cache = times, cache
        self._machine = ""
        self._ratios: deque[float] = deque(maxlen=WATCHED)

    def note(self, quality: Quality, took_s: float, *, is_alone: bool) -> bool:
        """Record a step; return whether the measurement should be doubted, which is said once.

        Args:
            quality: its level.
            took_s: its duration.
            is_alone: whether no step of another session ran since the one before.
        """
        if self._times is None:
            return False
        if not is_alone:
            self._ratios.clear()
            return False
        self._ratios.append(took_s / self._times.expected_s(quality))
        if len(self._ratios) < WATCHED or statistics.median(self._ratios) < SLOWER:
            return False
        self._machine, self._times = self._times.machine, None
        return True

    def doubt(self) -> None:
        """Forget what was measured on this machine, after `note` has said so; writes a file.

        The next start measures again: the fastest number format, too, which may have been chosen
        while the machine was busy.
        """
        if (self._cache or MachineCache()).doubt(self._machine):
            _log.warning(
                "steps take %.1f times as long as was measured on this machine: the next start "
                "measures again; `letstalk doctor` does so now",
                statistics.median(self._ratios),
            )
