"""Real-time talking avatars: one portrait and live speech become live video.

The public names are loaded on first use, so `import letstalk_rt` imports neither torch nor a model
and reads no files.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from letstalk_rt.version import __version__ as __version__

if TYPE_CHECKING:
    from letstalk_rt.conversation.conversation import Conversation
    from letstalk_rt.errors import (
        AtCapacity,
        AudioFormatError,
        ChatError,
        ConfigError,
        DependencyError,
        EngineError,
        FilmError,
        ImageDamagedError,
        InputError,
        LetsTalkError,
        ModelLost,
        NoFaceError,
        NotAnImageError,
        PortraitError,
        PortraitWarning,
        RecognitionError,
        SessionClosed,
        SynthesisError,
        TextError,
        TooManyPixelsError,
        WeightsError,
    )
    from letstalk_rt.session.avatar import Avatar, AvatarSession
    from letstalk_rt.session.events import Event
    from letstalk_rt.types import (
        AVFrame,
        CameraOptions,
        Interrupted,
        MotionOptions,
        Portrait,
        SegmentEnd,
    )

__all__ = [
    "AVFrame",
    "AtCapacity",
    "AudioFormatError",
    "Avatar",
    "AvatarSession",
    "CameraOptions",
    "ChatError",
    "ConfigError",
    "Conversation",
    "DependencyError",
    "EngineError",
    "Event",
    "FilmError",
    "ImageDamagedError",
    "InputError",
    "Interrupted",
    "LetsTalkError",
    "ModelLost",
    "MotionOptions",
    "NoFaceError",
    "NotAnImageError",
    "Portrait",
    "PortraitError",
    "PortraitWarning",
    "RecognitionError",
    "SegmentEnd",
    "SessionClosed",
    "SynthesisError",
    "TextError",
    "TooManyPixelsError",
    "WeightsError",
]

_MODULES = {
    "AVFrame": "types",
    "Avatar": "session.avatar",
    "AvatarSession": "session.session",
    "CameraOptions": "types",
    "Conversation": "conversation.conversation",
    "Event": "session.events",
    "Interrupted": "types",
    "MotionOptions": "types",
    "Portrait": "types",
    "SegmentEnd": "types",
}
"""Modules of the public names; all others are in `errors`."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
