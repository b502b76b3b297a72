"""The watermark of generated video: a visible badge in frames, and a statement for metadata.

It is on by default in all sinks; switching it off is an explicit option.
"""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from letstalk_rt.version import __version__

BADGE_TEXT = "AI avatar"

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""The digital source type of the International Press Telecommunications Council (IPTC)."""

STATEMENT = (
    "AI avatar: these images of a person were generated from one portrait and a voice; nobody "
    f"was filmed. Digital source type: {SOURCE_TYPE}. Made by letstalk_rt {__version__}."
)

DUBBED_SOURCE_TYPE = (
    "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
)
"""That of a film of which parts were generated."""

DUBBED_STATEMENT = (
    "Dubbed: the mouth of the person in this film was generated from another voice. Digital "
    f"source type: {DUBBED_SOURCE_TYPE}. Made by letstalk_rt {__version__}."
)

_SHARE = 0.045
_MIN_PX, _MAX_PX = 9, 40


def with_badge(rgb: np.ndarray) -> np.ndarray:
    """Return the frame with the badge in its lower left corner; `rgb` is not changed.

    Args:
        rgb: `(H, W, 3)` uint8.

    Returns:
        `(H, W, 3)` uint8, new memory.
    """
    assert rgb.ndim == 3 and rgb.shape[2] == 3 and rgb.dtype == np.uint8, (rgb.shape, rgb.dtype)
    shown = rgb.copy()
    rows, cols, badge_rgb, transparency = _badge_for(rgb.shape[0], rgb.shape[1])
    part = shown[rows, cols]
    part[:] = (part * transparency + badge_rgb).astype(np.uint8)
    return shown


def badge_place(height: int, width: int) -> tuple[slice, slice]:
    """Return the rows and columns that `with_badge` changes in a frame of this size."""
    rows, cols, _, _ = _badge_for(height, width)
    return rows, cols


def statement_metadata() -> dict[str, str]:
    """Return the statement as metadata for the container of a recording."""
    return {"comment": STATEMENT}


@lru_cache(maxsize=16)
def _badge_for(height: int, width: int) -> tuple[slice, slice, np.ndarray, np.ndarray]:
    """Return rows, columns, premultiplied colour and transparency of the badge for a frame size."""
    text_px = min(max(_SHARE * min(height, width), _MIN_PX), _MAX_PX)
    badge = _draw_badge(text_px)
    margin = round(0.6 * text_px)
    bottom, left = max(height - margin, 0), min(margin, width)
    top = max(bottom - badge.height, 0)
    pixels = np.asarray(badge, np.float32)[: bottom - top, : width - left]
    cover = pixels[..., 3:] / 255
    rows, cols = slice(top, top + pixels.shape[0]), slice(left, left + pixels.shape[1])
    return rows, cols, pixels[..., :3] * cover + 0.5, 1 - cover  # 0.5 for rounding


def _draw_badge(text_px: float) -> Image.Image:
    """Draw a dark pill with the text, at twice the size for smooth edges."""
    font = ImageFont.load_default(2 * text_px)
    left, top, right, bottom = font.getbbox(BADGE_TEXT)
    pad_x, pad_y = 1.1 * text_px, 0.6 * text_px
    size = round(right - left + 2 * pad_x), round(bottom - top + 2 * pad_y)
    image = Image.new("RGBA", size, (16, 18, 24, 0))
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle((0, 0, size[0] - 1, size[1] - 1), size[1] / 2, fill=(16, 18, 24, 165))
    text = Image.new("L", size, 0)
    place = pad_x - left, pad_y - top
    ImageDraw.Draw(text).text(place, BADGE_TEXT, fill=235, font=font)
    image.paste((255, 255, 255, 235), (0, 0), text)
    return image.resize((size[0] // 2, size[1] // 2), Image.Resampling.LANCZOS)
