"""The loaded model and the portraits that it can animate.

All model calls, including the face finder, run in one thread; images are written and the operator's
are read in another, so that a large one delays no session; uploads are decoded in processes of
their own. None of this uses the event loop's default executor, which the frame packers use.
"""

import asyncio
import io
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import numpy as np

from letstalk_rt.dubbing.footage_reader import is_film, read_footage
from letstalk_rt.errors import FilmError, ModelLost, PortraitError
from letstalk_rt.inference.admission import StepCost
from letstalk_rt.inference.isolated_pipeline import IsolatedPipeline
from letstalk_rt.inference.protocol import Pipeline, State
from letstalk_rt.inference.supervisor import IsolationLimits, ModelHealth
from letstalk_rt.inference.worker import ModelWorker
from letstalk_rt.portrait.consent import Consent
from letstalk_rt.portrait.face_search import FoundFaces, search_image
from letstalk_rt.portrait.library import AvatarLibrary
from letstalk_rt.session.avatar import Avatar
from letstalk_rt.types import FPS, Face, FaceTrack, Portrait
from letstalk_server.auth import Caller
from letstalk_server.errors import (
    MODEL_AWAY,
    MODEL_RETRY_S,
    DefaultAvatarError,
    NotReadyError,
    UnknownAvatarError,
    UnknownPortraitError,
)
from letstalk_server.session.ids import new_id
from letstalk_server.session.upload_decoder import MOST_AT_ONCE, UploadDecoder
from letstalk_server.settings import Settings

if TYPE_CHECKING:
    from letstalk_rt.portrait.image import FaceShares, Finder

log = logging.getLogger(__name__)

T = TypeVar("T")

THUMBNAIL_PX = 192
MAX_LABEL_CHARS = 60
MAX_FOOTAGE_BYTES = 256 * 2**20
"""Memory of uploaded films; subjects share it."""

CARE_INTERVAL_S = 0.5
"""How often it is checked whether an isolated model runs."""


class PortraitPipeline(Pipeline[State], Protocol[State]):
    """A pipeline with a face finder, as `AvatarPipeline` is."""

    @property
    def finder(self) -> "Finder":
        """Finds faces in images."""
        ...

    def track_faces(self, frames: np.ndarray, last: FaceTrack | None) -> list[FaceTrack | None]:
        """Return the face in each of consecutive frames of a film, after one with `last`."""
        ...


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A loaded model with the default avatars.

    Attributes:
        pipeline: animates portraits.
        avatars: name and image file of each default avatar.
        library: caches prepared portraits on disk; `None` prepares them at each start.
    """

    pipeline: PortraitPipeline[Any]
    avatars: dict[str, Path]
    library: AvatarLibrary | None = None


@dataclass(frozen=True, slots=True)
class AvatarEntry:
    """A prepared portrait with its images for the page.

    Attributes:
        id: identifier, used in URLs.
        label: display name.
        owner: subject that uploaded it; `None` for default avatars.
        portrait: the prepared portrait.
        still: JPEG of the whole canvas, framed exactly as the video.
        thumbnail: small JPEG of the face.
        consent: who stated that the person agreed, and when; `None` for people who do not exist.
        faces: the faces of an uploaded image, largest first: left, top, width and height as shares
            of its sides; empty for films and default avatars.
        shown_id: names the images only, for those who watch: whoever knows it may look at them and
            do nothing else. The same as `id` for default avatars.
    """

    id: str
    label: str
    owner: str | None
    portrait: Portrait
    still: bytes
    thumbnail: bytes
    consent: Consent | None = None
    shown_id: str = ""
    faces: "tuple[FaceShares, ...]" = ()

    def may_be_used_by(self, caller: Caller) -> bool:
        """Return whether a caller may animate and describe it: the owner, or the operator."""
        is_owner = self.owner == caller.subject and caller.session is None
        return self.owner is None or caller.is_operator or is_owner

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the video, px; both are even, as 4:2:0 requires."""
        height, width = self.portrait.canvas.shape[:2]
        return width & ~1, height & ~1


