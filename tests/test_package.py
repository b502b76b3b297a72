"""A wheel holds all that runs without the repository: server, page, weights, avatars."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

import pytest

import letstalk_rt
from letstalk_rt.avatars import list_avatars

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """Build from a copy, so that the checkout stays as it is."""
    source = tmp_path_factory.mktemp("source")
    for name in ("letstalk_rt", "server", "client_examples"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    words = ["pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", "dist", "."]
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=source, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next((source / "dist").glob("*.whl"))) as opened:
        yield opened


def test_the_wheel_holds_code_and_data(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    expected = {"letstalk_rt/py.typed"}
    for folder, package in (
        ("letstalk_rt", "letstalk_rt"),
        ("server/letstalk_server", "letstalk_server"),
    ):
        code = [path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*.py")]
        expected |= {f"{package}/{path.as_posix()}" for path in code}
    for folder, package, kinds in (
        ("client_examples/browser", "letstalk_server/browser", ("*.*",)),
        ("client_examples/overlay", "letstalk_server/overlay", ("*.*",)),
        ("letstalk_rt/weights", "letstalk_rt/weights", ("*.safetensors", "*.md")),
        ("letstalk_rt/avatars", "letstalk_rt/avatars", ("*.jpg",)),
    ):
        data = [path.name for kind in kinds for path in (ROOT / folder).glob(kind)]
        expected |= {f"{package}/{name}" for name in data}
    assert not expected - names
    assert "letstalk_server/browser/index.html" in names


def test_the_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "letstalk_rt",
        "letstalk_server",
    }
    assert not [name for name in wheel.namelist() if "__pycache__" in name]


def test_the_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    info = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(wheel.read(info).decode())
    assert (metadata["Name"], metadata["Version"]) == ("letstalk-rt", letstalk_rt.__version__)
    assert metadata["License-Expression"] == "Apache-2.0"
    scripts = wheel.read(info.replace("METADATA", "entry_points.txt")).decode()
    assert "letstalk = letstalk_rt.cli.main:main" in scripts


def test_weights_and_avatars_ship(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    weights = [name for name in names if name.endswith(".safetensors")]
    assert "letstalk_rt/weights/tiny.safetensors" in weights
    assert all(wheel.getinfo(name).file_size <= 40_000_000 for name in weights)
    assert len([name for name in names if name.startswith("letstalk_rt/avatars/")]) >= 3


def test_default_avatars_are_listed_by_name() -> None:
    avatars = list_avatars()
    assert list(avatars) == sorted(avatars)
    assert all(path.is_file() and path.stem == name for name, path in avatars.items())


def test_constraints_lie_within_the_ranges() -> None:
    pytest.importorskip("packaging")
    from packaging.requirements import Requirement

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    constraints = [Requirement(line) for line in lines if line and not line.startswith("#")]
    tested = {
        requirement.name.lower().replace("_", "-"): [part.version for part in requirement.specifier]
        for requirement in constraints
    }
    assert all(tested.values()), "a constraint without a version"
    project = SETTINGS["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for requirement in map(Requirement, sum(groups, [])):
        for version in tested.get(requirement.name.lower(), []):
            assert version in requirement.specifier, requirement
