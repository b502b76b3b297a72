"""How a head is turned: a rigid motion of landmarks in space, seen from far away.

Landmarks in an image have no depth, but an average face has, and heads differ little in it. So the
pose of a head relative to another view of the same head follows from both views: the first one with
the depth of an average face is a solid, which is turned until its image is the second one.

The average head and two regressions are fitted to the clips that the model was trained on, by
`letstalk_rt.training.stages.head_fits`.

Source: pose from a scaled orthographic projection: Tomasi and Kanade 1992, doi:10.1007/BF00129684.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from letstalk_rt.models.geometry.landmarks import EYES, IRISES, LIPS, landmark_indices

NUM_POSE = 6
"""Values of a pose: yaw, pitch and roll in radians; position x and y in face sizes; and the
logarithm of the scale. Yaw turns to the image's right, pitch down, roll clockwise; y grows down."""

AVERAGE_HEAD = Path(__file__).parent.parent.parent / "weights" / "average_head.npy"
"""Landmarks of an average face from the front, over half the side of its crop, and their depth
towards the camera in face sizes: `(L, 3)`."""

HEAD_TURNS = AVERAGE_HEAD.with_name("head_turns.npy")
"""Yaw, pitch and roll by one unit of each landmark, `(3, L, 2)`: a regression from landmarks of the
encoder, in sizes of the face, to measured head poses."""

EYE_OPENINGS = AVERAGE_HEAD.with_name("eye_openings.npy")
"""Opening of the eyes by one unit of each landmark, `(L, 2)`: a regression likewise, from landmarks
in sizes of the face with the eyes level."""

_EYE_CORNERS = landmark_indices((33, 263))
_SOFT = np.array(EYES + landmark_indices(IRISES) + LIPS)


