"""Moods: a style of the denoiser, and an offset of the motion code where a style says too little.

The people of the training films talk; few of them are sad, tired or surprised. So a mood is not
learned: it is a style, which the denoiser was trained with, and numbers that are added to its
motion, which this file lists. What is shown of them is measured by `letstalk eval --performance`.
"""

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field, fields
from types import MappingProxyType

import numpy as np

from letstalk_rt.errors import ConfigError
from letstalk_rt.performance.checks import check_number
from letstalk_rt.performance.direction import NUM_CHANNELS, channel

MAX_STYLE = 3.0
"""The largest deviation of a style."""


@dataclass(frozen=True, slots=True)
class Style:
    """How somebody differs from the mean person, in deviations between people, from -3 to 3.

    Attributes:
        smile: how much they smile.
        brows: how high they hold their brows.
        head_energy: how lively the head is.
        brow_energy: how lively the brows are.
        opening: how far the mouth opens.
        blink_rate: how often the eyes blink.

    Raises:
        ConfigError: a number is out of range, or is none.
    """

    smile: float = 0.0
    brows: float = 0.0
    head_energy: float = 0.0
    brow_energy: float = 0.0
    opening: float = 0.0
    blink_rate: float = 0.0

    def __post_init__(self) -> None:
        for each in fields(self):
            check_number(each.name, getattr(self, each.name), -MAX_STYLE, MAX_STYLE)


NUM_STYLE = len(fields(Style))


@dataclass(frozen=True)
class Levels:
    """How a mood changes the motion, in numbers that can be eased.

    Attributes:
        values: `(37,)`: the style, what is added to each channel, the share of the sampled motion
            that is kept of each, and the factor on the blinks.
    """

    values: np.ndarray

    @classmethod
    def neutral(cls) -> "Levels":
        """Return the levels that change nothing."""
        values = np.zeros(NUM_STYLE + 2 * NUM_CHANNELS + 1)
        values[NUM_STYLE + NUM_CHANNELS :] = 1
        return cls(values)

    @property
    def style(self) -> np.ndarray:
        """The style, `(6,)`."""
        return self.values[:NUM_STYLE]

    @property
    def added(self) -> np.ndarray:
        """What is added to each channel, `(15,)`."""
        return self.values[NUM_STYLE : NUM_STYLE + NUM_CHANNELS]

    @property
    def kept(self) -> np.ndarray:
        """The share of the sampled motion that is kept, `(15,)`."""
        return self.values[NUM_STYLE + NUM_CHANNELS : -1]

    @property
    def blink_rate(self) -> float:
        """The factor on the blinks."""
        return float(self.values[-1])

    def toward(self, other: "Levels", share: float) -> "Levels":
        """Return levels between these (0) and others (1)."""
        return Levels((1 - share) * self.values + share * other.values)


@dataclass(frozen=True)
class Mood:
    """A mood.

    Attributes:
        name: what it is called.
        style: style of the denoiser.
        added: what is added to channels of the motion code, by name.
        kept: factors on the sampled motion of channels, by name.
        blink_rate: factor on how often the eyes blink.
        strength: how much of all this is shown, from 0 to 1.
    """

    name: str
    style: Style = Style()
    added: Mapping[str, float] = field(default_factory=dict)
    kept: Mapping[str, float] = field(default_factory=dict)
    blink_rate: float = 1.0
    strength: float = 1.0

    @property
    def levels(self) -> Levels:
        """How the mood changes the motion at its strength."""
        full = Levels.neutral()
        full.style[:] = astuple(self.style)
        for name, value in self.added.items():
            full.added[channel(name)] = value
        for name, value in self.kept.items():
            full.kept[channel(name)] = value
        full.values[-1] = self.blink_rate
        return Levels.neutral().toward(full, self.strength)


def _moods(*moods: Mood) -> Mapping[str, Mood]:
    return MappingProxyType({each.name: each for each in moods})


_LIVELY = {"yaw": 1.5, "pitch": 1.5, "roll": 1.5, "brow_inner": 1.8, "brow_outer": 1.8}
_STILL = {"yaw": 0.6, "pitch": 0.6, "roll": 0.6, "brow_inner": 0.5, "brow_outer": 0.5}

MOODS = _moods(
    Mood("neutral"),
    Mood("warm", Style(smile=1.0), {"smile": 0.5, "squint": 0.1, "brow_outer": 0.1}),
    Mood("cheerful", Style(smile=2.0, head_energy=1.0), {"smile": 0.75, "squint": 0.2}),
    Mood("serious", Style(head_energy=-1.0), {"brow_down": 0.45, "smile": -0.35}, _STILL),
    Mood("concerned", Style(brows=1.0), {"brow_inner": 0.5, "smile": -0.3}),
    Mood("surprised", Style(brows=2.0), {"brow_inner": 0.36, "brow_outer": 0.36, "shut": -0.3}),
    Mood("tired", Style(head_energy=-2.0), {"shut": 0.14, "pitch": 0.07, "smile": -0.1}, _STILL),
    Mood("lively", Style(head_energy=2.0, brow_energy=2.0), {"smile": 0.15}, _LIVELY, 1.2),
)
"""All moods by name."""


def mood(which: "str | Style", strength: float = 1.0) -> Mood:
    """Return a mood by its name, or that of a style.

    Args:
        which: a name of `MOODS`, or a style.
        strength: how much of it is shown, from 0 to 1.

    Raises:
        ConfigError: there is no such mood, or the strength is out of range.
    """
    check_number("strength", strength, 0.0, 1.0)
    if isinstance(which, Style):
        found = of_style(which)
    elif isinstance(which, str) and which in MOODS:
        found = MOODS[which]
    else:
        raise ConfigError(f"mood must be a Style or one of {', '.join(MOODS)}, got {which!r}")
    return Mood(found.name, found.style, found.added, found.kept, found.blink_rate, float(strength))


_SMILE, _BROWS = 0.25, 0.2
"""What is added to smile and brows for one deviation of a style, so that about one is shown."""


def of_style(style: Style) -> Mood:
    """Return the mood of a style that a caller has composed."""
    raised = _BROWS * style.brows
    added = {"smile": _SMILE * style.smile, "brow_inner": raised, "brow_outer": raised}
    return Mood("style", style, added)
