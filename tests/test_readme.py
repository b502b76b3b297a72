"""What the README shows, runs."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from support.faces import LoudIsBright, draw

from letstalk_rt.cli.main import COMMANDS, FORWARDED
from letstalk_rt.sinks.file import write_video

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMAND_LINE = (ROOT / "docs" / "command-line.md").read_text()
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


def test_the_lines_of_python_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ModuleType("letstalk_rt.inference.pipeline")
    model.AvatarPipeline = LoudIsBright  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "letstalk_rt.inference.pipeline", model)
    monkeypatch.chdir(tmp_path)
    draw(300, 300, [(150, 150, 150)]).save("portrait.jpg")
    write_video("speech.mkv", [], np.full(16_000, 0.1, np.float32), 16_000)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code.replace("speech.wav", "speech.mkv"), "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 12
    assert len(lines) >= 25 and lines[0] == "0 (512, 512, 3) (640,)"


def test_the_commands_exist() -> None:
    shown = set(re.findall(r"^letstalk ([\w-]+)", COMMAND_LINE, re.MULTILINE))
    assert shown == {*COMMANDS, *FORWARDED}
    makefile = (ROOT / "Makefile").read_text()
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    targets = set(re.findall(r"^make ([\w-]+)|`make ([\w-]+)", README + contributing, re.MULTILINE))
    assert len(targets) > 5
    for target in map("".join, targets):
        assert f"\n{target}:" in makefile


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_files_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    for path, _, heading in (link.partition("#") for link in links):
        target = page.parent / path if path else page
        assert target.exists(), path
        if heading:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert heading in {_anchor(name) for name in headings}


def _anchor(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_its_index_names_every_page() -> None:
    index = README.partition("## Documentation")[2].partition("\n## ")[0]
    pages = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")}
    assert pages - set(re.findall(r"\]\(([^)]+)\)", index)) == set()


def test_its_table_is_made_from_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from readme_table import with_table

    assert with_table(README, ROOT / "benchmarks" / "results") == README, "run: make readme"


def test_a_table_has_a_row_for_each_figure_there_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from readme_table import table

    three = {"p50": 1.0, "p95": 2.0, "p99": 3.0}
    session = {"interrupt_to_silence_ms": three, "av_skew_ms": three, "stalls": 0}
    (tmp_path / "bench_session-x.json").write_text(f"a card\n{json.dumps(session)}\n")
    unknown = {"interrupt_to_silence_ms": {"p50": math.nan, "p95": 1}}
    (tmp_path / "bench_session-y.json").write_text(json.dumps(unknown))
    webrtc = {"mic_to_lips_ms": {"p50": 1, "p95": 2, "max": 9}, "av_skew_ms": {"max": 4}, "fps": 25}
    (tmp_path / "bench_webrtc-x.json").write_text(json.dumps(webrtc, indent=1))
    rows = list(table(tmp_path))
    assert len(rows) == 3
    assert "9 ms (max)" in rows[0] and "bench_webrtc-x.json" in rows[0]
    assert "25.0 per second" in rows[1] and "at most 4 ms apart" in rows[1]
    assert "1 ms (p50), 2 ms (p95), 3 ms (p99)" in rows[2] and "bench_session-x.json" in rows[2]


def test_the_machine_is_named_with_its_instruction_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from readme_table import table

    stages = {"preset": "tiny", "device": "A CPU", "threads": 2, "dtype": "bfloat16"}
    stages |= {"size": [512, 512], "fps": 50.2, "budget_ms": 160, "window_ms": {"p50": 1, "p99": 3}}
    for emulated, words in ((False, "with AVX-512"), (True, "limited to AVX-512")):
        stages["emulated"] = emulated
        (tmp_path / "bench_stages-tiny-2core-avx512.json").write_text(json.dumps(stages))
        (row,) = table(tmp_path)
        assert f"2 cores of A CPU {words}, bfloat16" in row and "50 frames per second" in row


def test_render_help_names_every_option() -> None:
    words = [sys.executable, "-m", "letstalk_rt.cli.main", "render", "--help"]
    shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    for option in ("--size", "--seed", "--preset", "--device", "--steps", "--fps", "--output"):
        assert option in shown
