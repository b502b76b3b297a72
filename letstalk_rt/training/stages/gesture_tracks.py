"""Measures gestures in clips: head, brows, gaze and blinks, with the prosody of their audio."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from letstalk_rt.errors import InputError
from letstalk_rt.models.audio_encoder.prosody import ProsodyReader
from letstalk_rt.models.face.gestures import BROWS, GAZE, HEAD, NUM_GESTURES
from letstalk_rt.models.face.head_motion import HeadMotion, face_size, rigid_landmarks
from letstalk_rt.models.face.spline import SPAN, fit_spline
from letstalk_rt.models.geometry.landmarks import IRISES, landmark_indices
from letstalk_rt.training.data.dataset import Clip, mirror_map
from letstalk_rt.training.evaluation.faces import blinks, head_pose
from letstalk_rt.training.evaluation.generation import true_track
from letstalk_rt.types import SAMPLES_PER_FRAME

MAX_SHIFT = 6
"""Largest offset between audio and video that is corrected, in frames."""

GENERATED_WEIGHT = 0.3
"""Weight of a generated clip against a filmed one: another model's head motion is not the truth."""

_EYE_CORNERS = landmark_indices((33, 133, 263, 362))
_BROWS_UP, _BROWS_DOWN = (3, 4, 5), (1, 2)  # blendshapes; the first is that of both inner brows
_EYES_SHUT = slice(9, 11)  # blendshapes
_LEAST_SIZE = 1e-6
_SHUT_RISE = 0.25  # of these blendshapes in a blink; the landmarks alone dip in a glance down, too


@dataclass(frozen=True)
class GestureTrack:
    """The gestures of one clip.

    Attributes:
        name: The clip's name.
        course: Gestures in each frame, about their mean, `(T, D)`; brows as blendshapes.
        mirrored: The same of the mirrored clip.
        prosody: `(T + L, P)`; entry `i` belongs to frame `i - L`.
        blinks: First frame of each blink.
        pose: Head pose, `(T, 4)`.
        pcm: Audio, `(T * 640,)`.
        is_real: Whether the clip was filmed by a camera.
        is_grid: Whether the clip belongs to the GRID corpus.
    """

    name: str
    course: Tensor
    mirrored: Tensor
    prosody: Tensor
    blinks: list[int]
    pose: np.ndarray
    pcm: np.ndarray
    is_real: bool
    is_grid: bool

    @property
    def filmed(self) -> bool:
        """Whether this is a filmed clip of another corpus than GRID, whose heads hardly move."""
        return self.is_real and not self.is_grid


@torch.no_grad()
def gesture_track(clip: Clip, head: HeadMotion, prosody: ProsodyReader) -> GestureTrack:
    """Measure the gestures of a clip."""
    pcm, ahead = synchronous_pcm(clip), prosody.lookahead_frames
    padded = np.concatenate([pcm, np.zeros(ahead * SAMPLES_PER_FRAME, np.float32)])
    points = torch.from_numpy(clip.points)
    reflected = points[:, torch.from_numpy(mirror_map(clip.points))] * torch.tensor([-1.0, 1.0])
    shapes = torch.from_numpy(clip.blendshapes)
    brows = shapes[:, _BROWS_UP[0]] + shapes[:, _BROWS_UP[1:]].mean(1)
    brows = brows - shapes[:, _BROWS_DOWN].mean(1)
    track = true_track(clip)
    shut = clip.blendshapes[:, _EYES_SHUT].mean(1)
    spans = [(a, b) for a, b in blinks(track) if shut[a:b].max() > np.median(shut) + _SHUT_RISE]
    return GestureTrack(
        clip.name,
        _course(points, brows, head),
        _course(reflected, brows, head),
        prosody(torch.from_numpy(padded)[None])[0],
        [max(0, a - 1) for a, _ in spans],
        head_pose(track),
        clip.pcm,
        clip.kind == "real",
        clip.is_grid,
    )


def synchronous_pcm(clip: Clip) -> np.ndarray:
    """Return the audio of a clip moved by its offset from the lips."""
    late = clip.lips_late if abs(clip.lips_late) <= MAX_SHIFT else 0
    moved = np.zeros_like(clip.pcm)
    shift = late * SAMPLES_PER_FRAME
    if shift >= 0:
        moved[shift:] = clip.pcm[: len(moved) - shift]
    else:
        moved[:shift] = clip.pcm[-shift:]
    return moved


def _course(points: Tensor, brows: Tensor, head: HeadMotion) -> Tensor:
    """Return the gestures in landmarks `(T, L, 2)`, `(T, D)`; brows are given, `(T,)`."""
    mean = points.mean(0)
    moved = (points - mean) / face_size(mean)
    mask = rigid_landmarks(mean)
    scores = moved[:, mask].flatten(1) @ torch.linalg.pinv(head.movements[:, mask].flatten(1))
    left = moved - torch.einsum("tk,klj->tlj", scores, head.movements)
    gaze = left[:, landmark_indices(IRISES)].mean(1) - left[:, _EYE_CORNERS].mean(1)
    course = torch.zeros(len(points), NUM_GESTURES)
    course[:, HEAD] = scores
    course[:, BROWS] = (brows - brows.mean())[:, None]
    course[:, GAZE] = gaze - gaze.mean(0)
    return course


def usual_sizes(tracks: Sequence[GestureTrack]) -> Tensor:
    """Return the usual deviation of each gesture in filmed clips, `(D,)`; equal for the head.

    Raises:
        InputError: No clip was filmed, or all belong to GRID, whose heads hardly move.
    """
    sizes = [group_sizes(t.course) for t in tracks if t.filmed]
    if not sizes:
        raise InputError(
            "gestures need filmed clips with audio, other than GRID's; add clips of kind `real` to "
            "the split `train`"
        )
    return torch.stack(sizes).median(0).values.clamp(min=_LEAST_SIZE)


def group_sizes(course: Tensor) -> Tensor:
    """Return the deviations of gestures `(T, D)`, averaged over head and over gaze, `(D,)`."""
    sizes = course.std(0)
    for group in (HEAD, GAZE):
        sizes[group] = sizes[group].mean()
    return sizes


@dataclass(frozen=True)
class GestureItem:
    """A clip as the network is trained on it, from one of its first frames on.

    Attributes:
        coefficients: Spline of the gestures in usual deviations, `(W + 3, D)`.
        prosody: `(W, 4, P)`.
        weight: Weight in training.
    """

    coefficients: Tensor
    prosody: Tensor
    weight: float


def gesture_items(track: GestureTrack, sizes: Tensor, ahead: int) -> list[GestureItem]:
    """Return the items of a clip and of its mirror image, with windows from four first frames."""
    items = []
    own = group_sizes(track.course)
    scale = 1 / torch.maximum(own, sizes / 3)  # lest few clips with strong motion dominate
    for course in (track.course, track.mirrored):
        for first in range(SPAN):
            windows = (len(course) - first) // SPAN
            part = slice(first, first + windows * SPAN)
            heard = track.prosody[ahead:][part]
            weight = (1.0 if track.is_real else GENERATED_WEIGHT) * windows
            items.append(
                GestureItem(
                    fit_spline(scale * course[part]), heard.unflatten(0, (-1, SPAN)), weight
                )
            )
    return items
