"""The critic: it looks where it should, learns to tell, and its state survives a stop."""

import pytest
import torch

from letstalk_rt.models.geometry.landmarks import EYES, LIPS, NUM_LANDMARKS
from letstalk_rt.training.critic import REGION_SIZE, Critic, face_regions


@pytest.fixture
def points():
    points = torch.zeros(2, NUM_LANDMARKS, 2)
    turn = torch.linspace(0, 6.28, len(LIPS))
    points[:, LIPS] = torch.stack([0.2 * turn.cos(), 0.4 + 0.08 * turn.sin()], -1)
    turn = torch.linspace(0, 6.28, len(EYES))
    points[:, EYES] = torch.stack([0.3 * turn.cos(), -0.2 + 0.05 * turn.sin()], -1)
    return points


def test_cuts_show_mouths_then_eyes(points):
    pictures = torch.zeros(2, 3, 256, 256)
    pictures[:, 0, 170:190, 120:136] = 1  # the mouth's centre lies at (128, 179)
    pictures[:, 1, 95:110, 120:136] = 1  # the eyes' at (128, 102)
    cut = face_regions(pictures, points)
    assert cut.shape == (4, 3, REGION_SIZE, REGION_SIZE)
    middle = cut[:, :, 30:34, 30:34].mean((2, 3))
    torch.testing.assert_close(middle[:2, 0], torch.ones(2))
    torch.testing.assert_close(middle[2:, 1], torch.ones(2))
    assert not middle[:2, 1].any() and not middle[2:, 0].any()


def test_it_learns_to_tell_and_says_what_to_change():
    torch.manual_seed(0)
    critic = Critic(torch.device("cpu"), learning_rate=2e-3)
    true, made = torch.randn(8, 3, 64, 64).clamp(-1, 1), torch.zeros(8, 3, 64, 64)
    first = critic.learn(made, true)
    for _ in range(15):
        last = critic.learn(made, true)
    assert last < first
    wanted = made.clone().requires_grad_(True)
    real, features = critic.judge(wanted, true)
    (real + features).backward()
    assert wanted.grad is not None and wanted.grad.abs().sum() > 0
    assert all(p.grad is None or not p.requires_grad for p in critic.model.parameters())
    assert critic.judge(true, true)[1] == 0


def test_its_state_goes_on():
    torch.manual_seed(0)
    first = Critic(torch.device("cpu"))
    true, made = torch.rand(4, 3, 64, 64), torch.zeros(4, 3, 64, 64)
    first.learn(made, true)
    second = Critic(torch.device("cpu"))
    second.load_state_dict(first.state_dict())
    assert first.learn(made, true) == pytest.approx(second.learn(made, true))
