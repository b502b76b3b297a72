"""Batches of levelled faces with their turns: several frames of each clip, and stills.

A crop at inference is levelled by landmarks that are not exact, so these are turned, scaled and
shifted; and cameras differ, so light, sharpness and noise vary, within a clip little.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.errors import InputError
from letstalk_rt.models.face.head_pose import head_angles, in_face_sizes
from letstalk_rt.models.face.pose_reader import even, face_places, level_faces
from letstalk_rt.models.geometry.landmarks import SUBSET
from letstalk_rt.training.data.dataset import Clip, Stills, mirror_map

_STORED_PX, _FACE_PX = 160, 35.0  # side of the crops in memory, and the size of a face in them
_MIDDLE = np.array([0.5, 0.44]) * _STORED_PX
_FRAMES, _GENERATED_FRAMES = 80, 32  # that are kept of a clip, if it was filmed or generated
_FILMED_SHARE = 0.65  # of filmed clips in a batch

_OF_FRAME = torch.tensor([0.02, 0.02, 0.02, 0.02])  # deviations of place, log size and roll
_OF_CLIP = torch.tensor([0.02, 0.03, 0.03, 0.02])


@dataclass(frozen=True)
class PoseCrops:
    """A batch: some frames of each of some clips, then stills.

    Attributes:
        images: `(C * Q + S, 1, 80, 80)`, see `level_faces` and `even`.
        turns: yaw and pitch of the frames of clips, `(C, Q, 2)`.
        shapes: landmarks of the levelled face in its sizes, `(C * Q + S, L, 2)`.
    """

    images: Tensor
    turns: Tensor
    shapes: Tensor

    def to(self, device: torch.device) -> "PoseCrops":
        """Return the batch on a device."""
        parts = (self.images, self.turns, self.shapes)
        return PoseCrops(*(part.to(device) for part in parts))


@dataclass(frozen=True)
class _Faces:
    """Levelled faces in memory.

    Attributes:
        images: `(N, 160, 160)` uint8, grey.
        places: where the faces are in them, `(N, 4)`; see `face_places`.
        shapes: `(N, L, 2)`.
        turns: `(N, 2)`; empty for stills.
    """

    images: np.ndarray
    places: np.ndarray
    shapes: np.ndarray
    turns: np.ndarray


class PoseCropSource:
    """Draws batches of crops.

    Args:
        clips: clips, of which those with head poses are used.
        stills: still portraits; or None.

    Raises:
        InputError: no clip has head poses.
    """

    def __init__(self, clips: Sequence[Clip], stills: Stills | None) -> None:
        known = [clip for clip in clips if clip.pose is not None and not clip.is_grid]
        if not known:
            raise InputError(
                "no clip has head poses, which the pose reader needs: see docs/training"
            )
        self._filmed = [_faces_of(clip) for clip in known if clip.kind == "real"]
        self._generated = [_faces_of(clip) for clip in known if clip.kind != "real"]
        self._stills = None
        if stills is not None:
            meshes = stills.landmarks[:, SUBSET]
            self._stills = _stored(zip(stills.frames, meshes, strict=True), np.zeros((0, 2)))
        shapes = np.concatenate([f.shapes for f in self._filmed + self._generated])
        self._mirror = mirror_map(shapes)
        self.mean_shape = torch.from_numpy(shapes.mean(0)).float()

    def draw(self, clips: int, frames: int, stills: int, rng: np.random.Generator) -> PoseCrops:
        """Draw a batch of some frames of each of some clips, and of stills, augmented."""
        groups = [_some(self._clip(rng), frames, rng) for _ in range(clips)]
        turns = np.stack([group.turns for group in groups])
        if self._stills is not None:
            some = rng.choice(len(self._stills.images), stills)
            groups += [_chosen(self._stills, some[i : i + 1]) for i in range(stills)]
        counts = [len(group.images) for group in groups]
        flipped = rng.random(len(groups)) < 0.5
        turns[..., 0] *= np.where(flipped[:clips], -1, 1)[:, None]
        of = torch.from_numpy(np.repeat(np.arange(len(groups)), counts))
        flip = torch.from_numpy(flipped)[of]
        images = _jittered(groups, of, flip, rng)
        shapes = torch.from_numpy(np.concatenate([group.shapes for group in groups])).float()
        mirrored = shapes[:, self._mirror] * torch.tensor([-1.0, 1.0])
        shapes = torch.where(flip[:, None, None], mirrored, shapes)
        return PoseCrops(even(_filmed(images, of, rng)), torch.from_numpy(turns).float(), shapes)

    def all(self) -> Iterator[PoseCrops]:
        """Yield the frames of each filmed clip as they are."""
        for faces in self._filmed:
            images = torch.from_numpy(faces.images)[:, None].float() / 255
            crops = even(level_faces(images, torch.from_numpy(faces.places)))
            turns = torch.from_numpy(faces.turns)[None].float()
            yield PoseCrops(crops, turns, torch.from_numpy(faces.shapes).float())

    def _clip(self, rng: np.random.Generator) -> _Faces:
        use_filmed = rng.random() < _FILMED_SHARE
        pool = (self._filmed if use_filmed else self._generated) or self._filmed or self._generated
        return pool[rng.integers(len(pool))]


def _faces_of(clip: Clip) -> _Faces:
    assert clip.pose is not None
    count = min(clip.num_frames, _FRAMES if clip.kind == "real" else _GENERATED_FRAMES)
    chosen = np.unique(np.linspace(0, clip.num_frames - 1, count).astype(int))
    samples = ((clip.frames[i], clip.landmarks[i, SUBSET]) for i in chosen)
    return _stored(samples, head_angles(clip.pose[chosen])[:, :2])


def _stored(samples: Iterable[tuple[np.ndarray, np.ndarray]], turns: np.ndarray) -> _Faces:
    images, placed = [], []
    for frame, points in samples:
        x, y, size, roll = face_places(points[None])[0].astype(np.float64)
        cos, sin = np.array([np.cos(roll), np.sin(roll)]) * _FACE_PX / size
        turn = np.array([[cos, sin], [-sin, cos]])
        matrix = np.concatenate([turn, (_MIDDLE - turn @ [x, y])[:, None]], 1)
        grey = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)
        side = (_STORED_PX, _STORED_PX)
        images.append(cv2.warpAffine(grey, matrix, side, borderMode=cv2.BORDER_REPLICATE))
        placed.append(points @ turn.T + matrix[:, 2])
    points = np.stack(placed)
    return _Faces(np.stack(images), face_places(points), in_face_sizes(points), turns)


def _some(faces: _Faces, count: int, rng: np.random.Generator) -> _Faces:
    total = len(faces.images)
    return _chosen(faces, rng.choice(total, count, replace=total < count))


def _chosen(faces: _Faces, at: np.ndarray) -> _Faces:
    turns = faces.turns[at] if len(faces.turns) else faces.turns
    return _Faces(faces.images[at], faces.places[at], faces.shapes[at], turns)


def _jittered(
    groups: Sequence[_Faces], of: Tensor, flip: Tensor, rng: np.random.Generator
) -> Tensor:
    """Return crops in [0, 1] whose places are not exact, the mirrored ones mirrored."""
    stored = torch.from_numpy(np.concatenate([group.images for group in groups]))
    places = torch.from_numpy(np.concatenate([group.places for group in groups]))
    offset = _normal((len(of), 4), rng) * _OF_FRAME
    offset = offset + (_normal((len(groups), 4), rng) * _OF_CLIP)[of]
    size = places[:, 2:3]
    moved = [places[:, :2] + size * offset[:, :2], size * offset[:, 2:3].exp()]
    places = torch.cat([*moved, places[:, 3:] + offset[:, 3:]], 1)
    images = level_faces(stored[:, None].float() / 255, places)
    return torch.where(flip[:, None, None, None], images.flip(-1), images)


def _filmed(images: Tensor, of: Tensor, rng: np.random.Generator) -> Tensor:
    """Film crops `(B, 1, H, W)` in [0, 1] by other cameras in other light.

    Args:
        images: the crops.
        of: the number of each one's clip, `(B,)`: its light hardly changes from frame to frame.
        rng: random generator.
    """
    count = int(of.max()) + 1

    def of_clip(low: float, high: float) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (count, 1, 1, 1))).float()[of]

    flicker = torch.from_numpy(rng.uniform(0.95, 1.05, (len(of), 1, 1, 1))).float()
    light = images.clamp(0, 1) ** (of_clip(0.6, 1.6) * flicker)
    axis = torch.linspace(-1, 1, images.shape[-1])
    light = light * (1 + of_clip(-0.4, 0.4) * axis + of_clip(-0.3, 0.3) * axis[:, None])
    small = int(rng.integers(28, 60))
    coarse = F.interpolate(light, (small, small), mode="area")
    coarse = F.interpolate(coarse, images.shape[-2:], mode="bilinear")
    blurred = torch.from_numpy(rng.random((len(of), 1, 1, 1))) < 0.2
    light = torch.where(blurred, coarse, light)
    level = of_clip(0, 0.06) * (of_clip(0, 1) < 0.5)
    return (light + level * _normal(tuple(light.shape), rng)).clamp(0, 1)


def _normal(shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape, np.float32))
