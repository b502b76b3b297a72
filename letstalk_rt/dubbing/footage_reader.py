"""Reads the first shot of a short film as JPEGs, 25 per second; loads no model."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from letstalk_rt.dubbing.cuts import CutDetector
from letstalk_rt.dubbing.film import Film
from letstalk_rt.errors import ConfigError, PortraitError, TooManyPixelsError
from letstalk_rt.portrait.image import MAX_SIZE_PX, MIN_SIZE_PX
from letstalk_rt.portrait.library import FILM_ENDINGS
from letstalk_rt.types import FPS

MOST_SECONDS = 12
"""A longer film is used up to here; it goes back and forth anyway."""

MOST_BYTES = 48 * 2**20
"""Memory of the frames of one footage, as JPEG."""

MOST_FRAMES = MOST_SECONDS * 240
"""Frames that are decoded at most; telephones film 240 per second."""

_QUALITY = 95
_LEAST_FRAMES = 10


def is_film(source: object) -> bool:
    """Return whether a source of a portrait is a film: by its ending, or by its first bytes."""
    if isinstance(source, bytes):
        brand = source[8:12] if source[4:8] == b"ftyp" else b""
        picture = brand in (b"heic", b"heix", b"mif1", b"msf1", b"heim", b"avif", b"avis")
        matroska = source[:4] == b"\x1a\x45\xdf\xa3"
        return matroska or source[8:12] == b"AVI " or bool(brand and not picture)
    return isinstance(source, str | Path) and Path(source).suffix.lower() in FILM_ENDINGS


def read_footage(
    source: str | Path | bytes,
    size: int,
    *,
    max_pixels: int | None = None,
    is_upload: bool = False,
) -> tuple[list[bytes], list[str]]:
    """Read the frames of the first shot of a film, 25 per second, as JPEG, and warnings.

    Args:
        source: path, or the bytes of a file.
        size: longer side of the frames in pixels, 256 to 1080.
        max_pixels: the largest width times height of the film.
        is_upload: see `Film`.

    Raises:
        FilmError: the film cannot be read.
        PortraitError: it has too few frames, or too many pixels.
        ConfigError: `size` is out of range.
    """
    if not MIN_SIZE_PX <= size <= MAX_SIZE_PX:
        raise ConfigError(f"size must be from {MIN_SIZE_PX} to {MAX_SIZE_PX} pixels, got {size}")
    film = Film(source, most_frames=MOST_FRAMES, is_upload=is_upload)
    if max_pixels is not None and film.facts.width * film.facts.height > max_pixels:
        raise TooManyPixelsError(
            f"The film has {film.facts.width}x{film.facts.height} pixels; at most "
            f"{max_pixels / 1e6:.0f} million are allowed. Scale it down."
        )
    scale = size / max(film.facts.width, film.facts.height)
    wide, high = (round(v * scale) // 2 * 2 for v in (film.facts.width, film.facts.height))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    frames: list[bytes] = []
    warnings: list[str] = []
    cuts, room = CutDetector(), MOST_BYTES
    for rgb in _steady(film):
        if cuts.is_cut(rgb):
            warnings.append("The film has a cut; only what is before it is used.")
            break
        if len(frames) == MOST_SECONDS * FPS or room < 0:
            used_s = len(frames) / FPS
            warnings.append(f"The film is long; its first {used_s:.0f} seconds are used.")
            break
        frames.append(_jpeg(cv2.resize(rgb, (wide, high), interpolation=method)))
        room -= len(frames[-1])
    if len(frames) < _LEAST_FRAMES:
        raise PortraitError(
            f"The film has only {len(frames)} frames before its end or first cut; at least "
            f"{_LEAST_FRAMES} are needed. Use a longer one, or a picture."
        )
    return frames, warnings


def _steady(film: Film) -> Iterator[np.ndarray]:
    """Yield the frames that are shown at 25 per second; only these are converted."""
    count, last = 0, None
    for frame, time in film.decoded():
        time_s = float(time * film.facts.time_base)
        if last is not None and count / FPS < time_s - 1e-3:
            rgb = film.upright(*last).rgb
            while count / FPS < time_s - 1e-3:
                yield rgb
                count += 1
        last = frame, time
    if last is not None:
        yield film.upright(*last).rgb


def _jpeg(rgb: np.ndarray) -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    done, data = cv2.imencode(".jpg", np.ascontiguousarray(rgb[..., ::-1]), options)
    assert done, rgb.shape
    return data.tobytes()
