"""The look-ahead setting: how much audio after a frame an audio encoder uses for it."""

from letstalk_rt.errors import ConfigError
from letstalk_rt.types import FPS

LOOKAHEADS_MS = (0, 40, 80, 160)
_FRAME_MS = 1000 // FPS


def lookahead_in_frames(lookahead_ms: int) -> int:
    """Return the look-ahead in frames.

    Args:
        lookahead_ms: 0, 40, 80 or 160.

    Raises:
        ConfigError: `lookahead_ms` has another value.
    """
    if lookahead_ms not in LOOKAHEADS_MS:
        choices = ", ".join(map(str, LOOKAHEADS_MS))
        raise ConfigError(f"lookahead_ms must be one of {choices}, got {lookahead_ms!r}")
    return lookahead_ms // _FRAME_MS
