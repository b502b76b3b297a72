import pytest
import torch

from letstalk_rt.errors import ConfigError
from letstalk_rt.models.sampler import sample, timesteps


@pytest.mark.parametrize("num_steps", [1, 2, 4])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_timesteps_run_from_noise_to_data(num_steps, shift):
    times = timesteps(num_steps, shift)
    assert len(times) == num_steps + 1
    assert (times[0], times[-1]) == (1.0, 0.0)
    assert times == sorted(times, reverse=True)


def test_a_shift_spends_more_steps_near_the_noise():
    assert timesteps(2) == [1.0, 0.5, 0.0]
    assert timesteps(2, 3.0)[1] == pytest.approx(0.75)  # 3 * 0.5 / (1 + 2 * 0.5)


@pytest.mark.parametrize("num_steps, shift", [(0, 1.0), (4, 0.0)])
def test_bad_settings_are_named(num_steps, shift):
    with pytest.raises(ConfigError, match="must be"):
        timesteps(num_steps, shift)


@pytest.mark.parametrize("num_steps", [1, 3])
def test_a_straight_path_is_exact_at_any_number_of_steps(num_steps):
    noise, data = torch.randn(1, 2, 3, 4, 4), torch.randn(1, 2, 3, 4, 4)
    out = sample(lambda x, t: noise - data, noise, timesteps(num_steps))
    torch.testing.assert_close(out, data)


def test_the_model_is_called_once_a_step_at_the_time_it_stands_at():
    seen = []

    def velocity(x, t):
        seen.append((x.item(), t))
        return torch.ones_like(x)

    out = sample(velocity, torch.full((1, 1, 1, 1, 1), 5.0), [1.0, 0.5, 0.0])
    assert seen == [(5.0, 1.0), (4.5, 0.5)] and out.item() == 4.0


def test_the_noise_is_left_as_it_was():
    noise = torch.ones(1, 1, 1, 1, 1)
    sample(lambda x, t: x, noise, timesteps(3))
    assert noise.item() == 1.0
