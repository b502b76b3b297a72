"""Prepares a short film of a person as a portrait that moves: hands and body, too."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch

from letstalk_rt.dubbing.cuts import CutDetector
from letstalk_rt.dubbing.film import Film
from letstalk_rt.errors import ConfigError, NoFaceError, PortraitError, TooManyPixelsError
from letstalk_rt.inference.face_reader import cut
from letstalk_rt.inference.footage_player import decoded_frame
from letstalk_rt.models.geometry.mouth_crop import CropTransform
from letstalk_rt.portrait.image import CROP_PX, MAX_SIZE_PX, MIN_SIZE_PX, SOFT_FACE_PX
from letstalk_rt.portrait.library import FILM_ENDINGS
from letstalk_rt.types import FPS, FaceTrack, Footage, Portrait

MOST_SECONDS = 12
"""A longer film is used up to here; it goes back and forth anyway."""

MOST_BYTES = 48 * 2**20
"""Memory of the frames of one footage, as JPEG."""

CHUNK_FRAMES = 4
"""Frames whose faces are found in one call, so that other sessions wait only so long."""

_QUALITY = 95
_LEAST_SHARE = 0.5  # of the frames must show a face
_LEAST_FRAMES = 10

TrackFaces = Callable[[np.ndarray, FaceTrack | None], list[FaceTrack | None]]
"""Finds the face in frames `(n, H, W, 3)` uint8, given that of the frame before."""


class FaceTracking(Protocol):
    """A pipeline that follows faces, as `AvatarPipeline` does."""

    def track_faces(self, frames: np.ndarray, last: FaceTrack | None) -> list[FaceTrack | None]:
        """Return the face in each of consecutive frames; see `AvatarPipeline.track_faces`."""
        ...


def is_film(source: object) -> bool:
    """Return whether a source of a portrait is a film: by its ending, or by its first bytes."""
    if isinstance(source, bytes):
        brand = source[8:12] if source[4:8] == b"ftyp" else b""
        picture = brand in (b"heic", b"heix", b"mif1", b"msf1", b"heim", b"avif", b"avis")
        matroska = source[:4] == b"\x1a\x45\xdf\xa3"
        return matroska or source[8:12] == b"AVI " or bool(brand and not picture)
    return isinstance(source, str | Path) and Path(source).suffix.lower() in FILM_ENDINGS


def read_footage(
    source: str | Path | bytes, size: int, *, max_pixels: int | None = None
) -> tuple[list[bytes], list[str]]:
    """Read the frames of the first shot of a film, 25 per second, as JPEG, and warnings.

    Args:
        source: path, or the bytes of a file.
        size: longer side of the frames in pixels, 256 to 1080.
        max_pixels: the largest width times height of the film.

    Raises:
        FilmError: the film cannot be read.
        PortraitError: it has too few frames, or too many pixels.
        ConfigError: `size` is out of range.
    """
    if not MIN_SIZE_PX <= size <= MAX_SIZE_PX:
        raise ConfigError(f"size must be from {MIN_SIZE_PX} to {MAX_SIZE_PX} pixels, got {size}")
    film = Film(source)
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


def prepare_footage(
    source: str | Path | bytes, pipeline: FaceTracking, *, size: int = 512
) -> Portrait:
    """Prepare a film as a portrait. Takes about as long as the film lasts.

    Args:
        source: path, or the bytes of a file.
        pipeline: follows the face.
        size: longer side of the video in pixels, 256 to 1080.

    Raises:
        FilmError: the film cannot be read.
        ConfigError: `size` is out of range, or the model cannot follow faces.
        PortraitError: the film cannot be used.
    """
    frames, warnings = read_footage(source, size)
    faces: list[FaceTrack | None] = []
    for chunk in chunks_of(frames):
        faces += pipeline.track_faces(chunk, faces[-1] if faces else None)
    return portrait_of(frames, faces, warnings)


def chunks_of(frames: list[bytes]) -> Iterator[np.ndarray]:
    """Yield frames in chunks for `track_faces`, `(n, H, W, 3)` uint8."""
    for start in range(0, len(frames), CHUNK_FRAMES):
        yield np.stack([decoded_frame(data) for data in frames[start : start + CHUNK_FRAMES]])


def portrait_of(
    frames: list[bytes], faces: list[FaceTrack | None], warnings: list[str]
) -> Portrait:
    """Make a portrait of frames and their faces.

    Raises:
        NoFaceError: no frame shows a face.
        PortraitError: too few frames do.
    """
    seen = [index for index, face in enumerate(faces) if face is not None]
    if not seen:
        raise NoFaceError(
            "No face was found in the film. Use a film of one person who looks towards the "
            "camera, well lit and not covered."
        )
    if len(seen) < _LEAST_SHARE * len(frames):
        raise PortraitError(
            f"Only {len(seen)} of {len(frames)} frames of the film show a face. Use a film in "
            "which the person looks towards the camera all the time."
        )
    shown = seen[0]
    face = faces[shown]
    assert face is not None
    place = CropTransform(torch.tensor([face.rotation]), torch.tensor([face.shift]))
    centre = place.inverse()(torch.full((1, 1, 2), CROP_PX / 2))[0, 0].tolist()
    side = CROP_PX / float(place.scale)
    left, top = centre[0] - side / 2, centre[1] - side / 2
    upright = CropTransform(
        torch.tensor([[CROP_PX / side, 0.0]]),
        torch.tensor([[-left * CROP_PX / side, -top * CROP_PX / side]]),
    )
    if 0.57 * side < SOFT_FACE_PX:
        warnings = [*warnings, "The face is small and will look soft; a closer film looks better."]
    canvas = decoded_frame(frames[shown])
    return Portrait(
        canvas=canvas,
        crop=cut(canvas, upright, CROP_PX),
        box=(float(left), float(top), float(side)),
        warnings=tuple(warnings),
        footage=Footage(tuple(frames), tuple(faces)),
    )


def _steady(film: Film) -> Iterator[np.ndarray]:
    """Yield the frames that are shown at 25 per second."""
    count, last = 0, None
    for frame in film.frames():
        time_s = float(frame.time * film.facts.time_base)
        while last is not None and count / FPS < time_s - 1e-3:
            yield last
            count += 1
        last = frame.rgb
    if last is not None:
        yield last


def _jpeg(rgb: np.ndarray) -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    done, data = cv2.imencode(".jpg", np.ascontiguousarray(rgb[..., ::-1]), options)
    assert done, rgb.shape
    return data.tobytes()
