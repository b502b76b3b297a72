"""The avatar library: a folder of images by name, and a cache of prepared portraits.

Finding and framing the face of a large photograph takes a second; a prepared portrait is read in
some milliseconds. The cache may be deleted at any time; the least recently used entries are removed
when it is full. Beside the image of an added avatar lies the record of who stated, and when, that
the person agreed; removing the avatar deletes all of its files.
"""

import hashlib
import os
import re
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from letstalk_rt.avatars import list_avatars
from letstalk_rt.errors import ConfigError, PortraitError
from letstalk_rt.portrait.consent import Consent
from letstalk_rt.types import Portrait
from letstalk_rt.version import __version__

if TYPE_CHECKING:
    from letstalk_rt.portrait.image import Finder

DEFAULT_CACHE_BYTES = 256 * 2**20
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".heic", ".heif", ".avif", ".bmp", ".tif", ".tiff")
FILM_ENDINGS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
"""Short films of a person, which may stand where an image does."""

CONSENT = (
    "Animate only people who agreed to it, and say that the video is generated. By adding an "
    "image you state that the person in it consented."
)
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_LAYOUT = 3


@dataclass(frozen=True, slots=True)
class LibraryEntry:
    """One avatar of the library.

    Attributes:
        name: name of the avatar, as used in commands.
        path: its image file.
        builtin: whether it came with the package.
    """

    name: str
    path: Path
    builtin: bool

    @property
    def consent(self) -> Consent | None:
        """The recorded consent; None for built-in avatars, who are people that do not exist.

        Raises:
            PortraitError: the record is damaged.
        """
        return None if self.builtin else Consent.read(_consent_path(self.path))


