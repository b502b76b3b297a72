"""What the text-to-speech benchmark counts, and how it sums up."""

import bench_say
import numpy as np
import pytest


@pytest.mark.parametrize("level, loud", [(0, False), (600, False), (700, True), (-32_768, True)])
def test_loud_is_what_cannot_be_noise_of_the_codec(level, loud):
    assert bench_say.is_loud(np.array([[0, level, 0]], np.int16)) == loud


def test_the_summary_has_the_p95_of_all_texts():
    result = bench_say.summary([float(number) for number in range(1, 101)])
    assert result == {"texts": 100, "text_to_loud_ms": {"p50": 50.0, "p95": 95.0, "max": 100.0}}
