"""The benchmark measures what it says, and its last line can be read by a machine."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from support.faces import draw
from support.fake_pipelines import StillPipeline
from support.small_dc_model import make_dc_preset
from support.small_model import make_model, make_portrait
from torch import nn
from work_counter import WorkCounter

from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.metrics import StageClock, StageTimer
from letstalk_rt.models.autoencoder.part_decoding import ABOVE, BELOW, BESIDE
from letstalk_rt.models.layers import int8
from letstalk_rt.models.layers.int8 import Int8Conv2d
from letstalk_rt.models.presets import PRESETS

BENCH = Path(__file__).parents[2] / "benchmarks" / "bench_stages.py"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    model = ModuleType("letstalk_rt.inference.pipeline")
    model.AvatarPipeline = StillPipeline  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "letstalk_rt.inference.pipeline", model)
    spec = importlib.util.spec_from_file_location("bench_stages", BENCH)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def still(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark with a model that has no parts to count the work of."""
    monkeypatch.setattr(bench, "work", lambda pipeline, state: {})
    return bench


@pytest.mark.parametrize("json_only", [True, False])
def test_card_first_and_json_last(
    still: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path, json_only: bool
) -> None:
    path = tmp_path / "face.png"
    draw(300, 300, [(150, 150, 150)]).save(path)
    words = ["--portrait", str(path), "--seconds", "0.05", "--sessions", "2", "--size", "256"]
    words += ["--dtype", "float32"]
    still.main(words + ["--json"] * json_only)
    lines = capsys.readouterr().out.strip().splitlines()
    assert (len(lines) == 1) == json_only
    assert json_only or lines[0].split() == ["preset", "tiny"]
    result = json.loads(lines[-1])
    assert {"preset", "device", "dtype", "threads", "fps", "rtf", "sessions"} <= set(result)
    assert result["weights"] == "packaged"
    assert set(result["window_ms"]) == {"p50", "p95", "p99"}
    assert set(result["stages_ms"]) == {"decode", "composite"}
    assert result["rtf"] == pytest.approx(result["fps"] / 25, rel=0.01)
    assert set(StillPipeline.batches) == {(2, 2560)}
    assert len(StillPipeline.batches) == result["windows"] + still.WARM_UP_WINDOWS


def test_fps_is_that_of_one_session_and_the_warm_up_does_not_count(bench: ModuleType) -> None:
    class Time:
        now = 0.0

        def __call__(self) -> float:
            return self.now

    time = Time()

    class Slow(StillPipeline):
        def step(self, pcm: np.ndarray, states: Any, *rest: Any, clock: StageTimer) -> np.ndarray:
            self.batches.append(pcm.shape)
            time.now += 9.0 if len(self.batches) <= bench.WARM_UP_WINDOWS else 0.1
            return np.zeros(0)

    pipeline, clock = Slow.load(), StageClock()
    windows_ms = bench.measure(pipeline, [None] * 3, 0.95, clock, time)
    result = bench.report(pipeline, windows_ms, clock)
    assert windows_ms == pytest.approx([100] * 10)
    assert (result["fps"], result["rtf"], result["missed"]) == (40, 1.6, 0)


def test_the_work_of_all_threads_is_counted(bench: ModuleType) -> None:
    pipeline = AvatarPipeline(make_model())
    state = pipeline.init_state(make_portrait())
    decoder = pipeline.model.autoencoder.decoder
    weights = sum(p.numel() for p in decoder.blocks[2].parameters() if p.ndim == 4)
    cells = (ABOVE + BELOW) * 2 * BESIDE
    painting = 2 * 4 * cells * weights / 1e9  # of its last blocks alone, for four frames
    assert bench.work(pipeline, state)["gflop_per_window"] > painting
    assert pipeline.frame_decoder.decode_pool is not None