class AvatarLibrary:
    """Avatars by name: the built-in ones and those that the user has added.

    Args:
        folder: folder of the added avatars; None for `default_folder`.
        max_cache_bytes: maximum size of the cache of prepared portraits.

    Raises:
        ConfigError: `max_cache_bytes` is negative.
    """

    def __init__(
        self, folder: Path | None = None, *, max_cache_bytes: int = DEFAULT_CACHE_BYTES
    ) -> None:
        if max_cache_bytes < 0:
            raise ConfigError(f"max_cache_bytes must be at least 0, got {max_cache_bytes}")
        self.folder = folder or default_folder()
        self._max_cache_bytes = max_cache_bytes

    def entries(self) -> list[LibraryEntry]:
        """Return all avatars, sorted by name; an added one replaces a built-in one of its name."""
        known = {name: LibraryEntry(name, path, True) for name, path in list_avatars().items()}
        for path in sorted(self._images.glob("*")):
            if path.suffix.lower() in ENDINGS + FILM_ENDINGS:
                known[path.stem] = LibraryEntry(path.stem, path, False)
        return [known[name] for name in sorted(known)]

    def find(self, name_or_path: str | os.PathLike[str]) -> Path:
        """Return the image file for a name or a path; an existing file takes precedence.

        Raises:
            PortraitError: there is neither a file nor an avatar of that name.
        """
        path = Path(name_or_path)
        by_name = {entry.name: entry.path for entry in self.entries()}
        if path.exists() or str(name_or_path) not in by_name:
            if path.exists() or path.suffix or path.parent != Path():
                return path  # reading it raises an error that says what is wrong
            raise PortraitError(
                f"There is no image and no avatar named {str(name_or_path)!r}. Avatars: "
                f"{', '.join(by_name)}."
            )
        return by_name[str(name_or_path)]

    def consent_of(self, name_or_path: str | os.PathLike[str]) -> Consent | None:
        """Return the recorded consent for what `find` finds; None if there is no record.

        Raises:
            PortraitError: there is neither a file nor an avatar of that name, or the record is
                damaged.
        """
        path = self.find(name_or_path)
        entry = next((entry for entry in self.entries() if entry.path == path), None)
        return None if entry is None else entry.consent

    def add(
        self, name: str, image: Path, consent: Consent, *, replace: bool = False
    ) -> LibraryEntry:
        """Copy an image into the library; call `prepare` first to check that it is usable.

        Args:
            name: name of the avatar.
            image: its image file.
            consent: who states that the person in it agreed.
            replace: replace an added avatar of that name, and delete its files.

        Raises:
            ConfigError: the name is invalid or taken, or the folder is not writable.
        """
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"The name {name!r} cannot be used; expected up to 64 of a-z, 0-9, - and _, "
                "beginning with a letter or digit."
            )
        older = [entry for entry in self.entries() if entry.name == name and not entry.builtin]
        if older and not replace:
            raise ConfigError(
                f"An avatar named {name!r} exists already; remove it, or use --replace."
            )
        suffix = image.suffix.lower()
        try:
            self._images.mkdir(parents=True, exist_ok=True)
            target = (
                self._images / f"{name}{suffix if suffix in ENDINGS + FILM_ENDINGS else '.jpg'}"
            )
            temporary = target.with_name(target.name + ".part")
            shutil.copyfile(image, temporary)
            for entry in older:
                self._delete(entry.path)
            _consent_path(target).write_text(consent.text(), encoding="utf-8")
            temporary.replace(target)
        except OSError as error:
            raise ConfigError(
                f"Cannot write into {self._images}: {error.strerror}. Set LETSTALK_HOME to a "
                "writable folder."
            ) from error
        return LibraryEntry(name, target, False)

    def remove(self, name: str) -> None:
        """Delete all files of an added avatar: image, record of consent, prepared portraits.

        Raises:
            ConfigError: there is no avatar of that name, or it came with the package.
        """
        entry = next((entry for entry in self.entries() if entry.name == name), None)
        if entry is None or entry.builtin:
            why = (
                "came with the package and cannot be removed" if entry else "is not in the library"
            )
            raise ConfigError(f"The avatar {name!r} {why}.")
        self._delete(entry.path)

    def _delete(self, image: Path) -> None:
        with suppress(FileNotFoundError):
            for path in self._cache.glob(f"{_digest(image.read_bytes())}-*"):
                path.unlink(missing_ok=True)
        for path in self._cache.glob("*.npz"):
            if "-" not in path.name:  # of an earlier version: whose it is cannot be told
                path.unlink(missing_ok=True)
        image.unlink(missing_ok=True)
        _consent_path(image).unlink(missing_ok=True)

    def prepare(self, image: Path, finder: "Finder", *, size: int = 512) -> Portrait:
        """Return the portrait of an image, from the cache if possible.

        Raises:
            ConfigError: `size` is out of range.
            PortraitError: the image cannot be read or used.
        """
        from letstalk_rt.portrait.image import prepare_portrait

        try:
            data = image.read_bytes()
        except OSError:
            return prepare_portrait(
                image, finder, size=size
            )  # raises an error that says what is wrong
        crop_px, finder_key = finder.crop_px, finder.fingerprint()
        key = f"{_LAYOUT} {__version__} {size} {crop_px} {finder_key} ".encode()
        cached = self._cache / f"{_digest(data)}-{_digest(key)}.npz"
        portrait = _load_cached(cached)
        if portrait is None:
            portrait = prepare_portrait(data, finder, size=size)
            self._store(cached, portrait)
        return portrait

    def cache_bytes(self) -> int:
        """Return the size of the cache in bytes."""
        return sum(path.stat().st_size for path in self._cache.glob("*.npz"))

    def clear_cache(self) -> None:
        """Delete all prepared portraits."""
        for path in self._cache.glob("*.npz"):
            path.unlink(missing_ok=True)

    @property
    def _images(self) -> Path:
        return self.folder / "avatars"

    @property
    def _cache(self) -> Path:
        return self.folder / "prepared"

    def _store(self, path: Path, portrait: Portrait) -> None:
        """Write into the cache, if its folder is writable."""
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
            temporary.write_bytes(portrait.to_bytes())
            temporary.replace(path)
            self._trim()
        except OSError:
            return

    def _trim(self) -> None:
        files = sorted(self._cache.glob("*.npz"), key=lambda path: path.stat().st_mtime)
        total = sum(path.stat().st_size for path in files)
        for path in files:
            if total <= self._max_cache_bytes:
                return
            total -= path.stat().st_size
            path.unlink(missing_ok=True)


def default_folder() -> Path:
    """Return the user's folder: `LETSTALK_HOME`, or the data folder of this system."""
    home = os.environ.get("LETSTALK_HOME")
    if home:
        return Path(home).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME", Path.home() / ".local" / "share"))
    return base / "letstalk_rt"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _consent_path(image: Path) -> Path:
    return image.with_suffix(".consent.json")


def _load_cached(path: Path) -> Portrait | None:
    """Return a portrait of the cache; None if there is none that can be read."""
    try:
        portrait = Portrait.load(path)
        os.utime(path)  # mark it as recently used
    except (OSError, PortraitError):
        return None
    return portrait
