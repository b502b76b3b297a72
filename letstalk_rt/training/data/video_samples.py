"""Sample videos of a training run, to check by eye what the figures say."""

from pathlib import Path

import av
import numpy as np
from torch import Tensor

from letstalk_rt.types import FPS, SAMPLE_RATE


def to_pixels(frames: Tensor) -> np.ndarray:
    """Convert `(T, 3, H, W)` in [-1, 1] to `(T, H, W, 3)` uint8."""
    pixels = ((frames.float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def write_video(path: Path, frames: np.ndarray, pcm: np.ndarray | None = None) -> None:
    """Write an MP4 of `(T, H, W, 3)` uint8 frames at 25 fps, with 16 kHz audio if given."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", FPS, options={"crf": "18", "preset": "veryfast"})
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac", SAMPLE_RATE) if pcm is not None else None
        for rgb in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if audio is not None and pcm is not None:
            block = av.AudioFrame.from_ndarray(pcm[None], format="flt", layout="mono")
            block.sample_rate = SAMPLE_RATE
            container.mux(audio.encode(block))
            container.mux(audio.encode())
