"""Crops of eyes from clips, with the landmarks of lids and irises, for the eye painter.

Frames in which eyes are half or fully closed are all kept, of others some of each second. A batch
pairs two frames of one clip: how the eye looks in a portrait, and how it shall look.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.errors import InputError
from letstalk_rt.models.geometry.eye_region import (
    CORNER_DISTANCE_PX,
    EYE_HEIGHT,
    EYE_WIDTH,
    IRIS,
    LID_MIDDLE,
    LOWER_LID,
    UPPER_LID,
    align_eyes,
    eye_maps,
    eye_points,
    iris_flow,
)
from letstalk_rt.models.geometry.landmarks import SUBSET
from letstalk_rt.training.data.dataset import Clip

MARGIN_PX = 12
"""Around a stored crop, for augmentation without padding."""

_STORED = (EYE_HEIGHT + 2 * MARGIN_PX, EYE_WIDTH + 2 * MARGIN_PX)
_EVERY = {"real": 3, "generated": 6}  # of open eyes, one frame in so many
_SHUT = 0.7  # share of the usual opening below which all frames are kept
_FILMED = 2.0  # weight of filmed clips
_LEAST_FRAMES = 5
_OPEN_SHARE = 0.9  # of portraits that have open eyes; the others are any frame
_SHUT_WEIGHT = 6.0  # how much likelier a frame with closed lids is drawn
_GAZE_WEIGHT, _GAZE_PX = 4.0, 3.0  # and one whose iris is as far from the portrait's

_SHIFT_PX, _SIZE, _TURN = 1.2, 0.04, 0.04  # errors of the corners: px, logarithm, radians
_MOVED_PX, _POINT_PX = 0.25, 0.25  # errors of lids and iris: together, and of each point
_GAMMA, _GAIN, _TINT, _GREY = 0.25, 0.25, 0.1, 1 / 12
_OTHER_LIGHT = 0.04  # by which the two frames differ


@dataclass(frozen=True)
class EyeClip:
    """One eye of one clip in N frames.

    Attributes:
        crops: `(N, 72, 88, 3)` uint8, with a margin.
        points: landmarks `(N, 23, 2)` in pixels of the crop without margin.
        openings: distance of the lids over the width of the eye, `(N,)`.
        weight: how often the clip is drawn.
    """

    crops: np.ndarray
    points: Tensor
    openings: np.ndarray
    weight: float


@dataclass(frozen=True)
class EyeFrames:
    """A batch: eyes of portraits, and the same eyes in other frames.

    Attributes:
        portrait: `(B, 3, 48, 64)` in [-1, 1].
        portrait_maps: of its landmarks, see `eye_maps`.
        frame: what shall be shown, like `portrait`.
        maps: of the landmarks wanted.
        known_flow: see `iris_flow`.
    """

    portrait: Tensor
    portrait_maps: Tensor
    frame: Tensor
    maps: Tensor
    known_flow: Tensor

    def to(self, device: torch.device) -> "EyeFrames":
        """Return the batch on a device."""
        parts = (self.portrait, self.portrait_maps, self.frame, self.maps, self.known_flow)
        return EyeFrames(*(part.to(device) for part in parts))


def eye_clips(clips: Sequence[Clip]) -> list[EyeClip]:
    """Return the eyes of clips, two of each.

    Raises:
        InputError: no clip has enough frames.
    """
    found = [eye for clip in clips for eye in _of_clip(clip)]
    if not found:
        raise InputError(
            f"the eye painter is trained on clips of at least {_LEAST_FRAMES} frames; there is "
            f"none among {len(clips)} clips"
        )
    return found


def _of_clip(clip: Clip) -> Iterator[EyeClip]:
    points = torch.from_numpy(clip.landmarks[:, SUBSET].astype(np.float32))
    placed, transforms = [], [align_eyes(points, eye) for eye in (0, 1)]
    for eye in (0, 1):
        placed.append(eye_points(points, eye, transforms[eye]))
    openings = torch.stack([_opening(eyes) for eyes in placed], 1).numpy()
    shut = (openings < _SHUT * np.median(openings, 0)).any(1)
    kept = np.flatnonzero(shut | (np.arange(len(shut)) % _EVERY.get(clip.kind, 3) == 0))
    if len(kept) < _LEAST_FRAMES:
        return
    weight = (_FILMED if clip.kind == "real" else 1.0) * len(kept) ** 0.5
    frames = [np.asarray(clip.frames[number]) for number in kept]
    for eye in (0, 1):
        matrices = _matrices(transforms[eye].rotation[kept], transforms[eye].shift[kept])
        cut = [_cut(f, m, eye) for f, m in zip(frames, matrices, strict=True)]
        yield EyeClip(np.stack(cut), placed[eye][kept], openings[kept, eye], weight)


def _opening(eyes: Tensor) -> Tensor:
    gap = eyes[:, UPPER_LID][:, LID_MIDDLE] - eyes[:, LOWER_LID][:, LID_MIDDLE]
    opening: Tensor = gap.norm(dim=-1) / CORNER_DISTANCE_PX
    return opening


def _matrices(rotation: Tensor, shift: Tensor) -> np.ndarray:
    """Return matrices for OpenCV, which counts from the centre of the first pixel, `(N, 2, 3)`."""
    cos, sin = rotation.double().numpy().T
    turn = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], 1)
    moved = shift.double().numpy() + MARGIN_PX + turn @ [0.5, 0.5] - 0.5
    whole: np.ndarray = np.concatenate([turn, moved[..., None]], -1)
    return whole


def _cut(frame: np.ndarray, matrix: np.ndarray, eye: int) -> np.ndarray:
    cropped: np.ndarray = cv2.warpAffine(
        frame, matrix, _STORED[::-1], flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
    )
    return cropped[:, ::-1] if eye else cropped


class EyeFrameSource:
    """Draws batches of pairs of frames.

    Args:
        clips: the eyes to draw from.
        augmented: whether places, light and landmarks are varied.
    """

    def __init__(self, clips: Sequence[EyeClip], *, augmented: bool = True) -> None:
        self._clips, self._augmented = clips, augmented
        self._weights = torch.tensor([clip.weight for clip in clips])

    def draw(self, count: int, generator: torch.Generator) -> EyeFrames:
        """Draw a batch."""
        chosen = torch.multinomial(self._weights, count, True, generator=generator).tolist()
        pairs = [self._pair(self._clips[index], generator) for index in chosen]
        images, points = [], []
        for which in (0, 1):
            one = [(index, pair[which]) for index, pair in zip(chosen, pairs, strict=True)]
            pixels = np.stack([self._clips[i].crops[n] for i, n in one])
            image = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
            at = torch.stack([self._clips[i].points[n] for i, n in one])
            moved = self._placed(image, at, generator)
            images.append(moved[0])
            points.append(moved[1])
        if self._augmented:
            images = _lit(images, generator)
            points = [_inexact(at, generator) for at in points]
        maps = [eye_maps(at) for at in points]
        return EyeFrames(images[0], maps[0], images[1], maps[1], iris_flow(*points))

    def _pair(self, clip: EyeClip, generator: torch.Generator) -> tuple[int, int]:
        count = len(clip.openings)
        order = np.argsort(-clip.openings)
        some = max(3, count // 2)
        if float(torch.rand((), generator=generator)) > _OPEN_SHARE:
            some = count
        portrait = int(order[int(torch.randint(some, (), generator=generator))])
        shut = clip.openings < 0.6 * np.median(clip.openings)
        iris = clip.points[:, IRIS][:, 0]
        looked = (iris - iris[portrait]).norm(dim=-1) / _GAZE_PX
        weights = 1 + _SHUT_WEIGHT * torch.from_numpy(shut) + _GAZE_WEIGHT * looked.clamp(max=1)
        return portrait, int(torch.multinomial(weights, 1, generator=generator))

    def _placed(
        self, images: Tensor, points: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return crops without margin and their landmarks, as if the corners were not exact."""
        count = len(images)
        shift, size, turn = (
            s * torch.randn(count, n, generator=generator) * self._augmented
            for s, n in ((_SHIFT_PX, 2), (_SIZE, 1), (_TURN, 1))
        )
        scale = size.exp()
        turned = torch.cat([turn.cos(), -turn.sin(), turn.sin(), turn.cos()], 1).view(-1, 2, 2)
        middle = points.new_tensor([EYE_WIDTH / 2, EYE_HEIGHT / 2])
        moved = ((points - middle) @ turned.mT) * scale[..., None] + middle + shift[:, None]
        y, x = torch.meshgrid(
            torch.arange(EYE_HEIGHT) + 0.5, torch.arange(EYE_WIDTH) + 0.5, indexing="ij"
        )
        pixels = torch.stack([x, y], -1).view(1, -1, 2) - middle - shift[:, None]
        source = (pixels @ turned) / scale[..., None] + middle + MARGIN_PX
        extent = source.new_tensor([_STORED[1], _STORED[0]])
        grid = (source / extent * 2 - 1).view(count, EYE_HEIGHT, EYE_WIDTH, 2)
        crops = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
        return crops, moved


