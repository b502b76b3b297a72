"""The limit to an instruction set reaches the process that is measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

import instruction_sets
import pytest

BENCHMARKS = Path(instruction_sets.__file__).parent

SCRIPT = """
import json, os, sys
sys.path.insert(0, {folder!r})
from instruction_sets import run_limited
run_limited(sys.argv[1] if len(sys.argv) > 1 else None, __file__, sys.argv[1:])
print(json.dumps({{name: os.environ.get(name) for name in {names!r}}}))
"""


@pytest.fixture
def flags(monkeypatch):
    """A processor that has AVX2 and AVX-512."""
    monkeypatch.setattr(
        instruction_sets, "processor_flags", lambda: frozenset({"avx2", "avx512f", "sse2"})
    )


def test_the_environment_holds_the_limits_of_both_libraries(flags):
    found = instruction_sets.environment("avx2")
    assert found["ONEDNN_MAX_CPU_ISA"] == "AVX2" and found["ATEN_CPU_CAPABILITY"] == "avx2"
    assert instruction_sets.environment(None) == dict(os.environ)


def test_an_instruction_set_that_is_missing_is_refused(flags):
    with pytest.raises(SystemExit, match="no amx; it has: avx2, avx512"):
        instruction_sets.environment("amx")


def test_every_choice_has_limits_and_a_flag():
    assert set(instruction_sets.LIMITS) == set(instruction_sets.FLAGS) == {"avx2", "avx512", "amx"}


def test_a_script_runs_again_once_with_the_limits(tmp_path):
    known = instruction_sets.processor_flags()
    if known is None or "avx2" not in known:
        pytest.skip("needs a processor with AVX2 under Linux")
    names = sorted(instruction_sets.LIMITS["avx2"])
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(folder=str(BENCHMARKS), names=names))
    free = {name: value for name, value in os.environ.items() if name not in names}
    for words, wanted in ((["avx2"], instruction_sets.LIMITS["avx2"]), ([], {})):
        command = [sys.executable, str(script), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=free)
        (line,) = done.stdout.splitlines()
        assert json.loads(line) == {name: wanted.get(name) for name in names}


def test_a_limit_below_what_the_processor_has_is_said(monkeypatch):
    monkeypatch.setattr(
        instruction_sets, "processor_flags", lambda: frozenset({"avx2", "avx512f", "sse2"})
    )
    assert instruction_sets.is_emulated("avx2")
    assert not instruction_sets.is_emulated("avx512")
    assert not instruction_sets.is_emulated(None)
