"""The command `letstalk`, as tests run it."""

from collections.abc import Callable

Run = Callable[..., tuple[int, str]]
"""Runs `letstalk` with these arguments; returns its status and what it printed."""
