"""The server that the soak measures: its avatar flashes at the beginning of a sound.

The mock model (`webrtc/flash_avatar.py`) takes no time; with the embedded model, a patch that
flashes is painted over a corner of its frames. Either runs in a process of its own, as under
`letstalk serve`.

    cd benchmarks; python -m soak.server --model mock --port 0
"""

import argparse
import sys
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from webrtc.flash_avatar import PATCH, Flashes

from letstalk_rt.avatars import list_avatars
from letstalk_rt.inference.isolated_pipeline import IsolatedPipeline
from letstalk_rt.inference.protocol import (
    DEFAULT_OPTIONS,
    Deliver,
    Pipeline,
    StateOptions,
    Windows,
)
from letstalk_rt.types import Portrait
from letstalk_server.main import serve
from letstalk_server.session.avatar_service import LoadedModel
from letstalk_server.settings import Settings

PATIENCE: dict[str, Any] = {
    "heartbeat_timeout_s": 60.0,
    "report_timeout_s": 60.0,
    "model_timeout_s": 30.0,
}
MODELS = {
    "mock": "webrtc.flash_avatar:FlashPipeline",
    "embedded": "soak.server:FlashingPipeline.load",
}


@dataclass(slots=True)
class FlashingState:
    """The state of the model, and when its patch flashes."""

    inner: Any
    flashes: Flashes


class FlashingPipeline(Pipeline[FlashingState]):
    """The embedded model, with a patch in its frames that lights up at the beginning of a sound.

    Args:
        inner: the model.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.frames_per_window, self.hop = inner.frames_per_window, inner.hop
        self.lookahead_frames, self.partial_sizes = inner.lookahead_frames, inner.partial_sizes
        self.finder, self.variant = inner.finder, inner.variant

    @classmethod
    def load(cls, **options: Any) -> "FlashingPipeline":
        """Return the embedded model; `options` are those of `AvatarPipeline.load`."""
        from letstalk_rt.inference.pipeline import AvatarPipeline

        return cls(AvatarPipeline.load("tiny", **options))

    @property
    def device(self) -> object:
        """The device of the model."""
        return self._inner.device

    def init_state(
        self, portrait: Portrait, options: StateOptions = DEFAULT_OPTIONS
    ) -> FlashingState:
        """Return a new state."""
        flashes = Flashes(self.frames_per_window, self.lookahead_frames)
        return FlashingState(self._inner.init_state(portrait, options), flashes)

    def interrupt(self, state: FlashingState, *, unseen: int = 0) -> None:
        """Drop the speech."""
        self._inner.interrupt(state.inner, unseen=unseen)
        state.flashes.reset()

    def change_portrait(self, state: FlashingState, portrait: Portrait) -> None:
        """Change the portrait."""
        self._inner.change_portrait(state.inner, portrait)

    def batch_key(self, state: FlashingState) -> Hashable:
        """Return the batch key of the model."""
        key: Hashable = self._inner.batch_key(state.inner)
        return key

    def step(
        self, pcm: np.ndarray, states: Sequence[FlashingState], deliver: Deliver | None = None
    ) -> list[np.ndarray]:
        """Run a step of the model, and paint the patch into each partial window."""
        shades = [state.flashes.shades(hop) for hop, state in zip(pcm, states, strict=True)]
        parts: list[list[np.ndarray]] = []

        def paint(windows: Windows) -> None:
            first = sum(len(done[0]) for done in parts)
            pairs = zip(windows, shades, strict=True)
            parts.append([painted(one, each[first : first + len(one)]) for one, each in pairs])
            if deliver is not None:
                deliver(parts[-1])

        self._inner.step(pcm, [state.inner for state in states], paint)
        return [np.concatenate(one) for one in zip(*parts, strict=True)]


def painted(window: np.ndarray, shades: Sequence[int]) -> np.ndarray:
    """Return a copy of `(n, H, W, 3)` with the patch of each frame in its shade."""
    window = window.copy()
    window[:, :PATCH, :PATCH] = np.array(shades, np.uint8)[:, None, None, None]
    return window


def load(settings: Settings) -> LoadedModel:
    """Return the model that `settings.preset` names, with the first default portrait."""
    options = {"threads": settings.threads} if settings.preset == "embedded" else {}
    name, path = next(iter(list_avatars().items()))
    return LoadedModel(IsolatedPipeline(MODELS[settings.preset], options), {name: Path(path)})


def main() -> int:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=tuple(MODELS), default="mock")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--max-sessions", type=int, default=16)
    parser.add_argument("--patient", action="store_true", help="for a machine that is busy")
    options = parser.parse_args()
    patience = PATIENCE if options.patient else {}
    settings = Settings(
        port=options.port,
        size=options.size,
        preset=options.model,
        max_sessions=options.max_sessions,
        badge="off",
        kiosk=True,
        **patience,
    )
    return serve(settings, load)


if __name__ == "__main__":
    sys.exit(main())
