"""What the denoiser is told of the rest of a filmed face."""

import pytest
import torch
from support.small_model import DENOISER, face_points, open_mouth, stir

from letstalk_rt.errors import ConfigError, InputError
from letstalk_rt.models.denoiser import Denoiser
from letstalk_rt.models.geometry.landmarks import EYES, LIPS, REST
from letstalk_rt.models.landmark_condition import LandmarkBranch, rest_of_face


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    return {
        "x": torch.randn(1, DENOISER.window, 24, 4, 4),
        "t": torch.ones(1, DENOISER.window),
        "tokens": torch.randn(1, DENOISER.window, 4, DENOISER.audio_width),
        "memory": torch.randn(1, 1 + DENOISER.memory, 24, 4, 4),
        "filled": torch.ones(1, 1 + DENOISER.memory, dtype=torch.bool),
    }


def made(*, told=True):
    torch.manual_seed(0)
    denoiser = Denoiser(DENOISER)
    if told:
        denoiser.landmarks = branch()
    stir(denoiser)
    return denoiser.eval().requires_grad_(False)


def branch():
    return LandmarkBranch(DENOISER.width, DENOISER.side)


def run(denoiser, inputs, rest=None):
    portrait = denoiser.portrait_state(torch.ones(1, 24, 4, 4))
    return denoiser(**inputs, portrait=portrait, rest=rest)


def test_without_the_condition_nothing_is_added(inputs):
    with_branch, without = made(), made(told=False)
    without.load_state_dict(
        {k: v for k, v in with_branch.state_dict().items() if not k.startswith("landmarks.")}
    )
    assert torch.equal(run(with_branch, inputs), run(without, inputs))


def test_a_new_branch_changes_nothing_and_a_trained_one_does(inputs):
    denoiser = made()
    rest = 0.1 * torch.randn(1, DENOISER.window, len(REST), 2)
    assert not torch.equal(run(denoiser, inputs, rest), run(denoiser, inputs))
    denoiser.landmarks = branch()
    assert torch.equal(run(denoiser, inputs, rest), run(denoiser, inputs))


def test_what_cannot_be_used_is_refused(inputs):
    rest = torch.zeros(1, DENOISER.window, len(REST), 2)
    with pytest.raises(ConfigError, match="add denoiser.landmarks"):
        run(made(told=False), inputs, rest)
    with pytest.raises(InputError, match="rest"):
        run(made(), inputs, rest[:, 1:])


def test_the_mouth_is_masked_and_sizes_do_not_count():
    points = face_points()
    moved = points.clone()
    moved[EYES] += 0.05
    told = rest_of_face(moved[None, None], points[None])
    assert told.any() and not set(REST) & set(LIPS)
    spoken = open_mouth(moved, 0.5)
    spoken[LIPS] += 0.1
    assert torch.equal(rest_of_face(spoken[None, None], points[None]), told)
    half = rest_of_face(moved[None, None] / 2, points[None] / 2)
    torch.testing.assert_close(half, told)
