"""What the README shows, runs."""

import argparse
import ast
import asyncio
import importlib
import json
import math
import re
import shlex
import subprocess
import sys
import textwrap
from ast import PyCF_ALLOW_TOP_LEVEL_AWAIT
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from support.faces import LoudIsBright, draw

from letstalk_rt.cli.evaluate import _parser as evaluate_parser
from letstalk_rt.cli.main import COMMANDS, FORWARDED
from letstalk_rt.cli.main import _parser as main_parser
from letstalk_rt.cli.prepare import _parser as prepare_parser
from letstalk_rt.errors import SynthesisError
from letstalk_rt.performance.direction import DirectedWindow, channel
from letstalk_rt.session.avatar import Avatar, AvatarSession
from letstalk_rt.sources import say
from letstalk_rt.types import AVFrame, SegmentEnd
from letstalk_server.cluster.main import _parser as cluster_parser
from letstalk_server.main import _parser as server_parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMAND_LINE = (ROOT / "docs" / "command-line.md").read_text()
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


class Tone:
    """A voice that hums each text for a second."""

    name = "tone"

    async def stream(self, text: str) -> AsyncIterator[tuple[np.ndarray, int]]:
        """Yield the sound of a text."""
        for _ in range(10):
            yield np.full(2205, 3000, np.int16), 22_050


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Put a fake model and a fake voice in the place of the real ones, in an empty folder."""
    model = ModuleType("letstalk_rt.inference.pipeline")
    model.AvatarPipeline = LoudIsBright  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "letstalk_rt.inference.pipeline", model)
    monkeypatch.setattr("letstalk_rt.speech.open_speech", Tone)
    draw(300, 300, [(150, 150, 150)]).save(tmp_path / "drawn.png")
    drawn = {name: tmp_path / "drawn.png" for name in ("mira", "leon")}
    monkeypatch.setattr("letstalk_rt.session.portraits.list_avatars", lambda: drawn)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks_of(page: Path, language: str) -> list[str]:
    text = page.read_text()
    return [
        textwrap.dedent(code) for code in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    ]


def test_the_program_runs_as_it_stands(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks_of(ROOT / "README.md", "python")
    exec(compile(code, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 25 and lines[0] == "0 (512, 512, 3) (640,)"
    assert (stage / "hello.mp4").stat().st_size > 1000
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 17


@pytest.mark.parametrize("after", [0, 1, 8], ids=["before-speech", "at-once", "in-speech"])
def test_its_loop_ends_with_an_interrupt(
    stage: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    take = AvatarSession.__anext__
    read: list[object] = []

    async def interrupting(self: AvatarSession) -> AVFrame | SegmentEnd:
        if len(read) == after:
            self.interrupt()
        read.append(await take(self))
        return read[-1]  # type: ignore[return-value]

    monkeypatch.setattr(AvatarSession, "__anext__", interrupting)
    (code,) = blocks_of(ROOT / "README.md", "python")
    exec(compile(code, "README.md", "exec"), {})
    assert isinstance(read[-1], SegmentEnd) and read[-1].interrupted
    assert len(capsys.readouterr().out.splitlines()) == len(read) - 1 == after


def test_a_voice_that_fails_ends_it_too(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(Tone):
        async def stream(self, text: str) -> AsyncIterator[tuple[np.ndarray, int]]:
            raise SynthesisError("no voice today")
            yield

    monkeypatch.setattr("letstalk_rt.speech.open_speech", Silent)
    (code,) = blocks_of(ROOT / "README.md", "python")
    with pytest.raises(ExceptionGroup) as caught:
        exec(compile(code, "README.md", "exec"), {})
    assert isinstance(caught.value.exceptions[0], SynthesisError)


def test_the_blocks_about_sessions_run(
    stage: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Player:
        shown = 0

        async def show_when_due(self, frame: AVFrame) -> None:
            self.shown += 1
            if self.shown == 5:
                raise EOFError("enough was shown")

    def run(code: str, **names: object) -> None:
        flags = PyCF_ALLOW_TOP_LEVEL_AWAIT
        made = eval(compile(code, "embedding.md", "exec", flags=flags), {"avatar": avatar, **names})
        asyncio.run(made)

    first, change, speak, direct = (
        code
        for code in blocks_of(ROOT / "docs" / "embedding.md", "python")
        if "session" in code and "avatar_token" not in code
    )
    directed: list[DirectedWindow] = []
    monkeypatch.setattr(LoudIsBright, "is_directable", True)
    monkeypatch.setattr(LoudIsBright, "direct", lambda _, state, window: directed.append(window))
    LoudIsBright.change_portrait, refused = (lambda *_: None), LoudIsBright.change_portrait
    try:
        with Avatar.load("mira") as avatar:
            with pytest.raises(EOFError, match="enough"):
                run(first, player=Player(), AVFrame=AVFrame)
            run(change)
            run(speak)
            run(direct, asyncio=asyncio, say=say, speech=Tone(), SegmentEnd=SegmentEnd)
    finally:
        LoudIsBright.change_portrait = refused  # type: ignore[method-assign]
    assert "not an image in a supported format" in capsys.readouterr().out
    assert max(window.added[:, channel("pitch")].max() for window in directed) > 0.05, "a nod"
    assert (stage / "talk.mp4").stat().st_size > 1000 and (stage / "leon.portrait").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_python_can_be_compiled_and_imports_what_exists(page: Path) -> None:
    for code in blocks_of(page, "python"):
        tree = ast.parse(code)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("letstalk"):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names), node.module


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command that has one of its own."""
    found = {"demo": server_parser(), "serve": server_parser(), "cluster": cluster_parser()}
    return found | {"eval": evaluate_parser(), "prepare": prepare_parser()}


def commands_of(page: Path) -> list[list[str]]:
    """Return the calls of `letstalk` in a page's blocks, without comments and further commands."""
    lines = "\n".join(blocks_of(page, "sh")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line.partition(" | ")[0], comments=True) for line in lines]
    calls = [call for call in words if call and call[0].endswith("letstalk")]
    return [[word for word in call if word != "&"] for call in calls]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_has_the_options_it_shows(page: Path) -> None:
    own = parsers()
    for name, command, *words in commands_of(page):
        if page.name != "training.md":  # which works in a clone's environment throughout
            assert name == "letstalk", f"one way to name the command, not {name}"
        if command in own and "--help" not in words:
            own[command].parse_args(words)
        elif command in COMMANDS:
            main_parser().parse_args([command, *words])
        else:
            assert command in FORWARDED


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
