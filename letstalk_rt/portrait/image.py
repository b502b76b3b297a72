"""Reading images and preparing portraits from them; faces are found by a `Finder`."""

import io
import struct
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from letstalk_rt.errors import (
    ConfigError,
    ImageDamagedError,
    NoFaceError,
    NotAnImageError,
    PortraitError,
    TooManyPixelsError,
)
from letstalk_rt.extras import pip_install
from letstalk_rt.portrait.edge_fill import fill_edges
from letstalk_rt.types import Face, Portrait

CROP_PX = 256
"""Side of the aligned face crop that the model animates."""

MIN_SIZE_PX, MAX_SIZE_PX = 256, 1080
"""Bounds of the longer side of the output."""

MAX_SOURCE_PX = 8192
"""Images with a longer side are refused, as mistakes or decompression bombs."""

MAX_KEPT_PX = 4096
"""Larger images are scaled down to this on reading."""

MIN_SOURCE_PX = 64
MIN_FACE_PX = 48
SOFT_FACE_PX = 110
MAX_YAW = 0.75

FACE_HEIGHT_IN_BOX = 0.57
FACE_CENTRE_IN_BOX = 0.56
"""Height of the landmarks, and the position of their centre below the top, as shares of the box."""

_REACH = 1.5
"""How far from a face's centre a point may be that chooses it; 1 is the border of its landmarks."""

MAX_ASPECT = 16 / 9
UPLOAD_FORMATS = ("JPEG", "PNG", "WEBP")
"""What is read of strangers, beside HEIC if `pillow-heif` is installed."""

FORMATS = (*UPLOAD_FORMATS, "AVIF", "BMP", "GIF", "TIFF")
# Pillow's own errors are OSErrors; its decoders raise the others on damaged files.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)

FaceShares: TypeAlias = tuple[float, float, float, float]
"""Left, top, width and height of a face's landmarks, as shares of the sides of its image."""

PortraitSource: TypeAlias = str | Path | bytes | np.ndarray | Image.Image


class Finder(Protocol):
    """Finds faces in images; implemented by `letstalk_rt.models.face.detector.FaceFinder`."""

    @property
    def crop_px(self) -> int:
        """Side in pixels of the crops that the model animates."""
        ...

    def fingerprint(self) -> str:
        """Return a string that differs between finders with different weights."""
        ...

    def find_faces(self, rgb: np.ndarray) -> list[Face]:
        """Return the faces in `(H, W, 3)` uint8, largest first."""
        ...


def read_image(
    source: PortraitSource,
    *,
    max_pixels: int | None = None,
    formats: tuple[str, ...] = FORMATS,
) -> np.ndarray:
    """Read an image, upright, in sRGB and without transparency.

    Files may be JPEG, PNG, WebP, AVIF, BMP, GIF (first image) or TIFF, and HEIC if `pillow-heif` is
    installed. The EXIF orientation is applied, transparent areas become white, and a longer side
    above 4096 px is scaled down to that.

    Args:
        source: a path, the bytes of a file, a PIL image, or an array: `(H, W)` or `(H, W, C)` with
            1, 3 or 4 channels, uint8, uint16, or float in [0, 1].
        max_pixels: the largest width times height; checked before a file is decoded.
        formats: Pillow's names of the formats that are read, beside HEIC.

    Returns:
        `(H, W, 3)` uint8 RGB.

    Raises:
        NotAnImageError: the source is empty or not in a supported format.
        ImageDamagedError: the image is damaged or incomplete.
        TooManyPixelsError: the image has more than `max_pixels`.
        PortraitError: the source cannot be opened, or the image is too large or too small.
    """
    image = _from_array(source) if isinstance(source, np.ndarray) else _open(source, formats)
    width, height = image.size
    if max_pixels is not None and width * height > max_pixels:
        raise TooManyPixelsError(
            f"The image has {width}x{height} pixels; at most {max_pixels / 1e6:.0f} million are "
            "allowed. Scale it down."
        )
    if max(width, height) > MAX_SOURCE_PX:
        raise _too_large(f"The image has {width}x{height} pixels")
    if min(width, height) < MIN_SOURCE_PX:
        raise PortraitError(
            f"The image has {width}x{height} pixels; at least {MIN_SOURCE_PX} per side are "
            "needed. Use a larger image."
        )
    try:
        return _decode(image)
    except PortraitError:
        raise
    except _DECODE_ERRORS as error:
        raise ImageDamagedError(
            f"The image is damaged or incomplete ({error}). Save or download it again."
        ) from error


