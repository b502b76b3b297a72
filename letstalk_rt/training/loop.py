"""What every training run shares: schedule, EMA, checkpoints, a log, a progress bar."""

import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from letstalk_rt.errors import ConfigError
from letstalk_rt.training.distributed import (
    is_first,
    rank,
    share_weights,
    shared_loss,
    wait_for_all,
)


@dataclass(frozen=True)
class LoopConfig:
    """Behaviour of a run; the same for all models."""

    steps: int
    learning_rate: float = 2e-4
    warm_up: int = 200
    final_rate: float = 0.05
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    save_every_s: float = 240.0
    report_every: int = 50
    evaluate_every: int = 1000
    device: str = "cpu"


class Stateful(Protocol):
    """What a run's checkpoint can hold beside the model."""

    def state_dict(self) -> dict[str, Any]:
        """Give the state."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> object:
        """Take the state back."""
        ...


@dataclass
class Run:
    """One resumable training run in a folder.

    A run that is stopped at any moment goes on from its last checkpoint: weights, averages,
    optimiser, the source of batches and the best score so far. Drop-out draws afresh.

    Attributes:
        folder: holds `last.pt`, `log.jsonl` and what `evaluate` writes.
        model: what is trained; its EMA copy is what is used.
        config: schedule and intervals.
        extras: what else the checkpoint must hold, such as a critic.
        generator: draws batches, on the CPU.
        noise: draws noise where the model is.
    """

    folder: Path
    model: nn.Module
    config: LoopConfig
    extras: dict[str, Stateful] = field(default_factory=dict)
    step: int = 0
    best_score: float = float("-inf")
    averaged: nn.Module = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    generator: torch.Generator = field(init=False)
    noise: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        if self.config.steps < 1:
            raise ConfigError(f"steps must be at least 1, got {self.config.steps}")
        self.model.to(self.device)
        share_weights(self.model)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.averaged = deepcopy(self.model).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(
            [p for p in self.model.parameters() if p.requires_grad],
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            betas=(0.9, 0.99),
        )
        # Each process of a distributed run draws its own batches.
        self.generator = torch.Generator().manual_seed(2 * rank())
        self.noise = torch.Generator(self.device).manual_seed(2 * rank() + 1)
        if self.checkpoint.exists():
            self._resume()

    @property
    def device(self) -> torch.device:
        """Where the model is trained; batches are drawn on the CPU and moved there."""
        return torch.device(self.config.device)

    @property
    def best(self) -> Path:
        """Where the averaged model with the best score lies."""
        return self.folder / "best.pt"

    def keep_if_best(self, score: float) -> None:
        """Keep the averaged model if it scores higher than all before it, or is the first."""
        if score > self.best_score or not self.best.exists():
            self.best_score = score
            torch.save(self.averaged.state_dict(), self.best)

    @property
    def checkpoint(self) -> Path:
        """Where the newest state lies."""
        return self.folder / "last.pt"

    def rate(self) -> float:
        """Give the learning rate of this step: linear warm-up, then half a cosine."""
        c = self.config
        warm = min(1.0, (self.step + 1) / c.warm_up)
        phase = min(1.0, self.step / c.steps)
        fall = 0.5 * (1 + torch.cos(torch.tensor(phase * torch.pi)).item())
        return c.learning_rate * warm * (c.final_rate + (1 - c.final_rate) * fall)

    def train(
        self,
        loss: Callable[[int], tuple[Tensor, dict[str, float]]],
        evaluate: Callable[[nn.Module, int], dict[str, float]] | None = None,
    ) -> nn.Module:
        """Run to the last step and give the averaged model.

        Args:
            loss: makes a batch for step `n` and gives the loss and named figures.
            evaluate: judges the averaged model; its figures go to the log.
        """
        saved_s, seen = time.monotonic(), {}
        loss = shared_loss(self.model, loss)
        bar = tqdm(
            total=self.config.steps,
            initial=self.step,
            desc=self.folder.name,
            mininterval=10,
            disable=not is_first(),
        )
        while self.step < self.config.steps:
            seen = self._update(loss)
            bar.update()
            if self.step % self.config.report_every == 0:
                self._log(seen)
                bar.set_postfix({k: f"{v:.4g}" for k, v in seen.items()})
            last = self.step == self.config.steps
            due = last or self.step % self.config.evaluate_every == 0
            if evaluate and due and is_first():
                self._log(evaluate(self.averaged, self.step))
            if time.monotonic() - saved_s > self.config.save_every_s:
                self.save()
                saved_s = time.monotonic()
        bar.close()
        self.save()
        wait_for_all()
        return self.averaged

    def _update(self, loss: Callable[[int], tuple[Tensor, dict[str, float]]]) -> dict[str, float]:
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        value, seen = loss(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        if torch.isfinite(norm):
            self.optimizer.step()
            self._average()
        self.step += 1
        return {"loss": float(value.detach()), "norm": float(norm), **seen}

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

    def save(self) -> None:
        """Write the checkpoint, whole or not at all; in the first process only."""
        if not is_first():
            return
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "noise": self.noise.get_state(),
            "best_score": self.best_score,
            "extras": {name: part.state_dict() for name, part in self.extras.items()},
        }
        partial = self.checkpoint.with_suffix(".part")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def _resume(self) -> None:
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best_score = state["best_score"]
        for name, part in self.extras.items():
            part.load_state_dict(state["extras"][name])
        if not is_first():  # the checkpoint holds the first one's chance
            self.generator.manual_seed(hash((rank(), self.step)))
            self.noise.manual_seed(hash((rank(), self.step, 1)))
            return
        self.generator.set_state(state["generator"])
        if state["noise"].numel() == self.noise.get_state().numel():  # of the same kind of device
            self.noise.set_state(state["noise"])

    def _log(self, figures: dict[str, float]) -> None:
        if not is_first():
            return
        with _board(self.folder) as board:
            for name, value in figures.items():
                board.add_scalar(name, value, self.step)
        line = {"step": self.step, "time_s": round(time.time()), **figures}
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


def _board(folder: Path) -> Any:
    """Open the TensorBoard log of a run, `board/`, or what stands for it where it is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return _NoBoard()
    return SummaryWriter(str(folder / "board"))


class _NoBoard(nullcontext[None]):
    def __enter__(self) -> Any:
        return self

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Show nothing: `log.jsonl` holds the same."""
