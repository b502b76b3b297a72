"""A small data folder of the documented form (docs/training.md), drawn and not recorded."""

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from letstalk_rt.training.data.dataset import STILL_SIZE
from support.small_model import make_speech

CLIPS = [
    {"name": "anna-GRID-1", "split": "train", "tag": "ship", "kind": "real"},
    {"name": "bert-1", "split": "train", "tag": "ship", "kind": "generated"},
    {"name": "mute-1", "split": "train", "tag": "ship", "kind": "real"},
    {"name": "lent-1", "split": "train", "tag": "lab", "kind": "real"},
    {"name": "dora-1", "split": "eval", "tag": "ship", "kind": "real"},
    {"name": "lent-2", "split": "eval", "tag": "lab", "kind": "real"},
]
FRAMES = 24


def write_data_folder(root: Path, size_px: int = 256) -> Path:
    """Write clips with sound and tracks, and their list."""
    (root / "clips").mkdir(parents=True)
    for seed, row in enumerate(CLIPS):
        write_clip(root / "clips", row["name"], seed, size_px)
    (root / "clips" / "mute-1.flac").unlink()
    rows = [row | {"size_px": size_px} for row in CLIPS]
    (root / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def write_stills(cache: Path, count: int = 3) -> None:
    """Write the cache of still portraits, as the landmarker would have made it."""
    cache.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (count, STILL_SIZE, STILL_SIZE, 3), dtype=np.uint8)
    landmarks = np.stack([face_points(1.0)[0] * STILL_SIZE / 256] * count).astype(np.float32)
    np.savez(cache / "stills-train.npz", frames=frames, landmarks=landmarks)


def face_points(opening: float | np.ndarray) -> np.ndarray:
    """Give `(T, 478, 2)` pixels: points on an oval, half of them moved down by `opening` px."""
    opening = np.atleast_1d(np.asarray(opening, np.float64))
    rng = np.random.default_rng(7)
    base = np.stack([rng.uniform(80, 176, 478), rng.uniform(70, 216, 478)], -1)
    points = np.repeat(base[None], len(opening), 0)
    points[:, ::2, 1] += opening[:, None]
    return points


def frame_level(seed: int, index: int) -> int:
    """Give the grey level of a clip's frame: every frame has its own."""
    return 20 + 8 * index + 5 * seed


def write_clip(folder: Path, name: str, seed: int, size_px: int = 256) -> None:
    """Write a video of grey frames with a square, sound, and tracks."""
    with av.open(str(folder / f"{name}.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "12"})
        stream.width = stream.height = size_px
        stream.pix_fmt = "yuv420p"
        for index in range(FRAMES):
            picture = np.full((size_px, size_px, 3), frame_level(seed, index), np.uint8)
            picture[100:140, 90 + index : 150 + index] = 255 - picture[0, 0]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    pcm = make_speech(FRAMES / 25, seed)
    write_flac(folder / f"{name}.flac", pcm)
    opening = 4 + 4 * np.sin(np.arange(FRAMES))
    rng = np.random.default_rng(seed)
    np.savez(
        folder / f"{name}.npz",
        landmarks=(face_points(opening) * size_px / 256).astype(np.float16),
        blendshapes=rng.uniform(0, 1, (FRAMES, 52)).astype(np.float16),
        pose=np.repeat(np.eye(4, dtype=np.float16)[None], FRAMES, 0),
        ok=np.ones(FRAMES, bool),
    )


def write_flac(path: Path, pcm: np.ndarray) -> None:
    """Write 16 kHz mono sound."""
    with av.open(str(path), "w", format="flac") as container:
        stream = container.add_stream("flac", rate=16_000, layout="mono")
        whole = (pcm * 32767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(whole, format="s16", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = 16_000, Fraction(1, 16_000), 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
