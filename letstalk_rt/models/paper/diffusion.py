"""Gaussian diffusion as LetsTalk trains and samples it: noise and variance are both predicted.

A chain of 1000 steps with linear betas; sampling may visit fewer of them, evenly spaced, whose
betas then follow from the kept cumulative products. The denoiser is given times in [0, 1], step
`s` of the full chain as `s / 1000`, so 1 is noise as everywhere.

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
"""Maps `(B, T, C, h, w)` and times `(B,)` to `(B, T, 2 C, h, w)`: noise, then variance."""


@dataclass(frozen=True)
class Prediction:
    """What one denoiser call says of the step before; all `(B, T, C, h, w)`.

    Attributes:
        noise: the noise in `x`.
        data: the clean latents that follow from it.
        mean: of the step before.
        log_variance: likewise.
    """

    noise: Tensor
    data: Tensor
    mean: Tensor
    log_variance: Tensor


def respaced_steps(num_steps: int, total: int = TOTAL_STEPS) -> list[int]:
    """Choose `num_steps` of the chain's steps, evenly, first and last among them; ascending.

    Raises:
        ConfigError: `num_steps` is not from 1 to `total`.
    """
    if not 1 <= num_steps <= total:
        raise ConfigError(f"num_steps must be from 1 to {total}, got {num_steps}")
    if num_steps == 1:
        return [total - 1]
    return [round(i * (total - 1) / (num_steps - 1)) for i in range(num_steps)]


class Diffusion:
    """The chain, its training loss and its samplers; holds tables, no weights.

    Step indices `(B,)` count in the kept steps: 0 is the last one before the data.

    Args:
        num_steps: how many of the 1000 steps are kept; all of them in training.

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
        # The last step's true variance is 0, whose logarithm is not finite: take the next one's.
        first = variance[1:2] if num_steps > 1 else self.betas[:1]
        self.log_variance = torch.cat([first, variance[1:]]).log()

    @property
    def num_steps(self) -> int:
        """How many steps are kept."""
        return len(self.steps)

    def times(self, index: Tensor) -> Tensor:
        """Give the times `(B,)` in [0, 1) that the denoiser is told."""
        return self.steps.to(index.device)[index] / TOTAL_STEPS

    def add_noise(self, data: Tensor, index: Tensor, noise: Tensor) -> Tensor:
        """Noise clean latents `(B, ...)` to the steps `index`."""
        signal = _at(self.alpha_bar.sqrt(), index, data)
        return signal * data + _at((1 - self.alpha_bar).sqrt(), index, data) * noise

    def predict(self, output: Tensor, x: Tensor, index: Tensor) -> Prediction:
        """Read the denoiser's output `(B, T, 2 C, h, w)` at the noisy latents `x`.

        The second half mixes, in the logarithm, the smallest and the largest variance that a step
        back can have.
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
        """Give the mean of the step before `x`, if the clean latents are `data`."""
        alpha_bar, before = self.alpha_bar, self.alpha_bar_before
        of_data = self.betas * before.sqrt() / (1 - alpha_bar)
        of_x = (1 - before) * (1 - self.betas).sqrt() / (1 - alpha_bar)
        return _at(of_data, index, x) * data + _at(of_x, index, x) * x

    def loss(
        self, denoiser: Predictor, data: Tensor, index: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Give the hybrid loss of each item.

        Args:
            denoiser: with its conditions bound.
            data: clean latents `(B, T, C, h, w)`.
            index: steps to train at, `(B,)`.
            noise: as `data`.

        Returns:
            `noise`, the squared error, and `variance`, the bound's term at `index` in bits per
            value, which trains the variance alone: each `(B,)`, to be added. One drawn term
            stands for all of them, so 0.001 times the bound of 1000 terms is 1 times this.

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
        """Give the variational bound's term of each item, `(B,)`, in bits per value."""
        true_mean = self.mean_before(data, x, index)
        true_log_variance = _at(self.log_variance, index, x)
        divergence = _divergence(true_mean, true_log_variance, guess.mean, guess.log_variance)
        surprise = _surprise(data, guess.mean, 0.5 * guess.log_variance)
        last = (index == 0).view(-1, *[1] * (x.ndim - 1))
        return torch.where(last, surprise, divergence).flatten(1).mean(1) / math.log(2)

    @torch.no_grad()
    def ddpm(
        self, denoiser: Predictor, noise: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Sample with fresh noise at every step: the published sampler.

        Args:
            denoiser: with its conditions bound.
            noise: `(B, T, C, h, w)`, unit variance.
            generator: source of chance, on the device of `noise`.

        Returns:
            Clean latents, as `noise`.
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
        """Sample without fresh noise (`eta` 0) or with as much as DDPM's smallest (`eta` 1).

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
        wanted = (*x.shape[:2], 2 * x.shape[2], *x.shape[3:])
        if output.shape != wanted:
            raise InputError(
                f"the denoiser gave {tuple(output.shape)}, wanted {wanted}: noise and variance; "
                "a model that predicts a velocity is sampled by letstalk_rt.models.sampler"
            )
        return self.predict(output, x, index)

    def _backwards(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Give the kept steps from noise to data, as a number and for each item."""
        for step in range(self.num_steps - 1, -1, -1):
            yield step, torch.full((len(x),), step, device=x.device)


def _at(table: Tensor, index: Tensor, like: Tensor) -> Tensor:
    """Look `(B,)` indices up, in float32, shaped to be multiplied with `like`."""
    values = table.to(torch.float32).to(index.device)[index]
    return values.view(-1, *[1] * (like.ndim - 1))


def _divergence(mean1: Tensor, log1: Tensor, mean2: Tensor, log2: Tensor) -> Tensor:
    """Kullback-Leibler divergence of two normals, in nats, value by value."""
    return 0.5 * (log2 - log1 - 1 + (log1 - log2).exp() + (mean1 - mean2) ** 2 * (-log2).exp())


def _surprise(data: Tensor, mean: Tensor, log_deviation: Tensor) -> Tensor:
    """Negative log-likelihood, in nats, of data that lie in bins of 1/255 half width.

    The bins are those of 8-bit pictures; the published training keeps them for latents.
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
