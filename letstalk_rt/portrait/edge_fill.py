"""Edge fill: pixels beyond the edge of an image, for boxes that extend beyond it.

Repeating the edge pixels would draw a stripe wherever the edge cuts hair or a shoulder. Here the
edge is blurred more with growing distance, and fades into the median of the edge around it, which
is mostly background.
"""

import numpy as np

_FADE_SHARE = 0.06
"""Distance at which details of the edge have faded, as a share of the side of the image."""

_SPREAD = 0.7
"""Standard deviation of the blur, as a multiple of the distance from the edge."""

_AROUND_SHARE = 0.4
"""Length of the running median along the edge, as a share of the side of the image."""

_INSET_PX = 2
"""Outermost pixels that are ignored, because borders and resampling affect them."""


def fill_edges(rgb: np.ndarray, inside: tuple[float, float, float, float]) -> np.ndarray:
    """Return the image with everything outside a rectangle filled from the rectangle's edge.

    Args:
        rgb: `(H, W, 3)` uint8.
        inside: left, top, right and bottom of the rectangle in pixels; it may extend beyond the
            image.

    Returns:
        `(H, W, 3)` uint8; `rgb` itself if nothing is outside.
    """
    height, width = rgb.shape[:2]
    left, top = (max(0, int(np.ceil(v))) for v in inside[:2])
    right, bottom = min(width, int(inside[2])), min(height, int(inside[3]))
    assert left < right and top < bottom, (inside, rgb.shape)
    if (left, top, right, bottom) == (0, 0, width, height):
        return rgb
    filled = rgb.astype(np.float32)
    middle = filled[:, left:right]
    _fill(middle[:bottom][::-1], bottom - top)
    _fill(middle[top:], bottom - top)
    across = filled.transpose(1, 0, 2)
    _fill(across[:right][::-1], right - left)
    _fill(across[left:], right - left)
    return (filled + 0.5).clip(0, 255).astype(np.uint8)


def _fill(lines: np.ndarray, real: int) -> None:
    """Fill the lines from index `real` on, in place, from the last line before it."""
    missing = len(lines) - real
    if missing <= 0:
        return
    inset = min(_INSET_PX, real - 1)
    edge = lines[real - 1 - inset]
    side = lines.shape[1]
    background = _blurred(_median(edge, max(3, int(_AROUND_SHARE * side))), 0.05 * side)
    fade = max(4.0, _FADE_SHARE * side)
    lines[real - inset : real] = edge
    for distance in range(missing):
        rest = max(0.0, 1 - (distance + 1) / fade) ** 2
        spread = _blurred(edge, _SPREAD * (distance + 1)) if rest else edge
        lines[real + distance] = rest * spread + (1 - rest) * background


def _median(line: np.ndarray, length: int) -> np.ndarray:
    """Return the running median of `(n, 3)` over an odd `length`."""
    reach = length // 2
    padded = np.pad(line, ((reach, reach), (0, 0)), mode="reflect" if reach < len(line) else "edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis=0)
    middle: np.ndarray = np.median(windows, axis=-1)
    return middle


def _blurred(line: np.ndarray, sigma: float) -> np.ndarray:
    reach = int(3 * sigma) + 1
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(line, ((reach, reach), (0, 0)), mode="edge")
    return np.stack([np.convolve(channel, kernel, "valid") for channel in padded.T], axis=1)
