"""Who may import whom: folders stand in an order, and each imports only folders before its own."""

import ast
import textwrap
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import letstalk_rt
import letstalk_server

SDK = Path(letstalk_rt.__file__).parent
SERVER = Path(letstalk_server.__file__).parent

LAYERS = """
letstalk_rt
letstalk_rt.avatars
letstalk_rt.audio
letstalk_rt.performance
letstalk_rt.speech
letstalk_rt.models.layers
letstalk_rt.models.geometry
letstalk_rt.models.audio_encoder
letstalk_rt.models.autoencoder
letstalk_rt.models.face
letstalk_rt.models.motion
letstalk_rt.models
letstalk_rt.portrait
letstalk_rt.recording
letstalk_rt.inference
letstalk_rt.dubbing
letstalk_rt.session
letstalk_rt.sources
letstalk_rt.conversation
letstalk_rt.sinks
letstalk_rt.training
letstalk_rt.training.data
letstalk_rt.training.evaluation
letstalk_rt.training.prepare
letstalk_rt.training.stages
letstalk_rt.paper
letstalk_rt.cli
letstalk_rt.__main__
letstalk_server.settings
letstalk_server.errors
letstalk_server.log_limit
letstalk_server.memory
letstalk_server.auth
letstalk_server.protocol
letstalk_server.session
letstalk_server.webrtc
letstalk_server.metrics
letstalk_server.http
letstalk_server.cluster
letstalk_server.app
letstalk_server.server
letstalk_server.main
letstalk_server.__main__
letstalk_server
""".split()
"""All folders, lowest first; a file at the top of the server is a folder of its own."""

HTTP = {"starlette", "uvicorn"}
KNOWS_HTTP = {f"letstalk_server.{name}" for name in ("http", "app", "server", "main")}


def module_of(path: Path, root: Path) -> str:
    parts = [root.name, *path.relative_to(root).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def folder_of(module: str) -> str:
    """Return the layer that a module belongs to."""
    while module not in LAYERS:
        module, _, name = module.rpartition(".")
        assert name, "every module lies in a folder of LAYERS"
    return module


def imported(source: str) -> Iterator[str]:
    """Yield the modules that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def lazy_names(root: Path) -> set[str]:
    """Return the public names, as `package.name`: importing one reaches into a high folder."""
    return {f"{root.name}.{name}" for name in (*letstalk_rt.__all__, "__version__")}


def violations(roots: list[Path]) -> Iterator[str]:
    """Yield what is imported against the order, as `module imports name`."""
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            module = module_of(path, root)
            if module == "letstalk_rt":
                continue  # its names are loaded when they are first used
            own = LAYERS.index(folder_of(module))
            for name in imported(path.read_text(encoding="utf-8")):
                if name in lazy_names(SDK):
                    yield f"{module} imports {name}"
                elif name.partition(".")[0] in ("letstalk_rt", "letstalk_server"):
                    if LAYERS.index(folder_of(name)) > own:
                        yield f"{module} imports {name}"
                elif name.partition(".")[0] in HTTP and LAYERS[own] not in KNOWS_HTTP:
                    yield f"{module} imports {name}"


def test_imports_go_one_way() -> None:
    assert list(violations([SDK, SERVER])) == []


def import_graph(roots: list[Path]) -> dict[str, set[str]]:
    """Return the modules that each file imports, also for its types or inside a function."""
    paths = {module_of(path, root): path for root in roots for path in root.rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for module, path in paths.items():
        names = set(imported(path.read_text(encoding="utf-8")))
        modules = names | {name.rpartition(".")[0] for name in names if name not in paths}
        graph[module] = (modules & paths.keys()) - {module}
    return graph


def test_no_files_import_each_other_in_a_circle() -> None:
    order = list(TopologicalSorter(import_graph([SDK, SERVER])).static_order())
    assert order.index("letstalk_rt.types") < order.index("letstalk_rt.session.session")


def test_a_circle_is_found_also_where_one_half_imports_within_a_function(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(f"import {tmp_path.name}.b\n", encoding="utf-8")
    inner = f"def f():\n    from {tmp_path.name}.a import f\n"
    (tmp_path / "b.py").write_text(inner, encoding="utf-8")
    with pytest.raises(CycleError):
        TopologicalSorter(import_graph([tmp_path])).prepare()


def test_every_folder_has_its_place() -> None:
    """Each entry exists, and each folder of Python files is an entry."""
    for root in (SDK, SERVER):
        folders = {module_of(path, root) for path in root.rglob("__init__.py")}
        assert folders <= set(LAYERS)
    for layer in LAYERS:
        base = SERVER.parent if layer.startswith("letstalk_server") else SDK.parent
        place = base.joinpath(*layer.split("."))
        assert place.is_dir() or place.with_suffix(".py").is_file(), layer


@pytest.mark.parametrize(
    "file, line, wrong",
    [
        ("types.py", "from letstalk_rt.audio.hop_buffer import HopBuffer", "letstalk_rt.audio"),
        ("models/face/x.py", "from letstalk_rt.models import presets", "letstalk_rt.models"),
        ("inference/x.py", "from letstalk_rt import Avatar", "letstalk_rt.Avatar"),
        ("audio/x.py", "def f():\n    import letstalk_rt.session.avatar", "letstalk_rt.session"),
        ("portrait/x.py", "from letstalk_rt import __version__", "letstalk_rt.__version__"),
        ("cli/x.py", "import letstalk_server.app", "letstalk_server.app"),
        ("sinks/x.py", "import starlette.routing", "starlette.routing"),
    ],
)
def test_an_import_against_the_order_is_found(
    tmp_path: Path, file: str, line: str, wrong: str
) -> None:
    path = tmp_path / "letstalk_rt" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(line) + "\n", encoding="utf-8")
    (found,) = violations([tmp_path / "letstalk_rt"])
    assert f"imports {wrong}" in found
