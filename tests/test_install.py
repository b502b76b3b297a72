"""A wheel is built, installed into an environment of its own, and the README is followed there.

The packages that it depends on are those of this environment, so that nothing is downloaded.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
needs_a_voice = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng")

Run = Callable[[list[str]], str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Return a function that runs a command in an environment with the wheel, and its folder."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    for name in ("letstalk_rt", "server", "client_examples"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    venv.create(folder / "venv", with_pip=True)
    own = folder / "venv" / "bin"
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    surroundings = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    surroundings["PATH"] = f"{own}{os.pathsep}{surroundings['PATH']}"
    surroundings["LETSTALK_HOME"] = str(folder / "home")

    def run_in(words: list[str], cwd: Path = folder) -> str:
        done = subprocess.run(
            words, cwd=cwd, env=surroundings, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    build = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", "dist"]
    run_in([sys.executable, *build, "."], cwd=source)
    install = "python -m pip install --no-deps --no-index ./source/dist/*.whl"
    run_in(["sh", "-c", install])
    shutil.rmtree(source / "letstalk_rt")
    yield run_in


def test_the_installed_package_is_used(run: Run) -> None:
    where = run(["python", "-c", "import letstalk_rt; print(letstalk_rt.__file__)"])
    assert "/installed" in where and "/venv/" in where
    assert run(["letstalk", "--version"]).startswith("letstalk-rt ")


@needs_a_voice
def test_the_commands_of_the_first_screen_run(run: Run) -> None:
    first = README.partition("## What it does")[0]
    (block,) = re.findall(r"```sh\n(.*?)```", first, re.DOTALL)
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert [words[0] for words in lines] == ["python3", ".", "pip", "letstalk", "letstalk"]
    assert lines[-1] == ["letstalk", "demo"], "served until Ctrl-C: tests/browser run it"
    run(lines[3])
    shown = run(["python", "-c", "import os; print(os.path.getsize('hello.mp4'))"])
    assert int(shown) > 10_000


@needs_a_voice
def test_the_program_of_the_first_screen_runs_with_the_embedded_model(
    run: Run, tmp_path: Path
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    program = tmp_path / "hello.py"
    program.write_text(code)
    lines = run(["sh", "-c", f"cd {tmp_path} && python hello.py"]).splitlines()
    assert len(lines) > 25 and lines[0] == "0 (512, 512, 3) (640,)"
    with av.open(str(tmp_path / "hello.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == len(lines)
