"""The diffusion chain: its tables, its loss, and that its samplers reach the true distribution."""

import math

import pytest
import torch

from letstalk_rt.errors import ConfigError, InputError
from letstalk_rt.models.memory import diffusion_sigma
from letstalk_rt.paper.diffusion import Diffusion, respaced_steps

MEAN, DEVIATION = 0.7, 0.3


def ideal(diffusion):
    """The perfect denoiser of independent normal values of MEAN and DEVIATION."""

    def predict(x, t):
        step = (t * 1000).round().long()
        alpha_bar = Diffusion().alpha_bar[step].float().view(-1, 1, 1, 1, 1)
        variance = alpha_bar * DEVIATION**2 + 1 - alpha_bar
        noise = (x - alpha_bar.sqrt() * MEAN) * (1 - alpha_bar).sqrt() / variance
        return torch.cat([noise, torch.zeros_like(x)], 2)

    return predict


class TestChain:
    def test_the_noise_of_early_steps_is_that_of_the_paper(self):
        sigma = (1 - Diffusion().alpha_bar).sqrt()
        wanted = {0: 0.010, 10: 0.047, 17: 0.070, 25: 0.095, 49: 0.170}
        assert {step: round(float(sigma[step]), 3) for step in wanted} == wanted

    def test_the_memory_is_noised_by_the_same_chain(self):
        steps = torch.arange(1000)
        torch.testing.assert_close(
            diffusion_sigma(steps), (1 - Diffusion().alpha_bar).sqrt().float()
        )

    def test_250_steps_are_spread_over_the_whole_chain(self):
        steps = respaced_steps(250)
        assert len(set(steps)) == 250 and steps[0] == 0 and steps[-1] == 999
        assert {b - a for a, b in zip(steps[:-1], steps[1:], strict=True)} == {4, 5}

    def test_all_steps_are_the_chain_itself(self):
        assert respaced_steps(1000) == list(range(1000))
        torch.testing.assert_close(
            Diffusion().betas, torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)
        )

    def test_kept_steps_have_the_noise_they_had(self):
        few, all_steps = Diffusion(10), Diffusion()
        torch.testing.assert_close(few.alpha_bar, all_steps.alpha_bar[few.steps])
        torch.testing.assert_close((1 - few.betas).cumprod(0), few.alpha_bar)

    def test_the_denoiser_is_told_the_time_of_the_full_chain(self):
        index = torch.tensor([0, 9])
        torch.testing.assert_close(Diffusion(10).times(index), torch.tensor([0.0, 0.999]))

    @pytest.mark.parametrize("count", [0, 1001])
    def test_a_count_out_of_range_is_refused(self, count):
        with pytest.raises(ConfigError, match=f"1 to 1000, got {count}"):
            Diffusion(count)


