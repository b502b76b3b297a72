"""Measures the motion code of clips, with the speech that belongs to it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from letstalk_rt.models.audio_encoder.mel import MEL_PER_FRAME
from letstalk_rt.models.face.head_pose import HeadShape, head_angles
from letstalk_rt.models.face.lip_values import GAPS, lip_values
from letstalk_rt.models.geometry.landmarks import (
    IRISES,
    eye_openings,
    landmark_indices,
    mouth_opening,
)
from letstalk_rt.models.motion.code import (
    HEAD,
    LIPS,
    NUM_MOTION,
    NUM_STYLE,
    SHUT,
    STYLE_NAMES,
    channel,
)
from letstalk_rt.models.motion.speech_encoder import SpeechEncoder
from letstalk_rt.training.data.dataset import MAX_SHIFT, Clip
from letstalk_rt.types import FPS, SAMPLES_PER_FRAME

BLENDSHAPES = {
    "pucker": (38,),
    "brow_inner": (3,),
    "brow_outer": (4, 5),
    "brow_down": (1, 2),
    "squint": (19, 20),
    "smile": (44, 45),
    "frown": (30, 31),
}
"""Blendshapes whose mean is a number of the code."""

_OPEN_PERCENTILE = 80
"""Percentile of the opening of the eyes in a clip that counts as open."""

MIN_SYNC = 0.25
MIN_OPENING_STD = 0.015
"""Lips of clips that agree less with their audio, or move less, are not learned."""

DEFAULT_SYNC = 0.4
"""The agreement that is assumed for clips whose line does not state it."""

REST_PERCENTILE = 10
"""Percentile of the mouth opening below which a clip's mouth counts as at rest."""

REST_GAP = 0.03
"""Lip gap at rest, in mouth widths, up to which a mouth counts as closed: the landmarks of closed
lips do not quite coincide."""

_MOST_SHUT, _LEAST_SHUT = 1.15, -0.6
_REST_SHARE = 0.05  # of frames whose gaps are those at rest
_BLINK_RISE, _BLINK_SHUT = 0.35, 0.5
_CLOSING_FRAMES, _OPENING_FRAMES = 5, 8
_IRIS_POINTS = (landmark_indices(IRISES[:5]), landmark_indices(IRISES[5:]))
_CORNERS = (landmark_indices((33, 133)), landmark_indices((263, 362)))


@dataclass(frozen=True)
class MotionClip:
    """A clip as the motion denoiser is trained on it; frames and speech are synchronous.

    Attributes:
        name: The clip's name.
        inputs: Normalised log-mel, `(T + L, 4 M)`, with L frames of look-ahead.
        codes: Motion codes, `(T, D)`.
        shapes: Blendshapes of jaw, lips and cheeks, `(T, 24)`: auxiliary targets.
        blinks: First frames of blinks, ascending.
        style: Measures of `STYLE_NAMES`, `(S,)`, not scaled yet.
        lip_weight: How well its lips fit its speech; 0 if they do not.
        is_real: Whether it was filmed by a camera.
        is_grid: Whether it belongs to the GRID corpus.
    """

    name: str
    inputs: Tensor
    codes: Tensor
    shapes: Tensor
    blinks: list[int]
    style: Tensor
    lip_weight: float
    is_real: bool
    is_grid: bool


def motion_clip(clip: Clip, speech: SpeechEncoder) -> MotionClip:
    """Measure a clip with audio and blendshapes and synchronise both."""
    ahead = speech.lookahead_frames
    inputs = _inputs(clip, speech)
    codes = torch.from_numpy(motion_codes(clip)).float()
    shapes = torch.from_numpy(clip.blendshapes[:, 25:49]).float()
    late = clip.lips_late if abs(clip.lips_late) <= MAX_SHIFT else 0
    count = len(codes) - abs(late)
    first_heard, first_seen = max(0, -late), max(0, late)
    codes, shapes = (x[first_seen : first_seen + count] for x in (codes, shapes))
    blinks = blink_onsets(codes[:, SHUT].numpy())
    return MotionClip(
        clip.name,
        inputs[first_heard : first_heard + count + ahead],
        codes,
        shapes,
        blinks,
        _style(codes, clip, blinks),
        _lip_weight(clip, codes),
        clip.kind == "real",
        clip.is_grid,
    )


@torch.no_grad()
def _inputs(clip: Clip, speech: SpeechEncoder) -> Tensor:
    """Return normalised log-mel `(T + L, 4 M)` of a clip followed by L frames of silence."""
    tail = np.zeros(speech.lookahead_frames * SAMPLES_PER_FRAME, np.float32)
    pcm = torch.from_numpy(np.concatenate([clip.pcm, tail]))[None]
    out = speech.normalize(speech.mel(pcm))[0]
    assert len(out) * MEL_PER_FRAME == len(pcm[0]) // 160, out.shape
    return out


def rest_points(clip: Clip) -> Tensor:
    """Return the landmarks of a clip at rest, `(L, 2)`: the mean of its most closed frames."""
    opening = mouth_opening(clip.points)
    threshold = np.percentile(opening, REST_PERCENTILE)
    return torch.from_numpy(clip.points[opening <= threshold].mean(0))


