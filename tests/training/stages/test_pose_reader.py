"""Training data of the pose reader, and its training."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.mouths import mesh

from letstalk_rt.errors import InputError
from letstalk_rt.models.face.head_pose import average_head, head_angles, rotation
from letstalk_rt.training.data.dataset import Clip
from letstalk_rt.training.data.pose_crops import PoseCropSource
from letstalk_rt.training.loop import LoopConfig
from letstalk_rt.training.stages.pose_reader import train_pose_reader, turn_correlations

FRAMES, NOSE, DEPTH_PX = 12, 9, 95
DOWN = np.diag([1.0, -1.0, -1.0])


def nodding_clip(name, seed):
    """A clip of a still outline in which a bright nose moves with yaw and pitch."""
    rng = np.random.default_rng(seed)
    turns = rng.uniform(-0.25, 0.25, (FRAMES, 2))
    points = torch.from_numpy(average_head().points[:, :2] * 75 + 128).float()
    frames, poses = np.full((FRAMES, 256, 256, 3), 60, np.uint8), np.zeros((FRAMES, 4, 4))
    x, y = points.mean(0).int().tolist()
    for frame, pose, (yaw, pitch) in zip(frames, poses, turns, strict=True):
        frame[y - 60 : y + 60, x - 45 : x + 45] = 110 + 5 * seed
        row, column = int(y + DEPTH_PX * pitch), int(x + DEPTH_PX * yaw)
        frame[row - NOSE : row + NOSE, column - NOSE : column + NOSE] = 230
        pose[:3, :3] = DOWN @ rotation(np.array([yaw, pitch, 0.0])) @ DOWN
    return Clip(
        name, "real", frames, mesh(points[None].repeat(FRAMES, 1, 1)),
        np.zeros((FRAMES, 52), np.float32), np.zeros(640 * FRAMES, np.float32), has_audio=False,
        pose=poses,
    )  # fmt: skip


@pytest.fixture(scope="module")
def clips():
    return [nodding_clip(f"person{i}-1", i) for i in range(7)]


def test_angles_of_measured_poses_are_those_of_the_head():
    turn = np.array([0.2, -0.1, 0.05])
    pose = np.eye(4)[None].copy()
    pose[0, :3, :3] = DOWN @ rotation(turn) @ DOWN
    np.testing.assert_allclose(head_angles(pose)[0], turn, atol=1e-9)


def test_the_nose_is_where_the_turn_puts_it_however_a_crop_is_changed(clips):
    batch = PoseCropSource(clips, None).draw(12, 8, 0, np.random.default_rng(1))
    spots = F.avg_pool2d(batch.images, 7, 1)[:, 0]
    at = spots.flatten(1).argmax(1)
    seen = torch.stack([at % spots.shape[-1], at // spots.shape[-1]], -1).float()
    true = batch.turns.view(-1, 2)
    for which in (0, 1):
        assert np.corrcoef(seen[:, which], true[:, which])[0, 1] > 0.8


def test_clips_without_head_poses_are_named(clips):
    with pytest.raises(InputError, match="no clip has head poses"):
        PoseCropSource([replace(clip, pose=None) for clip in clips], None)


def test_training_learns_to_follow_heads(clips, tmp_path):
    config = LoopConfig(steps=60, learning_rate=4e-3, warm_up=5, ema=0.8, evaluate_every=1000)
    trained = train_pose_reader(clips, None, tmp_path, config, batch_size=3)
    figures = turn_correlations(trained, PoseCropSource(clips, None))
    assert figures["yaw_r"] > 0.8 and figures["pitch_r"] > 0.8
