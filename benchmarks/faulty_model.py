"""A model in a process of its own that fails when a file with the name of a fault appears.

It wraps another one, and works inside the model's process; `bench_recovery.py` measures how soon
sessions go on. The fault happens in the next step, which writes its time into `FELL`.
"""

import mmap
import os
import pkgutil
import signal
import time
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from letstalk_rt.inference.protocol import (
    DEFAULT_OPTIONS,
    Deliver,
    Pipeline,
    StateOptions,
    Windows,
)
from letstalk_rt.types import Portrait

FAULTS = ("raise", "hang-2", "hang-60", "memory", "kill", "kill-again")
FELL = "fell"
"""The file that holds the time of the latest fault, in monotonic seconds."""


class FaultyModel(Pipeline[Any]):
    """A model whose steps fail on demand.

    Args:
        inner: the model.
        folder: where the files appear.
    """

    def __init__(self, inner: Any, folder: Path) -> None:
        self._inner, self._folder = inner, folder
        self.frames_per_window, self.hop = inner.frames_per_window, inner.hop
        self.lookahead_frames, self.partial_sizes = inner.lookahead_frames, inner.partial_sizes
        self.finder = getattr(inner, "finder", None)
        self.variant = getattr(inner, "variant", None)

    @classmethod
    def load(cls, model: str, folder: str, **options: Any) -> "FaultyModel":
        """Return the model that the function `model` loads (`module:name`) with these options."""
        return cls(pkgutil.resolve_name(model)(**options), Path(folder))

    @property
    def device(self) -> object:
        """The device of the model."""
        return self._inner.device

    def init_state(self, portrait: Portrait, options: StateOptions = DEFAULT_OPTIONS) -> Any:
        """Return a new state."""
        return self._inner.init_state(portrait, options)

    def interrupt(self, state: Any, *, unseen: int = 0) -> None:
        """Drop the speech."""
        self._inner.interrupt(state, unseen=unseen)

    def change_portrait(self, state: Any, portrait: Portrait) -> None:
        """Change the portrait."""
        self._inner.change_portrait(state, portrait)

    def batch_key(self, state: Any) -> Hashable:
        """Return the batch key of the model."""
        key: Hashable = self._inner.batch_key(state)
        return key

    def step(
        self, pcm: np.ndarray, states: Sequence[Any], deliver: Deliver | None = None
    ) -> Windows:
        """Fail if asked to, or else run a step of the model."""
        for fault in FAULTS:
            file = self._folder / fault
            if file.exists():
                (self._folder / FELL).write_text(f"{time.monotonic()}")
                file.unlink()
                _fail(fault)
        windows: Windows = self._inner.step(pcm, states, deliver)
        return windows


def _fail(fault: str) -> None:
    match fault:
        case "raise":
            raise RuntimeError("this step fails")
        case "memory":
            hoard = []
            while True:
                hoard.append(mmap.mmap(-1, 64 * 2**20))
                hoard[-1][::4096] = bytes(len(hoard[-1]) // 4096)
        case "kill" | "kill-again":
            os.kill(os.getpid(), signal.SIGKILL)
        case _:
            time.sleep(float(fault.removeprefix("hang-")))
