"""Adaptive quality: when a session lowers its quality, and when it raises it again.

Arithmetic only: callers pass in the time. WebRTC stacks call the same thing overuse detection with
a degradation preference; here the costly part is the model, not the encoder.
"""

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from letstalk_rt.errors import ConfigError
from letstalk_rt.inference.quality import FULL_QUALITY, Quality
from letstalk_rt.types import FPS

DegradationPreference = Literal["balanced", "maintain-framerate", "maintain-resolution", "disabled"]
"""What a session lowers first when steps are late; the names are those of WebRTC. `balanced`: what
is seen least first, frames per second last; `maintain-framerate`: never the frame rate;
`maintain-resolution`: only the frame rate; `disabled`: nothing."""


def check_degradation_preference(preference: str) -> None:
    """Check the name of a degradation preference.

    Raises:
        ConfigError: there is none of that name.
    """
    known = get_args(DegradationPreference)
    if preference not in known:
        raise ConfigError(
            f"degradation_preference must be one of {', '.join(known)}; got {preference!r}"
        )


def levels_for(preference: DegradationPreference, levels: Sequence[Quality]) -> tuple[Quality, ...]:
    """Return the quality levels that a preference allows, of those that a model has.

    Args:
        preference: the degradation preference.
        levels: those of the model, from full quality down.
    """
    full = levels[0]
    match preference:
        case "balanced":
            return tuple(levels)
        case "maintain-framerate":
            return _at_full_rate(levels)
        case "maintain-resolution":
            rates = sorted({level.fps for level in levels}, reverse=True)
            return tuple(replace(full, fps=fps, cost=_cost_of_rate(fps)) for fps in rates)
        case "disabled":
            return (full,)


_PER_FRAME = 0.75
"""Share of a step that depends on the number of images."""


def _cost_of_rate(fps: int) -> float:
    return 1 - _PER_FRAME * (1 - fps / FPS)


def _at_full_rate(levels: Sequence[Quality]) -> tuple[Quality, ...]:
    """Return the levels at the full frame rate; of those that then look the same, the first."""
    found: list[Quality] = []
    for level in levels:
        cost = level.cost / _cost_of_rate(level.fps)
        full = replace(level, fps=FPS, cost=cost)
        if not any(replace(full, cost=one.cost) == one for one in found):
            found.append(full)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class AdaptationPolicy:
    """When the quality changes.

    Between lowering and raising lies a range in which nothing changes: a step counts as late from
    `busy` of the playing time of its frames on, and the quality is raised only if a step of the
    better level is expected to take less than `headroom` of it.

    Attributes:
        late_s: for how long steps are late before the quality is lowered.
        late_share: the share of steps in that time that must be late.
        busy: a step is late only if it took more than this share of its playing time: late speech
            makes frames late, too, and is no reason to lower the quality.
        headroom: the share of the playing time that a step may take at the better level.
        calm_s: how long no step may be late before the quality is raised by one level.
        most_calm_s: each attempt to return to a level that fails doubles that time, up to this.
        trial_s: an attempt has failed if the quality is lowered again within this time.
    """

    late_s: float = 1.0
    late_share: float = 0.5
    busy: float = 0.9
    headroom: float = 0.75
    calm_s: float = 5.0
    most_calm_s: float = 80.0
    trial_s: float = 10.0


@dataclass(frozen=True, slots=True)
class StepTiming:
    """How long a step took, and whether its frames were in time.

    Attributes:
        ended_s: when it ended, in monotonic seconds.
        took_s: its duration, including the wait for the steps of other sessions.
        media_s: playing time of its frames.
        is_late: whether one of its frames was made after it was due.
    """

    ended_s: float
    took_s: float
    media_s: float
    is_late: bool


