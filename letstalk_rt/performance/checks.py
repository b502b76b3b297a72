"""Checks of numbers that callers pass."""

import math

import numpy as np

from letstalk_rt.errors import ConfigError


def check_number(name: str, value: float, least: float, most: float) -> None:
    """Check that a value is a number in a range.

    Raises:
        ConfigError: it is not.
    """
    is_number = isinstance(value, int | float | np.integer | np.floating)
    if isinstance(value, bool) or not is_number or not math.isfinite(value):
        raise ConfigError(f"{name} must be a number from {least:g} to {most:g}, got {value!r}")
    if not least <= value <= most:
        raise ConfigError(f"{name} must be from {least:g} to {most:g}, got {value}")
