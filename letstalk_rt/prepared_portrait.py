"""A prepared portrait, and its form as bytes, so that a face is found once and not at each start.

The format is NumPy's npz without compression and without pickle: a file from elsewhere cannot run
code, nor become larger in memory than it is.
"""

import io
import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from letstalk_rt.errors import ConfigError, PortraitError

LAYOUT = 1
"""Raised when what is stored changes."""

_KIND = "letstalk_rt portrait"


@dataclass(frozen=True, slots=True)
class FaceTrack:
    """Where the face of one frame of a film is, and what the encoder made of it.

    Attributes:
        rotation: of the transform from pixels of the frame to those of the face's upright crop:
            cosine and sine of the angle, times the scale.
        shift: of that transform, in pixels of the crop.
        latent: `(C, h, w)` float32.
        yaw: rotation of the head in [-1, 1]; 0 faces the camera.
        sharpness: of the lower face.
    """

    rotation: tuple[float, float]
    shift: tuple[float, float]
    latent: np.ndarray
    yaw: float
    sharpness: float


@dataclass(frozen=True, slots=True)
class Footage:
    """A short film of a person, which is shown back and forth while its lips speak.

    Attributes:
        frames: the frames as JPEG, 25 per second, all of the size of the canvas.
        faces: the face in each frame; None where there is none.
    """

    frames: tuple[bytes, ...]
    faces: tuple[FaceTrack | None, ...]


@dataclass(frozen=True, slots=True)
class Portrait:
    """An image prepared for animation.

    Attributes:
        canvas: `(H, W, 3)` uint8 RGB: the image that is shown, at output size.
        crop: `(256, 256, 3)` uint8 RGB: the aligned face crop that the model animates.
        box: left, top and side of that crop in canvas pixels; it may reach beyond the canvas.
        warnings: messages for the user, e.g. that the largest of several faces was used.
        footage: a film that moves in place of the canvas, which is one of its frames; None for a
            picture.
    """

    canvas: np.ndarray
    crop: np.ndarray
    box: tuple[float, float, float]
    warnings: tuple[str, ...] = ()
    footage: Footage | None = None

    def to_bytes(self) -> bytes:
        """Return this portrait as bytes for `from_bytes`: less than 2 MB, films aside."""
        return _to_bytes(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Portrait":
        """Return the portrait that `to_bytes` has written. No code is run from the data.

        Raises:
            PortraitError: the data are damaged, of something else, or of another version.
        """
        return _from_bytes(data)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write this portrait into a file, which appears when it is complete.

        Raises:
            ConfigError: the file cannot be written.
        """
        target = Path(path)
        temporary = target.with_name(f"{target.name}.{os.getpid()}.part")
        try:
            temporary.write_bytes(self.to_bytes())
            temporary.replace(target)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise ConfigError(
                f"The portrait cannot be written to {target}: {error.strerror or error}. Check "
                "the folder."
            ) from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Portrait":
        """Return the portrait that `save` has written.

        Raises:
            PortraitError: the file cannot be read, or is no prepared portrait of this version.
        """
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise PortraitError(
                f"Cannot read the portrait {path}: {error.strerror or error}. Check the path."
            ) from error
        return cls.from_bytes(data)


def _to_bytes(portrait: Portrait) -> bytes:
    """Return a prepared portrait as bytes; see `Portrait.to_bytes`."""
    about = {"kind": _KIND, "layout": LAYOUT, "warnings": list(portrait.warnings)}
    arrays = {
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
        "canvas": portrait.canvas,
        "crop": portrait.crop,
        "box": np.array(portrait.box, np.float64),
    }
    if portrait.footage is not None:
        arrays |= _footage_arrays(portrait.footage)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _from_bytes(data: bytes) -> Portrait:
    """Return the portrait of `_to_bytes`; see `Portrait.from_bytes`.

    Raises:
        PortraitError: the data are damaged, of something else, or of another layout.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("it is compressed")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            stored = {name: arrays[name] for name in arrays.files}
        about = json.loads(stored.pop("about").tobytes())
        if about["kind"] != _KIND:
            raise ValueError("it is something else")
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise PortraitError(
            f"This is not a prepared portrait, or it is damaged ({error}). Expected what "
            "Portrait.save or Portrait.to_bytes has written; prepare the image again."
        ) from error
    if about.get("layout") != LAYOUT:
        raise PortraitError(
            f"The prepared portrait has layout {about.get('layout')}, this version reads "
            f"{LAYOUT}. Prepare the image again."
        )
    try:
        return _portrait_of(stored, about)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise PortraitError(
            f"The prepared portrait is damaged: {error}. Prepare the image again."
        ) from error


def _portrait_of(stored: dict[str, np.ndarray], about: dict[str, Any]) -> Portrait:
    canvas, crop, box = stored["canvas"], stored["crop"], stored["box"]
    for name, image in (("canvas", canvas), ("crop", crop)):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(f"its {name} is {image.shape} {image.dtype}, not (H, W, 3) uint8")
    if box.shape != (3,) or not np.isfinite(box).all() or box[2] <= 0:
        raise ValueError(f"its box is {box.tolist()}, not left, top and side")
    left, top, side = box.tolist()
    warnings = tuple(str(text) for text in about["warnings"])
    footage = _footage_of(stored) if "jpegs" in stored else None
    return Portrait(canvas, crop, (left, top, side), warnings, footage)


def _footage_arrays(footage: Footage) -> dict[str, np.ndarray]:
    """Return the arrays of a film; frames without a face have no row in those of the faces."""
    faces = [face for face in footage.faces if face is not None]
    return {
        "jpegs": np.frombuffer(b"".join(footage.frames), np.uint8),
        "jpeg_sizes": np.array([len(jpeg) for jpeg in footage.frames], np.int64),
        "seen": np.array([face is not None for face in footage.faces], np.bool_),
        "rotations": np.array([face.rotation for face in faces], np.float64).reshape(-1, 2),
        "shifts": np.array([face.shift for face in faces], np.float64).reshape(-1, 2),
        "latents": np.stack([face.latent for face in faces]),
        "yaws": np.array([face.yaw for face in faces], np.float64),
        "sharpnesses": np.array([face.sharpness for face in faces], np.float64),
    }


def _footage_of(stored: dict[str, np.ndarray]) -> Footage:
    sizes, seen = stored["jpeg_sizes"], stored["seen"]
    if (sizes < 0).any() or sizes.sum() != stored["jpegs"].size or len(seen) != len(sizes):
        raise ValueError("the frames of its film do not fit together")
    data, ends = stored["jpegs"].tobytes(), np.cumsum(sizes).tolist()
    frames = tuple(data[end - size : end] for end, size in zip(ends, sizes.tolist(), strict=True))
    columns = (stored[name] for name in ("rotations", "shifts", "yaws", "sharpnesses"))
    rows = zip(*(column.tolist() for column in columns), stored["latents"], strict=True)
    faces = [
        FaceTrack(tuple(turn), tuple(shift), latent, yaw, sharpness)
        for turn, shift, yaw, sharpness, latent in rows
    ]
    if len(faces) != int(seen.sum()):
        raise ValueError("the faces of its film do not fit together")
    rest = iter(faces)
    return Footage(frames, tuple(next(rest) if shown else None for shown in seen))