def motion_codes(clip: Clip) -> np.ndarray:
    """Return the motion code of each frame of a clip relative to the face at rest, `(T, D)`."""
    points = clip.points
    rest = rest_points(clip)
    out = np.zeros((len(points), NUM_MOTION), np.float32)
    lips = lip_values(torch.from_numpy(points), rest).numpy()
    lips[:, GAPS] -= np.minimum(np.quantile(lips[:, GAPS], _REST_SHARE, axis=0), REST_GAP)
    out[:, LIPS][:, : lips.shape[1]] = lips
    out[:, HEAD] = _head(points, clip.pose)
    out[:, channel("gaze_x") : channel("gaze_y") + 1] = _gaze(points)
    opening = eye_openings(points).mean(1)
    open_eyes = max(1e-3, float(np.percentile(opening, _OPEN_PERCENTILE)))
    out[:, SHUT] = np.clip(1 - opening / open_eyes, _LEAST_SHUT, _MOST_SHUT)
    for name, shapes in BLENDSHAPES.items():
        value = clip.blendshapes[:, list(shapes)].mean(1)
        level = np.percentile(value, 20) if name == "pucker" else np.median(value)
        out[:, channel(name)] = value - level
    return out


def _head(points: np.ndarray, pose: np.ndarray | None) -> np.ndarray:
    """Return the head pose in each frame about its median, `(T, 6)`."""
    assert pose is not None, "head poses are needed"
    usual = HeadShape.of(np.median(points, 0))
    poses = np.stack([usual.pose(p) for p in points])
    turned = head_angles(pose)
    poses[:, :3] = turned - np.median(turned, 0)
    poses[:, 3:] -= np.median(poses[:, 3:], 0)
    return _smoothed(poses).clip(-1, 1)


def _smoothed(poses: np.ndarray) -> np.ndarray:
    """Return poses `(T, 6)` without the noise of the tracker.

    Heads are heavy: what a tracker reads from one frame to the next is mostly its own noise, and it
    will read that of our frames, too. A denoiser that had learned it would tremble twice as much.
    """
    padded = np.pad(poses, ((1, 1), (0, 0)), mode="edge")
    return 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]


def _gaze(points: np.ndarray) -> np.ndarray:
    """Return the offset of the irises from their median in eyes that are level, `(T, 2)`."""
    sizes = np.linalg.norm(points[:, _CORNERS[0][0]] - points[:, _CORNERS[1][0]], axis=-1)
    along = (points[:, _CORNERS[1][0]] - points[:, _CORNERS[0][0]]) / sizes[:, None]
    down = np.stack([-along[:, 1], along[:, 0]], 1)
    offsets = [
        points[:, iris].mean(1) - points[:, corners].mean(1)
        for iris, corners in zip(_IRIS_POINTS, _CORNERS, strict=True)
    ]
    offset = np.mean(offsets, 0) / sizes[:, None]
    gaze = np.stack([(offset * along).sum(1), (offset * down).sum(1)], 1)
    return np.asarray(gaze - np.median(gaze, 0))


def blink_onsets(shut: np.ndarray) -> list[int]:
    """Return the first frames of the blinks in a course of `shut`, `(T,)`.

    Lids that close and open again within a third of a second blink; those that stay low look down.
    """
    onsets: list[int] = []
    for peak in range(1, len(shut) - 1):
        around = shut[max(0, peak - _CLOSING_FRAMES) : peak + _OPENING_FRAMES]
        if shut[peak] < _BLINK_SHUT or shut[peak] < around.max():
            continue
        before, after = shut[max(0, peak - _CLOSING_FRAMES) : peak], shut[peak + 1 :]
        rise = shut[peak] - before.min()
        if rise < _BLINK_RISE or shut[peak] - after[:_OPENING_FRAMES].min() < _BLINK_RISE:
            continue
        closing = np.flatnonzero(before > shut[peak] - 0.85 * rise)
        onset = peak if not len(closing) else peak - len(before) + int(closing[0])
        if not onsets or onset - onsets[-1] > _CLOSING_FRAMES:
            onsets.append(onset)
    return onsets


def _lip_weight(clip: Clip, codes: Tensor) -> float:
    sync = DEFAULT_SYNC if np.isnan(clip.sync) else clip.sync
    if not clip.has_audio or codes[:, 0].std() < MIN_OPENING_STD or sync < MIN_SYNC:
        return 0.0
    return (2.0 if clip.kind == "real" else 1.0) * max(0.2, sync)


def _style(codes: Tensor, clip: Clip, blinks: Sequence[int]) -> Tensor:
    """Return the style of a clip, `(S,)`; see `STYLE_NAMES`."""
    shapes = clip.blendshapes
    lively = codes[:, HEAD][:, :3].diff(dim=0).abs().mean()
    brows = codes[:, channel("brow_inner")].diff().abs().mean()
    style = [
        float(shapes[:, 44:46].mean()),
        float(shapes[:, 3:6].mean() - shapes[:, 1:3].mean()),
        float(lively.clamp(min=1e-5).log()),
        float(brows.clamp(min=1e-5).log()),
        float(codes[:, 0].quantile(0.9)),
        len(blinks) / len(codes) * FPS * 60,
    ]
    assert len(style) == NUM_STYLE == len(STYLE_NAMES)
    return torch.tensor(style)
