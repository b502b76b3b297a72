"""Tells a leak from noise: a leak grows with every item, noise goes up and down."""

from collections.abc import Sequence

import numpy as np

CERTAIN = 2.3
"""Standard errors by which the slope is lowered: chance exceeds them in one of a hundred."""


def certain_slope(values: Sequence[float]) -> float:
    """Return how much a value surely grows with each item, negative if it does not.

    Of each half of the values, the slope is the median of those of all pairs (Theil and Sen), which
    single values do not move, less what it varies by chance. A leak grows in both halves; what an
    allocator takes once, or what warms up, in one of them.

    Args:
        values: one after each item, at least ten.
    """
    assert len(values) >= 10, len(values)
    numbers = np.asarray(values, float)
    return min(_lower_slope(half) for half in np.array_split(numbers, 2))


def _lower_slope(values: np.ndarray) -> float:
    count = len(values)
    first, second = np.triu_indices(count, 1)
    slope = float(np.median((values[second] - values[first]) / (second - first)))
    left = values - slope * np.arange(count)
    spread = 1.4826 * np.median(np.abs(left - np.median(left)))  # of normal noise
    return slope - CERTAIN * float(spread) * (12 / count**3) ** 0.5
