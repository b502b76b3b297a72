"""The training data of the mouth painter: crops of open mouths from clips and stills.

Frames of a clip stay in order, so that the next frame and other frames of the same person can be
found. Stills are sharper than video, and are stored at twice its size.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from letstalk_rt.errors import InputError
from letstalk_rt.models.audio_encoder.mouth_sound import MOUTH_SOUND, mouth_sound
from letstalk_rt.models.geometry.landmarks import SUBSET
from letstalk_rt.models.geometry.mouth_crop import (
    CROP_HEIGHT,
    CROP_WIDTH,
    FINE,
    CropTransform,
    align_mouths,
    aligned_centre,
    lip_gap_px,
)
from letstalk_rt.models.motion.speech_encoder import SpeechEncoder
from letstalk_rt.training.data.audio_features import mean_voiced_mel
from letstalk_rt.training.data.dataset import (
    MAX_SHIFT,
    Landmarker,
    decode_audio,
    decode_frames,
    lips_late,
    read_index,
    source_of,
)
from letstalk_rt.training.distributed import main_process_first
from letstalk_rt.types import SAMPLES_PER_FRAME

MARGIN_PX = 24
"""Margin around a stored crop, for augmentation without padding."""

STORED_SIZE = (CROP_HEIGHT + 2 * MARGIN_PX, CROP_WIDTH + 2 * MARGIN_PX)
MIN_GAP_PX = 1.5
KINDS = ("openmouth", "portrait", "real", "generated")
STILL_KINDS = KINDS[:2]


@dataclass(frozen=True)
class MouthCrops:
    """S open mouths; those of stills come first.

    Attributes:
        stills: the crops of stills, `(R, 256, 320, 3)` uint8.
        frames: the crops of video frames, `(S - R, 128, 160, 3)` uint8.
        points: landmarks `(S, L, 2)` float32 in pixels of the crops of video frames.
        person: index of the clip or still, `(S,)`; crops of one clip are contiguous.
        time: index of the frame in its clip, `(S,)`.
        kind: index in `KINDS`, `(S,)`.
        source: index of the recording from which the clip was cut, `(S,)`; usually one person.
        weight: sampling weight by sharpness and kind of the recording, `(S,)`.
        sound: the audio around each frame, `(S, 60)` float16, see `mouth_sound`; zeros for stills.
    """

    stills: np.ndarray
    frames: np.ndarray
    points: np.ndarray
    person: np.ndarray
    time: np.ndarray
    kind: np.ndarray
    source: np.ndarray
    weight: np.ndarray
    sound: np.ndarray

    def is_still(self, rows: np.ndarray) -> np.ndarray:
        """Return whether rows are stills."""
        found: np.ndarray = rows < len(self.stills)
        return found

    def __len__(self) -> int:
        return len(self.points)


@dataclass
class _Found:
    """Open mouths of one clip or still."""

    crops: np.ndarray
    points: np.ndarray
    times: np.ndarray
    kind: str
    source: str
    weight: float
    sound: np.ndarray


@main_process_first
def load_mouth_crops(
    root: Path, cache: Path, split: str, landmarker: Path | None = None
) -> MouthCrops:
    """Load the open mouths of a split, tag `ship` only; they are cropped on first use.

    Raises:
        InputError: there are no stills, which alone are sharp enough for the details of teeth.
    """
    stored, large = cache / f"open-mouths-{split}.npz", cache / f"open-mouths-{split}.npy"
    if not stored.exists():
        cache.mkdir(parents=True, exist_ok=True)
        _store(list(_find(root, split, landmarker)), stored, large)
    kept = dict(np.load(stored))
    return MouthCrops(kept.pop("stills"), np.load(large, mmap_mode="r"), *kept.values())


def _store(found: list[_Found], stored: Path, large: Path) -> None:
    stills = [f for f in found if f.kind in STILL_KINDS]
    filmed = [f for f in found if f.kind not in STILL_KINDS]
    if not stills or not filmed:
        raise InputError(
            f"the mouth painter is trained on stills and clips with open mouths; found "
            f"{len(stills)} stills and {len(filmed)} clips tagged `ship`"
        )
    found = stills + filmed
    np.save(large, np.concatenate([f.crops for f in filmed]))
    counts = [len(f.crops) for f in found]
    sources = {name: i for i, name in enumerate(dict.fromkeys(f.source for f in found))}
    np.savez(
        stored,
        stills=np.concatenate([f.crops for f in stills]),
        points=np.concatenate([f.points for f in found]),
        person=np.repeat(np.arange(len(found)), counts),
        time=np.concatenate([f.times for f in found]),
        kind=np.repeat([KINDS.index(f.kind) for f in found], counts),
        source=np.repeat([sources[f.source] for f in found], counts),
        weight=np.repeat([f.weight for f in found], counts).astype(np.float32),
        sound=np.concatenate([f.sound for f in found]).astype(np.float16),
    )


def _find(root: Path, split: str, landmarker: Path | None) -> Iterator[_Found]:
    def rows(name: str) -> list[dict[str, object]]:
        index = read_index(root, name) if (root / name).exists() else []
        return [r for r in index if r["split"] == split and r["tag"] == "ship"]

    yield from _open_stills(root, rows("openmouth.jsonl"))
    yield from _portraits(root, rows("portraits.jsonl"), landmarker)
    encoder = SpeechEncoder(outputs=1)  # only its normalised log-mel is used
    encoder.usual.copy_(mean_voiced_mel(_speech(root, rows("clips.jsonl")), encoder))
    for row in tqdm(rows("clips.jsonl"), desc=f"mouths ({split})"):
        if (found := _clip(root, row, encoder)) is not None:
            yield found


def _speech(root: Path, rows: list[dict[str, object]]) -> Iterator[np.ndarray]:
    for row in rows:
        if (audio := root / "clips" / f"{row['name']}.flac").exists():
            pcm = decode_audio(audio)
            yield pcm[: len(pcm) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME]


def _clip(root: Path, row: dict[str, object], encoder: SpeechEncoder) -> _Found | None:
    name = str(row["name"])
    tracks = np.load(root / "clips" / f"{name}.npz")
    frames = decode_frames(root / "clips" / f"{name}.mp4")
    count = min(len(frames), len(tracks["landmarks"]))
    meshes = tracks["landmarks"][:count].astype(np.float32)
    points = torch.from_numpy(meshes[:, SUBSET])
    centre = aligned_centre(points).median(0, keepdim=True).values
    transform = align_mouths(points, centre).shifted(torch.full((1, 2), float(MARGIN_PX)))
    placed = transform(points)
    kept = np.flatnonzero((lip_gap_px(placed) > MIN_GAP_PX).numpy() & tracks["ok"][:count])
    if not len(kept):
        return None
    crops = np.stack([cut_mouth(frames[i], transform, int(i)) for i in kept])
    enlarged = float(str(row.get("upscale") or 1.0))
    weight = (1.0 if row["kind"] == "real" else 0.4) * min(1.0, 1.0 / enlarged) ** 2
    source = source_of(row)
    sound = _sound(root / "clips" / f"{name}.flac", count, lips_late(row), encoder)[kept]
    return _Found(crops, placed[kept].numpy(), kept, str(row["kind"]), source, weight, sound)


def _sound(audio: Path, count: int, late: int, encoder: SpeechEncoder) -> np.ndarray:
    """Return the sound around each frame of a clip, `(T, S)`, with audio and lips synchronised."""
    if not audio.exists():
        return np.zeros((count, MOUTH_SOUND), np.float32)
    ahead = encoder.lookahead_frames
    pcm = np.zeros((count + ahead) * SAMPLES_PER_FRAME, np.float32)
    decoded = decode_audio(audio)[: count * SAMPLES_PER_FRAME]
    pcm[: len(decoded)] = decoded
    with torch.no_grad():
        features = encoder.normalize(encoder.mel(torch.from_numpy(pcm)[None]))
        around = mouth_sound(features, features[:, :1].expand(-1, ahead + 1, -1))[0, ahead:]
    shift = late if abs(late) <= MAX_SHIFT else 0
    return around[(torch.arange(count) - shift).clamp(0, count - 1)].numpy()


def _portraits(
    root: Path, rows: list[dict[str, object]], landmarker: Path | None
) -> Iterator[_Found]:
    find = Landmarker(landmarker) if rows else None
    for row in tqdm(rows, desc="portraits"):
        assert find is not None
        image = np.asarray(Image.open(root / "portraits" / str(row["file"])).convert("RGB"))
        mesh = find(image)
        if mesh is not None and (found := _still(image, mesh, "portrait", str(row["file"]))):
            yield found


def _open_stills(root: Path, rows: list[dict[str, object]]) -> Iterator[_Found]:
    if not rows:
        return
    meshes = np.load(root / "openmouth_landmarks.npz")
    for row in rows:
        file = Path(str(row["file"]))
        image = np.asarray(Image.open(root / "openmouth" / file.name).convert("RGB"))
        found = _still(image, meshes[file.stem], "openmouth", file.stem.rsplit("-", 1)[0])
        if found:
            yield found


def _still(image: np.ndarray, mesh: np.ndarray, kind: str, source: str) -> _Found | None:
    points = torch.from_numpy(mesh[None, SUBSET, :2].astype(np.float32))
    transform = align_mouths(points, aligned_centre(points))
    transform = transform.shifted(torch.full((1, 2), float(MARGIN_PX)))
    placed = transform(points)
    if float(lip_gap_px(placed)) < 2 * MIN_GAP_PX:
        return None
    crop = cut_mouth(image, transform.scaled(FINE), 0, FINE)[None]
    sound = np.zeros((1, MOUTH_SOUND), np.float32)
    return _Found(crop, placed.numpy(), np.zeros(1, np.int64), kind, source, 1.0, sound)


def cut_mouth(
    image: np.ndarray, transform: CropTransform, index: int, resolution: int = 1
) -> np.ndarray:
    """Crop one mouth, with its margin; larger images are averaged first, to avoid aliasing."""
    (cos, sin), shift = transform.rotation[index].tolist(), transform.shift[index].numpy()
    matrix = np.array([[cos, -sin, 0], [sin, cos, 0]])
    factor = int(1 / np.hypot(cos, sin))
    if factor > 1:
        height, width = (side // factor * factor for side in image.shape[:2])
        small = (width // factor, height // factor)
        image = cv2.resize(image[:height, :width], small, interpolation=cv2.INTER_AREA)
        matrix *= factor
    # OpenCV counts from the centre of the first pixel, a transform from its corner.
    matrix[:, 2] = shift + matrix[:, :2] @ [0.5, 0.5] - 0.5
    high, wide = (side * resolution for side in STORED_SIZE)
    cropped: np.ndarray = cv2.warpAffine(
        image, matrix, (wide, high), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
    )
    return cropped
