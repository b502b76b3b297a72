"""The simulation of a cluster: known results, bounds, and the same result for the same seed."""

import dataclasses
import json

import pytest
import sim_cluster
from sim_cluster import Scenario, Simulation, erlang_b

SMALL = Scenario(sessions=40, load=0.8, places=2, hours=0.5)


def test_erlangs_formula_gives_known_values():
    assert erlang_b(1, 1) == pytest.approx(1 / 2)
    assert erlang_b(10, 10) == pytest.approx(0.2146, abs=1e-4)


def test_no_worker_ever_has_more_sessions_than_places():
    tally = Simulation(dataclasses.replace(SMALL, load=1.2)).run()
    assert tally.most_on_a_worker == SMALL.places
    assert tally.refused_first > 0 and tally.most_waiting > 0


def test_visitors_arrive_at_the_rate_that_keeps_the_wanted_number():
    tally = Simulation(dataclasses.replace(SMALL, sessions=400)).run()
    assert tally.wanted == pytest.approx(400 / SMALL.length_s * 1800, rel=0.1)
    assert tally.refused_first == 0 and max(tally.waits_s) == 0


def test_sessions_of_lost_workers_resume():
    calm = Simulation(SMALL).run()
    tally = Simulation(dataclasses.replace(SMALL, lost=0.2)).run()
    assert tally.lost_workers >= calm.lost_workers + 5
    assert 0 < len(tally.resumes_s) <= tally.interrupted
    assert min(tally.resumes_s) >= sim_cluster.RESUME_S


def test_the_same_seed_gives_the_same_result(capsys, tmp_path):
    arguments = ["--sessions", "20", "--hours", "0.1", "-o"]
    for name in "ab":
        assert sim_cluster.main([*arguments, str(tmp_path / name)]) == 0
    report = json.loads((tmp_path / "a").read_text())
    assert report == json.loads((tmp_path / "b").read_text())
    assert [each["load"] for each in report["scenarios"]][:5] == [0.7, 0.85, 0.95, 1.0, 1.05]
