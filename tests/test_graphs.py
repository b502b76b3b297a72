"""What is compiled or recorded gives the same, and what cannot be replayed is named."""

import logging
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from letstalk_rt import graphs
from letstalk_rt.errors import EngineError
from letstalk_rt.graphs import Replay, changes


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
        for kept, new in zip(
            graphs._tensors(self.output), graphs._tensors(self.call()), strict=True
        ):
            kept.copy_(new)


@pytest.fixture
def captured(monkeypatch):
    """Let CPU tensors be recorded; gives the graphs made."""
    made = []

    def capture(call):
        made.append(FakeGraph(call))
        return made[-1], made[-1].output

    monkeypatch.setattr(graphs, "_capture", capture)
    monkeypatch.setattr(Replay, "_on_device", staticmethod(lambda tensors: True))
    return made


def pair(size=2):
    return Pair(torch.arange(float(size)), [torch.ones(size)])


def test_neither_compiled_nor_recorded_is_the_function_itself():
    out = Replay(total)(torch.ones(2), pair(), weight=3.0)
    assert out.a.tolist() == [3, 4]


def test_a_recorded_call_is_replayed_with_new_values(captured):
    call = Replay(total, recorded=True)
    for value in (1.0, 5.0):
        x = torch.full((2,), value)
        assert call(x, pair()).a.tolist() == total(x, pair()).a.tolist()
    assert len(captured) == 1 and captured[0].replays == 2


def test_what_was_given_out_is_not_written_again(captured):
    call = Replay(total, recorded=True)
    first = call(torch.zeros(2), pair())
    call(torch.ones(2), pair())
    assert first.a.tolist() == [0, 1]


def test_each_look_is_recorded_once(captured):
    call = Replay(total, recorded=True)
    for size in (2, 3, 2, 3):
        call(torch.ones(size), pair(size))
    call(torch.ones(2), pair(), weight=2.0)
    assert len(captured) == 3


def test_one_look_too_many_runs_as_written_and_is_named(captured, caplog):
    call = Replay(total, recorded=True, max_looks=1, name="denoiser")
    call(torch.ones(2), pair())
    with caplog.at_level(logging.WARNING):
        assert call(torch.ones(3), pair(3)).a.tolist() == [1, 2, 3]
    assert len(captured) == 1
    assert "denoiser cannot be replayed: x: (2,) float32 cpu -> (3,) float32 cpu" in caplog.text
    assert "pair.rest[0]: (2,) float32 cpu -> (3,) float32 cpu" in caplog.text


def test_strict_raises_instead(captured):
    call = Replay(total, recorded=True, max_looks=1, strict=True)
    call(torch.ones(2), pair())
    with pytest.raises(EngineError, match=r"weight: absent -> 2.0"):
        call(torch.ones(2), pair(), weight=2.0)


def test_without_a_gpu_it_runs_without_a_graph(caplog):
    with caplog.at_level(logging.WARNING):
        out = Replay(total, recorded=True)(torch.ones(2), pair())
    assert out.a.tolist() == [1, 2]
    assert "not on a CUDA device" in caplog.text
    with pytest.raises(EngineError, match="not on a CUDA device"):
        Replay(total, recorded=True, strict=True)(torch.ones(2), pair())


def test_a_failed_capture_is_told_and_the_call_still_runs(monkeypatch, caplog):
    def fail(call):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "_capture", fail)
    monkeypatch.setattr(Replay, "_on_device", staticmethod(lambda tensors: True))
    call = Replay(total, recorded=True)
    with caplog.at_level(logging.WARNING):
        assert call(torch.ones(2), pair()).a.tolist() == [1, 2]
    assert "not permitted when stream is capturing" in caplog.text


def test_changes_name_place_before_and_after():
    look = Replay(total).look
    before = look(torch.ones(2), pair())
    after = look(torch.ones(2).half(), Pair(torch.ones(2), []))
    assert changes(before, after) == [
        "x: (2,) float32 cpu -> (2,) float16 cpu",
        "pair.rest[0]: (2,) float32 cpu -> absent",
    ]
    assert changes(before, before) == []


@pytest.mark.slow
def test_compiled_is_the_same_function():
    call = Replay(total, compiled=True)
    for size in (2, 3):
        out = call(torch.ones(size), pair(size), weight=2.0)
        assert torch.equal(out.a, total(torch.ones(size), pair(size), 2.0).a)


@pytest.mark.gpu
def test_a_real_graph_gives_the_same():
    def call(x):
        return torch.relu(x @ x.T)

    graph = Replay(call, recorded=True, strict=True)
    for seed in range(3):
        x = torch.randn(16, 16, generator=torch.Generator().manual_seed(seed)).cuda()
        torch.testing.assert_close(graph(x), call(x))
