"""Compiled and recorded functions return the same; calls that cannot be replayed are logged."""

import logging
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from letstalk_rt.errors import EngineError
from letstalk_rt.inference.cuda_graphs import CompiledFunction, describe_changes


@dataclass
class Pair:
    a: Tensor
    rest: list[Tensor]


def total(x: Tensor, pair: Pair, weight: float = 1.0) -> Pair:
    return Pair(weight * x + pair.a, [part * 2 for part in pair.rest])


class FakeGraph:
    """Stands for a CUDA graph: replays the call on the memory it was captured with."""

    def __init__(self, call):
        self.call, self.replays = call, 0
        self.output = call()

    def replay(self):
        self.replays += 1
        new = self.call()
        for kept, value in zip(self.output.rest, new.rest, strict=True):
            kept.copy_(value)
        self.output.a.copy_(new.a)


class CpuReplay(CompiledFunction):
    """Records calls on CPU tensors.

    Attributes:
        graphs: made so far, in order.
    """

    device = "cpu"

    def __init__(self, call, **options):
        super().__init__(call, recorded=True, **options)
        self.graphs = []

    def capture(self, call):
        self.graphs.append(FakeGraph(call))
        return self.graphs[-1], self.graphs[-1].output


def pair(size=2):
    return Pair(torch.arange(float(size)), [torch.ones(size)])


def test_neither_compiled_nor_recorded_is_the_function_itself():
    out = CompiledFunction(total)(torch.ones(2), pair(), weight=3.0)
    assert out.a.tolist() == [3, 4]


def test_a_recorded_call_is_replayed_with_new_values():
    call = CpuReplay(total)
    for value in (1.0, 5.0):
        x = torch.full((2,), value)
        assert call(x, pair()).a.tolist() == total(x, pair()).a.tolist()
    assert [graph.replays for graph in call.graphs] == [2]


def test_what_was_given_out_is_not_written_again():
    call = CpuReplay(total)
    first = call(torch.zeros(2), pair())
    call(torch.ones(2), pair())
    assert first.a.tolist() == [0, 1]


def test_each_look_is_recorded_once():
    call = CpuReplay(total)
    for size in (2, 3, 2, 3):
        call(torch.ones(size), pair(size))
    call(torch.ones(2), pair(), weight=2.0)
    assert len(call.graphs) == 3


def test_one_look_too_many_runs_as_written_and_is_named(caplog):
    call = CpuReplay(total, max_signatures=1, name="denoiser")
    call(torch.ones(2), pair())
    with caplog.at_level(logging.WARNING):
        assert call(torch.ones(3), pair(3)).a.tolist() == [1, 2, 3]
    assert len(call.graphs) == 1
    assert "denoiser has a new signature: x: (2,) float32 cpu -> (3,) float32 cpu" in caplog.text
    assert "pair.rest[0]: (2,) float32 cpu -> (3,) float32 cpu" in caplog.text


def test_strict_raises_instead():
    call = CpuReplay(total, max_signatures=1, strict=True)
    call(torch.ones(2), pair())
    with pytest.raises(EngineError, match=r"weight: absent -> 2.0"):
        call(torch.ones(2), pair(), weight=2.0)


def test_without_a_gpu_it_runs_without_a_graph(caplog):
    with caplog.at_level(logging.WARNING):
        out = CompiledFunction(total, recorded=True)(torch.ones(2), pair())
    assert out.a.tolist() == [1, 2]
    assert "not on a CUDA device" in caplog.text
    with pytest.raises(EngineError, match="not on a CUDA device"):
        CompiledFunction(total, recorded=True, strict=True)(torch.ones(2), pair())


def test_a_failed_capture_is_told_and_the_call_still_runs(caplog):
    class Failing(CpuReplay):
        def capture(self, call):
            raise RuntimeError("operation not permitted when stream is capturing")

    call = Failing(total)
    with caplog.at_level(logging.WARNING):
        assert call(torch.ones(2), pair()).a.tolist() == [1, 2]
    assert "not permitted when stream is capturing" in caplog.text


def test_changes_name_place_before_and_after():
    signature = CompiledFunction(total).signature
    before = signature(torch.ones(2), pair())
    after = signature(torch.ones(2).half(), Pair(torch.ones(2), []))
    assert describe_changes(before, after) == [
        "x: (2,) float32 cpu -> (2,) float16 cpu",
        "pair.rest[0]: (2,) float32 cpu -> absent",
    ]
    assert describe_changes(before, before) == []


@pytest.mark.slow
def test_compiled_is_the_same_function():
    call = CompiledFunction(total, compiled=True)
    for size in (2, 3):
        out = call(torch.ones(size), pair(size), weight=2.0)
        assert torch.equal(out.a, total(torch.ones(size), pair(size), 2.0).a)


@pytest.mark.gpu
def test_a_real_graph_gives_the_same():
    def call(x):
        return torch.relu(x @ x.T)

    graph = CompiledFunction(call, recorded=True, strict=True)
    for seed in range(3):
        x = torch.randn(16, 16, generator=torch.Generator().manual_seed(seed)).cuda()
        torch.testing.assert_close(graph(x), call(x))