def face_box(landmarks: np.ndarray) -> tuple[float, float, float]:
    """Return the square box around a face, placed as in the training data.

    Args:
        landmarks: `(L, 2)`, x and y in pixels.

    Returns:
        Centre x, centre y and side of the box in the same pixels.
    """
    assert landmarks.ndim == 2 and landmarks.shape[1] == 2, landmarks.shape
    left, top = landmarks.min(0).tolist()
    right, bottom = landmarks.max(0).tolist()
    side = (bottom - top) / FACE_HEIGHT_IN_BOX
    centre_y = (top + bottom) / 2 - (FACE_CENTRE_IN_BOX - 0.5) * side
    return (left + right) / 2, centre_y, side


def prepare_portrait(
    source: PortraitSource,
    finder: Finder,
    *,
    size: int = 512,
    face_at: tuple[float, float] | None = None,
) -> Portrait:
    """Find a face of an image, by default the largest, and frame it for animation.

    The canvas is the whole image, scaled. If the face would be small (its box below 256 px or half
    of `size`, whichever is less), the image is cropped around the face so that its box has exactly
    that size, with the aspect ratio of the image, but at most 16:9.

    Args:
        source: see `read_image`.
        finder: finds the faces.
        size: longer side of the output in pixels, 256 to 1080; odd numbers are rounded down.
        face_at: a point on the wanted face, as shares of width and height of the upright image;
            None takes the largest.

    Raises:
        ConfigError: `size` or `face_at` is out of range.
        NoFaceError: the image shows no face, or none at `face_at`.
        PortraitError: the image cannot be read, or its face cannot be animated.
    """
    if not MIN_SIZE_PX <= size <= MAX_SIZE_PX:
        raise ConfigError(f"size must be from {MIN_SIZE_PX} to {MAX_SIZE_PX} pixels, got {size}")
    if face_at is not None and not all(0 <= share <= 1 for share in face_at):
        raise ConfigError(f"face_at must be two shares from 0 to 1, got {face_at}")
    rgb = read_image(source)
    face, warnings = _choose_face(finder.find_faces(rgb), rgb.shape[1::-1], face_at)
    box = face_box(face.landmarks)
    framing = _frame(rgb.shape[1], rgb.shape[0], box, size - size % 2)
    left, top, side = framing.box
    crop_px = finder.crop_px
    return Portrait(
        canvas=framing.cut(rgb, 0, 0, framing.width, framing.height),
        crop=framing.cut(rgb, left, top, side, side, (crop_px, crop_px)),
        box=(float(left), float(top), float(side)),
        warnings=tuple(warnings),
    )


def shares_of(faces: Sequence[Face], size: tuple[int, int]) -> tuple[FaceShares, ...]:
    """Return where faces are: left, top, width and height as shares of an image's sides.

    Args:
        faces: faces with landmarks in pixels.
        size: width and height of the image, px.
    """
    found: list[FaceShares] = []
    for face in faces:
        (left, top), (right, bottom) = (edge.clip(0, size) / size for edge in _edges(face))
        found.append((float(left), float(top), float(right - left), float(bottom - top)))
    return tuple(found)


def _edges(face: Face) -> tuple[np.ndarray, np.ndarray]:
    return face.landmarks.min(0), face.landmarks.max(0)


