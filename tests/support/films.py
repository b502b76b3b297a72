"""Films of an avatar that speaks, made by the package itself, and films without a face."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

FPS = 25


def syllables(seconds: float, rate: int = 16_000, per_s: float = 3.0) -> np.ndarray:
    """Make a buzzing voice that swells and fades, so that lips open and close: `(n,)` float32."""
    t = np.arange(round(seconds * rate)) / rate
    swell = np.clip(np.sin(2 * np.pi * per_s * t), 0, 1) ** 0.5
    tone = sum(np.sin(2 * np.pi * 130 * k * t) / k for k in range(1, 12))
    return (0.12 * swell * tone).astype(np.float32)


def write_film(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    rate: Fraction = Fraction(FPS),
    pixel_format: str = "yuv420p",
    times: Sequence[int] | None = None,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
) -> Path:
    """Write frames `(H, W, 3)` uint8 without sound, nearly lossless; `times` in milliseconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {"crf": "4"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixel_format
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, rgb in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), "rgb24")
            frame = frame.reformat(format=pixel_format)
            frame.pts = index if times is None else times[index]
            frame.time_base = 1 / rate if times is None else Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read_planes(path: Path) -> tuple[list[float], list[np.ndarray], av.video.stream.VideoStream]:
    """Return the times of a film's frames in seconds, their pixels, and the stream."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        found = [(float(f.pts * f.time_base), f.to_ndarray(format="rgb24")) for f in
                 container.decode(stream)]  # fmt: skip
        return [time for time, _ in found], [rgb for _, rgb in found], stream


def scene(count: int, size: tuple[int, int] = (96, 128), seed: int = 0) -> list[np.ndarray]:
    """Make frames of coloured blocks that move."""
    rng = np.random.default_rng(seed)
    wall = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    wall = np.tile(wall, (3, 3, 1))
    return [wall[i : i + size[0], 2 * i : 2 * i + size[1]].copy() for i in range(count)]
