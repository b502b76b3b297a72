"""Fits what turns landmarks into head poses: an average head, and two regressions.

A camera is read by landmarks. How far a head has turned and an eye has opened follow from them by
two regressions; the solid that shows a portrait turned is an average head. All three are fitted to
filmed clips. To make such files as are packaged:

    python -m letstalk_rt.training.stages.head_fits --data DATA
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from letstalk_rt.errors import InputError
from letstalk_rt.models.face.face_tracker import EncoderReader
from letstalk_rt.models.face.head_motion import face_size, rigid_landmarks
from letstalk_rt.models.face.head_pose import (
    AVERAGE_HEAD,
    EYE_OPENINGS,
    HEAD_TURNS,
    head_angles,
    in_face_sizes,
    with_level_eyes,
)
from letstalk_rt.models.geometry.landmarks import SUBSET, eye_openings
from letstalk_rt.models.loading import load_model
from letstalk_rt.training.data.dataset import Clip, load_clips

FRAME_STRIDE = 3
"""Every how many frames one is read."""

_RIDGE = 1e-4  # per frame
_FRONTAL = np.radians(8)  # yaw and pitch up to which a head counts as seen from the front
_CLOSED, _CLOSED_WEIGHT = -0.5, 4.0  # opening below which a frame counts for more, as it is rare
_BATCH = 16


def average_head(clips: Sequence[Clip]) -> np.ndarray:
    """Return landmarks of an average face from the front, and their depth: `(L, 3)`.

    Places are over half the side of the crop, depths in face sizes.

    Args:
        clips: clips with head poses.
    """
    fronts = []
    for clip in clips:
        assert clip.pose is not None
        turned = np.abs(head_angles(clip.pose)[:, :2]).max(1)
        if (frontal := turned < _FRONTAL).any():
            fronts.append(clip.points[frontal].mean(0))
    if not fronts:
        raise InputError("no clip shows a head from the front; add clips of people who look ahead")
    return np.concatenate([np.mean(fronts, 0), fit_depth(clips)[:, None]], 1).astype(np.float32)


def fit_depth(clips: Sequence[Clip]) -> np.ndarray:
    """Return the depth of each landmark of an average face, `(L,)`, in face sizes.

    A head that turns by known angles moves its landmarks sideways by their depth. Each clip gives
    an estimate by least squares, which counts by how far its head turns.
    """
    depths, weights = [], []
    for clip in clips:
        assert clip.pose is not None
        shape, turning = _shape_of(clip.points[::2] * [1, -1], clip.pose[::2])
        size = float(face_size(torch.from_numpy(shape[:, :2] * [1, -1]).float()))
        depths.append(shape[:, 2] / size)
        weights.append(turning)
    return np.asarray(np.average(depths, 0, weights))


def _shape_of(points: np.ndarray, pose: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the shape `(L, 3)` of a head, y up, z to the camera, and how far it turns.

    Args:
        points: landmarks `(T, L, 2)`, y up.
        pose: `(T, 4, 4)`, from the head to the camera.
    """
    scale = 1 / np.maximum(-pose[:, 2, 3], 1e-3)
    scale = scale / np.median(scale)
    still = rigid_landmarks(torch.from_numpy(points.mean(0) * [1, -1])).numpy()
    seen = points - points[:, still].mean(1, keepdims=True)  # (T, L, 2)
    rows = (scale[:, None, None] * pose[:, :2, :3]).reshape(-1, 3)  # (2T, 3)
    ridge = 1e-3 * len(rows) * np.diag([0.0, 0.0, 1.0])
    flat = seen.transpose(0, 2, 1).reshape(len(rows), -1)
    shape = np.linalg.solve(rows.T @ rows + ridge, rows.T @ flat).T
    turning = float(pose[:, 0, 2].var() + pose[:, 1, 2].var())
    return shape - shape[still].mean(0), turning


