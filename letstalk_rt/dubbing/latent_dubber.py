"""Dubs films by a denoiser of latents that hold no landmarks, window by window.

The face is followed by the embedded model's networks. A shot begins with its first frame that shows
the face well as the reference; where there is no face, frames pass through untouched.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch

from letstalk_rt.dubbing.cuts import CutDetector
from letstalk_rt.dubbing.lip_track import LipValues
from letstalk_rt.inference.face_reader import FaceReader, FilmedFace
from letstalk_rt.inference.film_faces import FilmFaces, lower_face_patch
from letstalk_rt.inference.mouth_renderer import Patch
from letstalk_rt.inference.reference_frames import FADE_FRAMES, TURNED, shown_share
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.face.detector import FaceFinder

Item = TypeVar("Item")


@dataclass(frozen=True)
class _Filmed(Generic[Item]):
    """A frame whose lower face is to be generated."""

    item: Item
    rgb: np.ndarray
    time_s: float
    face: FilmedFace


class LatentDubber:
    """Changes the lips of one film.

    Args:
        model: a model with the conditions of films; see `has_film_conditions`.
        finder: finds faces in whole images.
    """

    def __init__(self, model: AvatarModel, finder: FaceFinder) -> None:
        self._window: int = model.denoiser.config.window
        self._reader = FaceReader(finder, finder.autoencoder, torch.float32)
        self._faces = FilmFaces(model)
        self._strength: float | None = None

    def dub(
        self, frames: Iterable[tuple[Item, np.ndarray, float]], lips: LipValues
    ) -> Iterator[tuple[Item, Patch | None]]:
        """Yield each frame's item with the part that changes; None if nothing does.

        Args:
            frames: anything that stands for the frame, its pixels `(H, W, 3)` uint8, and the time
                of its middle in seconds.
            lips: audio tokens of the new speech.
        """
        self._change_shot()
        cuts, waiting = CutDetector(), list[_Filmed[Item]]()
        for item, rgb, time_s in frames:
            if cuts.is_cut(rgb):
                yield from self._render(waiting, lips)
                waiting = []
                self._change_shot()
            face = self._reader.read(rgb)
            if face is None or not self._is_known(rgb, face):
                yield from self._render(waiting, lips)
                waiting = []
                self._faces.forget()
                self._strength = 0.0
                yield item, None
                continue
            waiting.append(_Filmed(item, rgb, time_s, face))
            if len(waiting) == self._window:
                yield from self._render(waiting, lips)
                waiting = []
        yield from self._render(waiting, lips)

    def _change_shot(self) -> None:
        self._reader.reset()
        self._faces.change_shot()
        self._strength = None

    def _is_known(self, rgb: np.ndarray, face: FilmedFace) -> bool:
        """Return whether the shot has a reference; one that looks to the camera becomes it."""
        if not self._faces.has_reference and abs(face.yaw) < TURNED:
            self._faces.refer_to(rgb, face)
        return self._faces.has_reference

    def _render(
        self, waiting: list[_Filmed[Item]], lips: LipValues
    ) -> Iterator[tuple[Item, Patch | None]]:
        """Yield frames with their new lower faces; the last stands for those that are missing."""
        if not waiting:
            return
        window = [waiting[min(i, len(waiting) - 1)] for i in range(self._window)]
        tokens = lips.tokens_at([shown.time_s for shown in window])
        assert tokens is not None, "an audio encoder hears the speech"
        made = self._faces.generate([s.rgb for s in window], [s.face for s in window], tokens)
        for shown, crop in zip(waiting, made, strict=False):
            most = 1.0 if self._strength is None else self._strength + 1 / FADE_FRAMES
            self._strength = min(most, shown_share(shown.face.yaw), 1.0)
            if self._strength <= 0:
                yield shown.item, None
            else:
                patch = lower_face_patch(shown.rgb, shown.face, crop, self._strength)
                yield shown.item, patch
