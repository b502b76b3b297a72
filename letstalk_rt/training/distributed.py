"""Training in several processes: one per GPU, or per socket of a CPU, started by torchrun.

Each process draws its own batches and computes its own gradients; these are averaged, so all hold
the same weights. The first process alone writes files and judges. In a process that torchrun did
not start, all of this does nothing.

Source: DistributedDataParallel of torch, arXiv:2006.15704.
"""

import functools
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")
PATIENCE = timedelta(hours=3)
"""Others wait this long while the first process judges or prepares data."""


def join() -> None:
    """Join the processes that torchrun started, if it did; each takes its own GPU."""
    if "RANK" not in os.environ or dist.is_initialized():
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)


def leave() -> None:
    """Leave them again, at the end of the program."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Give the number of this process; 0 is the first."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Say whether this process writes files and judges."""
    return rank() == 0


def wait_for_all() -> None:
    """Go on only when every process has come here."""
    if dist.is_initialized():
        dist.barrier()


def first_alone(prepare: Callable[P, R]) -> Callable[P, R]:
    """Let the first process run a function alone; the others then find what it has kept."""

    @functools.wraps(prepare)
    def run(*args: P.args, **named: P.kwargs) -> R:
        if is_first():
            result = prepare(*args, **named)
            wait_for_all()
            return result
        wait_for_all()
        return prepare(*args, **named)

    return run


@torch.no_grad()
def share_weights(model: nn.Module) -> None:
    """Give every process the first one's weights."""
    if dist.is_initialized():
        for value in model.state_dict().values():
            dist.broadcast(value, 0)


def average_gradients(parameters: list[Tensor]) -> None:
    """Average the gradients of parameters that `shared_loss` does not see, such as a critic's."""
    if not dist.is_initialized():
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()


def shared_loss(model: nn.Module, loss: Callable[..., Any]) -> Callable[..., Any]:
    """Give a loss whose backward pass averages the gradients of `model` over the processes.

    The whole loss runs inside the wrapper's forward: whatever it calls of the model, be it a
    method or a part of it, is seen. Weights are made equal to the first process's.
    """
    if not dist.is_initialized():
        return loss
    wrapped = nn.parallel.DistributedDataParallel(
        _Loss(model, loss),
        device_ids=[torch.cuda.current_device()] if torch.cuda.is_available() else None,
        find_unused_parameters=True,  # condition drop-out may leave a part out
    )
    return wrapped


class _Loss(nn.Module):
    def __init__(self, model: nn.Module, loss: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self, *args: Any) -> Any:
        return self._loss(*args)
