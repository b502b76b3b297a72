"""What importing costs, what is public, and who may import whom."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import letstalk_rt
import letstalk_server
from letstalk_rt import errors

ROOT = Path(letstalk_rt.__file__).parent

RANKS = {
    "types": 0,
    "errors": 0,
    "config": 0,
    "metrics": 0,
    "pacing": 0,
    "audio": 1,
    "models": 1,
    "avatars": 1,
    "badge": 1,
    "compositor": 1,
    "edges": 1,
    "portrait": 1,
    "matte": 1,
    "library": 2,
    "speed": 3,
    "doctor": 4,
    "commands": 5,
    "graphs": 1,
    "devices": 1,
    "tuning": 2,
    "pipeline": 2,
    "session_state": 2,
    "frame_decoder": 2,
    "sources": 4,
    "intake": 3,
    "contract": 2,
    "session_options": 3,
    "events": 0,
    "playback": 0,
    "batching": 3,
    "frame_queue": 3,
    "stepper": 3,
    "threads": 0,
    "session": 3,
    "engine": 3,
    "playout": 3,
    "sinks": 4,
    "training": 4,
    "cli": 5,
}
"""A room imports only rooms of its own rank and below. A new room is entered here."""

SERVER = Path(letstalk_server.__file__).parent

HTTP_LAYER = set("api app guard openapi pages problem_details sockets web webrtc".split())
"""Modules of the server that know HTTP; only the command line may import them beside themselves."""

ENTRY_POINTS = {"main", "__main__"}

LAZY = {"Avatar": "engine", "AvatarSession": "engine"}


def modules_after(statement):
    code = f"{statement}\nimport sys\nsys.stdout.write(' '.join(sys.modules))"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT.parent)
    return set(result.stdout.split())


def imported_rooms(source):
    """The rooms of the package that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names = [node.module]
            if node.module == "letstalk_rt":
                names = [f"letstalk_rt.{LAZY.get(a.name, a.name)}" for a in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            if package == "letstalk_server":
                yield package
            room = rest.partition(".")[0]
            if package == "letstalk_rt" and room in RANKS:
                yield room


def wrong_imports(root):
    """What is imported against the order, as `file imports room`."""
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts == ("__init__",):
            continue  # the lazy names reach everywhere
        assert parts[0] in RANKS, f"enter {parts[0]} in RANKS"
        for room in imported_rooms(path.read_text(encoding="utf-8")):
            if RANKS.get(room, 9) > RANKS[parts[0]]:
                yield f"{path.relative_to(root).as_posix()} imports {room}"


def imported_modules(source):
    """The full names of what a file imports; of `from a import b` both `a` and `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def http_leaks(root):
    """Imports of HTTP from below the HTTP layer, as `module imports name`."""
    http = {f"letstalk_server.{name}" for name in HTTP_LAYER}
    for path in sorted(root.glob("*.py")):
        if path.stem in HTTP_LAYER:
            continue
        for name in imported_modules(path.read_text(encoding="utf-8")):
            knows_http = name in http and path.stem not in ENTRY_POINTS
            if knows_http or name.partition(".")[0] == "starlette":
                yield f"{path.stem} imports {name}"


def test_importing_the_package_is_light():
    loaded = modules_after("import letstalk_rt")
    assert "letstalk_rt" in loaded
    assert not loaded & {"torch", "numpy", "soxr", "av", "PIL", "asyncio"}


def test_the_engine_knows_no_torch_and_no_transport():
    loaded = modules_after("from letstalk_rt import Avatar; import letstalk_rt.playout")
    assert "letstalk_rt.engine" in loaded
    assert not loaded & {"torch", "aiortc", "av", "PIL", "starlette"}


def test_imports_go_one_way():
    assert list(wrong_imports(ROOT)) == []


@pytest.mark.parametrize(
    "file, line, wrong",
    [
        ("types.py", "from letstalk_rt.audio.chunker import Chunker", "audio"),
        ("audio/mel.py", "from letstalk_rt.pipeline import AvatarPipeline", "pipeline"),
        ("pipeline.py", "from letstalk_rt import Avatar", "engine"),
        ("models/conv.py", "def f():\n    import letstalk_rt.engine", "engine"),
        ("engine.py", "from letstalk_rt import sinks", "sinks"),
        ("cli.py", "import letstalk_server.app", "letstalk_server"),
    ],
)
def test_an_import_against_the_order_is_found(tmp_path, file, line, wrong):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(line + "\n", encoding="utf-8")
    assert list(wrong_imports(tmp_path)) == [f"{file} imports {wrong}"]


def test_http_stays_in_the_http_layer():
    assert {path.stem for path in SERVER.glob("*.py")} >= HTTP_LAYER | ENTRY_POINTS
    assert list(http_leaks(SERVER)) == []


@pytest.mark.parametrize(
    "line, wrong",
    [
        ("from starlette.responses import Response", "starlette.responses"),
        ("def f():\n    import starlette", "starlette"),
        ("from letstalk_server.problem_details import problem_details", "letstalk_server.p"),
        ("from letstalk_server import errors, web", "letstalk_server.web"),
    ],
)
def test_http_below_its_layer_is_found(tmp_path, line, wrong):
    (tmp_path / "session.py").write_text(line + "\n", encoding="utf-8")
    (tmp_path / "app.py").write_text(line + "\n", encoding="utf-8")
    found = list(http_leaks(tmp_path))
    assert found and all(leak.startswith("session imports " + wrong) for leak in found)


def test_the_public_names_are_these():
    assert sorted(letstalk_rt.__all__) == [
        "AVFrame",
        "AtCapacity",
        "AudioFormatError",
        "Avatar",
        "AvatarSession",
        "ConfigError",
        "DependencyError",
        "EngineError",
        "Event",
        "ImageDamagedError",
        "InputError",
        "Interrupted",
        "LetsTalkError",
        "MotionOptions",
        "NoFaceError",
        "NotAnImageError",
        "PortraitError",
        "SegmentEnd",
        "SessionClosed",
        "TooManyPixelsError",
        "WeightsError",
    ]


def test_a_public_name_is_the_thing_itself():
    for name in letstalk_rt.__all__:
        value = getattr(letstalk_rt, name)
        assert inspect.isclass(value), name
        assert value.__name__ == name
        assert name in dir(letstalk_rt)


def test_every_error_is_public():
    tree = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    assert tree <= set(letstalk_rt.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Avatarr"):
        _ = letstalk_rt.Avatarr


def test_the_version_is_a_number():
    assert [part.isdigit() for part in letstalk_rt.__version__.split(".")] == [True] * 3
