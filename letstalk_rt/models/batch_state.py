"""Joins the states of several sessions into one batch, and writes the batch back in place.

A state is a dataclass of tensors `(B, ...)`, of other states and of lists of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def gather(states: Sequence[T]) -> T:
    """Join states along their first axis; a single state is given as it is, without a copy."""
    return states[0] if len(states) == 1 else _join(states)


def scatter(batch: Any, states: Sequence[Any]) -> None:
    """Write what `gather` made, and a step changed, back into the states' own tensors."""
    if len(states) == 1:
        return
    sizes = [next(tensors(state)).shape[0] for state in states]
    for joined, *parts in zip(tensors(batch), *(tensors(s) for s in states), strict=True):
        for part, new in zip(parts, joined.split(sizes), strict=True):
            part.copy_(new)


def overwrite(state: Any, source: Any) -> None:
    """Give a state the content of another one, in place."""
    for old, new in zip(tensors(state), tensors(source), strict=True):
        old.copy_(new)


def tensors(state: Any) -> Iterator[Tensor]:
    """Give all tensors of a state, in a fixed order."""
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
