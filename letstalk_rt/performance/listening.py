"""How the avatar listens while somebody else speaks."""

from typing import Literal, get_args

from letstalk_rt.errors import ConfigError

Listening = Literal["off", "calm", "attentive"]
"""How much of its attention the avatar shows."""

LISTENING: tuple[str, ...] = get_args(Listening)


def check_listening(mode: str) -> None:
    """Check a mode.

    Raises:
        ConfigError: it is unknown.
    """
    if mode not in LISTENING:
        raise ConfigError(f"listening must be one of {', '.join(LISTENING)}, got {mode!r}")
