"""Records sessions as files, for operators who ask for it: what was shown, signed at the end.

Each avatar has a folder of its own, so that its recordings are deleted with it. The folder of an
upload holds a mark of its owner, who can thus delete the recordings after the server has dropped
the portrait, which is in memory only, or was started again.
"""

import asyncio
import hashlib
import logging
import secrets
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from letstalk_rt.errors import ConfigError, LetsTalkError
from letstalk_rt.recording.credentials import SigningCredentials
from letstalk_rt.recording.file import Recording
from letstalk_rt.recording.provenance import Provenance
from letstalk_rt.types import FPS, AVFrame
from letstalk_server.auth import Caller
from letstalk_server.session.avatar_service import AvatarEntry
from letstalk_server.session.ids import is_id
from letstalk_server.session.playout import PlayoutSlot
from letstalk_server.settings import Settings

log = logging.getLogger(__name__)

MAX_WAITING_FRAMES = 2 * FPS
OWNER_FILE = "owner.sha256"
_STALE_FRAMES = 12
"""Frames after a change of the avatar that may still show the one before."""


class RecordingStore:
    """The folder of all recordings of the server.

    Args:
        folder: the folder; it is made if it is missing.
        model: preset of the model.
        credentials: sign recordings with these; None leaves them unsigned.
    """

    def __init__(self, folder: Path, model: str, credentials: SigningCredentials | None) -> None:
        self._folder, self._model, self._credentials = folder, model, credentials
        self._deleted: set[str] = set()

    @classmethod
    def open(cls, settings: Settings) -> Self | None:
        """Return the store that the settings ask for, if they do.

        Raises:
            ConfigError: the folder cannot be written, or the credentials cannot be used.
            DependencyError: the extra `c2pa` is not installed.
        """
        if settings.record_folder is None:
            return None
        credentials = None
        if settings.sign_cert is not None and settings.sign_key is not None:
            credentials = SigningCredentials.read(Path(settings.sign_cert), Path(settings.sign_key))
        folder = Path(settings.record_folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"recordings cannot be written into {folder}: {error.strerror or error}"
            ) from error
        return cls(folder, settings.preset, credentials)

    def create(self, entry: AvatarEntry, *, badge: bool, sample_rate: int) -> Recording:
        """Return a recording of this avatar, and open its file. This blocks.

        Args:
            entry: the avatar.
            badge: whether its frames carry the badge already.
            sample_rate: sample rate of the audio, Hz.

        Raises:
            ConfigError: the file cannot be written.
        """
        path = self._folder_of(entry.id)
        time = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        recording = Recording(
            path / f"{time}-{secrets.token_hex(4)}.mp4",
            badge=False,
            sample_rate=sample_rate,
            provenance=Provenance.of(self._model, badge, entry.consent),
            credentials=self._credentials,
        )
        try:
            path.mkdir(exist_ok=True)
            if entry.owner is not None:
                (path / OWNER_FILE).write_text(_owner_mark(entry.id, entry.owner))
        except OSError as error:
            raise ConfigError(f"a folder cannot be written: {error.strerror or error}") from error
        recording.open(*entry.size)
        return recording

    def is_deleted(self, avatar: str) -> bool:
        """Return whether the recordings of this avatar were deleted."""
        return avatar in self._deleted

    @property
    def signs(self) -> bool:
        """Whether recordings are signed."""
        return self._credentials is not None

    def may_delete(self, avatar: str, caller: Caller) -> bool:
        """Return whether an upload has recordings that are the caller's. This blocks.

        Args:
            avatar: id of an upload that need not be on the server any more; it is not trusted.
            caller: who asks; the operator may delete all.
        """
        folder = self._folder_of(avatar)
        if not is_id(avatar) or not folder.is_dir():
            return False
        try:
            mark = (folder / OWNER_FILE).read_text()
        except (OSError, UnicodeDecodeError):
            mark = None
        return caller.is_operator or mark == _owner_mark(avatar, caller.subject)

    def delete(self, avatar: str) -> None:
        """Delete all recordings of an avatar, and accept no further ones. This blocks."""
        self._deleted.add(avatar)
        shutil.rmtree(self._folder_of(avatar), ignore_errors=True)

    def _folder_of(self, avatar: str) -> Path:
        return self._folder / avatar


class SessionRecorder:
    """Records one session; a change of the avatar begins another file.

    A failure, such as a full disk, ends the recording and not the session.

    Args:
        store: where recordings are.
        avatar: returns the avatar that is shown.
        badge: whether frames carry the badge.
        sample_rate: sample rate of the audio, Hz.
        on_failure: called when the recording ends by a failure, or cannot be signed.

    Attributes:
        dropped: frames that were not recorded because the disk or the encoder was too slow.
        has_failed: whether the recording has ended by a failure.
    """

    def __init__(
        self,
        store: RecordingStore,
        avatar: Callable[[], AvatarEntry],
        *,
        badge: bool,
        sample_rate: int,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self.dropped = 0
        self.has_failed = False
        self._on_failure = on_failure
        self._store, self._avatar = store, avatar
        self._badge, self._sample_rate = badge, sample_rate
        self._frames: asyncio.Queue[tuple[AvatarEntry, AVFrame] | None]
        self._frames = asyncio.Queue(MAX_WAITING_FRAMES)
        self._entry: AvatarEntry | None = None
        self._recording: Recording | None = None
        self._skip = 0
        self._task: asyncio.Task[None] | None = None

    def show(self, slot: PlayoutSlot) -> None:
        """Record a slot that is shown now; repeated frames are left out."""
        if slot.frame is None:
            return
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="session-recorder")
        if self._task.done():
            return
        try:
            self._frames.put_nowait((self._avatar(), slot.frame))
        except asyncio.QueueFull:
            self.dropped += 1

    async def aclose(self) -> None:
        """Write what is waiting, and complete and sign the file."""
        if self._task is None:
            return
        if not self._task.done():
            await self._frames.put(None)
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            while (item := await self._frames.get()) is not None:
                await self._write(*item)
            await self._complete()
        except LetsTalkError as error:
            log.error("a session is not recorded any more (%s)", type(error).__name__)
            while not self._frames.empty():  # nobody may wait for room
                self._frames.get_nowait()
            self._recording = None
            self.has_failed = True
            self._on_failure()

    async def _write(self, entry: AvatarEntry, frame: AVFrame) -> None:
        if self._store.is_deleted(entry.id):
            await self._complete()
            return
        if self._recording is None or entry is not self._entry:
            self._skip = 0 if self._entry is None else _STALE_FRAMES
            await self._complete()
            self._entry = entry
            self._recording = await asyncio.to_thread(
                self._store.create, entry, badge=self._badge, sample_rate=self._sample_rate
            )
        if self._skip:
            self._skip -= 1
        else:
            self._recording.show(frame)

    async def _complete(self) -> None:
        recording, self._recording = self._recording, None
        if recording is None:
            return
        assert self._entry is not None
        try:
            await asyncio.to_thread(recording.close)
        finally:
            if self._store.is_deleted(self._entry.id):
                await asyncio.to_thread(self._store.delete, self._entry.id)


def _owner_mark(avatar: str, subject: str) -> str:
    """Return what is noted of the owner of an upload: not the subject itself, which is a name."""
    return hashlib.sha256(f"{avatar} {subject}".encode()).hexdigest()
