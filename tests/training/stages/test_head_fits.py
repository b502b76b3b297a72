"""The fits that turn landmarks into head poses, on heads whose turns and depth are known."""

import numpy as np
import pytest

from letstalk_rt.errors import InputError
from letstalk_rt.models.face.head_pose import average_head as packaged_head
from letstalk_rt.models.face.head_pose import in_face_sizes, rotation, with_level_eyes
from letstalk_rt.models.geometry.landmarks import LEFT_LID, RIGHT_LID, SUBSET
from letstalk_rt.training.data.dataset import Clip
from letstalk_rt.training.stages import head_fits
from letstalk_rt.training.stages.head_fits import FRAME_STRIDE, fit_reading

DOWN = np.diag([1.0, -1.0, -1.0])


def turning_clip(name: str, turns: np.ndarray, open_eyes: np.ndarray | None = None) -> Clip:
    """Return a clip of the packaged average head in turns `(T, 3)`; its eyes may close."""
    head = packaged_head()
    pose = np.repeat(np.eye(4)[None], len(turns), 0)
    pose[:, 2, 3] = -50  # cm from the camera
    landmarks = np.zeros((len(turns), 478, 2), np.float32)
    for index, turn in enumerate(turns):
        pose[index, :3, :3] = DOWN @ rotation(turn) @ DOWN
        points = head.shown(np.array([*turn, 0, 0, 0]))
        for upper, lower, *_ in (RIGHT_LID, LEFT_LID) if open_eyes is not None else ():
            points[upper] += (1 - open_eyes[index]) * (points[lower] - points[upper])
        landmarks[index, SUBSET] = (points + 1) * 128
    return Clip(
        name=name,
        kind="real",
        frames=np.zeros((len(turns), 256, 256, 3), np.uint8),
        landmarks=landmarks,
        blendshapes=np.zeros((len(turns), 52), np.float32),
        pcm=np.zeros(len(turns) * 640, np.float32),
        has_audio=False,
        pose=pose,
    )


@pytest.fixture
def clips() -> list[Clip]:
    rng = np.random.default_rng(0)
    return [turning_clip(name, rng.uniform(-0.3, 0.3, (90, 3))) for name in ("anna", "bert")]


def tracks_of(clips: list[Clip]) -> list[np.ndarray]:
    return [in_face_sizes(clip.points[::FRAME_STRIDE]) for clip in clips]


def test_a_linear_relation_is_found_whatever_each_face_is_like_at_rest():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(2, 5, 2))
    tracks = [rng.normal(size=(200, 5, 2)) for _ in range(3)]
    targets = [np.tensordot(t, true, [(1, 2), (1, 2)]) for t in tracks]
    moved = [track + 10 * k for k, track in enumerate(tracks)]
    found = fit_reading(moved, targets, [np.ones(200)] * 3)
    np.testing.assert_allclose(found, true, atol=0.02)


def test_the_average_head_has_the_depth_by_which_landmarks_move(clips):
    head, found = packaged_head(), head_fits.average_head(clips)
    towards_camera = -head.points[:, 2] / head.size
    depth = found[:, 2] - found[head.rigid, 2].mean()
    np.testing.assert_allclose(depth, towards_camera, atol=0.05)
    shown = found[:, :2] - found[head.rigid, :2].mean(0)
    assert np.abs(shown - head.points[:, :2]).max() < 0.1 * head.size


def test_heads_that_all_look_away_are_refused():
    turned = turning_clip("anna", np.tile([0.5, 0.0, 0.0], (30, 1)))
    with pytest.raises(InputError, match="from the front"):
        head_fits.average_head([turned])


def test_turns_are_read_from_landmarks(clips):
    turns = head_fits.fit_head_turns(clips, tracks_of(clips))
    rest, turned = packaged_head(), np.array([0.15, -0.1, 0.05])
    points = [rest.shown(np.array([*turn, 0, 0, 0])) for turn in (np.zeros(3), turned)]
    moved = in_face_sizes(points[1]) - in_face_sizes(points[0])
    np.testing.assert_allclose(np.tensordot(turns, moved, 2), turned, atol=0.02)


def test_closed_eyes_are_read_from_landmarks_of_a_head_that_turns():
    rng = np.random.default_rng(0)
    lids = np.where(rng.random(120) < 0.2, 0.0, 1.0)
    clip = turning_clip("anna", rng.uniform(-0.2, 0.2, (120, 3)), lids)
    (track,) = tracks_of([clip])
    reading = head_fits.fit_eye_openings([clip], [track])
    opening = np.array([(reading * with_level_eyes(points)).sum() for points in track])
    opening -= np.median(opening)
    closed = lids[::FRAME_STRIDE] == 0
    assert opening[closed].max() < -0.8 and np.abs(opening[~closed]).max() < 0.2