@dataclass(frozen=True)
class HeadShape:
    """A head as a solid: landmarks relative to its pivot, the middle of those that are rigid.

    Attributes:
        points: `(L, 3)` in units of the image; x right, y down, z away from the camera.
        centre: the pivot in the image, `(2,)`.
        rigid: which landmarks speech does not move, `(L,)` bool.
        size: the size of the face, in units of the image.
    """

    points: np.ndarray
    centre: np.ndarray
    rigid: np.ndarray
    size: float

    @classmethod
    def of(cls, points: np.ndarray) -> "HeadShape":
        """Return the shape of the head whose landmarks in an image are `(L, 2)`."""
        front = average_head()
        turn, _, _ = front.view(points)
        turned = front.points @ turn.T / front.size
        return _solid(points, turned[:, 2])

    def view(self, points: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
        """Return how the head is seen in landmarks `(L, 2)`: rotation `(3, 3)`, scale, centre."""
        base = self.points[self.rigid]
        seen = points[self.rigid].astype(np.float64)
        centre = seen.mean(0)
        affine = np.linalg.lstsq(base, seen - centre, rcond=None)[0].T  # (2, 3)
        left, sizes, right = np.linalg.svd(affine, full_matrices=False)
        rows = left @ right
        turn = np.stack([rows[0], rows[1], np.cross(rows[0], rows[1])])
        return turn, float(sizes.mean()), centre

    def pose(self, points: np.ndarray) -> np.ndarray:
        """Return the pose in which landmarks `(L, 2)` show the head, `(6,)`."""
        turn, scale, centre = self.view(points)
        moved = (centre - self.centre) / self.size
        return np.concatenate([angles(turn), moved, [np.log(max(scale, 1e-6))]])

    def shown(self, pose: np.ndarray) -> np.ndarray:
        """Return the landmarks of the head in a pose, `(L, 2)`."""
        turned = self.points @ rotation(pose[:3]).T
        shown = np.exp(pose[5]) * turned[:, :2] + self.centre + self.size * pose[3:5]
        return np.asarray(shown)

    def unposed(self, points: np.ndarray, pose: np.ndarray) -> np.ndarray:
        """Return landmarks `(L, 2)` as they would be without the pose; what is soft has moved."""
        moved = (points - self.shown(pose)) / np.exp(pose[5])
        flat = rotation(pose[:3])[:2, :2]
        back = self.points[:, :2] + self.centre + moved @ np.linalg.inv(flat).T
        return np.asarray(back)


@functools.cache
def average_head() -> HeadShape:
    """Return the average head, from the front."""
    stored = np.load(AVERAGE_HEAD)
    return _solid(stored[:, :2], -stored[:, 2])


@functools.cache
def head_turns() -> np.ndarray:
    """Return the regression from landmarks to angles, `(3, L, 2)`; see `HEAD_TURNS`."""
    return np.asarray(np.load(HEAD_TURNS), np.float64)


def turn_between(rest: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return by which yaw, pitch and roll a head has turned from one view to another, `(3,)`.

    Landmarks that a network reads stay behind the head: of a nod they show half. The regression
    knows that, and all landmarks together have less noise than the pose of a solid.

    Args:
        rest: landmarks of the first view, `(L, 2)`.
        points: of the second.
    """
    moved = in_face_sizes(points) - in_face_sizes(rest)
    return np.asarray(np.tensordot(head_turns(), moved, 2))


@functools.cache
def _eye_openings() -> np.ndarray:
    return np.asarray(np.load(EYE_OPENINGS), np.float64)


def opened_between(rest: np.ndarray, points: np.ndarray) -> float:
    """Return by how much the eyes have opened from one view of a face to another.

    Args:
        rest: landmarks of the first view, `(L, 2)`.
        points: of the second.

    Returns:
        The change of the opening over that of open eyes: -1 for eyes that have closed.
    """
    moved = with_level_eyes(in_face_sizes(points)) - with_level_eyes(in_face_sizes(rest))
    return float((_eye_openings() * moved).sum())


def with_level_eyes(points: np.ndarray) -> np.ndarray:
    """Return landmarks `(L, 2)` turned so that the eyes are level."""
    x, y = points[_EYE_CORNERS[1]] - points[_EYE_CORNERS[0]]
    cos, sin = np.array([x, y]) / max(1e-6, float(np.hypot(x, y)))
    return np.asarray(points @ np.array([[cos, -sin], [sin, cos]]))


def in_face_sizes(points: np.ndarray) -> np.ndarray:
    """Return landmarks `(..., L, 2)` from the middle of the rigid ones, in their deviations."""
    points = np.asarray(points, np.float64)
    rigid = points[..., average_head().rigid, :]
    centre = rigid.mean(-2, keepdims=True)
    size = np.sqrt(((rigid - centre) ** 2).sum(-1).mean(-1))
    return np.asarray((points - centre) / np.maximum(size, 1e-6)[..., None, None])


def _solid(points: np.ndarray, depth: np.ndarray) -> HeadShape:
    """Return the shape of landmarks `(L, 2)` with their depth away from the camera, face sizes."""
    points = points.astype(np.float64)
    rigid = points[:, 1] <= points[LIPS, 1].min()
    rigid[_SOFT] = False
    if rigid.sum() < 4:  # not a face
        rigid = np.ones(len(points), bool)
    centre = points[rigid].mean(0)
    size = max(1e-6, float(np.sqrt(((points[rigid] - centre) ** 2).sum(1).mean())))
    z = size * (depth - depth[rigid].mean())
    return HeadShape(np.concatenate([points - centre, z[:, None]], 1), centre, rigid, size)


def rotation(yaw_pitch_roll: np.ndarray) -> np.ndarray:
    """Return the rotation by angles, `(3, 3)`: pitch first, then yaw, then roll."""
    yaw, pitch, roll = yaw_pitch_roll
    cos, sin = np.cos, np.sin
    about_x = np.array([[1, 0, 0], [0, cos(pitch), -sin(pitch)], [0, sin(pitch), cos(pitch)]])
    about_y = np.array([[cos(yaw), 0, -sin(yaw)], [0, 1, 0], [sin(yaw), 0, cos(yaw)]])
    about_z = np.array([[cos(roll), -sin(roll), 0], [sin(roll), cos(roll), 0], [0, 0, 1]])
    return np.asarray(about_z @ about_y @ about_x)


def angles(turned: np.ndarray) -> np.ndarray:
    """Return yaw, pitch and roll of a rotation, the inverse of `rotation`."""
    yaw = np.arcsin(np.clip(turned[2, 0], -1, 1))
    pitch = np.arctan2(turned[2, 1], turned[2, 2])
    roll = np.arctan2(turned[1, 0], turned[0, 0])
    return np.array([yaw, pitch, roll])


def head_angles(pose: np.ndarray) -> np.ndarray:
    """Return yaw, pitch and roll `(T, 3)` of poses `(T, 4, 4)` with y up and z to the camera."""
    down = np.diag([1.0, -1.0, -1.0])
    return np.stack([angles(down @ matrix[:3, :3] @ down) for matrix in pose])
