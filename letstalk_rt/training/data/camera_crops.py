"""Draws face crops as cameras in rooms see them, with what a face reader should read in them.

Dim light with its noise, motion blur, few pixels, colour casts, glasses, hands and phones before
the face, faces half out of the frame; and crops without a face, of which it should be uncertain.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from letstalk_rt.models.face.detector import face_crop_box
from letstalk_rt.models.face.face_reader import CROP_PX, NUM_EXPRESSIONS
from letstalk_rt.models.face.face_tracker import exposed
from letstalk_rt.models.geometry.landmarks import LEFT_EYE, RIGHT_EYE, SUBSET, landmark_indices
from letstalk_rt.training.data.dataset import STILL_SIZE, Clip, Stills, mirror_map

_BROWS_UP, _BROWS_DOWN = (3, 4, 5), (1, 2)  # blendshapes
_SHUT_LEFT, _SHUT_RIGHT, _SMILES = 9, 10, (44, 45)
_SHUT = 0.4  # from here a frame counts as one with shut eyes, which are drawn more often
_STILLS, _SHUT_SHARE = 0.35, 0.2  # of stills; of frames with shut eyes in the others
_SIZE, _MARGIN = 176, 1.35  # of the faces in memory: side in px, and side over that of a crop
_NO_FACE = 0.12
_KERNEL = 11  # of motion blur, px

_EYES = (landmark_indices(RIGHT_EYE), landmark_indices(LEFT_EYE))


@dataclass(frozen=True)
class CameraCrops:
    """A batch of crops and their targets.

    Attributes:
        images: `(B, 3, 128, 128)` in [-1, 1].
        points: landmarks, `(B, L, 2)` in [-1, 1]; some may lie outside.
        expressions: `(B, E)`; NaN where they are not known.
        has_face: `(B,)` bool.
    """

    images: Tensor
    points: Tensor
    expressions: Tensor
    has_face: Tensor

    def to(self, device: torch.device) -> "CameraCrops":
        """Return the batch on a device."""
        parts = (self.images, self.points, self.expressions, self.has_face)
        return CameraCrops(*(part.to(device) for part in parts))


@dataclass(frozen=True)
class _Faces:
    """Faces with a margin, small enough to be kept in memory.

    Attributes:
        images: `(N, 176, 176, 3)` uint8.
        points: landmarks in pixels of the image, `(N, L, 2)`.
        expressions: `(N, E)`.
    """

    images: np.ndarray
    points: np.ndarray
    expressions: np.ndarray


class CameraCropSource:
    """Draws batches of crops from clips and stills.

    Args:
        clips: clips of the train split.
        stills: stills of the train split; they have no expressions.
        per_clip: frames that are kept of each clip, twice as many if it was filmed.
    """

    def __init__(self, clips: Sequence[Clip], stills: Stills, per_clip: int = 32) -> None:
        rng = np.random.default_rng(7)
        points = stills.landmarks[:, SUBSET]
        unknown = np.full(NUM_EXPRESSIONS, np.nan, np.float32)
        self._stills = _cut_faces(
            (frame, at, unknown) for frame, at in zip(stills.frames, points, strict=True)
        )
        self._clips = _cut_faces(
            sample for clip in clips for sample in _samples(clip, per_clip, rng)
        )
        self._shut = np.flatnonzero(self._clips.expressions[:, :2].max(1) > _SHUT)
        self._mirror = mirror_map(points / (STILL_SIZE / 2) - 1)

    def mean_points(self) -> Tensor:
        """Return the mean landmarks of crops, `(L, 2)`."""
        mean = self._stills.points.mean(0)
        return torch.from_numpy((mean / _SIZE * 2 - 1) * _MARGIN).float()

    def draw(self, count: int, rng: np.random.Generator) -> CameraCrops:
        """Draw a batch."""
        items = [self._item(rng) for _ in range(count)]
        images = torch.stack([item[0] for item in items])
        points = torch.from_numpy(np.stack([item[1] for item in items])).float()
        expressions = torch.from_numpy(np.stack([item[2] for item in items])).float()
        has_face = torch.tensor([item[3] for item in items])
        return CameraCrops(exposed(_filmed(images, rng)), points, expressions, has_face)

    def _item(self, rng: np.random.Generator) -> tuple[Tensor, np.ndarray, np.ndarray, bool]:
        faces = self._stills if rng.random() < _STILLS else self._clips
        index = rng.integers(len(faces.images))
        if faces is self._clips and len(self._shut) and rng.random() < _SHUT_SHARE:
            index = self._shut[rng.integers(len(self._shut))]
        frame, points = faces.images[index], faces.points[index]
        expressions = faces.expressions[index]
        if rng.random() < 0.5:
            frame = frame[:, ::-1]
            points = points[self._mirror] * [-1, 1] + [_SIZE, 0]
            expressions = expressions[[1, 0, *range(2, NUM_EXPRESSIONS)]]
        has_face = bool(rng.random() >= _NO_FACE)
        image, points = _cut(frame, points, rng, away=not has_face)
        if has_face and rng.random() < 0.3:
            image = _with_glasses(image, points, rng)
        if rng.random() < 0.2:
            image = _with_occluder(image, rng, covers=not has_face)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
        return pixels, points / (CROP_PX / 2) - 1, expressions, has_face


def _samples(
    clip: Clip, count: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield frames of a clip with landmarks and expressions; some of them have shut eyes."""
    count = 2 * count if clip.kind == "real" else count
    expressions = clip_expressions(clip)
    shut = np.flatnonzero(expressions[:, :2].max(1) > _SHUT)
    chosen = rng.choice(clip.num_frames, min(count, clip.num_frames), replace=False)
    some = rng.choice(shut, min(count // 4, len(shut)), replace=False)
    for index in sorted({*chosen.tolist(), *some.tolist()}):
        yield clip.frames[index], clip.landmarks[index, SUBSET], expressions[index]


def _cut_faces(samples: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> _Faces:
    images, places, expressions = [], [], []
    for frame, points, values in samples:
        box = face_crop_box(points, 1.0)
        side = _MARGIN * box.side
        left, top = box.x - side / 2, box.y - side / 2
        matrix = (side / _SIZE, 0, left, 0, side / _SIZE, top)
        whole = Image.fromarray(np.ascontiguousarray(frame))
        images.append(
            np.asarray(
                whole.transform(
                    (_SIZE, _SIZE), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
                )
            )
        )
        places.append((points - [left, top]) * _SIZE / side)
        expressions.append(values)
    return _Faces(np.stack(images), np.stack(places), np.stack(expressions))


def clip_expressions(clip: Clip) -> np.ndarray:
    """Return the expressions of each frame of a clip, `(T, E)`; see `EXPRESSIONS`."""
    shapes = clip.blendshapes
    brows = shapes[:, _BROWS_UP[0]] + shapes[:, _BROWS_UP[1:]].mean(1)
    brows = brows - shapes[:, _BROWS_DOWN].mean(1)
    smile = shapes[:, _SMILES].mean(1)
    return np.stack([shapes[:, _SHUT_RIGHT], shapes[:, _SHUT_LEFT], brows, smile], 1)


def _cut(
    frame: np.ndarray, points: np.ndarray, rng: np.random.Generator, *, away: bool
) -> tuple[Image.Image, np.ndarray]:
    """Cut a crop whose place, size and angle are not exact; or one beside the face."""
    box = face_crop_box(points, 1.0)
    side = box.side * np.exp(rng.uniform(-0.2, 0.2))
    shift = rng.normal(0, 0.05, 2) * side
    angle = rng.normal(0, 0.2)
    if away:
        if rng.random() < 0.5:
            turn = rng.uniform(0, 2 * np.pi)
            shift = rng.uniform(0.55, 0.9) * box.side * np.array([np.cos(turn), np.sin(turn)])
        else:
            angle = rng.uniform(1.4, 4.9)
    zoom = side / CROP_PX
    turned = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = np.array([box.x, box.y]) + shift
    offset = centre - turned @ np.full(2, CROP_PX / 2)
    matrix = (*turned[0], offset[0], *turned[1], offset[1])
    whole = Image.fromarray(np.ascontiguousarray(frame))
    wall = tuple(int(level) for level in rng.integers(0, 256, 3))
    out = whole.transform(
        (CROP_PX, CROP_PX),
        Image.Transform.AFFINE,
        matrix,
        Image.Resampling.BILINEAR,
        fillcolor=wall,
    )
    return out, (points - offset) @ np.linalg.inv(turned).T


def _with_glasses(image: Image.Image, points: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Draw glasses: rims, a bridge, perhaps dark lenses or a reflection."""
    eyes = [points[eye].mean(0) for eye in _EYES]
    apart = max(8.0, float(np.linalg.norm(eyes[1] - eyes[0])))  # in profile they coincide
    layer = Image.new("RGBA", image.size)
    pen = ImageDraw.Draw(layer)
    rim = (*(int(level) for level in rng.integers(0, 120, 3)), int(rng.integers(150, 256)))
    dark = int(rng.choice([0, 0, 0, 60, 140])) if rng.random() < 0.6 else 0
    wide, high = rng.uniform(0.36, 0.46) * apart, rng.uniform(0.25, 0.4) * apart
    width = int(rng.integers(1, 5))
    draw = pen.ellipse if rng.random() < 0.5 else pen.rectangle
    for x, y in eyes:
        lens = (x - wide, y - 0.85 * high, x + wide, y + 1.15 * high)
        draw(lens, (0, 0, 0, dark), rim, width)
        if rng.random() < 0.25:
            glare = (x - 0.6 * wide, y - 0.5 * high, x, y + rng.uniform(-0.2, 0.3) * high)
            pen.ellipse(glare, (255, 255, 255, int(rng.integers(40, 200))))
    along = (eyes[1] - eyes[0]) / max(apart, 1e-6)
    pen.line([tuple(eyes[0] + wide * along), tuple(eyes[1] - wide * along)], rim, width)
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def _with_occluder(image: Image.Image, rng: np.random.Generator, *, covers: bool) -> Image.Image:
    """Draw a hand, a phone or a cup before a part of the face, or before all of it."""
    pen = ImageDraw.Draw(image)
    colour = tuple(int(level) for level in rng.integers(0, 256, 3))
    size = rng.uniform(0.9, 1.4, 2) if covers else rng.uniform(0.15, 0.4, 2)
    x, y = (0.5, 0.5) if covers else (rng.uniform(0, 1), rng.uniform(0.3, 1))
    low = CROP_PX * (np.array([x, y]) - size / 2)
    place = (*low, *(low + CROP_PX * size))
    (pen.ellipse if rng.random() < 0.5 else pen.rectangle)(place, colour)
    return image


def _filmed(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Film crops `(B, 3, H, W)` with a camera that is worse than that of the clips."""
    count = len(images)

    def random(low: float, high: float) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (count, 1, 1, 1))).float()

    moving = torch.from_numpy(rng.random(count) < 0.3)
    images[moving] = _with_motion_blur(images[moving], rng)
    small = int(rng.integers(40, 96))
    coarse = F.interpolate(images, (small, small), mode="area")
    coarse = F.interpolate(coarse, images.shape[-2:], mode="bilinear")
    images = torch.where(random(0, 1) < 0.25, coarse, images)
    light = ((images + 1) / 2).clamp(0, 1) ** random(0.6, 1.6)
    light = torch.where(random(0, 1) < 0.12, light.mean(1, keepdim=True), light)
    cast = torch.from_numpy(rng.uniform(0.8, 1.2, (count, 3, 1, 1))).float()
    gain = torch.where(random(0, 1) < 0.35, torch.exp(random(-3.2, 0)), random(0.7, 1.35))
    ramp = 1 + random(-0.6, 0.6) * torch.linspace(-1, 1, images.shape[-1])
    noise = torch.from_numpy(rng.standard_normal(images.shape, np.float32))
    level = torch.where(random(0, 1) < 0.5, random(0, 0.015), random(0, 0.08) * gain.sqrt())
    light = light * cast * gain * ramp + level * noise
    return (light.clamp(0, 1) * 255).round() / 127.5 - 1


def _with_motion_blur(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur each crop along a line of its own."""
    kernels = np.zeros((len(images), _KERNEL, _KERNEL), np.float32)
    middle = _KERNEL // 2
    for kernel in kernels:
        turn, reach = rng.uniform(0, np.pi), rng.uniform(1, middle)
        for at in np.linspace(-reach, reach, 2 * _KERNEL):
            row, column = middle + at * np.sin(turn), middle + at * np.cos(turn)
            kernel[int(round(row)), int(round(column))] += 1
        kernel /= kernel.sum()
    weights = torch.from_numpy(kernels).repeat_interleave(3, 0)[:, None]
    if not len(images):
        return images
    flat = F.conv2d(images.flatten(0, 1)[None], weights, padding=middle, groups=len(weights))
    return flat[0].view_as(images)
