"""Says that a picture is generated: a badge one can see, and words for a file's metadata.

On by default wherever pictures leave for people to see; whoever switches it off says so.
"""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from letstalk_rt import __version__

BADGE_TEXT = "AI avatar"

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""What the International Press Telecommunications Council calls such pictures."""

STATEMENT = (
    "AI avatar: these images of a person were generated from one portrait and a voice; nobody "
    f"was filmed. Digital source type: {SOURCE_TYPE}. Made by letstalk_rt {__version__}."
)

_SHARE = 0.045
_MIN_PX, _MAX_PX = 9, 40


def with_badge(rgb: np.ndarray) -> np.ndarray:
    """Give the picture with the badge in its lower left corner; `rgb` stays as it is.

    Args:
        rgb: `(H, W, 3)` uint8.

    Returns:
        The same shape, new memory.
    """
    assert rgb.ndim == 3 and rgb.shape[2] == 3 and rgb.dtype == np.uint8, (rgb.shape, rgb.dtype)
    shown = rgb.copy()
    rows, cols, ink, paper = _patch(rgb.shape[0], rgb.shape[1])
    part = shown[rows, cols]
    part[:] = (part * paper + ink).astype(np.uint8)
    return shown


def statement_metadata() -> dict[str, str]:
    """Give what a recording says of itself, for its container's metadata."""
    return {"comment": STATEMENT}


@lru_cache(maxsize=16)
def _patch(height: int, width: int) -> tuple[slice, slice, np.ndarray, np.ndarray]:
    """Draw the badge for pictures of one size: where, what to add, and how much to let through."""
    text_px = min(max(_SHARE * min(height, width), _MIN_PX), _MAX_PX)
    badge = _draw(text_px)
    margin = round(0.6 * text_px)
    bottom, left = max(height - margin, 0), min(margin, width)
    top = max(bottom - badge.height, 0)
    pixels = np.asarray(badge, np.float32)[: bottom - top, : width - left]
    cover = pixels[..., 3:] / 255
    rows, cols = slice(top, top + pixels.shape[0]), slice(left, left + pixels.shape[1])
    return rows, cols, pixels[..., :3] * cover + 0.5, 1 - cover  # the half rounds


def _draw(text_px: float) -> Image.Image:
    """Draw a dark pill with the words in it, at twice the size for smooth edges."""
    font = ImageFont.load_default(2 * text_px)
    left, top, right, bottom = font.getbbox(BADGE_TEXT)
    pad_x, pad_y = 1.1 * text_px, 0.6 * text_px
    size = round(right - left + 2 * pad_x), round(bottom - top + 2 * pad_y)
    image = Image.new("RGBA", size, (16, 18, 24, 0))
    pen = ImageDraw.Draw(image)
    pen.rounded_rectangle((0, 0, size[0] - 1, size[1] - 1), size[1] / 2, fill=(16, 18, 24, 165))
    words = Image.new("L", size, 0)
    place = pad_x - left, pad_y - top
    ImageDraw.Draw(words).text(place, BADGE_TEXT, fill=235, font=font)
    image.paste((255, 255, 255, 235), (0, 0), words)
    return image.resize((size[0] // 2, size[1] // 2), Image.Resampling.LANCZOS)
