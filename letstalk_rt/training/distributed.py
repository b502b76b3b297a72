"""Training in several processes: one per GPU, or per socket of a CPU, started by torchrun.

Each process draws its own batches and computes its own gradients; the gradients are averaged, so
all processes hold the same weights. Only the main process (rank 0) writes files and evaluates. In a
process that torchrun did not start, these functions do nothing.

Source: DistributedDataParallel of torch, arXiv:2006.15704.
"""

import functools
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from letstalk_rt.inference.devices import choose_device

P = ParamSpec("P")
R = TypeVar("R")
TIMEOUT = timedelta(hours=3)
"""How long the other processes wait while the main process evaluates or prepares data."""


def init_process_group(device: str = "auto") -> None:
    """Join the process group if torchrun started this process; each process takes its own GPU.

    Args:
        device: where the model is trained, as `--device` names it; on a CPU the processes
            communicate by Gloo, also on machines that have GPUs.
    """
    if "RANK" not in os.environ or dist.is_initialized():
        return
    cuda = choose_device(device).type == "cuda"
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if cuda else "gloo", timeout=TIMEOUT)


def destroy_process_group() -> None:
    """Leave the process group at the end of the program."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Return the number of this process; 0 is the main process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main_process() -> bool:
    """Return whether this process writes files and evaluates."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process has called this."""
    if dist.is_initialized():
        dist.barrier()


def main_process_first(prepare: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that the main process runs it first and the others after it.

    The others then find what the main process has cached.
    """

    @functools.wraps(prepare)
    def run(*args: P.args, **named: P.kwargs) -> R:
        if is_main_process():
            result = prepare(*args, **named)
            barrier()
            return result
        barrier()
        return prepare(*args, **named)

    return run


@torch.no_grad()
def broadcast_weights(model: nn.Module) -> None:
    """Copy the main process's weights to every process."""
    if dist.is_initialized():
        for value in model.state_dict().values():
            dist.broadcast(value, 0)


def average_gradients(parameters: list[Tensor]) -> None:
    """Average gradients that `distributed_loss` does not cover, such as a critic's."""
    if not dist.is_initialized():
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()


def distributed_loss(model: nn.Module, loss: Callable[..., Any]) -> Callable[..., Any]:
    """Return a loss whose backward pass averages the gradients of `model` over the processes.

    The whole loss runs inside the wrapper's forward, so that every use of the model is covered,
    methods and submodules included. Weights are made equal to the main process's.
    """
    if not dist.is_initialized():
        return loss
    wrapped = nn.parallel.DistributedDataParallel(
        _Loss(model, loss),
        device_ids=[torch.cuda.current_device()] if dist.get_backend() == "nccl" else None,
        find_unused_parameters=True,  # condition dropout may skip a part
    )
    return wrapped


def unsynchronized(loss: Callable[..., Any]) -> AbstractContextManager[Any]:
    """Return a context in which a `distributed_loss` keeps its gradients to its own process."""
    if isinstance(loss, nn.parallel.DistributedDataParallel):
        held: AbstractContextManager[Any] = loss.no_sync()
        return held
    return nullcontext()


class _Loss(nn.Module):
    def __init__(self, model: nn.Module, loss: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self, *args: Any) -> Any:
        return self._loss(*args)
