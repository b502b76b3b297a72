"""Moods, gestures and listening as clients write them in JSON: in messages and in options."""

from collections.abc import Mapping
from dataclasses import astuple, fields
from typing import Any, Protocol, cast

from letstalk_rt.errors import ConfigError
from letstalk_rt.performance.checks import check_number
from letstalk_rt.performance.gestures import GESTURES, Gesture
from letstalk_rt.performance.listening import LISTENING, Listening
from letstalk_rt.performance.moods import MAX_STYLE, MOODS, Style

_STYLE = tuple(field.name for field in fields(Style))
MAX_AT_MS = 3_600_000.0


def read_mood(
    given: Mapping[str, Any], strength_key: str = "strength"
) -> tuple[str | Style, float]:
    """Return the mood and its strength: either `mood`, a name, or `style`, an object of numbers.

    Raises:
        ConfigError: one of both is needed, a name is unknown or a number is out of range. The
            message says what there is, and never repeats a text.
    """
    strength = _number(strength_key, given.get(strength_key, 1.0))
    check_number(strength_key, strength, 0.0, 1.0)
    named = [key for key in ("mood", "style") if given.get(key) is not None]
    if named == ["style"]:
        return _style(given["style"]), strength
    if named != ["mood"] or not _is_one_of(given["mood"], MOODS):
        raise ConfigError(f"give either a style or a mood, one of {', '.join(MOODS)}")
    return cast(str, given["mood"]), strength


def read_gesture(given: Mapping[str, Any]) -> tuple[Gesture, float | None]:
    """Return a gesture and when it comes, in seconds of the segment; None for at once.

    Raises:
        ConfigError: the name is unknown, or a number is out of range.
    """
    name, amount, at_ms = given.get("gesture"), given.get("amount", 1.0), given.get("at_ms")
    if not _is_one_of(name, GESTURES):
        raise ConfigError(f"gesture must be one of {', '.join(GESTURES)}")
    gesture = Gesture(cast(str, name), _number("amount", amount))
    if at_ms is None:
        return gesture, None
    at_ms = _number("at_ms", at_ms)
    check_number("at_ms", at_ms, 0.0, MAX_AT_MS)
    return gesture, at_ms / 1000


class Directed(Protocol):
    """Who is directed, such as `AvatarSession`."""

    def set_mood(self, mood: str | Style, strength: float = 1.0) -> None:
        """Change the mood."""
        ...

    def gesture(self, name: str, amount: float = 1.0, *, at: float | None = None) -> None:
        """Make a gesture."""
        ...

    def set_listening(self, mode: Listening) -> None:
        """Change how it listens."""
        ...


def perform(avatar: Directed, given: Mapping[str, Any]) -> None:
    """Carry out one message of the protocol: `performance.mood`, `.gesture` or `.listening`.

    Raises:
        ConfigError: it is none of these, a name is unknown or a number is out of range.
    """
    match given.get("type"):
        case "performance.mood":
            avatar.set_mood(*read_mood(given))
        case "performance.gesture":
            gesture, at_s = read_gesture(given)
            avatar.gesture(gesture.name, gesture.amount, at=at_s)
        case "performance.listening":
            avatar.set_listening(read_listening(given, "mode"))
        case _:
            raise ConfigError(
                "type must be performance.mood, performance.gesture or performance.listening"
            )


def read_listening(given: Mapping[str, Any], key: str) -> Listening:
    """Return how the avatar listens.

    Raises:
        ConfigError: there is no such mode.
    """
    mode = given.get(key, "off")
    if not _is_one_of(mode, LISTENING):
        raise ConfigError(f"{key} must be one of {', '.join(LISTENING)}")
    return cast(Listening, mode)


def as_json(mood: str | Style) -> dict[str, Any]:
    """Return a mood as clients write it."""
    if isinstance(mood, Style):
        return {"style": dict(zip(_STYLE, astuple(mood), strict=True))}
    return {"mood": mood}


def _style(given: object) -> Style:
    if not isinstance(given, dict) or not set(given) <= set(_STYLE):
        raise ConfigError(
            f"style must be an object of numbers from {-MAX_STYLE:g} to {MAX_STYLE:g}, of "
            f"{', '.join(_STYLE)}"
        )
    return Style(**{key: _number(key, value) for key, value in given.items()})


def _number(name: str, value: object) -> float:
    """Return a number; what is none is not repeated, because it may be long."""
    try:
        if not isinstance(value, bool) and isinstance(value, int | float):
            return float(value)
    except OverflowError:  # an integer of hundreds of digits
        pass
    raise ConfigError(f"{name} must be a number")


def _is_one_of(value: object, known: Any) -> bool:
    return isinstance(value, str) and value in known
