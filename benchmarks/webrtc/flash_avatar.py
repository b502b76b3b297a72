"""A server whose avatar shows a flash: a patch lights up in the first frame of a sound.

Its brightness encodes where in the frame's 40 ms the sound begins, so that a receiver can measure
the skew of video and audio to the millisecond. Next to the patch a portrait sways, so that encoding
costs as much as for a talking head; the frames are made in advance and cost nothing.

    python benchmarks/webrtc/flash_avatar.py --port 0
"""

import argparse
import sys
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from letstalk_rt.avatars import list_avatars
from letstalk_rt.errors import ConfigError
from letstalk_rt.inference.protocol import DEFAULT_OPTIONS, Deliver, Pipeline, StateOptions
from letstalk_rt.types import SAMPLES_PER_FRAME, Face, Portrait
from letstalk_server.main import serve
from letstalk_server.session.avatar_service import LoadedModel
from letstalk_server.settings import Settings

PATCH = 128
"""Side of the patch in the upper left corner, px."""

DARK, DIM, BRIGHT = 20, 128, 255
LOUD = 0.02
SWAY, WINDOWS = 50, 25
"""Frames of one swing, and windows of four until they repeat."""


class MiddleFinder:
    """A face finder that returns the middle of any image."""

    crop_px = 256

    def fingerprint(self) -> str:
        """Return a name of its own."""
        return "middle"

    def find_faces(self, rgb: np.ndarray) -> list[Face]:
        """Return one face in `(H, W, 3)`."""
        height, width = rgb.shape[:2]
        x = np.array([0.35, 0.65, 0.5, 0.5], np.float32) * width
        y = np.array([0.45, 0.45, 0.3, 0.7], np.float32) * height
        return [Face(np.stack([x, y], 1), 0.9, 0.0)]


class Flashes:
    """Decides for one session how bright the patch of each frame is.

    Args:
        frames_per_window: frames of one step.
        lookahead_frames: frames by which the model's frames lag behind its audio.
    """

    def __init__(self, frames_per_window: int = 4, lookahead_frames: int = 2) -> None:
        self._samples = frames_per_window * SAMPLES_PER_FRAME
        self._past = np.zeros(lookahead_frames * SAMPLES_PER_FRAME, np.float32)
        self._shade = DARK

    def reset(self) -> None:
        """Drop the past audio."""
        self._past[:] = 0

    def shades(self, pcm: np.ndarray) -> list[int]:
        """Take a hop, `(n,)` float32, and return the shade of each frame of its window."""
        heard = np.concatenate([self._past, pcm])
        self._past = heard[self._samples :].copy()
        loud = np.abs(heard[: self._samples].reshape(-1, SAMPLES_PER_FRAME)) > LOUD
        return [self._next(places) for places in loud]

    def _next(self, loud: np.ndarray) -> int:
        if not loud.any():
            self._shade = DARK
        elif self._shade == DARK:
            first = int(loud.argmax())
            self._shade = round(DIM + (BRIGHT - DIM) * first / SAMPLES_PER_FRAME)
        return self._shade


class FlashPipeline(Pipeline[dict[str, Any]]):
    """A pipeline with the timing of `AvatarPipeline` that shows flashes."""

    fps, frames_per_window, hop, lookahead_frames = 25, 4, 2560, 2
    partial_sizes, device = (4,), "cpu"

    def __init__(self) -> None:
        self.finder = MiddleFinder()

    def init_state(
        self, portrait: Portrait, options: StateOptions = DEFAULT_OPTIONS
    ) -> dict[str, Any]:
        """Return a state with the swaying frames, window by window."""
        canvas = portrait.canvas
        shifts = np.round(4 * np.sin(np.arange(WINDOWS * 4) * 2 * np.pi / SWAY)).astype(int)
        dark = np.stack([np.roll(canvas, shift, axis=1) for shift in shifts])
        dark[:, :PATCH, :PATCH] = DARK
        windows = dark.reshape(WINDOWS, 1, self.frames_per_window, *canvas.shape)
        return {"windows": windows, "flashes": Flashes(), "count": 0}

    def interrupt(self, state: dict[str, Any], *, unseen: int = 0) -> None:
        """Drop the past audio."""
        state["flashes"].reset()

    def change_portrait(self, state: dict[str, Any], portrait: Portrait) -> None:
        """Raise ConfigError: the frames are made in advance."""
        raise ConfigError("this model cannot change faces")

    def batch_key(self, state: dict[str, Any]) -> Hashable:
        """Return the shape of the frames."""
        return state["windows"].shape

    def step(
        self,
        pcm: np.ndarray,
        states: Sequence[dict[str, Any]],
        deliver: Deliver | None = None,
    ) -> np.ndarray:
        """Convert `(B, hop)` float32 to `(B, N, H, W, 3)` uint8."""
        windows = [self._draw(*each) for each in zip(pcm, states, strict=True)]
        window = np.concatenate(windows) if len(windows) > 1 else windows[0]
        if deliver is not None:
            deliver(window)
        return window

    def _draw(self, pcm: np.ndarray, state: dict[str, Any]) -> np.ndarray:
        """Return one window, `(1, N, H, W, 3)`; without a flash, one made in advance."""
        shades = state["flashes"].shades(pcm)
        window: np.ndarray = state["windows"][state["count"] % WINDOWS]
        state["count"] += 1
        if all(shade == DARK for shade in shades):
            return window
        lit = window.copy()
        for shade, picture in zip(shades, lit[0], strict=True):
            picture[:PATCH, :PATCH] = shade
        return lit


def load(settings: Settings) -> LoadedModel:
    """Return the pipeline with the first default portrait."""
    name, path = next(iter(list_avatars().items()))
    return LoadedModel(FlashPipeline(), {name: Path(path)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0)
    sys.exit(serve(Settings(port=parser.parse_args().port, badge="off"), load))
