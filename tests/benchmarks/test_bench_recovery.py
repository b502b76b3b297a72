"""How soon sessions go on after a fault of their model is measured, with a model of no cost."""

import json

import bench_recovery
import pytest

ROW = {"fault": "kill", "fresh_s": 1.2, "ended": []}


def test_the_fault_and_the_next_fresh_frame_are_found(capsys, tmp_path):
    output = tmp_path / "recovery.json"
    words = ["--model", "webrtc.flash_avatar:FlashPipeline", "--faults", "raise", "kill-again"]
    words += ["--size", "256", "--sessions", "2", "--settle", "0.5", "--json", "-o", str(output)]
    status = bench_recovery.main([*words, "--within", "60"])
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert status == 0 and result["met"] and json.loads(output.read_text()) == result
    raised, killed = result["faults"]
    assert raised["counted"] == {"raised": 1} and killed["counted"] == {"died": 1}
    assert 0 < raised["fresh_s"] and raised["loaded_s"] is None
    assert 0 < killed["fresh_s"] and killed["loaded_s"] > 0
    assert not raised["ended"] and not killed["ended"]


@pytest.mark.parametrize(
    ("changes", "good"),
    [
        ({}, True),
        ({"fresh_s": 5.1}, False),
        ({"fresh_s": None}, False),
        ({"fresh_s": None, "ended": ["gone", "gone"]}, True),
        ({"fresh_s": None, "ended": ["gone"]}, False),
    ],
)
def test_sessions_go_on_in_time_or_end_with_a_reason(changes, good):
    assert bench_recovery.is_good(ROW | changes, sessions=2, within_s=5.0) is good
