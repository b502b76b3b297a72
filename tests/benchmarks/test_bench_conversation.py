"""A conversation is measured with a real server, a real peer and espeak-ng as the user."""

import json
import shutil

import bench_conversation
import pytest


def result(answer_ms=1000, barge_in_ms=150, lost=0, problems=()):
    return {
        "answer_ms": {"p95": answer_ms},
        "barge_in_ms": {"p95": barge_in_ms},
        "lost": lost,
        "problems": list(problems),
    }


@pytest.mark.parametrize(
    "missed",
    [{"answer_ms": 1501}, {"barge_in_ms": 201}, {"lost": 1}, {"problems": ["chat-failed"]}],
)
def test_a_bar_that_is_missed_is_seen(missed):
    assert bench_conversation.is_good(result())
    assert not bench_conversation.is_good(result(**missed))


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="no espeak-ng")
def test_turns_are_answered_and_answers_are_interrupted(capsys, tmp_path):
    pytest.importorskip("pocketsphinx")
    file = tmp_path / "result.json"
    bench_conversation.main(["--turns", "2", "--json", "--output", str(file)])
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == json.loads(file.read_text())
    assert (printed["lost"], printed["problems"]) == (0, [])
    assert printed["answer_ms"]["max"] > 400, "the pause that ends a turn"
    assert 0 < printed["barge_in_ms"]["max"]
