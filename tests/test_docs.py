"""What the documentation names exists: files, folders, modules, classes, functions and commands."""

import importlib
import re
from functools import cache
from pathlib import Path

import pytest
from test_layering import LAYERS

from letstalk_rt.cli.train import LOOPS

ROOT = Path(__file__).parents[1]
PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "letstalk_rt").glob("*/README.md"),
]
CURRENT = [page for page in PAGES if page.name not in ("CHANGELOG.md", "log.md")]
"""The pages that describe the present; the others are history."""

SOURCES = ("letstalk_rt", "server", "client_examples", "benchmarks", "tests")
SUFFIXES = {".py", ".js", ".html", ".css"}
ELSEWHERE = {"notify_playback_finished"}
"""Names of other projects."""


@cache
def source_files() -> tuple[Path, ...]:
    paths = [path for folder in SOURCES for path in (ROOT / folder).rglob("*")]
    return tuple(path for path in paths if path.suffix in SUFFIXES)


@cache
def source_words() -> frozenset[str]:
    """Return every word in the sources, this file excepted."""
    files = [path for path in source_files() if path.name != Path(__file__).name]
    files += [ROOT / name for name in ("Dockerfile", "Makefile", "compose.yaml")]
    return frozenset(word for path in files for word in re.findall(r"\w+", path.read_text("utf-8")))


def code_of(page: Path) -> list[str]:
    """Return what a page shows as code within its sentences and tables."""
    prose = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`\n]+)`", prose)


def missing_files(codes: list[str]) -> set[str]:
    """Return the source files and folders among the codes that are nowhere in the tree."""
    files = {code for code in codes if re.fullmatch(r"[\w./-]+\.(py|js)", code)}
    folders = {code for code in codes if re.fullmatch(rf"({'|'.join(SOURCES)})(/[\w-]+)*/?", code)}
    known = [path.as_posix() for path in source_files()]
    lost = {name for name in files if not any(path.endswith(f"/{name}") for path in known)}
    return lost | {name for name in folders if not (ROOT / name).is_dir()}


def missing_names(text: str) -> set[str]:
    """Return the dotted names of our packages in a text that cannot be imported."""
    lost = set()
    for name in set(re.findall(r"\b(?:letstalk_rt|letstalk_server)(?:\.\w+)+", text)):
        module, _, attribute = name.rpartition(".")
        try:
            importlib.import_module(name)
        except ImportError:
            if not hasattr(importlib.import_module(module), attribute):
                lost.add(name)
    for module, names in re.findall(r"^from (letstalk_rt[\w.]*) import ([\w, ]+)", text, re.M):
        loaded = importlib.import_module(module)
        lost |= {name for name in names.strip().split(", ") if not hasattr(loaded, name)}
    return lost


def missing_words(codes: list[str]) -> set[str]:
    """Return the identifiers among the codes that no source has."""
    names = [code for code in codes if re.fullmatch(r"[\w.#]+(\([^)]*\))?", code)]
    words = {word for name in names for word in re.findall(r"[A-Za-z]\w*", name)}
    mixed = {word for word in words if re.search(r"[a-z][A-Z]|[A-Za-z]_[A-Za-z]", word)}
    known = source_words() | ELSEWHERE
    return {word for word in mixed if not {word, word.removeprefix("letstalk_")} & known}


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
def test_what_a_page_names_exists(page: Path) -> None:
    codes = code_of(page)
    assert missing_files(codes) == set()
    assert missing_names(page.read_text("utf-8")) == set()
    assert missing_words(codes) == set()


def test_a_name_that_does_not_exist_is_found() -> None:
    assert missing_files(["models/nothing.py", "app.js", "letstalk_rt/lips"]) == {
        "models/nothing.py",
        "letstalk_rt/lips",
    }
    text = "letstalk_rt.models.lips letstalk_rt.audio.resample.Nothing letstalk_rt.audio"
    assert missing_names(text) == {"letstalk_rt.models.lips", "letstalk_rt.audio.resample.Nothing"}
    assert missing_words(["AvatarSession", "Lip" + "Painter()"]) == {"LipPainter"}


def test_the_stages_of_the_training_page_are_those_of_the_command() -> None:
    page = (ROOT / "docs" / "training.md").read_text("utf-8")
    assert set(re.findall(r"^letstalk train (\w+)", page, re.MULTILINE)) == {*LOOPS, "export"}


ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text("utf-8")


def test_the_folder_map_has_every_folder() -> None:
    (folders,) = re.findall(r"## Folders\n\n```\n(.*?)```", ARCHITECTURE, re.DOTALL)
    named = set(re.findall(r"(\w+)/", folders))
    for root in (ROOT / "letstalk_rt", ROOT / "server" / "letstalk_server"):
        packages = {path.parent for path in root.rglob("__init__.py")} - {root}
        assert {path.name for path in packages} <= named


def test_the_order_of_imports_is_that_of_the_layering_test() -> None:
    found = re.findall(r"^(letstalk_\w+):\s+([\w/,\s]+?)(?=\n\S)", ARCHITECTURE, re.MULTILINE)
    assert [package for package, _ in found] == ["letstalk_rt", "letstalk_server"]
    for package, order in found:
        layers = [layer for layer in LAYERS if layer.startswith(f"{package}.")]
        names = [layer.removeprefix(f"{package}.").replace(".", "/") for layer in layers]
        shown = [name for name in re.split(r",\s+", order) if name != "files"]
        assert shown == [name for name in names if name != "__main__"]
