"""The benchmark of attacks finds late frames, and says which bars were missed."""

import json
from pathlib import Path

import bench_attack
import numpy as np
import pytest
from attack.attackers import ATTACKS
from attack.rounds import NO_ANSWER_MS, NONE, Row
from attack.table import put_into
from attack.viewers import Arrivals, NotingBuffer

FRAME_S = 0.04
ROOT = Path(__file__).parents[2]


def arrivals(delays_s, *, due_s=None):
    due_s = np.arange(len(delays_s)) * FRAME_S if due_s is None else due_s
    return Arrivals(list(due_s), list(np.arange(len(delays_s)) * FRAME_S + delays_s + 100))


def a_row(**other):
    figures = {
        "attack": "film-bombs",
        "seconds": 20.0,
        "frames": 2000,
        "latest_ms": 30.0,
        "late_share": 0.0,
        "before_ms": 10.0,
        "load": 0.5,
        "memory_mb": 600.0,
        "grown_mb": 2.0,
        "peak_mb": 200.0,
        "health_during_ms": 5.0,
        "health_ms": 5.0,
        "session_ms": 5.0,
        "answers": {},
    }
    return Row(**(figures | other))


def test_lateness_counts_from_the_least_delayed_frame_of_the_quiet_time():
    delays_s = np.full(250, 0.01)
    delays_s[200] = 0.31
    late_ms = arrivals(delays_s).lateness_ms(105.0, 110.0)
    assert late_ms.max() == pytest.approx(300, abs=1)
    assert (late_ms > 40).sum() == 1


def test_a_sender_that_stops_is_late_whatever_its_timestamps_say():
    delays_s = np.full(250, 0.01)
    delays_s[200:] += 0.5
    moved_s = np.arange(250) * FRAME_S + np.where(np.arange(250) >= 200, 0.5, 0)
    late_ms = arrivals(delays_s, due_s=moved_s).lateness_ms(105.0, 110.4)
    assert late_ms.max() == pytest.approx(500, abs=1)


def test_frames_that_do_not_arrive_are_late():
    delays_s = np.full(200, 0.01)
    assert arrivals(delays_s).lateness_ms(105.0, 110.0).max() > 1900
    assert arrivals(delays_s).lateness_ms(120.0, 125.0).max() == 5000


def test_the_end_of_each_frame_is_noted_across_the_wrap_of_timestamps():
    class Packet:
        def __init__(self, timestamp, marker):
            self.timestamp, self.marker = timestamp % 2**32, marker

    noted = Arrivals()
    buffer = NotingBuffer(noted)
    for number in range(3):
        for is_last in (False, True):
            stamp = 2**32 - 3600 + 3600 * number
            assert buffer.add(Packet(stamp, is_last)) == (False, None)
    assert noted.due_s == pytest.approx([0.0, 0.04, 0.08])


@pytest.mark.parametrize(
    ("other", "missed"),
    [
        ({}, []),
        ({"latest_ms": 201.0}, ["lateness"]),
        ({"grown_mb": 33.0}, ["memory"]),
        ({"health_ms": NO_ANSWER_MS}, ["healthy"]),
        ({"session_ms": 1001.0}, ["healthy"]),
    ],
)
def test_each_bar_is_missed_by_its_own_figure(other, missed):
    judged = bench_attack.judged(a_row(**other))
    assert [name for name, is_met in judged["bars"].items() if not is_met] == missed
    assert judged["met"] is not bool(missed)


def test_the_table_of_security_is_that_of_the_result():
    page = (ROOT / "SECURITY.md").read_text("utf-8")
    result = json.loads((ROOT / "benchmarks/results/attack-2core.json").read_text("utf-8"))
    assert put_into(page, result) == page
    assert {row["attack"] for row in result["attacks"]} == {NONE, *ATTACKS}


def test_an_attack_that_does_not_exist_is_refused(capsys):
    with pytest.raises(SystemExit):
        bench_attack.parse(["--attack", "kindness"])
    told = capsys.readouterr().err
    assert all(name in told for name in ATTACKS)


def test_an_attack_is_measured_beside_live_sessions(capsys, tmp_path):
    output = tmp_path / "attack.json"
    bench_attack.main(
        ["--seconds", "1", "--attack", "foreign-portraits", "--json", "-o", str(output)]
    )
    (row,) = json.loads(output.read_text())["attacks"]
    assert row["frames"] > 50 and row["bars"]["healthy"]
    assert set(row["answers"]) <= {"unknown-avatar", "unknown-portrait", "seconds", "not-allowed"}
    assert '"benchmark": "attack"' in capsys.readouterr().out
