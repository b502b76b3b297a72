"""All exceptions that this package raises for its callers.

LetsTalkError
|-- ConfigError        a setting is unknown or out of range   (also a ValueError)
|-- WeightsError       a checkpoint is missing, damaged or does not match the configuration
|-- DependencyError    an optional package or a system component is missing
|-- InputError         the caller's data cannot be used       (also a ValueError)
|   |-- AudioFormatError
|   |-- TextError            the text cannot be spoken
|   |-- FilmError            the film cannot be read, or has nothing to dub
|   `-- PortraitError
|       |-- NotAnImageError     the file is empty or not in a supported format
|       |-- ImageDamagedError   the file is damaged or incomplete
|       |-- TooManyPixelsError  the image has more pixels than allowed
|       `-- NoFaceError         no face was found
|-- SessionClosed      the session is closed; open another
|-- AtCapacity         no capacity for another session now; try again later
|-- SynthesisError     speech synthesis failed, or its endpoint refused
|-- RecognitionError   speech recognition failed, or its endpoint refused
|-- ChatError          the chat model failed, or its endpoint refused
`-- EngineError        a step failed; the cause is chained
    `-- ModelLost      the model died, hung or took too much memory, or cannot be started
"""


class LetsTalkError(Exception):
    """Base of all errors raised by this package."""


class ConfigError(LetsTalkError, ValueError):
    """A setting is unknown or out of range."""


class WeightsError(LetsTalkError):
    """A checkpoint is missing, damaged or does not match the configuration."""


class DependencyError(LetsTalkError):
    """An optional package or a system component is missing; the message says what to install."""


class InputError(LetsTalkError, ValueError):
    """The caller's data cannot be used."""


class AudioFormatError(InputError):
    """Audio has the wrong rate, layout, type or range."""


class TextError(InputError):
    """The text cannot be spoken; the message never repeats it."""


class FilmError(InputError):
    """The film cannot be read, or has nothing to dub."""


class PortraitError(InputError):
    """The portrait cannot be read, or has no usable face."""


class PortraitWarning(UserWarning):
    """A portrait can be used, but not everything about it is as the caller may think."""


class NotAnImageError(PortraitError):
    """The file is empty or not in a supported image format."""


class ImageDamagedError(PortraitError):
    """The image file is damaged or incomplete."""


class TooManyPixelsError(PortraitError):
    """The image has more pixels than allowed."""


class NoFaceError(PortraitError):
    """No face was found in the image."""


class SessionClosed(LetsTalkError):
    """The session is closed; open another."""


class AtCapacity(LetsTalkError):
    """There is no capacity for another session now; try again later."""


class SynthesisError(LetsTalkError):
    """Speech synthesis failed, or its endpoint refused the request."""


class RecognitionError(LetsTalkError):
    """Speech recognition failed, or its endpoint refused the request."""


class ChatError(LetsTalkError):
    """The chat model failed, or its endpoint refused the request."""


class EngineError(LetsTalkError):
    """A step failed; the cause is chained."""


class ModelLost(EngineError):
    """The model died, hung or took too much memory, or cannot be started.

    Args:
        message: what happened.
        fault: the same for programs; one of `letstalk_rt.inference.protocol.Fault`.
    """

    def __init__(self, message: str, fault: str = "died") -> None:
        super().__init__(message)
        self.fault = fault


def is_callers_mistake(error: BaseException) -> bool:
    """Return whether the caller can put an error right, so that it is no failure of the engine."""
    return isinstance(error, LetsTalkError) and not isinstance(error, EngineError)
