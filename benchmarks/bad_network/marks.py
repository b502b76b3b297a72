"""The marks of `clock_avatar` in a frame: how they are drawn, and read."""

import numpy as np

BLOCK = 32
"""Side of a block, px: it stays legible at the lowest bitrate."""

COLUMNS, ROWS = 4, 3
OLD = 31
"""The age, in frames, that means: so long ago, or never."""

_AGE_BITS, _OFFSET_BITS = 5, 6


def draw(frame: np.ndarray, age: int, offset_ms: int) -> None:
    """Draw the marks into a frame, `(H, W, 3)` uint8."""
    bits = _gray(age, _AGE_BITS) + _gray(offset_ms, _OFFSET_BITS)
    bits.append(sum(bits) % 2)
    grid = np.array(bits, np.uint8).reshape(ROWS, COLUMNS) * 215 + 20
    frame[: ROWS * BLOCK, : COLUMNS * BLOCK] = grid.repeat(BLOCK, 0).repeat(BLOCK, 1)[..., None]


def read(grey: np.ndarray) -> tuple[int, int] | None:
    """Return age and offset of a frame, or None if there is none or it cannot be read.

    Args:
        grey: `(H, W)` uint8, of the size that was drawn.
    """
    middles = grey[BLOCK // 2 : ROWS * BLOCK : BLOCK, BLOCK // 2 : COLUMNS * BLOCK : BLOCK]
    bits = [int(value > 128) for value in middles.reshape(-1)]
    if sum(bits[:-1]) % 2 != bits[-1]:
        return None
    age, offset_ms = _number(bits[:_AGE_BITS]), _number(bits[_AGE_BITS:-1])
    return None if age == OLD else (age, offset_ms)


def _gray(number: int, bits: int) -> list[int]:
    """Return a number in Gray code, of which one step changes one block only."""
    code = number ^ (number >> 1)
    return [code >> place & 1 for place in reversed(range(bits))]


def _number(bits: list[int]) -> int:
    number = 0
    for bit in bits:
        number = number << 1 | (bit ^ (number & 1))
    return number
