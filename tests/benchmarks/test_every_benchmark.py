"""What all benchmarks have in common, read from their source: nothing is run."""

import ast
from pathlib import Path

import bench_session
import pytest
import run_all

BENCHMARKS = Path(run_all.__file__).parent
SCRIPTS = sorted(BENCHMARKS.glob("bench_*.py"))


def calls(script):
    return [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.Call)]


def options_of(script):
    """Return the names of all options that a script adds to its parsers."""
    firsts = [call.args[0] for call in calls(script) if call.args]
    return {each.value for each in firsts if isinstance(each, ast.Constant)}


def prints_json(script):
    """Return whether a script prints what `json.dumps` returns, or a text that was made by it."""
    prints = [call for call in calls(script) if getattr(call.func, "id", "") == "print"]
    inner = [ast.unparse(call) for call in prints]
    return any("json.dumps(" in text for text in inner) or "print(text)" in inner


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_benchmark_takes_json_and_prints_it(script):
    assert "--json" in options_of(script)
    assert prints_json(script)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_benchmark_ends_in_time(script):
    names = {getattr(call.func, "id", "") for call in calls(script)}
    assert {"add_limit", "time_limit"} <= names


def test_the_live_session_is_measured_by_instruction_set():
    assert bench_session.parse(["--isa", "avx2"]).isa == "avx2"
    with pytest.raises(SystemExit):
        bench_session.parse(["--isa", "sse"])


def test_all_rows_of_an_instruction_set_name_files_of_their_own():
    rows = run_all.rows(("avx2", "avx512", "amx"), seconds=60.0)
    files = [row.file for row in rows]
    assert len(set(files)) == len(files) == 12
    for row in rows:
        assert (BENCHMARKS / row.command[0]).is_file()
        assert row.command[row.command.index("--isa") + 1] in row.file
        assert "--json" in row.command


def test_the_last_line_is_the_result():
    assert run_all.result_of("loading\nfps 30\n" + '{"fps": 30.5}\n') == {"fps": 30.5}
    with pytest.raises(SystemExit, match="no JSON line"):
        run_all.result_of("the server did not start\n")
