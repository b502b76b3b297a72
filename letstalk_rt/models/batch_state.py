"""Gather the states of several sessions into a batch, and scatter the batch back in place.

A state is a dataclass whose fields are tensors `(B, ...)`, states, or lists of these.
"""

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def gather(states: Sequence[T]) -> T:
    """Concatenate states along their first axis; a single state is returned without a copy."""
    return states[0] if len(states) == 1 else _join(states)


def scatter(batch: Any, states: Sequence[Any]) -> None:
    """Copy a batch from `gather` back into the tensors of the states, in place."""
    if len(states) == 1:
        return
    sizes = [next(tensors(state)).shape[0] for state in states]
    for joined, *parts in zip(tensors(batch), *(tensors(s) for s in states), strict=True):
        for part, new in zip(parts, joined.split(sizes), strict=True):
            part.copy_(new)


def overwrite(state: Any, source: Any) -> None:
    """Copy the tensors of one state into another, in place."""
    for old, new in zip(tensors(state), tensors(source), strict=True):
        old.copy_(new)


def tensors(state: Any) -> Iterator[Tensor]:
    """Yield all tensors of a state, in a fixed order."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, list | tuple):
        for part in state:
            yield from tensors(part)
    else:
        for field in fields(state):
            yield from tensors(getattr(state, field.name))


def _join(states: Sequence[Any]) -> Any:
    first = states[0]
    if isinstance(first, Tensor):
        return torch.cat(list(states))
    if isinstance(first, list | tuple):
        return type(first)(_join(column) for column in zip(*states, strict=True))
    assert is_dataclass(first), type(first)
    parts = {f.name: _join([getattr(s, f.name) for s in states]) for f in fields(first)}
    kind: Any = type(first)
    return kind(**parts)