def _inexact(points: Tensor, generator: torch.Generator) -> Tensor:
    """Return landmarks with errors like those of landmarks that are read from a latent."""
    count = len(points)
    error = _POINT_PX * torch.randn(points.shape, generator=generator)
    for part in (UPPER_LID, LOWER_LID, IRIS):
        error[:, part] += _MOVED_PX * torch.randn(count, 1, 2, generator=generator)
    corners = [UPPER_LID.start, UPPER_LID.stop - 1, LOWER_LID.start, LOWER_LID.stop - 1]
    error[:, corners] *= 0.3
    return points + error


def _lit(both: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Return images in another light, the second also in a light a little different."""
    count = len(both[0])

    def some(amount: float, channels: int = 1) -> Tensor:
        return amount * (2 * torch.rand(count, channels, 1, 1, generator=generator) - 1)

    gamma, gain, tint = some(_GAMMA).exp(), 1 + some(_GAIN), 1 + some(_TINT, 3)
    other = 1 + some(_OTHER_LIGHT) + some(_OTHER_LIGHT, 3)
    grey = (torch.rand(count, 1, 1, 1, generator=generator) < _GREY).float()
    light = [((image + 1) / 2).clamp(0, 1) ** gamma * gain * tint for image in both]
    lit = [2 * x.clamp(0, 1) - 1 for x in (light[0], light[1] * other)]
    return [torch.lerp(one, one.mean(1, keepdim=True).expand_as(one), grey) for one in lit]
