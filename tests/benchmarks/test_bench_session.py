"""The session benchmark's notes: in order, in memory that does not grow."""

import importlib.util
import sys
import tracemalloc
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location(
            "bench_session", BENCHMARKS / "bench_session.py"
        )
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module


@given(numbers=st.lists(st.floats(-1e6, 1e6), max_size=40), most=st.integers(1, 20))
def test_a_series_keeps_the_newest_in_order(
    bench: ModuleType, numbers: list[float], most: int
) -> None:
    series = bench.Series(most)
    for number in numbers:
        series.append(number)
    assert series.values().tolist() == numbers[-most:]
    series.clear()
    assert series.values().size == 0


def test_a_series_takes_its_memory_beforehand(bench: ModuleType) -> None:
    series = bench.Series(100)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(5000):
            series.append(float(number))
        assert tracemalloc.get_traced_memory()[0] < before + 100 * 8
    finally:
        tracemalloc.stop()