class _Framing(NamedTuple):
    """How source pixels map to canvas pixels: `canvas = source * scale - origin`."""

    scale: float
    origin: tuple[float, float]
    width: int
    height: int
    box: tuple[int, int, int]

    def cut(
        self,
        rgb: np.ndarray,
        left: int,
        top: int,
        width: int,
        height: int,
        size: tuple[int, int] | None = None,
    ) -> np.ndarray:
        """Resample a rectangle given in canvas pixels; beyond the image its edge fades out."""
        x0, y0 = (left + self.origin[0]) / self.scale, (top + self.origin[1]) / self.scale
        box = (x0, y0, x0 + width / self.scale, y0 + height / self.scale)
        size = size or (width, height)
        across, down = size[0] / (box[2] - box[0]), size[1] / (box[3] - box[1])
        high, wide = rgb.shape[:2]
        inside = (-x0 * across, -y0 * down, (wide - x0) * across, (high - y0) * down)
        return fill_edges(_resample(rgb, box, size), inside)


def _frame(width: int, height: int, box: tuple[float, float, float], size: int) -> _Framing:
    centre_x, centre_y, side = box
    scale = size / max(width, height)
    wide, high = float(size), float(size)
    wanted_px = min(CROP_PX, size // 2)
    if side * scale < wanted_px:
        scale = wanted_px / side
        aspect = min(max(width / height, 1 / MAX_ASPECT), MAX_ASPECT)
        wide, high = min(size, size * aspect), min(size, size / aspect)
    canvas_width, canvas_height = _even(min(width * scale, wide)), _even(min(height * scale, high))
    # A little above the centre, to show more of the shoulders and less above the hair.
    x = min(max(centre_x * scale - 0.5 * canvas_width, 0), width * scale - canvas_width)
    y = min(max(centre_y * scale - 0.45 * canvas_height, 0), height * scale - canvas_height)
    left, top = (centre_x - side / 2) * scale - x, (centre_y - side / 2) * scale - y
    whole_px = (round(left), round(top), round(side * scale))
    return _Framing(scale, (x, y), canvas_width, canvas_height, whole_px)


def _even(length: float) -> int:
    return int(length + 1e-6) // 2 * 2


def _resample(
    rgb: np.ndarray, box: tuple[float, float, float, float], size: tuple[int, int]
) -> np.ndarray:
    height, width = rgb.shape[:2]
    margin = 3 + int(3 * (box[2] - box[0]) / size[0])  # the filter reads beyond the box
    x0, y0 = int(np.floor(box[0])) - margin, int(np.floor(box[1])) - margin
    x1, y1 = int(np.ceil(box[2])) + margin, int(np.ceil(box[3])) + margin
    rows = np.arange(y0, y1).clip(0, height - 1)
    cols = np.arange(x0, x1).clip(0, width - 1)
    part = Image.fromarray(np.ascontiguousarray(rgb[rows[:, None], cols]))
    shifted = (box[0] - x0, box[1] - y0, box[2] - x0, box[3] - y0)
    return np.array(part.resize(size, Image.Resampling.LANCZOS, box=shifted))


def _choose_face(
    faces: list[Face], size: tuple[int, int], face_at: tuple[float, float] | None
) -> tuple[Face, list[str]]:
    usable = [face for face in faces if np.isfinite(face.landmarks).all()]
    if not usable:
        raise NoFaceError(
            "No face was found in the image. Use a photograph of one person who looks towards "
            "the camera, well lit and not covered."
        )
    face = usable[0] if face_at is None else _face_at(usable, np.multiply(face_at, size))
    _check_face(face)
    warnings = []
    if len(usable) > 1 and face_at is None:
        warnings.append(f"{len(usable)} faces were found; the largest is used.")
    height_px = float(np.ptp(face.landmarks[:, 1]))
    if height_px < SOFT_FACE_PX:
        warnings.append(
            f"The face is only {height_px:.0f} px high and will look soft; "
            f"{SOFT_FACE_PX} px or more look better."
        )
    return face, warnings


def _face_at(faces: list[Face], point: np.ndarray) -> Face:
    """Return the face at a point in pixels: of several, the one whose centre is nearest."""

    def distance(face: Face) -> float:
        """Distance from the centre; 1 at the border of the face's box."""
        low, high = _edges(face)
        return float(np.abs((point - (low + high) / 2) / ((high - low) / 2)).max())

    nearest = min(faces, key=distance)
    if distance(nearest) > _REACH:
        raise NoFaceError("There is no face at that place. Choose a point between eyes and mouth.")
    return nearest


def _check_face(face: Face) -> None:
    """Raise an error if a face cannot be animated.

    Raises:
        PortraitError: it is too small, or turned away.
    """
    height_px = float(np.ptp(face.landmarks[:, 1]))
    if height_px < MIN_FACE_PX:
        raise PortraitError(
            f"The face is {height_px:.0f} px high; at least {MIN_FACE_PX} px are needed. "
            "Use a larger image or a closer one of the face."
        )
    if abs(face.yaw) > MAX_YAW:
        raise PortraitError(
            f"The face is turned away (yaw {face.yaw:+.2f}; at most {MAX_YAW} either way). "
            "Use an image of a face that looks more towards the camera."
        )


def _open(source: str | Path | bytes | Image.Image, formats: tuple[str, ...]) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if not isinstance(source, str | Path | bytes):
        raise PortraitError(
            f"A portrait cannot be read from {type(source).__name__}; expected a path, bytes, a "
            "numpy array or a PIL image."
        )
    data = source if isinstance(source, bytes) else _read_file(source)
    if not data:
        raise NotAnImageError("The image file is empty. Save or download it again.")
    try:
        return Image.open(io.BytesIO(data), formats=formats + _heif_formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large("The image is far too large") from error
    except UnidentifiedImageError as error:
        raise NotAnImageError(_unsupported_message(data)) from error
    except _DECODE_ERRORS as error:
        raise ImageDamagedError(_unsupported_message(data)) from error


def _too_large(what: str) -> PortraitError:
    return PortraitError(f"{what}; at most {MAX_SOURCE_PX} per side are allowed. Scale it down.")


def _read_file(path: str | Path) -> bytes:
    if str(path).startswith(("http://", "https://")):
        raise PortraitError("Portraits are not fetched from URLs; download the image first.")
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PortraitError(
            f"Cannot read the portrait {path}: {reason}. Check the path."
        ) from error


def _unsupported_message(data: bytes) -> str:
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"heim"):
        return f"HEIC images need pillow-heif ({pip_install('heic')}); or save the image as JPEG."
    return "This is not an image in a supported format; expected JPEG, PNG or WebP."


def load_plugins() -> None:
    """Load all that reads images now, so that no file of this package is opened later."""
    Image.init()
    _heif_formats()


@cache
def _heif_formats() -> tuple[str, ...]:
    try:
        import pillow_heif
    except ImportError:
        return ()
    pillow_heif.register_heif_opener()
    return ("HEIF",)


def _decode(image: Image.Image) -> np.ndarray:
    image.load()
    if max(image.size) > MAX_KEPT_PX:
        image = image.copy()
        image.thumbnail((MAX_KEPT_PX, MAX_KEPT_PX))
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = _from_array(np.asarray(image).astype(np.float64) / _white_level(image))
    profile = image.info.get("icc_profile")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    if profile and image.mode in ("RGB", "CMYK"):
        image = _to_srgb(image, profile)
    return np.array(image.convert("RGB"))


def _white_level(image: Image.Image) -> float:
    highest = float(np.max(np.asarray(image)))
    return next((level for level in (1.0, 255.0) if highest <= level), 65535.0)


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    try:
        source_profile = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        srgb_profile = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, source_profile, srgb_profile, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return image  # a broken profile: treat the image as sRGB, as most viewers do
    return image if converted is None else converted


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[-1] in (3, 4)):
        raise PortraitError(
            f"The array has shape {array.shape}; expected (H, W), (H, W, 3) or (H, W, 4)."
        )
    if 0 in array.shape:
        raise PortraitError(f"The array is empty: shape {array.shape}.")
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise PortraitError("The float array holds NaN or values outside [0, 1]; rescale it.")
        array = (array * 255).round().astype(np.uint8)
    elif array.dtype != np.uint8:
        raise PortraitError(
            f"The array has dtype {array.dtype}; expected uint8, uint16 or float in [0, 1]."
        )
    return Image.fromarray(np.ascontiguousarray(array))