class TestPrediction:
    @pytest.mark.parametrize("mix, table", [(1.0, "betas"), (-1.0, "posterior")])
    def test_the_variance_runs_between_its_two_bounds(self, mix, table):
        chain, index = Diffusion(), torch.tensor([500])
        x = torch.randn(1, 1, 2, 1, 1)
        output = torch.cat([x, torch.full_like(x, mix)], 2)
        beta, before, here = (
            float(t[500]) for t in (chain.betas, chain.alpha_bar_before, chain.alpha_bar)
        )
        wanted = beta if table == "betas" else beta * (1 - before) / (1 - here)
        found = chain.predict(output, x, index).log_variance.exp()
        torch.testing.assert_close(found, torch.full_like(x, wanted), rtol=1e-4, atol=0)

    def test_true_noise_gives_the_data_back(self):
        chain, index = Diffusion(), torch.tensor([0, 400])
        data, noise = torch.randn(2, 2, 3, 2, 2), torch.randn(2, 2, 3, 2, 2)
        x = chain.add_noise(data, index, noise)
        guess = chain.predict(torch.cat([noise, noise], 2), x, index)
        torch.testing.assert_close(guess.data, data, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(guess.mean[0], data[0], atol=1e-3, rtol=1e-3)

    def test_the_mean_is_that_of_bayes(self):
        chain, step = Diffusion(), 300
        data, x = torch.tensor([0.4]), torch.tensor([-0.2])
        beta, before = float(chain.betas[step]), float(chain.alpha_bar_before[step])
        # Prior of the step before: N(sqrt(before) data, 1 - before); x given it: N(sqrt(1-b) ., b).
        precision = 1 / (1 - before) + (1 - beta) / beta
        wanted = (
            math.sqrt(before) * data / (1 - before) + math.sqrt(1 - beta) * x / beta
        ) / precision
        found = chain.mean_before(data, x, torch.tensor([step]))
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


class TestLoss:
    def loss(self, index, output_of):
        data = torch.full((2, 1, 2, 2, 2), 0.3)
        noise = torch.randn(data.shape, generator=torch.Generator().manual_seed(0))
        return Diffusion().loss(output_of(noise), data, torch.tensor(index), noise)

    def test_the_truth_has_no_loss(self):
        parts = self.loss(
            [700, 20], lambda noise: lambda x, t: torch.cat([noise, -torch.ones_like(x)], 2)
        )
        assert set(parts) == {"noise", "variance"}
        for part in parts.values():
            torch.testing.assert_close(part, torch.zeros(2), atol=1e-5, rtol=0)

    def test_the_last_step_is_judged_by_likelihood(self):
        parts = self.loss(
            [0, 0], lambda noise: lambda x, t: torch.cat([noise, -torch.ones_like(x)], 2)
        )
        # A normal at the data, of the smallest deviation, over a bin of half width 1/255.
        deviation = math.exp(0.5 * float(Diffusion().log_variance[0]))
        share = math.erf(1 / 255 / deviation / math.sqrt(2))
        torch.testing.assert_close(
            parts["variance"], torch.full((2,), -math.log2(share)), atol=1e-3, rtol=1e-3
        )

    def test_the_bound_trains_the_variance_alone(self):
        guess = torch.randn(2, 1, 2, 2, 2).requires_grad_()
        mix = torch.zeros(2, 1, 2, 2, 2).requires_grad_()
        parts = self.loss([3, 900], lambda noise: lambda x, t: torch.cat([guess, mix], 2))
        parts["variance"].sum().backward()
        assert guess.grad is not None and not guess.grad.any()
        assert mix.grad is not None and mix.grad.abs().amin() > 0

    def test_the_squared_error_trains_the_noise_alone(self):
        guess = torch.randn(2, 1, 2, 2, 2).requires_grad_()
        mix = torch.zeros(2, 1, 2, 2, 2).requires_grad_()
        parts = self.loss([3, 900], lambda noise: lambda x, t: torch.cat([guess, mix], 2))
        parts["noise"].sum().backward()
        assert guess.grad is not None and guess.grad.abs().amin() > 0
        assert mix.grad is None or not mix.grad.any()


class TestSamplers:
    def sample(self, method, steps, **options):
        chain, generator = Diffusion(steps), torch.Generator().manual_seed(0)
        noise = torch.randn(1, 1, 1, 64, 64, generator=generator)
        return getattr(chain, method)(ideal(chain), noise, generator, **options)

    @pytest.mark.parametrize(
        "method, steps, options",
        [("ddpm", 250, {}), ("ddim", 100, {}), ("ddim", 250, {"eta": 1.0})],
    )
    def test_the_ideal_denoiser_gives_the_true_distribution(self, method, steps, options):
        out = self.sample(method, steps, **options)
        assert float(out.mean()) == pytest.approx(MEAN, abs=0.02)
        assert float(out.std()) == pytest.approx(DEVIATION, abs=0.02)

    def test_ddim_draws_nothing(self):
        chain, noise = Diffusion(5), torch.randn(1, 1, 1, 4, 4)
        assert torch.equal(chain.ddim(ideal(chain), noise), chain.ddim(ideal(chain), noise))

    def test_ddpm_draws_from_its_generator_alone(self):
        torch.testing.assert_close(self.sample("ddpm", 5), self.sample("ddpm", 5), rtol=0, atol=0)

    def test_a_chain_of_one_step_gives_the_guess_of_the_data(self):
        out = self.sample("ddpm", 1)
        assert float(out.mean()) == pytest.approx(MEAN, abs=0.05)

    def test_an_eta_out_of_range_is_refused(self):
        with pytest.raises(ConfigError, match="eta"):
            self.sample("ddim", 2, eta=1.5)

    def test_a_model_without_variance_is_refused(self):
        with pytest.raises(InputError, match="noise and variance"):
            Diffusion(2).ddpm(lambda x, t: x, torch.randn(1, 1, 2, 2, 2))
