"""One portrait and live speech become live video of that person talking.

The names below are loaded when they are first used, so `import letstalk_rt` costs nothing: no
torch, no model, no file is touched.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from letstalk_rt.engine import Avatar, AvatarSession
    from letstalk_rt.errors import (
        AtCapacity,
        AudioFormatError,
        ConfigError,
        DependencyError,
        EngineError,
        ImageDamagedError,
        InputError,
        LetsTalkError,
        NoFaceError,
        NotAnImageError,
        PortraitError,
        SessionClosed,
        TooManyPixelsError,
        WeightsError,
    )
    from letstalk_rt.events import Event
    from letstalk_rt.types import AVFrame, Interrupted, MotionOptions, SegmentEnd

__version__ = "0.1.0"

__all__ = [
    "AVFrame",
    "AtCapacity",
    "AudioFormatError",
    "Avatar",
    "AvatarSession",
    "ConfigError",
    "DependencyError",
    "EngineError",
    "Event",
    "ImageDamagedError",
    "InputError",
    "Interrupted",
    "LetsTalkError",
    "MotionOptions",
    "NoFaceError",
    "NotAnImageError",
    "PortraitError",
    "SegmentEnd",
    "SessionClosed",
    "TooManyPixelsError",
    "WeightsError",
]

_ENGINE = {"Avatar", "AvatarSession"}
_TYPES = {"AVFrame", "Interrupted", "MotionOptions", "SegmentEnd"}
_EVENTS = {"Event"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    rooms = {"engine": _ENGINE, "types": _TYPES, "events": _EVENTS}
    room = next((room for room, names in rooms.items() if name in names), "errors")
    value = getattr(import_module(f"{__name__}.{room}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
