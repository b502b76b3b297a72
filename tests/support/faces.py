"""Drawn faces, with a finder and a fake pipeline for them, so that no weights are needed."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from letstalk_rt.errors import ConfigError, WeightsError
from letstalk_rt.inference.protocol import DEFAULT_OPTIONS, Deliver, Pipeline, StateOptions
from letstalk_rt.models.face.head_pose import average_head
from letstalk_rt.models.geometry.landmarks import landmark_indices
from letstalk_rt.portrait.compositor import Compositor
from letstalk_rt.types import Face, Portrait

SKIN = (224, 172, 140)


def draw(width: int, height: int, faces: list[tuple[int, int, int]]) -> Image.Image:
    """Draw faces, each given by centre and height in pixels, on a wall with a gradient."""
    ramp = np.linspace(60, 120, width)[None, :, None] * np.array([0.6, 0.8, 1.0])
    image = Image.fromarray(np.broadcast_to(ramp, (height, width, 3)).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for x, y, high in faces:
        pen.ellipse((x - 0.35 * high, y - high / 2, x + 0.35 * high, y + high / 2), fill=SKIN)
    return image


def average_face(eye_px: float = 30.0, at: tuple[float, float] = (0.0, 0.0)) -> torch.Tensor:
    """Return the landmarks of an average face with open eyes, `(1, L, 2)` in pixels.

    Args:
        eye_px: width of an eye.
        at: the middle between the corners of the right eye.
    """
    points = torch.from_numpy(average_head().points[None, :, :2]).float()
    corners = points[0, landmark_indices((33, 133))]
    size = eye_px / float((corners[1] - corners[0]).norm())
    return (points - corners.mean(0)) * size + torch.tensor(at)


class SkinFinder:
    """A finder that reports each group of columns with skin colour as a face."""

    crop_px = 256

    def __init__(self, yaw: float = 0.0) -> None:
        self.yaw = yaw

    def fingerprint(self) -> str:
        """Return a constant fingerprint."""
        return "skin"

    def find_faces(self, rgb: np.ndarray) -> list[Face]:
        """Return the faces, largest first."""
        assert rgb.dtype == np.uint8 and rgb.ndim == 3
        skin = np.abs(rgb.astype(int) - SKIN).max(-1) < 25
        columns = np.flatnonzero(skin.any(0))
        if not len(columns):
            return []
        blobs = np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)
        faces = []
        for blob in blobs:
            rows = np.flatnonzero(skin[:, blob].any(1))
            corners = [(blob[0], rows[0]), (blob[-1] + 1, rows[-1] + 1)]
            faces.append(Face(np.array(corners, np.float32), 1.0, self.yaw))
        return sorted(faces, key=lambda face: -np.ptp(face.landmarks[:, 1]))


class LoudIsBright(Pipeline[dict[str, Any]]):
    """A pipeline whose faces are as bright as the speech is loud."""

    fps, frames_per_window, hop, lookahead_frames = 25, 4, 2560, 2
    partial_sizes, device = (4,), "cpu"
    loaded_with: dict[str, Any] = {}
    fails_at: int | None = None

    def __init__(self) -> None:
        self.finder = SkinFinder()
        self.steps = 0

    @classmethod
    def load(cls, **options: Any) -> "LoudIsBright":
        cls.loaded_with = options
        if options["preset"] == "lost":
            raise WeightsError("The weights of preset 'lost' are missing.")
        return cls()

    def init_state(
        self, portrait: Portrait, options: StateOptions = DEFAULT_OPTIONS
    ) -> dict[str, Any]:
        return {"compositor": Compositor(portrait), "past": np.zeros(1280, np.float32)}

    def interrupt(self, state: dict[str, Any], *, unseen: int = 0) -> None:
        state["past"][:] = 0

    def change_portrait(self, state: dict[str, Any], portrait: Portrait) -> None:
        raise ConfigError("this model cannot change faces")

    def batch_key(self, state: dict[str, Any]) -> Hashable:
        return id(state)

    def step(
        self,
        pcm: np.ndarray,
        states: Sequence[dict[str, Any]],
        deliver: Deliver | None = None,
    ) -> np.ndarray:
        if self.steps == self.fails_at:
            raise RuntimeError("out of memory")
        self.steps += 1
        (state,) = states
        heard = np.concatenate([state["past"], pcm[0]])
        state["past"] = heard[-1280:]
        loudness = np.abs(heard[:2560]).reshape(4, 640).max(-1)
        faces = np.broadcast_to(
            (loudness * 250).astype(np.uint8)[:, None, None, None], (4, 256, 256, 3)
        )
        window = state["compositor"].compose(np.ascontiguousarray(faces))[None]
        if deliver is not None:
            deliver(window)
        return window
