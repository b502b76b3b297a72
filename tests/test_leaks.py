"""A leak is told from noise by a slope, of both halves of what was measured."""

import numpy as np
import pytest
from support.leaks import certain_slope

COUNT = 40
BAR_MB = 0.1
"""As for the sessions of `server/webrtc/test_peers.py`."""


def resident_mb(seed: int) -> np.ndarray:
    """Return memory like that of a server after each session: two levels, taken by turns."""
    random = np.random.default_rng(seed)
    return 160 + 7.5 * random.integers(0, 2, COUNT) + random.normal(0, 1.5, COUNT)


@pytest.mark.parametrize("seed", range(40))
def test_noise_is_no_leak(seed: int) -> None:
    assert certain_slope(resident_mb(seed)) < BAR_MB


@pytest.mark.parametrize("at", [5, 20, 35])
def test_what_is_taken_once_is_no_leak(at: int) -> None:
    once = 27 * (np.arange(COUNT) >= at)
    assert certain_slope(resident_mb(0) + once) < BAR_MB


def test_what_grows_only_at_first_is_no_leak() -> None:
    assert certain_slope(resident_mb(0) + np.minimum(np.arange(COUNT), 15)) < BAR_MB


def test_a_leak_is_found_in_noise() -> None:
    found = [certain_slope(resident_mb(seed) + np.arange(COUNT)) > BAR_MB for seed in range(40)]
    assert np.mean(found) > 0.9


def test_a_small_leak_of_objects_is_found() -> None:
    objects = 95_000 + np.random.default_rng(0).normal(0, 30, COUNT)
    assert certain_slope(objects) < 5 < certain_slope(objects + 15 * np.arange(COUNT))
