"""A worker of a cluster whose avatar stands still, so that many fit on one machine.

    python benchmarks/cluster_worker.py --worker-name w1 --max-sessions 8

It takes the options of `letstalk serve`.
"""

import sys
import time
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np
from webrtc.flash_avatar import MiddleFinder

from letstalk_rt.avatars import list_avatars
from letstalk_rt.inference.protocol import DEFAULT_OPTIONS, Deliver, Pipeline, StateOptions
from letstalk_rt.types import Portrait
from letstalk_server.main import parse, serve
from letstalk_server.session.avatar_service import LoadedModel
from letstalk_server.settings import Settings


class StillPipeline(Pipeline[list[np.ndarray]]):
    """A pipeline with the timing of `AvatarPipeline` whose frames are the portrait."""

    fps, frames_per_window, hop, lookahead_frames = 25, 4, 2560, 2
    partial_sizes, device = (4,), "cpu"

    def __init__(self) -> None:
        self.finder = MiddleFinder()

    def init_state(
        self, portrait: Portrait, options: StateOptions = DEFAULT_OPTIONS
    ) -> list[np.ndarray]:
        """Return a state: the window that every step gives."""
        return [np.repeat(portrait.canvas[None, None], self.frames_per_window, axis=1)]

    def interrupt(self, state: list[np.ndarray], *, unseen: int = 0) -> None:
        """Do nothing: there is no past."""

    def change_portrait(self, state: list[np.ndarray], portrait: Portrait) -> None:
        """Show another portrait."""
        state[0] = self.init_state(portrait)[0]

    def batch_key(self, state: list[np.ndarray]) -> Hashable:
        """Return the shape of the frames."""
        return state[0].shape

    def step(
        self, pcm: np.ndarray, states: Sequence[list[np.ndarray]], deliver: Deliver | None = None
    ) -> np.ndarray:
        """Convert `(B, hop)` float32 to `(B, N, H, W, 3)` uint8."""
        window = np.concatenate([state[0] for state in states])
        if deliver is not None:
            deliver(window)
        return window


def load(settings: Settings, load_s: float = 0.0) -> LoadedModel:
    """Return the pipeline with the first default portrait, after `load_s`."""
    time.sleep(load_s)
    name, path = next(iter(list_avatars().items()))
    return LoadedModel(StillPipeline(), {name: Path(path)})


if __name__ == "__main__":
    sys.exit(serve(parse(sys.argv[1:]), load))
