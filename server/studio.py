"""The one loaded model and the portraits it can animate.

All model work, finding faces included, runs in one thread; picture files are read in another, so
that a huge one holds nobody up. Neither is the event loop's default executor, which belongs to
the encoders.
"""

import asyncio
import io
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from letstalk_rt.engine import Avatar
from letstalk_rt.errors import PortraitError
from letstalk_rt.types import Face, Portrait
from letstalk_server import problems
from letstalk_server.problems import Problem
from letstalk_server.settings import Settings

log = logging.getLogger(__name__)

THUMBNAIL_PX = 192


@dataclass(frozen=True, slots=True)
class Model:
    """What the studio is made from.

    Attributes:
        pipeline: an `AvatarPipeline`.
        avatars: name and picture file of each default avatar.
    """

    pipeline: Any
    avatars: dict[str, Path]


@dataclass(frozen=True, slots=True)
class Cast:
    """A portrait that is ready, with its pictures for the page.

    Attributes:
        portrait: what the model animates.
        still: JPEG of the whole canvas, framed exactly as the video.
        thumbnail: small JPEG of the face.
    """

    portrait: Portrait
    still: bytes
    thumbnail: bytes


def load_model(settings: Settings) -> Model:
    """Load the real model. Slow and blocking."""
    from letstalk_rt.avatars import list_avatars
    from letstalk_rt.pipeline import AvatarPipeline

    pipeline = AvatarPipeline.load(settings.preset, threads=settings.threads)
    return Model(pipeline, list_avatars())


class Studio:
    """Prepares portraits and makes avatars of them. Use `open`."""

    def __init__(self, model: Model, executor: ThreadPoolExecutor, settings: Settings) -> None:
        self._model = model
        self._executor = executor
        self._settings = settings
        self._uploads: OrderedDict[str, Cast] = OrderedDict()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="pictures")
        self.defaults: dict[str, Cast] = {}

    @classmethod
    async def open(cls, settings: Settings, load: Callable[[Settings], Model] = load_model) -> Self:
        """Load the model and prepare the default avatars, both in the model thread."""
        executor = ThreadPoolExecutor(1, thread_name_prefix="model")
        loop = asyncio.get_running_loop()
        try:
            studio = cls(await loop.run_in_executor(executor, load, settings), executor, settings)
            for name, path in studio._model.avatars.items():
                studio.defaults[name] = await studio._prepare(path)
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise
        assert studio.defaults, "the package ships at least one default avatar"
        return studio

    def close(self) -> None:
        """Give the threads back; call when all sessions are closed."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._reader.shutdown(wait=False, cancel_futures=True)

    async def upload(self, data: bytes) -> tuple[str, Cast]:
        """Prepare a portrait and keep it.

        Raises:
            Problem: the file is no picture, damaged, or shows no usable face.
        """
        cast = await self._prepare(data)
        name = secrets.token_urlsafe(16)
        self._uploads[name] = cast
        if len(self._uploads) > self._settings.max_portraits:
            self._uploads.popitem(last=False)
        return name, cast

    def find(self, avatar: str | None, portrait: str | None) -> Cast:
        """Give a default avatar by name, an upload by id, or the first avatar for neither.

        Raises:
            Problem: there is none of that name or id.
        """
        if portrait is not None:
            if portrait not in self._uploads:
                raise Problem(
                    problems.NO_PORTRAIT,
                    "That portrait is not here any more. Upload the picture again.",
                )
            self._uploads.move_to_end(portrait)
            return self._uploads[portrait]
        name = next(iter(self.defaults)) if avatar is None else avatar
        if name not in self.defaults:
            known = ", ".join(self.defaults)
            raise Problem(problems.NO_AVATAR, f"Unknown avatar. Choose one of: {known}.")
        return self.defaults[name]

    def avatar(self, cast: Cast) -> Avatar:
        """Make an avatar that shares the model and its thread with all others."""
        return Avatar.from_pipeline(self._model.pipeline, cast.portrait, executor=self._executor)

    async def _prepare(self, source: bytes | Path) -> Cast:
        loop = asyncio.get_running_loop()
        rgb = await loop.run_in_executor(self._reader, _read, source)
        finder, size = self._model.pipeline.finder, self._settings.size
        portrait = await loop.run_in_executor(self._executor, _frame, rgb, finder, size)
        return await loop.run_in_executor(self._reader, _picture, portrait)


class _CountingFinder:
    """Remembers how many faces were found, so that "none" can be told from "unusable"."""

    def __init__(self, finder: Any) -> None:
        self._finder = finder
        self.found = 0

    def find_faces(self, rgb: np.ndarray) -> list[Face]:
        faces: list[Face] = self._finder.find_faces(rgb)
        self.found = len(faces)
        return faces


def _read(source: bytes | Path) -> np.ndarray:
    from letstalk_rt.portrait import read_image

    try:
        return read_image(source)
    except PortraitError as error:
        raise Problem(_unreadable(error), str(error)) from error


def _frame(rgb: np.ndarray, finder: Any, size: int) -> Portrait:
    from letstalk_rt.portrait import prepare_portrait

    counting = _CountingFinder(finder)
    try:
        return prepare_portrait(rgb, counting, size=size)
    except PortraitError as error:
        kind = problems.BAD_PORTRAIT if counting.found else problems.NO_FACE
        raise Problem(kind, str(error)) from error


def _picture(portrait: Portrait) -> Cast:
    return Cast(portrait, _jpeg(portrait.canvas), _jpeg(portrait.crop, THUMBNAIL_PX))


def _unreadable(error: PortraitError) -> problems.Kind:
    from PIL import Image, UnidentifiedImageError

    if isinstance(error.__cause__, UnidentifiedImageError):
        return problems.NOT_AN_IMAGE
    if error.__cause__ is None or isinstance(
        error.__cause__, Image.DecompressionBombError | Image.DecompressionBombWarning
    ):
        return problems.BAD_PORTRAIT
    return problems.IMAGE_DAMAGED


def _jpeg(rgb: np.ndarray, size: int | None = None) -> bytes:
    from PIL import Image

    image = Image.fromarray(rgb)
    if size is not None:
        image.thumbnail((size, size))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