@torch.inference_mode()
def read_landmarks(clip: Clip, reader: EncoderReader) -> np.ndarray:
    """Return the landmarks that a camera's reader sees in a clip, `(T', L, 2)`, in face sizes."""
    frames = torch.from_numpy(np.array(clip.frames[::FRAME_STRIDE])).permute(0, 3, 1, 2)
    parts = [reader(part.float() / 127.5 - 1).points for part in frames.split(_BATCH)]
    return in_face_sizes(torch.cat(parts).numpy())


def eye_opening_changes(clip: Clip) -> np.ndarray:
    """Return the change of the opening over that of open eyes, `(T', 1)`: -1 for closed ones."""
    openings = eye_openings(clip.landmarks[::FRAME_STRIDE, SUBSET]).mean(-1, keepdims=True)
    return np.asarray(openings / max(1e-3, float(np.median(openings))) - 1)


def fit_reading(
    tracks: Sequence[np.ndarray], targets: Sequence[np.ndarray], weights: Sequence[np.ndarray]
) -> np.ndarray:
    """Return the regression from landmarks to what they tell, `(D, L, 2)`.

    Landmarks and targets are relative to the rest of each clip, because faces differ at rest.

    Args:
        tracks: landmarks of each clip, `(T, L, 2)`.
        targets: what was measured in its frames, `(T, D)`.
        weights: of its frames, `(T,)`.
    """
    seen = np.concatenate([(t - np.median(t, 0)).reshape(len(t), -1) for t in tracks])
    wanted = np.concatenate([target - np.median(target, 0) for target in targets])
    weighted = seen * np.concatenate(weights)[:, None]
    ridge = _RIDGE * len(seen) * np.eye(seen.shape[1])
    solved = np.linalg.solve(weighted.T @ seen + ridge, weighted.T @ wanted)
    return np.asarray(solved.T.reshape(wanted.shape[1], *tracks[0].shape[1:]))


def fit_head_turns(clips: Sequence[Clip], tracks: Sequence[np.ndarray]) -> np.ndarray:
    """Return the regression to yaw, pitch and roll, `(3, L, 2)`.

    Args:
        clips: clips with head poses.
        tracks: from `read_landmarks`.
    """
    angles = [head_angles(clip.pose[::FRAME_STRIDE]) for clip in clips if clip.pose is not None]
    return fit_reading(tracks, angles, [np.ones(len(track)) for track in tracks])


def fit_eye_openings(clips: Sequence[Clip], tracks: Sequence[np.ndarray]) -> np.ndarray:
    """Return the regression to the opening of the eyes, `(L, 2)`; arguments as `fit_head_turns`."""
    levelled = [np.stack([with_level_eyes(points) for points in track]) for track in tracks]
    changes = [eye_opening_changes(clip) for clip in clips]
    weights = [np.where(change[:, 0] < _CLOSED, _CLOSED_WEIGHT, 1.0) for change in changes]
    return np.asarray(fit_reading(levelled, changes, weights)[0])


def main(argv: list[str] | None = None) -> int:
    """Fit all three and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="data folder")
    parser.add_argument("--cache", type=Path, default=Path("cache"), help="decoded frames")
    parser.add_argument("--weights", type=Path, help="weights file (default: the packaged one)")
    parser.add_argument("-o", "--output", type=Path, default=AVERAGE_HEAD.parent)
    args = parser.parse_args(argv)
    clips = [c for c in load_clips(args.data, args.cache, "train") if c.kind == "real"]
    clips = [clip for clip in clips if clip.pose is not None]
    if not clips:
        raise InputError("no filmed clip has head poses (`pose`): see docs/training.md")
    face = load_model("tiny", args.weights).face
    assert face is not None, "tiny has landmarks"
    reader = EncoderReader(face.autoencoder)
    tracks = [read_landmarks(clip, reader) for clip in clips]
    args.output.mkdir(parents=True, exist_ok=True)
    np.save(args.output / AVERAGE_HEAD.name, average_head(clips))
    np.save(args.output / HEAD_TURNS.name, fit_head_turns(clips, tracks).astype(np.float16))
    np.save(args.output / EYE_OPENINGS.name, fit_eye_openings(clips, tracks).astype(np.float16))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
