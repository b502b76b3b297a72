"""States of several sessions are joined for one step, and written back in place."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from letstalk_rt.models.batch_state import gather, scatter, tensors


@dataclass
class Inner:
    past: Tensor


@dataclass
class Outer:
    inner: Inner
    layers: list[Inner]
    maps: tuple[Tensor, ...]


def state(value, batch=1):
    def full(width):
        return torch.full((batch, width), float(value))

    return Outer(Inner(full(2)), [Inner(full(1)), Inner(full(3))], (full(4), full(5)))


def test_tensors_come_in_a_fixed_order():
    assert [t.shape[1] for t in tensors(state(0))] == [2, 1, 3, 4, 5]


def test_gather_joins_every_tensor_and_keeps_the_form():
    joined = gather([state(1), state(2)])
    assert isinstance(joined, Outer) and isinstance(joined.layers[1], Inner)
    assert isinstance(joined.layers, list) and isinstance(joined.maps, tuple)
    for tensor in tensors(joined):
        assert tensor[:, 0].tolist() == [1, 2]


def test_one_state_is_given_as_it_is():
    only = state(1)
    assert gather([only]) is only


@pytest.mark.parametrize("sizes", [(1,), (2, 1)])
def test_scatter_writes_back_in_place(sizes):
    states = [state(i, size) for i, size in enumerate(sizes)]
    before = [[t.data_ptr() for t in tensors(s)] for s in states]
    joined = gather(states)
    for tensor in tensors(joined):
        tensor.add_(10)
    scatter(joined, states)
    for i, size in enumerate(sizes):
        assert all(t.tolist() == [[10.0 + i] * t.shape[1]] * size for t in tensors(states[i]))
    assert [[t.data_ptr() for t in tensors(s)] for s in states] == before


def test_the_parts_do_not_change_before_they_are_scattered():
    states = [state(1), state(2)]
    next(tensors(gather(states))).zero_()
    assert next(tensors(states[0])).tolist() == [[1, 1]]
