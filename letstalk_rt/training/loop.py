"""The training loop that all stages share: schedule, EMA, checkpoints, log, progress bar."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NoReturn, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from letstalk_rt.errors import ConfigError, InputError
from letstalk_rt.training.checkpoint_writer import CheckpointWriter, keep_newest
from letstalk_rt.training.distributed import (
    barrier,
    broadcast_weights,
    distributed_loss,
    is_main_process,
    rank,
    unsynchronized,
)
from letstalk_rt.training.run_log import RunLog

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class LoopConfig:
    """Settings of a run, the same for all models.

    Attributes:
        steps: The number of steps.
        learning_rate: The highest learning rate.
        warm_up: Steps over which the learning rate rises linearly.
        final_rate: The last learning rate as a share of the highest.
        weight_decay: Weight decay of AdamW.
        max_grad_norm: The norm to which gradients are clipped.
        ema: Decay of the averaged weights.
        betas: Decays of AdamW's averages of the gradient and of its square.
        save_every_s: Seconds between two checkpoints.
        keep: Number of checkpoints to keep; with more than one also as `step-N.pt`.
        report_every: Steps between two lines of the log.
        evaluate_every: Steps between two evaluations.
        device: The device on which the model is trained.
        precision: `float32`, or `bfloat16`: the loss is computed by autocast in bfloat16, where
            that is safe, while weights, gradients, optimiser and average stay in float32.
        accumulate: Batches whose gradients are averaged in one step.
    """

    steps: int
    learning_rate: float = 2e-4
    warm_up: int = 200
    final_rate: float = 0.05
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema: float = 0.999
    betas: tuple[float, float] = (0.9, 0.99)
    save_every_s: float = 240.0
    keep: int = 1
    report_every: int = 50
    evaluate_every: int = 1000
    device: str = "cpu"
    precision: Precision = "float32"
    accumulate: int = 1

    @property
    def batches(self) -> int:
        """The number of batches of the whole run."""
        return self.steps * self.accumulate


class Batches(Protocol):
    """Where batches come from.

    Attributes:
        waited_s: seconds that steps have waited for them so far.
    """

    waited_s: float


class WaitingShare:
    """Measures the share of time in which steps wait for their batches.

    Args:
        batches: Where they come from; None if they are not drawn ahead.
    """

    def __init__(self, batches: Batches | None) -> None:
        self._batches = batches
        self._begin()

    def _begin(self) -> None:
        self._since_s = time.monotonic()
        self._waited_s = self._batches.waited_s if self._batches else 0.0

    def since_last(self) -> dict[str, float]:
        """Return the share since the last call, as the figure `waiting`."""
        if self._batches is None:
            return {}
        passed_s = time.monotonic() - self._since_s
        waited_s = self._batches.waited_s - self._waited_s
        self._begin()
        return {"waiting": waited_s / max(passed_s, 1e-9)}

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time of what runs within."""
        begun_s = time.monotonic()
        yield
        self._since_s += time.monotonic() - begun_s