def test_work_is_told_by_stage_and_adds_up(bench: ModuleType) -> None:
    pipeline = AvatarPipeline(make_model())
    count = bench.work(pipeline, pipeline.init_state(make_portrait()))
    assert {"audio", "sample", "layout", "decode", "composite"} <= set(count["work"])
    for name, total in (("gflop", "gflop_per_window"), ("mb_moved", "mb_moved_per_window")):
        parts = [part[name] for part in count["work"].values()]
        assert sum(parts) == pytest.approx(count[total], abs=0.01 * len(parts)) and max(parts) > 0


def test_operations_and_bytes_of_operators_are_those_of_their_tensors() -> None:
    layer, frames = nn.Conv2d(3, 8, 3, bias=False), torch.randn(1, 3, 10, 10)
    with torch.inference_mode(), WorkCounter() as counter:
        with counter.stage("outer"):
            with counter.stage("inner"):
                layer(frames)
            frames.transpose(2, 3)[:, :1]  # a view moves nothing
            frames + 1
    moved = 4 * (frames.numel() + layer.weight.numel() + 8 * 8 * 8)
    assert counter.stages["inner"] == (2 * 8 * 64 * 27, moved)
    assert counter.stages["outer"] == (0, 4 * 2 * frames.numel())
    assert counter.total == (2 * 8 * 64 * 27, moved + 4 * 2 * frames.numel())


@pytest.mark.skipif(not int8.is_supported(), reason="no oneDNN here")
def test_work_in_8_bits_counts_as_much_as_in_float32(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "MIN_WEIGHTS", 1000)
    counts = []
    for dtype in ("float32", "int8"):
        pipeline = AvatarPipeline.on(make_model(), dtype=dtype, compiled=False)
        counts.append(bench.work(pipeline, pipeline.init_state(make_portrait())))
    parts = [part for part in pipeline.model.modules() if isinstance(part, Int8Conv2d)]
    assert parts, "some convolutions run in 8 bits"
    plain, rough = (count["gflop_per_window"] for count in counts)
    assert rough == plain


def test_batches_are_measured_one_after_the_other(
    still: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "face.png"
    draw(300, 300, [(150, 150, 150)]).save(path)
    words = ["--portrait", str(path), "--windows", "30", "--sessions", "1,3", "--size", "256"]
    still.main([*words, "--json", "-o", str(tmp_path / "out.json")])
    line = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "out.json").read_text()) == line
    batches = line["batches"]
    assert all(b["peak_mb"] >= b["steady"]["most_mb"] > 0 for b in batches)
    assert [(b["sessions"], b["windows"]) for b in batches] == [(1, 30), (3, 30)]
    assert all({"first_ms", "last_ms", "first_mb", "last_mb"} <= set(b["steady"]) for b in batches)


def test_time_and_memory_of_the_first_and_the_last_tenth_are_compared(bench: ModuleType) -> None:
    times = [5.0] * 10 + [6.0] * 80 + [9.0] * 10
    assert bench.steady(times, [100.0, 130.0, 120.0]) == {
        "first_ms": 5.0, "last_ms": 9.0, "first_mb": 100.0, "last_mb": 120.0, "most_mb": 130.0
    }  # fmt: skip


@pytest.mark.parametrize("text", ["0", "1,0"])
def test_a_batch_of_no_session_is_refused(bench: ModuleType, text: str) -> None:
    with pytest.raises(SystemExit):
        bench.main(["--sessions", text])


def test_a_toy_of_b_is_measured_with_its_decoder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("diffusers", reason="the extra `paper` is not installed")
    spec = importlib.util.spec_from_file_location("bench_stages", BENCH)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(PRESETS, "toy-b", make_dc_preset("toy-b"))
    path = tmp_path / "out.json"
    module.main(
        ["--preset", "toy-b", "--device", "cpu", "--steps", "4", "--sessions", "1,2", "--windows",
         "2", "--size", "256", "--dtype", "float32", "--json", "-o", str(path)]
    )  # fmt: skip
    facts = json.loads(path.read_text())
    assert (facts["steps"], facts["weights"]) == (4, "random")
    assert [batch["sessions"] for batch in facts["batches"]] == [1, 2]
    assert all(batch["stages_ms"]["decode"] > 0 for batch in facts["batches"])
