"""Fits how latents and lips change with the expression of filmed people."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from letstalk_rt.models.autoencoder.interfaces import LandmarkAutoencoder
from letstalk_rt.models.autoencoder.latents import FACE_SIZE
from letstalk_rt.models.face.lip_values import GAPS
from letstalk_rt.models.geometry.brow_flow import BROW_MOTION
from letstalk_rt.models.geometry.eye_region import align_eyes, eye_motion, eye_points
from letstalk_rt.models.geometry.landmarks import SUBSET
from letstalk_rt.models.motion.code import GAZE, HEAD, LIPS, SHUT, channel
from letstalk_rt.models.motion.expression import EXPRESSION, EXPRESSION_NAMES, Expression
from letstalk_rt.training.data.dataset import Clip
from letstalk_rt.training.stages.motion_clips import motion_codes

_EVERY = 4  # frames of a clip
_AT_ONCE = 32
_RIDGE = 1e-2  # of the power of each number
_BROWS, _LOWER_LID = ("brow_inner", "brow_outer", "brow_down"), ("squint", "smile")
_BROW_POINTS = (
    ((55, 65, 107, 66), (70, 63, 46, 53)),
    ((285, 295, 336, 296), (300, 293, 276, 283)),
)  # inner and outer part of the right and the left brow
_EYE_CORNERS = ((33, 133), (263, 362))
_PUCKER_SEEN = 2.5
"""By how much more a tracker sees of a pucker than the code says: the width of the lips is one."""

_BROWS_SEEN = (1.35, 1.7, 1.5)
"""A tracker sees 0.74, 0.55 and 0.61 of the way of brows that move alone: true ones are as much
further than their landmarks as skin and lids beside them move, too."""

_SHOWN_LIPS = [channel("smile"), channel("frown")]
"""What changes the lips besides speech. Brows do not, whatever they happen to do with them."""


@torch.inference_mode()
def fit_expression(autoencoder: LandmarkAutoencoder, clips: Sequence[Clip]) -> Expression:
    """Return the maps that fit filmed clips best.

    All numbers of the code take part in the regression, so that what head, lips and lids move is
    not taken for an expression.

    Args:
        autoencoder: whose latents are read.
        clips: clips with blendshapes and head poses.
    """
    codes, latents, moved = zip(*(_of_clip(autoencoder, clip) for clip in clips), strict=True)
    every, faces = torch.cat(codes), torch.cat(latents)
    made = Expression()
    made.face.copy_(_regression(every, faces)[EXPRESSION])
    made.face[EXPRESSION_NAMES.index("pucker")] /= _PUCKER_SEEN
    gaps = [channel("gap"), channel("side_gap")]
    values = every[:, LIPS][:, : made.lips.shape[1]]
    by_smile = _regression(every[:, gaps + _SHOWN_LIPS], values)[len(gaps) :]
    by_smile[:, GAPS] = 0  # a smile alone does not open the mouth
    for number, row in zip(_SHOWN_LIPS, by_smile, strict=True):
        made.lips[EXPRESSION.index(number)] = row
    _fit_landmarks(made, every, torch.cat(moved))
    return made


def _fit_landmarks(made: Expression, codes: Tensor, moved: Tensor) -> None:
    """Fit brows and lower lids to landmarks `(N, 4)`, see `_landmark_motion`."""
    turned = list(range(HEAD.start, HEAD.start + 3))
    for names, part, fitted in (
        (_BROWS, slice(0, BROW_MOTION), made.brows),
        (_LOWER_LID, slice(BROW_MOTION, None), made.lower_lid[:, None]),
    ):
        others = turned + [SHUT, *range(GAZE.start, GAZE.stop)]
        rows = _regression(codes[:, [channel(n) for n in names] + others], moved[:, part])
        for name, row in zip(names, rows, strict=False):
            fitted[EXPRESSION_NAMES.index(name)] = row
    made.brows *= torch.tensor(_BROWS_SEEN)


def _regression(inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the ridge regression `(I, T)` from `(N, I)` to `(N, T)`."""
    x, y = inputs.double(), targets.double()
    square = x.T @ x
    slack = _RIDGE * torch.diag(square.diagonal() + 1e-9)
    solved: Tensor = torch.linalg.solve(square + slack, x.T @ y)
    return solved.float()


def _of_clip(autoencoder: LandmarkAutoencoder, clip: Clip) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes, faces of latents and `_landmark_motion` in some frames, from their means."""
    numbers = np.arange(0, clip.num_frames, _EVERY)
    latents = []
    for part in np.array_split(numbers, -(-len(numbers) // _AT_ONCE)):
        pixels = torch.from_numpy(np.array(clip.frames[part])).permute(0, 3, 1, 2)
        encoded = autoencoder.encode_with_heatmaps(pixels[None].float() / 127.5 - 1)[0][0]
        latents.append(encoded.flatten(1)[:, :FACE_SIZE])
    codes = torch.from_numpy(motion_codes(clip)[numbers])
    faces = torch.cat(latents).float()
    moved = torch.from_numpy(_landmark_motion(clip.landmarks[numbers].astype(np.float32)))
    return codes - codes.mean(0), faces - faces.mean(0), moved - moved.mean(0)


def _landmark_motion(points: np.ndarray) -> np.ndarray:
    """Return the places of brows, see `BROW_MOTION`, and of lower lids in widths of an eye.

    Args:
        points: landmarks of the whole mesh, `(T, 478, 2)`.

    Returns:
        `(T, 4)`.
    """
    subset = torch.from_numpy(points[:, SUBSET])
    sides = []
    for side, (outer, inner) in enumerate(_EYE_CORNERS):
        along = points[:, inner] - points[:, outer]
        width = np.linalg.norm(along, axis=1, keepdims=True)
        along = along / width
        down = np.stack([-along[:, 1], along[:, 0]], 1) * (-1 if side else 1)
        middle = (points[:, inner] + points[:, outer]) / 2
        near, far = (
            (points[:, list(part)].mean(1) - middle) / width for part in _BROW_POINTS[side]
        )
        eyes = eye_points(subset, side, align_eyes(subset, side))
        lid = eye_motion(eyes, side)[:, 1].numpy()
        heights = [(part * down).sum(1) for part in (near, far)]
        sides.append(np.stack([*heights, (near * along).sum(1), lid], 1))
    return np.asarray(np.mean(sides, 0), np.float32)
