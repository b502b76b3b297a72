"""Films of an avatar that speaks, made by the package itself, and films without a face."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

from letstalk_rt.avatars import list_avatars
from letstalk_rt.dubbing.dubber import Dubber
from letstalk_rt.dubbing.lip_track import LipValues
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.models.avatar_model import with_part
from letstalk_rt.models.landmark_condition import LandmarkBranch
from letstalk_rt.models.parts import LANDMARK_CONDITION
from letstalk_rt.portrait.image import prepare_portrait
from letstalk_rt.session.avatar import Avatar

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


class Chewing:
    """Lips that open and close so often a second."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s

    def at(self, time_s: float) -> torch.Tensor:
        """Return the lip values, all in proportion to the gap."""
        gap = 0.15 * (1 - np.cos(2 * np.pi * self._per_s * time_s))
        return gap * torch.tensor([1.0, 0.8, 0.0, 0.0, -0.1, -0.1, 0.5, 0.5])

    def tokens_at(self, times_s: Sequence[float]) -> None:
        """Return None: nothing is heard."""


def dubbed(
    pipeline: AvatarPipeline, frames: list[np.ndarray], lips: LipValues
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the frames with other lips, and which pixels may have changed."""
    timed = ((i, rgb, (i + 0.5) / FPS) for i, rgb in enumerate(frames))
    shown, masks = [], []
    for index, patch in Dubber(pipeline.model, pipeline.finder).dub(timed, lips):
        rgb, mask = frames[index].copy(), np.zeros(frames[index].shape[:2], bool)
        if patch is not None:
            rgb[patch.rows, patch.columns] = patch.rgb
            mask[patch.rows, patch.columns] = patch.mask > 0
        shown.append(rgb)
        masks.append(mask)
    return shown, masks


def told_pipeline(pipeline: AvatarPipeline) -> AvatarPipeline:
    """Return a pipeline whose denoiser has some landmark condition."""
    shape = pipeline.model.denoiser.config
    torch.manual_seed(0)
    branch = LandmarkBranch(shape.width, shape.side)
    with torch.no_grad():
        branch.tokens.weight.normal_(std=0.02)
    return AvatarPipeline.on(with_part(pipeline.model, LANDMARK_CONDITION, branch), dtype="float32")


def talking_frames(pipeline: AvatarPipeline, seconds: float) -> list[np.ndarray]:
    """Return frames of an avatar whose lips open and close twice a second."""
    portrait = prepare_portrait(list_avatars()["mira"], pipeline.finder, size=256)
    with Avatar.from_pipeline(pipeline, portrait) as avatar:
        frames = [frame.rgb for frame in avatar.render(syllables(seconds))]
    return dubbed(pipeline, frames, Chewing(2.0))[0]


def talking_film(pipeline: AvatarPipeline, path: Path, seconds: float) -> Path:
    """Write these frames to a file, without sound."""
    return write_film(path, talking_frames(pipeline, seconds))