class QualityAdapter:
    """Decides on the quality level of one session, from the timing of its steps.

    When steps are late for a second, it takes the first level at which they are expected to fit.
    It comes back one level at a time, and waits longer after each attempt that has failed.

    Args:
        levels: quality levels from full quality down, each with its cost.
        policy: when the quality changes.
        load: share of its playing time that a step of full quality is known to take on this
            machine; it begins at the first level that fits. 0 if nothing is known.

    Attributes:
        level: the present level; 0 is full quality.
    """

    def __init__(
        self,
        levels: Sequence[Quality] = (FULL_QUALITY,),
        policy: AdaptationPolicy = AdaptationPolicy(),
        load: float = 0.0,
    ) -> None:
        assert levels, "there is at least full quality"
        fitting = (n for n, one in enumerate(levels) if load * one.cost <= policy.busy)
        self.level = next(fitting, len(levels) - 1)
        self._levels, self._policy = tuple(levels), policy
        self._steps: deque[StepTiming] = deque()  # since the last change
        self._since_s = -math.inf  # when these began
        self._late_s = -math.inf  # when the last step was late
        self._raised_s = -math.inf
        self._calm_s = [policy.calm_s] * len(self._levels)  # before each level is tried again

    @property
    def quality(self) -> Quality:
        """The quality of the present level."""
        return self._levels[self.level]

    @property
    def lowest(self) -> int:
        """The level with the lowest quality."""
        return len(self._levels) - 1

    def note_step(self, step: StepTiming) -> bool:
        """Record a step; return whether the level has changed."""
        if self._since_s == -math.inf:
            self._since_s = step.ended_s - step.took_s
        self._steps.append(step)
        kept_s = max(self._calm_s[max(0, self.level - 1)], self._policy.late_s)
        while self._steps[0].ended_s < step.ended_s - kept_s:
            self._steps.popleft()
        if self._is_late(step):
            self._late_s = step.ended_s
        before = self.level
        if self._must_lower(step.ended_s):
            self._lower(step.ended_s)
        elif self._may_raise(step):
            self._raise(step.ended_s)
        return self.level != before

    def _is_late(self, step: StepTiming) -> bool:
        return step.is_late and step.took_s > self._policy.busy * step.media_s

    def _must_lower(self, now_s: float) -> bool:
        """Return whether enough steps of the last second were late."""
        policy = self._policy
        if self.level == self.lowest or now_s - self._since_s < policy.late_s:
            return False
        latest = [step for step in self._steps if step.ended_s > now_s - policy.late_s]
        late = sum(map(self._is_late, latest))
        return late > 0 and late >= policy.late_share * len(latest)

    def _lower(self, now_s: float) -> None:
        """Take the first level at which a step is expected to fit."""
        policy = self._policy
        latest = [step for step in self._steps if step.ended_s > now_s - policy.late_s]
        load = statistics.median(step.took_s / step.media_s for step in latest)
        has_failed = now_s - self._raised_s < policy.trial_s
        longer_s = min(2 * self._calm_s[self.level], policy.most_calm_s)
        self._calm_s[self.level] = longer_s if has_failed else policy.calm_s
        level = self.level + 1
        while level < self.lowest and load * self._ratio(level) > policy.busy:
            level += 1
        self._set(level, now_s)

    def _may_raise(self, step: StepTiming) -> bool:
        """Return whether no step was late for long enough, and a better level should fit."""
        calm_since_s = max(self._since_s, self._late_s)
        if self.level == 0 or step.ended_s - calm_since_s < self._calm_s[self.level - 1]:
            return False
        loads = sorted(one.took_s / one.media_s for one in self._steps)
        load = loads[math.ceil(0.9 * len(loads)) - 1]
        return load * self._ratio(self.level - 1) <= self._policy.headroom

    def _raise(self, now_s: float) -> None:
        self._raised_s = now_s
        self._set(self.level - 1, now_s)

    def _ratio(self, level: int) -> float:
        """Return the cost of a level relative to the present one."""
        return self._levels[level].cost / self.quality.cost

    def _set(self, level: int, now_s: float) -> None:
        self.level, self._since_s = level, now_s
        self._steps.clear()
