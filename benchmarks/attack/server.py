"""The server that is attacked: tokens are required, and its model takes no time.

cd benchmarks; python -m attack.server --descriptors 512
"""

import argparse
import os
import resource
import sys
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from webrtc.flash_avatar import MiddleFinder

from letstalk_rt.avatars import list_avatars
from letstalk_rt.inference.isolated_pipeline import IsolatedPipeline
from letstalk_rt.inference.protocol import DEFAULT_OPTIONS, Deliver, Pipeline, StateOptions
from letstalk_rt.types import Portrait
from letstalk_server.main import serve
from letstalk_server.session.avatar_service import LoadedModel
from letstalk_server.settings import Settings

SECRET_VARIABLE, KEY_VARIABLE = "LETSTALK_SECRET", "LETSTALK_API_KEY"
GRACE_S = 3.0
"""Sessions that an attacker has left end soon, so that each attack begins with four."""

PLACES = 16
FRAMES, SWAY_PX = 50, 4


class SwayingPipeline(Pipeline[dict[str, Any]]):
    """A pipeline with the timing of `AvatarPipeline` that sways the portrait."""

    fps, frames_per_window, hop, lookahead_frames = 25, 4, 2560, 2
    partial_sizes, device = (4,), "cpu"

    def __init__(self) -> None:
        self.finder = MiddleFinder()

    def init_state(
        self, portrait: Portrait, options: StateOptions = DEFAULT_OPTIONS
    ) -> dict[str, Any]:
        """Return a state: the canvas, and the number of frames shown."""
        return {"canvas": portrait.canvas, "count": 0}

    def interrupt(self, state: dict[str, Any], *, unseen: int = 0) -> None:
        """Do nothing: there is no past."""

    def change_portrait(self, state: dict[str, Any], portrait: Portrait) -> None:
        """Show another portrait."""
        state["canvas"] = portrait.canvas

    def batch_key(self, state: dict[str, Any]) -> Hashable:
        """Return the shape of the frames."""
        return state["canvas"].shape

    def step(
        self, pcm: np.ndarray, states: Sequence[dict[str, Any]], deliver: Deliver | None = None
    ) -> np.ndarray:
        """Convert `(B, hop)` float32 to `(B, N, H, W, 3)` uint8."""
        window = np.stack([self._window(state) for state in states])
        if deliver is not None:
            deliver(window)
        return window

    def _window(self, state: dict[str, Any]) -> np.ndarray:
        numbers = state["count"] + np.arange(self.frames_per_window)
        state["count"] += self.frames_per_window
        shifts = np.round(SWAY_PX * np.sin(numbers * 2 * np.pi / FRAMES)).astype(int)
        return np.stack([np.roll(state["canvas"], shift, axis=1) for shift in shifts])


def load(settings: Settings) -> LoadedModel:
    """Return the model, in a process of its own, with the first default portrait."""
    name, path = next(iter(list_avatars().items()))
    pipeline = IsolatedPipeline("attack.server:SwayingPipeline", {})
    return LoadedModel(pipeline, {name: Path(path)})


def main() -> int:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--descriptors", type=int, help="limit of open files (the system's)")
    options = parser.parse_args()
    if options.descriptors is not None:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (options.descriptors, most))
    settings = Settings(
        port=0,
        size=options.size,
        max_sessions=PLACES,
        auth="on",
        secret=os.environ[SECRET_VARIABLE],
        api_key=os.environ[KEY_VARIABLE],
        grace_s=GRACE_S,
        max_session_s=0,  # honest sessions last as long as the benchmark
        max_idle_s=0,
        speech="auto",
    )
    return serve(settings, load)


if __name__ == "__main__":
    sys.exit(main())
