"""What was measured on this machine, kept in the user's cache folder: one JSON object by name.

Names begin with the hash of the machine (`letstalk_rt.inference.autotune.machine_key`). What is
doubted is forgotten, so that the next start measures again. Nothing here imports torch.
"""

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DOUBTED_AGAIN_S = 24 * 3600.0
"""A machine that stays slower than measured, because it is busy, is measured once in this time."""

_DOUBTS = "doubts"

_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return the user's cache folder: `LETSTALK_CACHE`, or by the XDG specification."""
    folder = os.environ.get("LETSTALK_CACHE")
    if folder:
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "letstalk_rt"


class MachineCache:
    """The file in which measurements are kept. What cannot be read or written counts as forgotten.

    Args:
        path: its path; None for the user's cache folder.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or cache_folder() / "tuning.json"

    def get(self, name: str) -> dict[str, Any]:
        """Return a measurement; an empty one if there is none."""
        found = self._read().get(name)
        return found if isinstance(found, dict) else {}

    def put(self, name: str, measured: dict[str, Any]) -> None:
        """Keep a measurement."""
        self._write(self._read() | {name: measured})

    def doubt(self, machine: str, now_s: Callable[[], float] = time.time) -> bool:
        """Forget all measurements of a machine, at most once a day.

        Args:
            machine: its hash.
            now_s: returns Unix seconds.

        Returns:
            Whether there was something to forget.
        """
        content = self._read()
        doubts = self.get(_DOUBTS)
        kept = {name: v for name, v in content.items() if not name.startswith(machine)}
        last_s = doubts.get(machine, -DOUBTED_AGAIN_S)
        if len(kept) == len(content) or now_s() - last_s < DOUBTED_AGAIN_S:
            return False
        self._write(kept | {_DOUBTS: doubts | {machine: now_s()}})
        return True

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, content: dict[str, Any]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_suffix(f".{os.getpid()}")
            partial.write_text(json.dumps(content, indent=1) + "\n")
            partial.replace(self.path)
        except OSError as error:
            _log.info("the measurement cannot be kept: %s", error)
