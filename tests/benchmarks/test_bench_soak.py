"""The soak finds flashes, beeps, leaks and slopes, and says which bars were missed."""

import os
import subprocess
import sys
from dataclasses import replace

import bench_soak
import numpy as np
import pytest
from soak.holdings import Holdings, descendants, holdings, slope
from soak.onsets import BeepFinder, FlashFinder, skews_ms, voice
from soak.runs import LongRun
from soak.server import FlashingPipeline
from support.fakes import HOP, FakePipeline, deliver_parts, portrait
from webrtc.flash_avatar import BRIGHT, DARK, DIM, PATCH, Flashes

NOTHING = Holdings(4, 9, 30, 2, 1, 0, 100.0)


def a_run(seconds=3600.0, mb_per_h=0.0, skew_ms=5.0, **held):
    times_s = list(np.arange(0.0, seconds, 10.0))
    memory_mb = [100 + mb_per_h * at_s / 3600 for at_s in times_s]
    skews = {"talk": [(at_s, skew_ms) for at_s in np.arange(0.5, seconds)]}
    clients = {"talk": {"errors": {}}}
    after = replace(NOTHING, **held)
    process_mb = [[value - 40, 40.0] for value in memory_mb]
    return LongRun(NOTHING, after, seconds, times_s, memory_mb, process_mb, skews, clients)


def missed(rows):
    return [row["bar"] for row in rows if row["met"] is False]


def test_a_beep_is_found_once_where_it_begins():
    samples, finder = np.tile(voice(16_000), 3), BeepFinder(16_000)
    found = []
    for start in range(0, samples.size, 640):
        found += finder.listen(samples[start : start + 640], start / 16_000)
    # The first one has no silence before it.
    assert found == pytest.approx([1.0, 2.0], abs=0.002)


def test_a_flash_tells_when_its_sound_begins_within_the_frame():
    flashes, finder = Flashes(), FlashFinder()
    pcm = np.zeros(HOP * 4, np.float32)
    pcm[9 * 640 + 320 :] = 0.5
    shades = [s for hop in pcm.reshape(4, HOP) for s in flashes.shades(hop)]
    assert shades[:11] == [DARK] * 11 and shades[11] == round(DIM + (BRIGHT - DIM) / 2)
    found = [finder.look(shade, n / 25) for n, shade in enumerate(shades)]
    assert [at_s for at_s in found if at_s is not None] == [pytest.approx(11.5 / 25, abs=1e-3)]


def test_a_flash_belongs_to_the_nearest_beep_or_to_none():
    assert skews_ms([1.0, 2.0, 9.0], [1.02, 1.99]) == [
        (1.0, pytest.approx(20)),
        (2.0, pytest.approx(-10)),
    ]
    assert skews_ms([1.0], []) == []


def test_the_patch_is_painted_over_the_frames_of_any_model():
    class Parted(FakePipeline):
        finder, variant = None, None
        partial_sizes = (1, 3)

        def step(self, pcm, states, deliver=None):
            window = np.full((1, 4, PATCH + 8, PATCH + 8, 3), 200, np.uint8)
            deliver_parts(window, self.partial_sizes, deliver)
            return window

    pipeline = FlashingPipeline(Parted())
    state = pipeline.init_state(portrait())
    parts = []
    loud = np.full((1, HOP), 0.5, np.float32)
    (window,) = pipeline.step(loud, [state], parts.extend)
    assert [len(part) for part in parts] == [1, 3]
    assert np.array_equal(np.concatenate(parts), window)
    assert (window[:2, :PATCH, :PATCH] == DARK).all()
    assert (window[2:, :PATCH, :PATCH] == DIM).all()
    assert (window[:, PATCH:, PATCH:] == 200).all()


def test_what_a_process_and_its_children_hold_is_counted(tmp_path):
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    before = holdings(os.getpid(), 0, tmp_path)
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as child:
        while len(descendants(child.pid)) < 1:
            assert child.poll() is None
        (tmp_path / "left").touch()
        during = holdings(os.getpid(), 0, tmp_path)
        child.communicate(b"\n")
    assert during.children == before.children + 2 and during.threads >= before.threads + 2
    assert during.descriptors > before.descriptors and during.rss_mb > before.rss_mb
    assert during.temporary_files == 1


def test_the_slope_of_memory_is_fitted_to_its_later_part():
    times_s = list(np.arange(0.0, 3600, 10))
    memory_mb = [300 - at_s if at_s < 100 else 200 + at_s / 1800 for at_s in times_s]
    fit = slope(times_s, memory_mb, 1200.0)
    assert fit is not None and fit.mb_per_h == pytest.approx(2.0, abs=0.01)
    assert fit.from_s == 1200 and slope([0.0], [1.0], 0.0) is None


@pytest.mark.parametrize(
    ("seconds", "mb_per_h", "met"),
    [(7200.0, 0.5, True), (7200.0, 2.0, False), (2000.0, 50.0, None)],
)
def test_memory_that_grows_misses_its_bar_if_the_run_was_long_enough(seconds, mb_per_h, met):
    assert bench_soak.memory_bar(a_run(seconds, mb_per_h))[1]["met"] is met


def test_the_memory_of_each_process_is_given_once_in_a_quarter_of_an_hour():
    figures, _ = bench_soak.memory_bar(a_run(3600.0, 4.0))
    assert figures["processes_mb"] == [[60.0 + n, 40.0] for n in range(4)]


def test_one_bad_quarter_of_an_hour_misses_the_bar_of_the_skew():
    run = a_run()
    assert missed(bench_soak.skew_bars(run)[1]) == []
    late = [(at_s, 60.0 if 900 <= at_s < 1800 else 5.0) for at_s, _ in run.skews["talk"]]
    run.skews["talk"] = late
    assert missed(bench_soak.skew_bars(run)[1]) == ["skew p95 of talk, ms"]
    run.skews["talk"] = [each for each in late if each[0] < 3000]
    assert "share of beeps found by talk" in missed(bench_soak.skew_bars(run)[1])
    run.skews["talk"] = []
    assert "skew p95 of talk, ms" in missed(bench_soak.skew_bars(run)[1])


def test_everything_that_is_more_afterwards_misses_its_bar():
    run = a_run(threads=10, temporary_files=1, rss_mb=500.0)
    assert missed(bench_soak.count_bars(run.before, run.after)) == [
        "threads afterwards",
        "temporary_files afterwards",
    ]


def test_parts_that_do_not_exist_are_refused(capsys):
    with pytest.raises(SystemExit):
        bench_soak.parse(["--parts", "mock,everything"])
    assert "expected some of: mock, embedded, churn" in capsys.readouterr().err


def test_the_folder_of_the_results_is_there_before_anything_is_measured(tmp_path, capsys):
    options = bench_soak.parse(["--output", str(tmp_path / "new" / "folder")])
    assert options.output.is_dir()
    (tmp_path / "file.json").write_text("{}")
    with pytest.raises(SystemExit):
        bench_soak.parse(["--output", str(tmp_path / "file.json")])
    assert "expected a folder" in capsys.readouterr().err
