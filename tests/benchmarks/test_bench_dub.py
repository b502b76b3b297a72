"""What the dubbing benchmark sums up."""

import bench_dub

from letstalk_rt.dubbing.dub_film import DubResult


def test_the_summary_relates_times_to_the_film():
    found = bench_dub.summary(DubResult(3000, 2990, 120.0, 512, 512), 90.0, 150.0)
    assert found["wall_over_film"] == 0.75 and found["cpu_ms_per_frame"] == 50.0
    assert found["untouched"] == 10


def test_the_voice_has_pauses():
    voice = bench_dub.voice(1.0)
    assert len(voice) == 16_000 and 0.3 < (voice == 0).mean() < 0.7