def load_model(settings: Settings) -> LoadedModel:
    """Load the real model, in a process of its own if the settings say so. Slow and blocking."""
    pipeline = _isolated_pipeline(settings) if settings.isolate_model else _pipeline(settings)
    library = AvatarLibrary()
    entries = sorted(library.entries(), key=lambda entry: not entry.builtin)
    return LoadedModel(pipeline, {entry.name: entry.path for entry in entries}, library)


def _pipeline(settings: Settings) -> PortraitPipeline[Any]:
    from letstalk_rt.inference.pipeline import AvatarPipeline

    return AvatarPipeline.load(
        settings.preset, threads=settings.threads, weights=_weights(settings)
    )


def _isolated_pipeline(settings: Settings) -> PortraitPipeline[Any]:
    return IsolatedPipeline(
        "letstalk_rt.inference.pipeline:AvatarPipeline.load",
        {
            "preset": settings.preset,
            "threads": settings.threads,
            "weights": _weights(settings),
        },
        limits=IsolationLimits(step_s=settings.model_timeout_s, memory_mb=settings.model_memory_mb),
    )


def _weights(settings: Settings) -> Path | None:
    return None if settings.weights is None else Path(settings.weights)


class AvatarService:
    """Prepares portraits and creates avatars from them. Use `open` to create it."""

    def __init__(self, model: LoadedModel, worker: ModelWorker[Any], settings: Settings) -> None:
        self.worker = worker
        self.recovery_s = settings.model_recovery_s
        self.degradation_preference = settings.degradation_preference
        self.step_cost = StepCost(0.0, model.pipeline.frames_per_window / FPS)
        self._model = model
        self._settings = settings
        self._uploads: OrderedDict[str, AvatarEntry] = OrderedDict()
        self._mattes: dict[str, asyncio.Future[bytes]] = {}
        self._image_executor = ThreadPoolExecutor(1, thread_name_prefix="images")
        self._upload_executor = ThreadPoolExecutor(MOST_AT_ONCE, thread_name_prefix="uploads")
        self._care_task: asyncio.Task[None] | None = None
        self.upload_decoder = UploadDecoder(settings.size, settings.max_upload_pixels)
        self.defaults: dict[str, AvatarEntry] = {}

    @property
    def is_directable(self) -> bool:
        """Whether the model has moods, gestures and listening."""
        return self._model.pipeline.is_directable

    @property
    def is_model_running(self) -> bool:
        """Whether the model can be called now."""
        pipeline = self._model.pipeline
        return not isinstance(pipeline, IsolatedPipeline) or pipeline.is_running

    @property
    def model_health(self) -> ModelHealth:
        """What happened to the model; of one that is not isolated, nothing is known."""
        pipeline = self._model.pipeline
        return pipeline.health if isinstance(pipeline, IsolatedPipeline) else ModelHealth()

    @classmethod
    async def open(
        cls,
        settings: Settings,
        load: Callable[[Settings], LoadedModel] = load_model,
        on_step: Callable[[float, int], None] = lambda seconds, count: None,
    ) -> Self:
        """Load the model, prepare the default avatars and measure the cost of a step.

        Args:
            settings: settings of the server.
            load: loads the model; called in a thread.
            on_step: see `ModelWorker`.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="load") as loader:
            model = await asyncio.get_running_loop().run_in_executor(loader, load, settings)
        worker = ModelWorker(model.pipeline, on_step=on_step)
        try:
            avatar_service = cls(model, worker, settings)
            for name, path in model.avatars.items():
                await avatar_service._add_default(name, path)
            await avatar_service._measure()
        except BaseException:
            if isinstance(model.pipeline, IsolatedPipeline):
                await asyncio.to_thread(model.pipeline.close)
            worker.shutdown(wait=False, cancel_futures=True)
            raise
        if isinstance(model.pipeline, IsolatedPipeline):
            care = avatar_service._care_for(model.pipeline)
            avatar_service._care_task = asyncio.create_task(care, name="model-care")
        assert avatar_service.defaults, "the package ships at least one default avatar"
        return avatar_service

    async def aclose(self) -> None:
        """Shut down the threads; call after all sessions are closed.

        Wait for the running step: the process aborts if the interpreter exits during one.
        """
        self._image_executor.shutdown(wait=False, cancel_futures=True)
        self._upload_executor.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self.upload_decoder.close)
        if self._care_task is not None:
            self._care_task.cancel()
            await asyncio.wait([self._care_task])
        if isinstance(self._model.pipeline, IsolatedPipeline):  # it need not finish its step
            await asyncio.to_thread(self._model.pipeline.close)
        await asyncio.to_thread(self.worker.shutdown, wait=True, cancel_futures=True)

    def list_avatars(self, subject: str) -> Iterator[AvatarEntry]:
        """Yield the default avatars and the uploads of a subject."""
        yield from self.defaults.values()
        yield from (entry for entry in self._uploads.values() if entry.owner == subject)

    async def upload(
        self,
        data: bytes,
        subject: str = "local",
        label: str = "",
        face_at: tuple[float, float] | None = None,
    ) -> AvatarEntry:
        """Prepare an uploaded portrait and keep it in memory, with the uploader's consent.

        Args:
            data: the file.
            subject: who uploads it.
            label: display name.
            face_at: a point on the wanted face; see `prepare_portrait`. Films ignore it.

        Raises:
            PortraitError: The file is no image, is damaged, or shows no usable face.
            NotReadyError: The model is being started again.
        """
        name = new_id(self._settings)
        try:
            portrait, faces = await self._prepare_upload(data, face_at)
            images = await self._in_thread(_encode_images, portrait)
        except ModelLost as error:
            raise NotReadyError(MODEL_AWAY, MODEL_RETRY_S) from error
        entry = AvatarEntry(
            name,
            label[:MAX_LABEL_CHARS] or "Yours",
            subject,
            portrait,
            *images,
            consent=Consent.now(subject),
            shown_id=new_id(self._settings),
            faces=faces,
        )
        self._uploads[name] = entry
        self._limit(entry, self._settings.max_portraits, lambda entry: 1)
        self._limit(entry, MAX_FOOTAGE_BYTES, _footage_bytes)
        return entry

    def _limit(self, newest: AvatarEntry, limit: int, size: Callable[[AvatarEntry], int]) -> None:
        """Drop uploads until their sizes are within a limit, but not the newest.

        The subject that has most loses what it used least recently, so that nobody's uploads push
        out those of somebody who has fewer; of several such subjects, it is the one that uploads.
        """
        while sum(map(size, self._uploads.values())) > limit:
            totals: Counter[str | None] = Counter()
            for entry in self._uploads.values():
                totals[entry.owner] += size(entry)
            others = [e for e in self._uploads.values() if e is not newest and size(e)]
            if not others:
                return
            dropped = max(others, key=lambda e: (totals[e.owner], e.owner == newest.owner))
            self._drop(dropped.id)

    def _drop(self, name: str) -> None:
        del self._uploads[name]
        self._mattes.pop(name, None)

    def delete(self, name: str, caller: Caller) -> None:
        """Delete an upload of the caller; the operator may delete all.

        Raises:
            DefaultAvatarError: It is a default avatar.
            UnknownAvatarError: The caller has no upload with that id.
        """
        self._upload_of(name, caller)
        self._drop(name)

    def rename(self, name: str, caller: Caller, label: str) -> AvatarEntry:
        """Give an upload of the caller another label; the operator may rename all.

        Raises:
            DefaultAvatarError: It is a default avatar.
            UnknownAvatarError: The caller has no upload with that id.
        """
        entry = replace(self._upload_of(name, caller), label=label)
        self._uploads[name] = entry
        return entry

    def _upload_of(self, name: str, caller: Caller) -> AvatarEntry:
        if name in self.defaults:
            raise DefaultAvatarError("Default avatars come with the server and stay as they are.")
        entry = self._uploads.get(name)
        if entry is None or not (caller.is_operator or entry.owner == caller.subject):
            raise UnknownAvatarError("You have no avatar with that id.")
        return entry

    async def matte(self, entry: AvatarEntry) -> bytes:
        """Return the matte as 8-bit grey PNG of the canvas' size; white is the person.

        It is computed on the first request, because few clients need it.
        """
        if entry.id not in self._mattes:
            loop = asyncio.get_running_loop()
            self._mattes[entry.id] = loop.run_in_executor(
                self._image_executor, _matte, entry.portrait
            )
        return await asyncio.shield(self._mattes[entry.id])

    def find(
        self, caller: Caller, avatar: str | None = None, portrait: str | None = None
    ) -> AvatarEntry:
        """Return an avatar that a caller may use, or the first default avatar without an id.

        Every use of an avatar but looking at its images comes through here.

        Args:
            caller: who uses it. Uploads of others are unknown to them.
            avatar: id of a default avatar or of an upload.
            portrait: id of an upload.

        Raises:
            UnknownPortraitError: The caller has no upload with that id.
            UnknownAvatarError: There is no avatar with that id for the caller.
        """
        name = portrait if avatar is None else avatar
        if name is None:
            return next(iter(self.defaults.values()))
        upload = self._uploads.get(name)
        if upload is not None and upload.may_be_used_by(caller):
            self._uploads.move_to_end(name)
            return upload
        if portrait is not None:
            raise UnknownPortraitError(
                "That portrait is no longer on the server. Upload the image again."
            )
        if name not in self.defaults:
            known = ", ".join(self.defaults)
            raise UnknownAvatarError(f"Unknown avatar. Choose one of: {known}.")
        return self.defaults[name]

    def find_shown(self, shown_id: str) -> AvatarEntry:
        """Return the avatar whose images may be looked at under an id.

        Raises:
            UnknownAvatarError: There is none.
        """
        if shown_id in self.defaults:
            return self.defaults[shown_id]
        for entry in self._uploads.values():
            if entry.shown_id == shown_id:
                return entry
        raise UnknownAvatarError("There are no such images. Ask for the avatar's addresses again.")

    def avatar(self, entry: AvatarEntry) -> Avatar:
        """Return an avatar that shares the model and its thread with all others."""
        return Avatar.from_pipeline(self._model.pipeline, entry.portrait, worker=self.worker)

    async def _add_default(self, name: str, path: Path) -> None:
        try:
            portrait = await self._prepare_default(path)
            images = await self._in_thread(_encode_images, portrait)
            library = self._model.library
            consent = None if library is None else library.consent_of(path)
            self.defaults[name] = AvatarEntry(
                name, label_of(name), None, portrait, *images, consent=consent, shown_id=name
            )
        except PortraitError as error:  # an image of the operator must not stop the server
            log.warning("a default avatar was skipped (%s)", type(error).__name__)

    async def _care_for(self, pipeline: IsolatedPipeline) -> None:
        """Start the model again when it has died while no session called it."""
        while True:
            await asyncio.sleep(CARE_INTERVAL_S)
            if pipeline.is_process_due:
                # The next attempt comes later. OSError: the system starts no process now.
                with suppress(ModelLost, OSError):
                    await asyncio.wrap_future(self.worker.submit(pipeline.start_due))

    async def _measure(self) -> None:
        """Measure the cost of a step, at each quality level, too, and set the batch size."""
        portrait = next(iter(self.defaults.values())).portrait
        await asyncio.to_thread(self.worker.measure_steps, portrait)
        self.step_cost = await asyncio.to_thread(StepCost.measure, self.worker, portrait)

    async def _prepare_default(self, source: Path) -> Portrait:
        finder, size = self._model.pipeline.finder, self._settings.size
        library = self._model.library
        if is_film(source):
            return await self._prepare_film(source)
        if library is not None:
            call = partial(library.prepare, source, finder, size=size)
        else:
            rgb = await self._in_thread(_read_image, source)
            call = partial(_prepare_portrait, rgb, finder, size=size)
        return await asyncio.wrap_future(self.worker.submit(call))

    async def _prepare_upload(
        self, source: bytes, face_at: tuple[float, float] | None
    ) -> tuple[Portrait, tuple["FaceShares", ...]]:
        """Prepare an upload; only faces are found between the steps of sessions.

        Scaling 40 million pixels takes as long as several frames do, and so does handing them to
        the model's process.

        Returns:
            The portrait, and where the faces of an image are.
        """
        if is_film(source):
            return await self._prepare_film(source), ()
        finder, size = self._model.pipeline.finder, self._settings.size
        rgb = await self._for_upload(self.upload_decoder.image, source)
        searched, scale = await self._for_upload(search_image, rgb)
        faces = await asyncio.wrap_future(self.worker.submit(finder.find_faces, searched))
        found = FoundFaces(faces, scale, finder.crop_px)
        call = partial(_prepare_portrait, rgb, found, size=size, face_at=face_at)
        return await self._for_upload(call), _shares_of(faces, searched.shape[1::-1])

    async def _prepare_film(self, source: bytes | Path) -> Portrait:
        """Prepare a film; its faces are found in pieces, between the steps of sessions."""
        if isinstance(source, bytes):
            frames, warnings = await self._for_upload(self.upload_decoder.film, source)
        else:
            try:
                frames, warnings = await self._for_upload(read_footage, source, self._settings.size)
            except FilmError as error:
                raise PortraitError(str(error)) from error
        faces: list[FaceTrack | None] = []
        chunks = await self._for_upload(_chunks_of, frames)
        while (chunk := await self._for_upload(next, chunks, None)) is not None:
            last = faces[-1] if faces else None
            call = partial(self._model.pipeline.track_faces, chunk, last)
            faces += await asyncio.wrap_future(self.worker.submit(call))
        return await self._for_upload(_portrait_of, frames, faces, warnings)

    async def _for_upload(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call what may take seconds, in one of several threads."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._upload_executor, function, *arguments)

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._image_executor, function, *arguments)


def label_of(name: str) -> str:
    """Return the display name of a default avatar."""
    return name.replace("_", " ").replace("-", " ").title()


def _footage_bytes(entry: AvatarEntry) -> int:
    footage = entry.portrait.footage
    return 0 if footage is None else sum(map(len, footage.frames))


def _read_image(source: Path) -> np.ndarray:
    from letstalk_rt.portrait.image import read_image

    return read_image(source)


def _chunks_of(frames: list[bytes]) -> Iterator[np.ndarray]:
    from letstalk_rt.dubbing.footage import chunks_of  # imports torch, which takes seconds

    return chunks_of(frames)


def _portrait_of(
    frames: list[bytes], faces: list[FaceTrack | None], warnings: list[str]
) -> Portrait:
    from letstalk_rt.dubbing.footage import portrait_of

    return portrait_of(frames, faces, warnings)


def _prepare_portrait(
    rgb: np.ndarray, finder: Any, *, size: int, face_at: tuple[float, float] | None = None
) -> Portrait:
    from letstalk_rt.portrait.image import prepare_portrait

    return prepare_portrait(rgb, finder, size=size, face_at=face_at)


def _shares_of(faces: list[Face], size: tuple[int, int]) -> tuple["FaceShares", ...]:
    from letstalk_rt.portrait.image import shares_of

    return shares_of(faces, size)


def _encode_images(portrait: Portrait) -> tuple[bytes, bytes]:
    return _jpeg(portrait.canvas), _jpeg(portrait.crop, THUMBNAIL_PX)


def _matte(portrait: Portrait) -> bytes:
    from PIL import Image

    from letstalk_rt.portrait.matting import person_matte

    buffer = io.BytesIO()
    Image.fromarray(person_matte(portrait)).save(buffer, "PNG")
    return buffer.getvalue()


def _jpeg(rgb: np.ndarray, size: int | None = None) -> bytes:
    from PIL import Image

    image = Image.fromarray(rgb)
    if size is not None:
        image.thumbnail((size, size))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
