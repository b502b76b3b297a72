"""Sizes of models are counted, and docs/paper.md shows what was counted."""

import json
from pathlib import Path

import bench_size
import pytest

ROOT = Path(bench_size.__file__).parents[1]
ROWS = json.loads((ROOT / "benchmarks" / "results" / "model-sizes.json").read_text())["rows"]


def test_the_page_shows_the_results():
    page = (ROOT / "docs" / "paper.md").read_text()
    assert "\n".join(bench_size.table(ROWS)) in page


@pytest.mark.parametrize("row", [bench_size.published_row("s"), bench_size.streaming_row("tiny")])
def test_the_results_are_what_is_counted(row):
    assert row in ROWS


def test_a_frame_costs_all_steps_and_what_is_done_once():
    row = bench_size.published_row("s")
    assert 0 < row["gflop_per_frame"] - 250 * row["gflop_per_step"] < row["gflop_per_step"]
