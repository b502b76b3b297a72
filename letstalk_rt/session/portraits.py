"""Portraits as callers have them, prepared for a model that may be busy with sessions."""

import os
import warnings
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import numpy as np

from letstalk_rt.avatars import list_avatars
from letstalk_rt.errors import (
    ConfigError,
    EngineError,
    FilmError,
    PortraitError,
    PortraitWarning,
    is_callers_mistake,
)
from letstalk_rt.inference.worker import ModelWorker
from letstalk_rt.types import Face, FaceTrack, Portrait

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")


class HasPortrait(Protocol):
    """Something with a prepared portrait, such as an `Avatar`."""

    portrait: Portrait


AnyPortrait: TypeAlias = (
    "Portrait | HasPortrait | str | os.PathLike[str] | bytes | np.ndarray | Image"
)
"""A prepared portrait, an avatar, or an image or film to prepare; see `Avatar.load`."""


class FaceReader:
    """Finds and follows faces in the thread of a model, as its pipeline does.

    Its calls block; they may come from any other thread.

    Args:
        worker: runs the model.
    """

    def __init__(self, worker: ModelWorker[Any]) -> None:
        self._worker = worker

    @property
    def finder(self) -> "FaceReader":
        """What finds faces in images: this."""
        return self

    @property
    def crop_px(self) -> int:
        """Side in pixels of the crops that the model animates."""
        return int(self._finder.crop_px)

    def fingerprint(self) -> str:
        """Return a string that differs between finders with different weights."""
        return str(self._finder.fingerprint())

    def find_faces(self, rgb: np.ndarray) -> list[Face]:
        """Return the faces in `(H, W, 3)` uint8, largest first.

        Raises:
            ConfigError: the model finds no faces.
            EngineError: it failed.
        """
        finder = self._finder
        return result_of(self._worker.submit(finder.find_faces, rgb))

    def track_faces(self, frames: np.ndarray, last: FaceTrack | None) -> list[FaceTrack | None]:
        """Return the face in each of consecutive frames; see `AvatarPipeline.track_faces`."""
        pipeline: Any = self._worker.pipeline
        return result_of(self._worker.submit(pipeline.track_faces, frames, last))

    @property
    def _finder(self) -> Any:
        finder = getattr(self._worker.pipeline, "finder", None)
        if finder is None:
            raise ConfigError("this model finds no faces; pass a portrait that is prepared")
        return finder


def prepare_any(
    source: AnyPortrait, pipeline: Any, size: int, face_at: tuple[float, float] | None = None
) -> Portrait:
    """Return the prepared portrait of a source. Blocks for about half a second, or more for films.

    What the caller should know about it is warned of (`PortraitWarning`).

    Args:
        source: see `AnyPortrait`; a text may also be the name of a default avatar, such as
            `mira`, where no file is called so.
        pipeline: a pipeline, or a `FaceReader` if a model is in use.
        size: longer side of the video in pixels, 256 to 1080; a prepared portrait keeps its own.
        face_at: a point on the wanted face; see `Avatar.load`.

    Raises:
        PortraitError: the source is not an image or a film, or has no usable face.
        ConfigError: `size` or `face_at` is out of range or not for this source, or the model finds
            no faces.
    """
    from letstalk_rt.dubbing.footage import prepare_footage
    from letstalk_rt.dubbing.footage_reader import is_film
    from letstalk_rt.portrait.image import prepare_portrait

    portrait = prepared_of(source)
    opened: Any = path_of(source) if isinstance(source, str | os.PathLike) else source
    if face_at is not None and (portrait is not None or is_film(opened)):
        raise ConfigError("face_at chooses a face of an image, not of a film or prepared portrait")
    if portrait is not None:
        return portrait
    if not is_film(opened):
        portrait = prepare_portrait(opened, pipeline.finder, size=size, face_at=face_at)
    else:
        try:
            portrait = prepare_footage(opened, pipeline, size=size)
        except FilmError as error:
            raise PortraitError(str(error)) from error
    for text in portrait.warnings:
        warnings.warn(text, PortraitWarning, stacklevel=3)
    return portrait


def prepared_of(source: AnyPortrait) -> Portrait | None:
    """Return a portrait that is prepared already; None if the source must be read first."""
    known = source if isinstance(source, Portrait) else getattr(source, "portrait", None)
    return known if isinstance(known, Portrait) else None


def path_of(source: str | os.PathLike[str]) -> Path:
    """Return the path of a file, or that of the default avatar of this name."""
    path = Path(source)
    return path if path.exists() else list_avatars().get(str(source), path)


def result_of(future: "Future[T]") -> T:
    """Wait for a call in the model thread.

    Raises:
        EngineError: it failed, and the caller can do nothing about it; the cause is chained.
    """
    try:
        return future.result()
    except Exception as error:
        if is_callers_mistake(error):
            raise
        raise EngineError("a step failed") from error
