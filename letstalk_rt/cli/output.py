"""Output of the commands: results on stdout, notices on stderr."""

import json
import os
import sys
from pathlib import Path
from typing import Any

_COLORS = {"ok": "32", "slow": "33", "missing": "33", "bad": "31", "bold": "1"}


def write_line(text: str = "") -> None:
    """Write a line of the result."""
    sys.stdout.write(text + "\n")


def write_json(value: Any) -> None:
    """Write the result as one line of JSON."""
    write_line(json.dumps(value, default=_to_json))


def write_notice(text: str) -> None:
    """Write a notice that is not part of the result."""
    sys.stderr.write(f"letstalk: {text}\n")


def colored(text: str, color: str) -> str:
    """Return the text in color if stdout is a terminal that supports it."""
    plain = not sys.stdout.isatty() or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return text if plain else f"\033[{_COLORS[color]}m{text}\033[0m"


def _to_json(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(type(value).__name__)
