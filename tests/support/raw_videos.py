"""Raw videos of talking people, rendered by the embedded model: a test needs no recording."""

from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np

from letstalk_rt.avatars import list_avatars
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.portrait.image import prepare_portrait
from letstalk_rt.training.evaluation.generation import as_portrait, generate_frames
from letstalk_rt.types import MotionOptions
from support.small_model import make_speech

SECONDS = 2.4
WALL = (90, 110, 130)
STILL = MotionOptions(head_motion=False)


@cache
def speech(seed: int = 3) -> np.ndarray:
    """Return the speech of all raw videos, `(n,)` float32 at 16 kHz."""
    whole = make_speech(SECONDS, seed)
    return whole[: len(whole) // 640 * 640]


@cache
def talking_faces() -> list[np.ndarray]:
    """Render two people who say the same, framed as clips are, `(T, 256, 256, 3)` uint8 each.

    Their heads are still, so that what a test finds moved is what it moved.
    """
    pipeline = AvatarPipeline.load("tiny", "cpu", dtype="float32", compiled=False)
    portraits = [
        as_portrait(prepare_portrait(str(list_avatars()[name]), pipeline.finder).crop)
        for name in ("mira", "leon")
    ]
    both = np.stack([speech()] * 2)
    return list(np.stack(list(generate_frames(pipeline, portraits, both, motion=STILL)), 1))


def on_a_wall(faces: np.ndarray, width: int = 480, height: int = 300) -> np.ndarray:
    """Put frames of a face into the middle of a larger picture."""
    count, side = faces.shape[0], faces.shape[1]
    frames = np.empty((count, height, width, 3), np.uint8)
    frames[:] = WALL
    left, top = (width - side) // 2, (height - side) // 2
    frames[:, top : top + side, left : left + side] = faces
    return frames


def write_raw(
    path: Path, frames: np.ndarray, pcm: np.ndarray | None, *, rate: int = 25, late_s: float = 0.0
) -> Path:
    """Write a video at any frame rate with stereo sound at 44.1 kHz that is `late_s` late.

    Args:
        path: The file; its ending chooses the container.
        frames: At 25 per second; the video shows at each time the nearest one.
        pcm: 16 kHz mono, or None for a video without sound.
        rate: Frames per second.
        late_s: How much later the sound begins than the picture.
    """
    codecs = ("libvpx", "libopus") if path.suffix == ".webm" else ("libx264", "aac")
    with av.open(str(path), "w") as container:
        video = container.add_stream(codecs[0], rate)
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        video.bit_rate = 4_000_000
        sound = None
        if pcm is not None:
            sound = container.add_stream(codecs[1], 48_000, layout="stereo")
        for index in range(round(len(frames) * rate / 25)):
            nearest = min(round(index * 25 / rate), len(frames) - 1)
            frame = av.VideoFrame.from_ndarray(frames[nearest], format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, rate)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if sound is not None and pcm is not None:
            heard = np.concatenate([np.zeros(round(late_s * 16_000), np.float32), pcm])
            block = av.AudioFrame.from_ndarray(heard[None], format="flt", layout="mono")
            block.sample_rate, block.pts = 16_000, 0
            block.time_base = Fraction(1, 16_000)
            resampler = av.AudioResampler(
                format=sound.format.name,
                layout="stereo",
                rate=48_000,
                frame_size=sound.frame_size or 960,
            )
            for piece in [*resampler.resample(block), *resampler.resample(None)]:
                container.mux(sound.encode(piece))
            container.mux(sound.encode())
    return path
