"""Gaussian diffusion as LetsTalk trains and samples it: noise and variance are both predicted.

The process has 1000 steps with linear betas. Sampling may visit a subset, evenly spaced, whose
betas follow from the cumulative products at these steps. The denoiser receives timesteps in [0, 1],
step `s` of the full process as `s / 1000`; 1 is noise, as in the streaming model.

Source: DDPM, arXiv:2006.11239; learned variances, hybrid loss and respacing, arXiv:2102.09672;
DDIM, arXiv:2010.02502; LetsTalk, arXiv:2411.16748 (linear 1e-4 to 2e-2, T = 1000, 250 steps).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from letstalk_rt.errors import ConfigError, InputError

TOTAL_STEPS = 1000
FIRST_BETA, LAST_BETA = 1e-4, 2e-2
PUBLISHED_STEPS = 250

Predictor = Callable[[Tensor, Tensor], Tensor]
"""Maps `(B, T, C, h, w)` and timesteps `(B,)` to `(B, T, 2 C, h, w)`: noise, then variance."""


@dataclass(frozen=True)
class Prediction:
    """The prediction of one denoiser call; all `(B, T, C, h, w)`.

    Attributes:
        noise: the noise in `x`.
        data: the clean latents that follow from it.
        mean: mean of the previous step, the one nearer to the data.
        log_variance: logarithm of its variance.
    """

    noise: Tensor
    data: Tensor
    mean: Tensor
    log_variance: Tensor


def respaced_steps(num_steps: int, total: int = TOTAL_STEPS) -> list[int]:
    """Return `num_steps` evenly spaced steps, ascending, with the first and the last of `total`.

    Raises:
        ConfigError: `num_steps` is not from 1 to `total`.
    """
    if not 1 <= num_steps <= total:
        raise ConfigError(f"num_steps must be from 1 to {total}, got {num_steps}")
    if num_steps == 1:
        return [total - 1]
    return [round(i * (total - 1) / (num_steps - 1)) for i in range(num_steps)]


class Diffusion:
    """The diffusion process with its training loss and samplers; holds tables, no weights.

    Step indices `(B,)` count the selected steps; 0 is the one next to the data.

    Args:
        num_steps: number of the 1000 steps to select; all of them in training.

    Raises:
        ConfigError: `num_steps` is not from 1 to 1000.
    """

    def __init__(self, num_steps: int = TOTAL_STEPS) -> None:
        self.steps = torch.tensor(respaced_steps(num_steps))
        betas = torch.linspace(FIRST_BETA, LAST_BETA, TOTAL_STEPS, dtype=torch.float64)
        kept = (1 - betas).cumprod(0)[self.steps]
        before = torch.cat([kept.new_ones(1), kept[:-1]])
        self.alpha_bar, self.alpha_bar_before = kept, before
        self.betas = 1 - kept / before
        variance = self.betas * (1 - before) / (1 - kept)
        # The variance of step 0 is 0, whose logarithm is not finite: use that of the next step.
        first = variance[1:2] if num_steps > 1 else self.betas[:1]
        self.log_variance = torch.cat([first, variance[1:]]).log()

    @property
    def num_steps(self) -> int:
        """The number of selected steps."""
        return len(self.steps)

    def times(self, index: Tensor) -> Tensor:
        """Return the timesteps `(B,)` in [0, 1) for the denoiser."""
        return self.steps.to(index.device)[index] / TOTAL_STEPS

    def add_noise(self, data: Tensor, index: Tensor, noise: Tensor) -> Tensor:
        """Add noise to clean latents `(B, ...)` for the steps `index`."""
        signal = _at(self.alpha_bar.sqrt(), index, data)
        return signal * data + _at((1 - self.alpha_bar).sqrt(), index, data) * noise

    def predict(self, output: Tensor, x: Tensor, index: Tensor) -> Prediction:
        """Interpret the denoiser's output `(B, T, 2 C, h, w)` for the noisy latents `x`.

        The second half interpolates between the logarithms of the smallest and the largest variance
        that a step can have.
        """
        noise, mix = output.float().chunk(2, 2)
        alpha_bar = _at(self.alpha_bar, index, x)
        data = (x - (1 - alpha_bar).sqrt() * noise) / alpha_bar.sqrt()
        share = (mix + 1) / 2
        low, high = _at(self.log_variance, index, x), _at(self.betas.log(), index, x)
        return Prediction(
            noise, data, self.mean_before(data, x, index), share * high + (1 - share) * low
        )

    def mean_before(self, data: Tensor, x: Tensor, index: Tensor) -> Tensor:
        """Return the mean of the step before `x`, if the clean latents are `data`."""
        alpha_bar, before = self.alpha_bar, self.alpha_bar_before
        of_data = self.betas * before.sqrt() / (1 - alpha_bar)
        of_x = (1 - before) * (1 - self.betas).sqrt() / (1 - alpha_bar)
        return _at(of_data, index, x) * data + _at(of_x, index, x) * x

    def loss(
        self, denoiser: Predictor, data: Tensor, index: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Return the hybrid loss of each item.

        Args:
            denoiser: the denoiser, with its conditions bound.
            data: clean latents `(B, T, C, h, w)`.
            index: steps to train at, `(B,)`.
            noise: unit noise, of the shape of `data`.

        Returns:
            `noise`, the squared error, and `variance`, the bound's term at `index` in bits per
            value, which trains the variance alone: each `(B,)`, to be added. One drawn term stands
            for all 1000, so the published weight of 0.001 on their sum is a weight of 1 here.

        Source: arXiv:2102.09672, equation 16 and section 3.1.
        """
        x = self.add_noise(data, index, noise)
        output = denoiser(x, self.times(index))
        guess, mix = output.float().chunk(2, 2)
        frozen = self.predict(torch.cat([guess.detach(), mix], 2), x, index)
        return {
            "noise": (guess - noise).pow(2).flatten(1).mean(1),
            "variance": self._bound(frozen, data, x, index),
        }

    def _bound(self, guess: Prediction, data: Tensor, x: Tensor, index: Tensor) -> Tensor:
        """Return the variational bound's term of each item, `(B,)`, in bits per value."""
        true_mean = self.mean_before(data, x, index)
        true_log_variance = _at(self.log_variance, index, x)
        divergence = _divergence(true_mean, true_log_variance, guess.mean, guess.log_variance)
        surprise = _negative_log_likelihood(data, guess.mean, 0.5 * guess.log_variance)
        last = (index == 0).view(-1, *[1] * (x.ndim - 1))
        return torch.where(last, surprise, divergence).flatten(1).mean(1) / math.log(2)

    @torch.no_grad()
    def ddpm(
        self, denoiser: Predictor, noise: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Sample with fresh noise at every step: the published sampler.

        Args:
            denoiser: the denoiser, with its conditions bound.
            noise: `(B, T, C, h, w)`, unit variance.
            generator: random number generator, on the device of `noise`.

        Returns:
            Clean latents, of the shape of `noise`.
        """
        x = noise.float()
        for step, index in self._backwards(x):
            guess = self._call(denoiser, x, index)
            x = guess.mean
            if step > 0:
                fresh = torch.randn(x.shape, generator=generator, device=x.device)
                x = x + (0.5 * guess.log_variance).exp() * fresh
        return x

    @torch.no_grad()
    def ddim(
        self,
        denoiser: Predictor,
        noise: Tensor,
        generator: torch.Generator | None = None,
        *,
        eta: float = 0.0,
    ) -> Tensor:
        """Sample without fresh noise (`eta` 0), or with up to that of DDPM's smallest variance (1).

        Arguments and result are those of `ddpm`; the predicted variance is not used.

        Raises:
            ConfigError: `eta` is not from 0 to 1.
        """
        if not 0 <= eta <= 1:
            raise ConfigError(f"eta must be from 0 to 1, got {eta}")
        x = noise.float()
        for step, index in self._backwards(x):
            guess = self._call(denoiser, x, index)
            alpha_bar = _at(self.alpha_bar, index, x)
            before = _at(self.alpha_bar_before, index, x)
            sigma = eta * ((1 - before) / (1 - alpha_bar) * (1 - alpha_bar / before)).sqrt()
            x = before.sqrt() * guess.data + (1 - before - sigma**2).sqrt() * guess.noise
            if eta > 0 and step > 0:
                x = x + sigma * torch.randn(x.shape, generator=generator, device=x.device)
        return x

    def _call(self, denoiser: Predictor, x: Tensor, index: Tensor) -> Prediction:
        output = denoiser(x, self.times(index))
        expected = (*x.shape[:2], 2 * x.shape[2], *x.shape[3:])
        if output.shape != expected:
            raise InputError(
                f"the denoiser returned {tuple(output.shape)}, expected {expected}, noise and "
                "variance; sample a model that predicts a velocity by letstalk_rt.models.sampler"
            )
        return self.predict(output, x, index)

    def _backwards(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield the selected steps from noise to data, as a number and as a tensor `(B,)`."""
        for step in range(self.num_steps - 1, -1, -1):
            yield step, torch.full((len(x),), step, device=x.device)


def _at(table: Tensor, index: Tensor, like: Tensor) -> Tensor:
    """Return `table` at indices `(B,)`, in float32, in a shape that broadcasts to `like`."""
    values = table.to(torch.float32).to(index.device)[index]
    return values.view(-1, *[1] * (like.ndim - 1))


def _divergence(mean1: Tensor, log1: Tensor, mean2: Tensor, log2: Tensor) -> Tensor:
    """Return the element-wise Kullback-Leibler divergence of two normal distributions, in nats."""
    return 0.5 * (log2 - log1 - 1 + (log1 - log2).exp() + (mean1 - mean2) ** 2 * (-log2).exp())


def _negative_log_likelihood(data: Tensor, mean: Tensor, log_deviation: Tensor) -> Tensor:
    """Return the negative log-likelihood, in nats, of data in bins of 1/255 half width.

    The bins are those of 8-bit images; the published training also has them for latents.
    """
    inverse = (-log_deviation).exp()
    upper = _normal_cdf((data - mean + 1 / 255) * inverse)
    lower = _normal_cdf((data - mean - 1 / 255) * inverse)
    inside = (upper - lower).clamp(min=1e-12).log()
    below = upper.clamp(min=1e-12).log()
    above = (1 - lower).clamp(min=1e-12).log()
    return -torch.where(data < -0.999, below, torch.where(data > 0.999, above, inside))


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))