class Stateful(Protocol):
    """Anything that a run's checkpoint can hold beside the model."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> object:
        """Restore the state."""
        ...


@dataclass
class Run:
    """A resumable training run in a folder.

    A run that was stopped continues from its last checkpoint, which holds the weights, their
    average, the optimiser and the best score so far. All randomness of a step, dropout included,
    follows from the number of the step and of the process: a run that was stopped ends as one
    that was not, in any number of processes.

    Attributes:
        folder: The folder of `last.pt`, `log.jsonl` and the files that evaluations write.
        model: The model to train; its EMA copy is the result.
        config: Schedule and intervals.
        extras: Further parts of the checkpoint by name, such as a critic.
        rate_factors: Factors on the learning rate by the start of a parameter's name.
        decay_factors: The same for the weight decay.
        step: Steps done so far.
        best_score: The highest score passed to `keep_if_best`.
        averaged: The EMA copy of the model.
        optimizer: The optimiser of the model.
        files: Writes the checkpoints.
        generator: Random generator of the batches, on the CPU; seeded anew for each step.
        noise: Random generator of the noise, on the model's device; likewise.
    """

    folder: Path
    model: nn.Module
    config: LoopConfig
    extras: dict[str, Stateful] = field(default_factory=dict)
    rate_factors: dict[str, float] = field(default_factory=dict)
    decay_factors: dict[str, float] = field(default_factory=dict)
    step: int = 0
    best_score: float = float("-inf")
    averaged: nn.Module = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    files: CheckpointWriter = field(init=False, default_factory=CheckpointWriter)
    generator: torch.Generator = field(init=False)
    noise: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        if self.config.steps < 1:
            raise ConfigError(f"steps must be at least 1, got {self.config.steps}")
        if self.config.keep < 1:
            raise ConfigError(f"keep must be at least 1 checkpoint, got {self.config.keep}")
        if self.config.accumulate < 1:
            raise ConfigError(f"accumulate must be at least 1 batch, got {self.config.accumulate}")
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32 for what stays in float32
        self.model.to(self.device)
        broadcast_weights(self.model)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.averaged = deepcopy(self.model).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(
            self._parameter_groups(),
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            betas=self.config.betas,
            fused=self.device.type == "cuda",
        )
        self.generator, self.noise = torch.Generator(), torch.Generator(self.device)
        if self.checkpoint.exists():
            self._resume()
        self._seed()

    def _seed(self) -> None:
        """Seed all randomness for the next step; each process draws its own batches."""
        self.generator.manual_seed(step_seed(self.step))
        self.noise.manual_seed(step_seed(self.step, 1))
        torch.manual_seed(step_seed(self.step, 2))

    def start_from(self, folder: Path) -> None:
        """Take weights, their average and the optimiser of another run; the schedule begins anew.

        A run that has a checkpoint of its own keeps that.

        Raises:
            InputError: That run has no checkpoint.
        """
        if self.checkpoint.exists():
            return
        other = folder / self.checkpoint.name
        if not other.exists():
            raise InputError(f"{folder} holds no checkpoint {other.name} to start from")
        state = torch.load(other, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Return the trained parameters in groups with one learning rate and decay each."""

        def factor(factors: dict[str, float], name: str) -> float:
            return next((f for start, f in factors.items() if name.startswith(start)), 1.0)

        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                key = (factor(self.rate_factors, name), factor(self.decay_factors, name))
                groups.setdefault(key, []).append(parameter)
        return [
            {"params": part, "factor": rate, "weight_decay": decay * self.config.weight_decay}
            for (rate, decay), part in groups.items()
        ]

    @property
    def device(self) -> torch.device:
        """The device of the model; batches are drawn on the CPU and moved there."""
        return torch.device(self.config.device)

    @property
    def best(self) -> Path:
        """The file of the averaged model with the best score."""
        return self.folder / "best.pt"

    def keep_if_best(self, score: float) -> None:
        """Save the averaged model if its score is the highest so far, or the first.

        The file is complete when `train` returns.
        """
        self.files.wait()
        if score > self.best_score or not self.best.exists():
            self.best_score = score
            self.files.write(self.best, self.averaged.state_dict())

    @property
    def checkpoint(self) -> Path:
        """The file of the newest checkpoint."""
        return self.folder / "last.pt"

    def rate(self) -> float:
        """Return the learning rate of this step: linear warm-up times a half cosine."""
        c = self.config
        warm = min(1.0, (self.step + 1) / c.warm_up)
        phase = min(1.0, self.step / c.steps)
        fall = 0.5 * (1 + torch.cos(torch.tensor(phase * torch.pi)).item())
        return c.learning_rate * warm * (c.final_rate + (1 - c.final_rate) * fall)

    def train(
        self,
        loss: Callable[[int], tuple[Tensor, dict[str, float]]],
        evaluate: Callable[[nn.Module, int], dict[str, float]] | None = None,
        batches: Batches | None = None,
    ) -> nn.Module:
        """Train to the last step and return the averaged model.

        Args:
            loss: Draws a batch by its number, which is the step's unless gradients are
                accumulated, and returns its loss and named figures for the log.
            evaluate: Evaluates the averaged model and returns named figures for the log.
            batches: Where batches come from; the share of time in which steps wait for them is then
                logged as `waiting`: more than a few hundredths say that the device is not busy.
        """
        saved_s = time.monotonic()
        waiting = WaitingShare(batches)
        loss = distributed_loss(self.model, loss)
        main = is_main_process()
        with self.files, closing(RunLog(self.folder, self.step + 1)) as log, self._bar() as bar:
            while self.step < self.config.steps:
                figures = self._update(loss)
                bar.update()
                if main and self.step % self.config.report_every == 0:
                    figures |= waiting.since_last()
                    log.write(self.step, figures)
                    bar.set_postfix({k: f"{v:.4g}" for k, v in figures.items()})
                last = self.step == self.config.steps
                due = last or self.step % self.config.evaluate_every == 0
                if main and due and evaluate:
                    with waiting.paused():
                        log.write(self.step, evaluate(self.averaged, self.step))
                if time.monotonic() - saved_s > self.config.save_every_s and not self.files.busy:
                    self.save(wait=False)
                    saved_s = time.monotonic()
        self.save()
        barrier()
        return self.averaged

    def _bar(self) -> "tqdm[NoReturn]":
        return tqdm(
            total=self.config.steps,
            initial=self.step,
            desc=self.folder.name,
            mininterval=10,
            disable=not is_main_process(),
        )

    def _update(self, loss: Callable[[int], tuple[Tensor, dict[str, float]]]) -> dict[str, float]:
        self._seed()
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = group["factor"] * self.rate()
        self.optimizer.zero_grad(set_to_none=True)
        rows = [self._backward(loss, part) for part in range(self.config.accumulate)]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        if torch.isfinite(norm):
            self.optimizer.step()
            self._average()
        self.step += 1
        figures = {name: fmean(row[name] for row in rows) for name in rows[0]}
        return {"norm": float(norm), **figures}

    def _backward(
        self, loss: Callable[[int], tuple[Tensor, dict[str, float]]], part: int
    ) -> dict[str, float]:
        """Add the gradients of one of a step's batches; return its loss and figures."""
        count, half = self.config.accumulate, self.config.precision == "bfloat16"
        with unsynchronized(loss) if part + 1 < count else nullcontext():
            with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                value, figures = loss(self.step * count + part)
            (value / count).backward()
        return {"loss": float(value.detach()), **figures}

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        pairs = zip(
            self.averaged.state_dict().values(), self.model.state_dict().values(), strict=True
        )
        for old, new in pairs:
            if old.is_floating_point():
                old.lerp_(new, 1 - decay)
            else:
                old.copy_(new)

    def save(self, *, wait: bool = True) -> None:
        """Write the checkpoint, in the main process only.

        Args:
            wait: Whether to wait until it is written; otherwise a thread writes a snapshot.
        """
        if not is_main_process():
            return
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best_score": self.best_score,
            "extras": {name: part.state_dict() for name, part in self.extras.items()},
        }
        keep = partial(keep_newest, self.checkpoint, self.step, self.config.keep)
        self.files.write(self.checkpoint, state, keep)
        if wait:
            self.files.wait()

    def _resume(self) -> None:
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best_score = state["best_score"]
        for name, part in self.extras.items():
            part.load_state_dict(state["extras"][name])


def step_seed(step: int, stream: int = 0) -> int:
    """Return the seed of one of four streams of randomness of a step in this process."""
    return ((step << 12) + rank()) * 4 + stream
