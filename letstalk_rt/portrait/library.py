"""A folder of avatars by name, and a cache of portraits that are ready to be animated.

Finding and framing the face of a large photograph takes a second; a prepared portrait is read in
some milliseconds. The cache may be deleted at any time; the oldest go when it is full.
"""

import hashlib
import io
import os
import re
import shutil
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from letstalk_rt import __version__
from letstalk_rt.avatars import list_avatars
from letstalk_rt.errors import ConfigError, PortraitError
from letstalk_rt.types import Portrait

if TYPE_CHECKING:
    from letstalk_rt.portrait.image import Finder

DEFAULT_CACHE_BYTES = 256 * 2**20
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".heic", ".heif", ".avif", ".bmp", ".tif", ".tiff")
CONSENT = (
    "Animate only people who agreed to it, and say that the video is generated. By adding a "
    "picture you state that its person consented."
)
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_LAYOUT = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One avatar of the library.

    Attributes:
        name: what commands call it.
        path: its picture file.
        builtin: it came with the package.
    """

    name: str
    path: Path
    builtin: bool


class AvatarLibrary:
    """Avatars by name: those that ship, and those a user adds.

    Args:
        folder: where the added ones are; None is the user's own, see `default_folder`.
        max_cache_bytes: size that the cache of prepared portraits is held to.

    Raises:
        ConfigError: `max_cache_bytes` is negative.
    """

    def __init__(
        self, folder: Path | None = None, *, max_cache_bytes: int = DEFAULT_CACHE_BYTES
    ) -> None:
        if max_cache_bytes < 0:
            raise ConfigError(f"The cache's size is {max_cache_bytes}; expected 0 or more bytes.")
        self.folder = folder or default_folder()
        self._max_cache_bytes = max_cache_bytes

    def entries(self) -> list[Entry]:
        """Give all avatars by name; an added one hides a built-in one of its name."""
        known = {name: Entry(name, path, True) for name, path in list_avatars().items()}
        for path in sorted(self._pictures.glob("*")):
            if path.suffix.lower() in ENDINGS:
                known[path.stem] = Entry(path.stem, path, False)
        return [known[name] for name in sorted(known)]

    def find(self, name_or_path: str | os.PathLike[str]) -> Path:
        """Give the picture that a name or a path means; a file goes before a name.

        Raises:
            PortraitError: neither a file nor an avatar of that name.
        """
        path = Path(name_or_path)
        by_name = {entry.name: entry.path for entry in self.entries()}
        if path.exists() or str(name_or_path) not in by_name:
            if path.exists() or path.suffix or path.parent != Path():
                return path  # whoever reads it says what is wrong with it
            raise PortraitError(
                f"There is no picture and no avatar named {str(name_or_path)!r}. Avatars: "
                f"{', '.join(by_name)}."
            )
        return by_name[str(name_or_path)]

    def add(self, name: str, picture: Path, *, replace: bool = False) -> Entry:
        """Copy a picture into the library. Prepare it first, to know that it can be used.

        Raises:
            ConfigError: the name cannot be used or is taken, or the folder cannot be written.
        """
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"The name {name!r} cannot be used; expected up to 64 of a-z, 0-9, - and _, "
                "beginning with a letter or digit."
            )
        older = [entry for entry in self.entries() if entry.name == name and not entry.builtin]
        if older and not replace:
            raise ConfigError(f"There is an avatar {name!r} already; remove it, or use --replace.")
        ending = picture.suffix.lower()
        try:
            self._pictures.mkdir(parents=True, exist_ok=True)
            target = self._pictures / f"{name}{ending if ending in ENDINGS else '.jpg'}"
            part = target.with_name(target.name + ".part")
            shutil.copyfile(picture, part)
            for entry in older:
                entry.path.unlink(missing_ok=True)
            part.replace(target)
        except OSError as error:
            raise ConfigError(
                f"Cannot write into {self._pictures}: {error.strerror}. Set LETSTALK_HOME to a "
                "folder that can be written."
            ) from error
        return Entry(name, target, False)

    def remove(self, name: str) -> None:
        """Delete an added avatar.

        Raises:
            ConfigError: there is none of that name, or it came with the package.
        """
        entry = next((entry for entry in self.entries() if entry.name == name), None)
        if entry is None or entry.builtin:
            why = "came with the package and stays" if entry else "is not in the library"
            raise ConfigError(f"The avatar {name!r} {why}.")
        entry.path.unlink(missing_ok=True)

    def prepare(self, picture: Path, finder: "Finder", *, size: int = 512) -> Portrait:
        """Give the portrait of a picture, from the cache where it is there.

        Raises:
            ConfigError: `size` is out of range.
            PortraitError: the picture cannot be read or used.
        """
        from letstalk_rt.portrait.image import prepare_portrait

        try:
            data = picture.read_bytes()
        except OSError:
            return prepare_portrait(picture, finder, size=size)  # says what is wrong
        key = f"{_LAYOUT} {__version__} {size} {finder.fingerprint()} ".encode()
        cached = self._cache / f"{hashlib.sha256(key + data).hexdigest()[:32]}.npz"
        portrait = _read(cached)
        if portrait is None:
            portrait = prepare_portrait(data, finder, size=size)
            self._keep(cached, portrait)
        return portrait

    def cache_bytes(self) -> int:
        """Say how large the cache is."""
        return sum(path.stat().st_size for path in self._cache.glob("*.npz"))

    def clear_cache(self) -> None:
        """Delete all prepared portraits."""
        for path in self._cache.glob("*.npz"):
            path.unlink(missing_ok=True)

    @property
    def _pictures(self) -> Path:
        return self.folder / "avatars"

    @property
    def _cache(self) -> Path:
        return self.folder / "prepared"

    def _keep(self, path: Path, portrait: Portrait) -> None:
        """Write into the cache; a folder that cannot be written is no error."""
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{path.name}.{os.getpid()}.part")
            part.write_bytes(_packed(portrait))
            part.replace(path)
            self._trim()
        except OSError:
            return

    def _trim(self) -> None:
        used = sorted(self._cache.glob("*.npz"), key=lambda path: path.stat().st_mtime)
        total = sum(path.stat().st_size for path in used)
        for path in used:
            if total <= self._max_cache_bytes:
                return
            total -= path.stat().st_size
            path.unlink(missing_ok=True)


def default_folder() -> Path:
    """Give the user's folder: `LETSTALK_HOME`, or where this system keeps programs' data."""
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


def _packed(portrait: Portrait) -> bytes:
    buffer = io.BytesIO()
    np.savez(
        buffer,
        canvas=portrait.canvas,
        crop=portrait.crop,
        box=np.array(portrait.box),
        warnings=np.array(portrait.warnings, dtype=str),
    )
    return buffer.getvalue()


def _read(path: Path) -> Portrait | None:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as kept:
            box = tuple(float(value) for value in kept["box"])
            warnings = tuple(str(text) for text in kept["warnings"])
            portrait = Portrait(kept["canvas"], kept["crop"], box, warnings)  # type: ignore[arg-type]
        os.utime(path)  # it was of use: it goes last
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return portrait
