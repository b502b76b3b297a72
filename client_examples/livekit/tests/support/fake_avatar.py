"""An avatar without a model, as fast as any machine needs: its face is bright while it speaks."""

import numpy as np

from letstalk_rt import Avatar
from letstalk_rt.inference.protocol import DEFAULT_OPTIONS, Deliver, Pipeline, StateOptions
from letstalk_rt.performance.direction import DirectedWindow
from letstalk_rt.types import SAMPLES_PER_FRAME, Portrait

SIZE = 128
DARK, BRIGHT = 40, 220
_LOUD = 0.02
_LOOKAHEAD = 2


class BrightPipeline(Pipeline[np.ndarray]):
    """A pipeline with the look-ahead of the embedded model.

    Attributes:
        is_broken: whether the next step fails.
        directed: how the windows were directed.
    """

    is_directable = True

    frames_per_window, lookahead_frames = 4, _LOOKAHEAD
    hop = 4 * SAMPLES_PER_FRAME
    partial_sizes, device = (1, 3), "cpu"

    def __init__(self) -> None:
        self.is_broken = False
        self.directed: list[DirectedWindow] = []

    def direct(self, state: np.ndarray, window: DirectedWindow) -> None:
        self.directed.append(window)

    def init_state(self, portrait: Portrait, options: StateOptions = DEFAULT_OPTIONS) -> np.ndarray:
        return np.zeros(_LOOKAHEAD * SAMPLES_PER_FRAME, np.float32)

    def interrupt(self, state: np.ndarray, *, unseen: int = 0) -> None:
        state[:] = 0

    def change_portrait(self, state: np.ndarray, portrait: Portrait) -> None:
        pass

    def batch_key(self, state: np.ndarray) -> tuple[()]:
        return ()

    def step(
        self, pcm: np.ndarray, states: list[np.ndarray], deliver: Deliver | None = None
    ) -> np.ndarray:
        if self.is_broken:
            raise RuntimeError("the model is broken")
        window = np.stack([self._window(*one) for one in zip(pcm, states, strict=True)])
        if deliver is not None:
            for part in np.split(window, [1], axis=1):
                deliver(part)
        return window

    def _window(self, pcm: np.ndarray, state: np.ndarray) -> np.ndarray:
        audio = np.concatenate([state, pcm])
        state[:] = audio[self.hop :]
        loud = np.abs(audio[: self.hop].reshape(4, -1)).max(1) > _LOUD
        levels = np.where(loud, BRIGHT, DARK).astype(np.uint8)
        return np.broadcast_to(levels[:, None, None, None], (4, SIZE, SIZE, 3)).copy()


def fake_avatar() -> Avatar:
    """Return an avatar that needs no model."""
    canvas = np.full((SIZE, SIZE, 3), DARK, np.uint8)
    portrait = Portrait(canvas=canvas, crop=canvas, box=(0.0, 0.0, float(SIZE)))
    return Avatar.from_pipeline(BrightPipeline(), portrait)
