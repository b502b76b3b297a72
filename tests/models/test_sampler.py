import math

import pytest
import torch

from letstalk_rt.errors import ConfigError
from letstalk_rt.models.sampler import NoiseState, sample, sample_mean, timesteps


@pytest.mark.parametrize("num_steps, shift", [(1, 1.0), (4, 3.0)])
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


def test_the_model_is_called_once_per_step_at_its_time():
    seen = []

    def velocity(x, t):
        seen.append((x.item(), t))
        return torch.ones_like(x)

    out = sample(velocity, torch.full((1, 1, 1, 1, 1), 5.0), [1.0, 0.5, 0.0])
    assert seen == [(5.0, 1.0), (4.5, 0.5)] and out.item() == 4.0


def test_the_noise_is_not_changed():
    noise = torch.ones(1, 1, 1, 1, 1)
    sample(lambda x, t: x, noise, timesteps(3))
    assert noise.item() == 1.0


class TestNoise:
    def draws(self, frames, correlation=0.9, temperature=1.0, seed=0):
        return NoiseState(seed, torch.zeros(1, 24, 4, 4)).draw(frames, correlation, temperature)

    def test_each_frame_is_unit_noise_that_follows_the_last(self):
        noise = self.draws(400)[0].flatten(1)
        assert noise.std().item() == pytest.approx(1, abs=0.05)
        between = (noise[1:] * noise[:-1]).mean() / noise.pow(2).mean()
        assert between.item() == pytest.approx(0.9, abs=0.02)

    def test_chunks_equal_the_whole(self):
        state = NoiseState(0, torch.zeros(1, 24, 4, 4))
        pieces = torch.cat([state.draw(n, 0.9, 1.0) for n in (1, 3, 4)], 1)
        assert torch.equal(pieces, self.draws(8))

    def test_reset_equals_new_in_place(self):
        state = NoiseState(7, torch.zeros(1, 24, 4, 4))
        address = state.latest.data_ptr()
        first = state.draw(4, 0.9, 1.0)
        state.reset()
        assert torch.equal(state.draw(4, 0.9, 1.0), first) and state.latest.data_ptr() == address

    def test_temperature_scales_and_the_seed_decides(self):
        assert torch.equal(self.draws(2, temperature=0.5), 0.5 * self.draws(2))
        assert not torch.equal(self.draws(2, seed=1), self.draws(2))


def test_heun_is_of_second_order():
    """dx/dt = -x from 1 to 0 multiplies by e: halving the step divides the error by four."""
    noise = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
    errors = [
        abs(sample(lambda x, t: -x, noise, timesteps(n), "heun").item() - math.e) for n in (8, 16)
    ]
    # The last step is Euler's, as in the source: it saves a call where the flow is straight.
    assert errors[0] / errors[1] > 3
    assert errors[1] < abs(sample(lambda x, t: -x, noise, timesteps(16)).item() - math.e) / 4


def test_heun_calls_the_model_twice_but_once_for_the_last_step():
    seen = []

    def velocity(x, t):
        seen.append(t)
        return torch.ones_like(x)

    sample(velocity, torch.zeros(1, 1, 1, 1, 1), timesteps(2), "heun")
    assert seen == [1.0, 0.5, 0.5]


def test_an_unknown_method_is_named():
    with pytest.raises(ConfigError, match="unknown sampler 'rk4'; known: euler, heun"):
        sample(lambda x, t: x, torch.zeros(1, 1, 1, 1, 1), timesteps(1), "rk4")


@pytest.mark.parametrize("steps", [1, 4])
def test_mean_velocities_are_exact_at_any_number_of_steps(steps):
    """dx/dt = 2 t moves a point by t^2 - r^2: a curved path, whose mean velocity is t + r."""
    noise = torch.randn(1, 2, 3, 4, 4)
    out = sample_mean(lambda x, t, r: torch.full_like(x, t + r), noise, timesteps(steps))
    torch.testing.assert_close(out, noise - 1)
