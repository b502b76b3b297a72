"""The published model is entered by one door, and nothing but a command enters it."""

import ast
import subprocess
import sys
from pathlib import Path

import letstalk_rt

PACKAGE = Path(letstalk_rt.__file__).parent
DOOR = "letstalk_rt.paper.commands"

LIVE = """
import sys
import numpy as np
import letstalk_rt

with letstalk_rt.Avatar.load("mira", preset="tiny", device="cpu") as avatar:
    frame = next(iter(avatar.render(np.zeros(16_000, np.int16), 16_000)))
    assert frame.rgb.any()
print(*(name for name in sys.modules if name.startswith("letstalk_rt")))
"""


def imported(path: Path) -> set[str]:
    """Return the modules of the package that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("letstalk_rt.paper")}


def test_other_folders_come_in_by_the_door() -> None:
    others = [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE / "paper"]
    assert {name for path in others for name in imported(path)} == {DOOR}


def test_an_avatar_that_speaks_loads_none_of_it() -> None:
    command = [sys.executable, "-c", LIVE]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    loaded = result.stdout.split()
    assert "letstalk_rt.models.avatar_model" in loaded
    assert [name for name in loaded if name.startswith("letstalk_rt.paper")] == []


def test_the_door_opens_without_torch() -> None:
    """Commands ask it for their options, which `--help` shows at once."""
    code = f"import sys, {DOOR}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)
