"""What the tests of the command share: a fake model, a drawn portrait, and how it is run."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
from support.commands import Run
from support.faces import LoudIsBright, SkinFinder, draw

from letstalk_rt.cli import main


@pytest.fixture(autouse=True)
def fake_model(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("LETSTALK_HOME", str(tmp_path_factory.mktemp("home")))
    module = ModuleType("letstalk_rt.inference.pipeline")
    module.AvatarPipeline = LoudIsBright  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "letstalk_rt.inference.pipeline", module)
    monkeypatch.setattr(LoudIsBright, "fails_at", None)
    monkeypatch.setattr("letstalk_rt.models.loading.load_face_finder", SkinFinder)


@pytest.fixture
def portrait(tmp_path: Path) -> str:
    path = tmp_path / "face.png"
    draw(400, 300, [(200, 150, 130)]).save(path)
    return str(path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run_command(*arguments: object) -> tuple[int, str]:
        try:
            status = main.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return status, captured.err + captured.out

    return run_command
