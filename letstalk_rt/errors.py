"""Every error a caller can see.

LetsTalkError
|-- ConfigError        a setting is unknown or out of range   (also a ValueError)
|-- WeightsError       a checkpoint is missing, damaged or does not fit the config
|-- DependencyError    an optional package or a system part is missing (says what to install)
|-- InputError         the caller's data cannot be used       (also a ValueError)
|   |-- AudioFormatError
|   `-- PortraitError
|       |-- NotAnImageError     the file is empty, or of no format that is read
|       |-- ImageDamagedError   the file is damaged or incomplete
|       |-- TooManyPixelsError  the picture is larger than was allowed
|       `-- NoFaceError         no face was found
|-- SessionClosed      the session ended; open another
|-- AtCapacity         no free slot now; try again later
`-- EngineError        a step failed; the cause is chained
"""


class LetsTalkError(Exception):
    """Base of all errors raised by this package."""


class ConfigError(LetsTalkError, ValueError):
    """A setting is unknown or out of range."""


class WeightsError(LetsTalkError):
    """A checkpoint is missing, damaged or does not fit the config."""


class DependencyError(LetsTalkError):
    """An optional package or a system part is missing."""


class InputError(LetsTalkError, ValueError):
    """The caller's data cannot be used."""


class AudioFormatError(InputError):
    """Audio has the wrong rate, layout, type or range."""


class PortraitError(InputError):
    """The portrait cannot be read, or has no usable face."""


class NotAnImageError(PortraitError):
    """The file is empty, or of no picture format that is read."""


class ImageDamagedError(PortraitError):
    """The picture file is damaged or incomplete."""


class TooManyPixelsError(PortraitError):
    """The picture is larger than was allowed."""


class NoFaceError(PortraitError):
    """No face was found in the picture."""


class SessionClosed(LetsTalkError):
    """The session ended; open another."""


class AtCapacity(LetsTalkError):
    """No free slot now; try again later."""


class EngineError(LetsTalkError):
    """A step failed; the cause is chained."""
