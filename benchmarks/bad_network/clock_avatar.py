"""A server whose avatar shows how long ago the last sound began, in every frame.

A receiver that loses frames can so still compute when the sound was due. The code is in twelve
blocks in the upper left corner: five bits, the age in frames; six bits, where in its frame's 40 ms
the sound began; one bit of parity. Beside it sways a portrait, made in advance.

    python -m bad_network.clock_avatar --host 10.77.0.1      (in benchmarks/)
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bad_network.marks import OLD, draw
from webrtc.flash_avatar import LOUD, WINDOWS, FlashPipeline

from letstalk_rt.avatars import list_avatars
from letstalk_rt.inference.protocol import DEFAULT_OPTIONS, StateOptions
from letstalk_rt.types import SAMPLES_PER_FRAME, Portrait
from letstalk_server.main import serve
from letstalk_server.session.avatar_service import LoadedModel
from letstalk_server.settings import Settings

QUIET_FRAMES = 8
"""Frames without sound before a sound counts as a new one: longer than the pause that a peer waits
for, because a beep that only one of the two counts must not be one with marks."""


class ClockPipeline(FlashPipeline):
    """A pipeline that shows the age of the last sound; it takes no time."""

    def init_state(
        self, portrait: Portrait, options: StateOptions = DEFAULT_OPTIONS
    ) -> dict[str, Any]:
        """Return a state: what `FlashPipeline` has, and no sound so far."""
        state = super().init_state(portrait, options)
        past = np.zeros(self.lookahead_frames * SAMPLES_PER_FRAME, np.float32)
        return state | {"age": OLD, "offset_ms": 0, "quiet": QUIET_FRAMES, "past": past}

    def interrupt(self, state: dict[str, Any], *, unseen: int = 0) -> None:
        """Drop the past audio."""
        state["past"][:] = 0

    def _draw(self, pcm: np.ndarray, state: dict[str, Any]) -> np.ndarray:
        heard = np.concatenate([state["past"], pcm])
        state["past"] = heard[pcm.size :].copy()
        window: np.ndarray = state["windows"][state["count"] % WINDOWS].copy()
        state["count"] += 1
        loud = np.abs(heard[: pcm.size].reshape(-1, SAMPLES_PER_FRAME)) > LOUD
        for samples, frame in zip(loud, window[0], strict=True):
            state["age"] = min(state["age"] + 1, OLD)
            if samples.any() and state["quiet"] >= QUIET_FRAMES:
                state["age"] = 0
                state["offset_ms"] = int(samples.argmax()) * 40 // SAMPLES_PER_FRAME
            state["quiet"] = 0 if samples.any() else state["quiet"] + 1
            draw(frame, state["age"], state["offset_ms"])
        return window


def load(settings: Settings) -> LoadedModel:
    """Return the pipeline with the first default portrait."""
    name, path = next(iter(list_avatars().items()))
    return LoadedModel(ClockPipeline(), {name: Path(path)})


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--size", type=int, default=512)
    options = parser.parse_args(argv)
    settings = Settings(
        host=options.host,
        port=options.port,
        size=options.size,
        badge="off",
        auth="off",
        insecure_no_auth=True,  # a network of this machine alone
        insecure_http=True,
    )
    return serve(settings, load)


if __name__ == "__main__":
    sys.exit(main())
