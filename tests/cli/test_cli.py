"""The command `letstalk`: its files, its output and its exit status."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import pytest
from support.commands import Run
from support.faces import LoudIsBright, draw
from support.packages import needs

from letstalk_rt.cli import main
from letstalk_rt.performance.direction import DirectedWindow, channel
from letstalk_rt.recording.file import write_video


@pytest.fixture
def speech(tmp_path: Path) -> str:
    """Two seconds of stereo at 44.1 kHz; loud only in frames 25 to 29."""
    audio = np.zeros((2 * 44_100, 2), np.float32)
    audio[44_100 : 44_100 + 5 * 1764] = 0.9
    path = tmp_path / "speech.mkv"
    write_video(path, [], audio, 44_100)
    return str(path)


def test_render_writes_a_video_in_sync(
    run: Run, tmp_path: Path, portrait: str, speech: str
) -> None:
    out = tmp_path / "out.mp4"
    status, text = run("render", portrait, speech, "-o", str(out), "--size", "320")
    assert status == 0, text
    with av.open(str(out)) as container:
        assert container.streams.audio[0].rate == 44_100
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    assert len(frames) in (50, 51) and frames[0].shape == (240, 320, 3)
    bright = [index for index, rgb in enumerate(frames) if rgb[120, 160].mean() > 150]
    assert bright[:5] == [25, 26, 27, 28, 29]
    assert len(bright) <= 6  # AAC smears the end of the tone


def test_options_reach_the_model(run: Run, tmp_path: Path, portrait: str, speech: str) -> None:
    options = ["--steps", "2", "--device", "cpu", "--threads", "1"]
    assert run("render", portrait, speech, "-o", str(tmp_path / "o.mp4"), *options)[0] == 0
    assert LoudIsBright.loaded_with == {
        "preset": "tiny", "device": "cpu", "steps": 2, "threads": 1, "weights": None,
    }  # fmt: skip


def test_warnings_of_the_portrait_are_printed(run: Run, tmp_path: Path, speech: str) -> None:
    path = tmp_path / "two.png"
    draw(800, 400, [(200, 200, 130), (600, 200, 200)]).save(path)
    status, text = run("render", str(path), speech, "-o", str(tmp_path / "o.mp4"))
    assert status == 0 and "2 faces were found" in text


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"portrait": "nobody.png"}, "nobody.png: No such file"),
        ({"portrait": "wall.png"}, "No face"),
        ({"audio": "text.png"}, "not an audio or video file"),
        ({"output": "missing/out.mp4"}, "No such file"),
        ({"output": "out.gif"}, "ends in '.gif'"),
        ({"--size": "5000"}, "256 to 1080"),
        ({"--fps": "30"}, "--fps is 30"),
        ({"--seed": "-1"}, "seed must be an integer from 0"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    run: Run, tmp_path: Path, portrait: str, speech: str, changed: dict[str, str], message: str
) -> None:
    (tmp_path / "text.png").write_bytes(b"hello" * 100)
    draw(300, 300, []).save(tmp_path / "wall.png")
    given = {"portrait": portrait, "audio": speech, "output": str(tmp_path / "out.mp4")}
    given |= {k: str(tmp_path / v) for k, v in changed.items() if not k.startswith("--")}
    extra = [part for k, v in changed.items() if k.startswith("--") for part in (k, v)]
    arguments = ["render", given["portrait"], given["audio"], "-o", given["output"], *extra]
    status, text = run(*arguments)
    assert status == 2 and message in text
    assert text.startswith("letstalk: ") and text.count("\n") == 1
    assert not list(tmp_path.glob("out.*")) and not list(tmp_path.glob("*.part"))


def test_missing_weights_have_status_1(
    run: Run, tmp_path: Path, portrait: str, speech: str
) -> None:
    arguments = ["render", portrait, speech, "-o", str(tmp_path / "o.mp4"), "--preset", "lost"]
    status, text = run(*arguments)
    assert (status, text) == (1, "letstalk: The weights of preset 'lost' are missing.\n")


def test_a_failing_step_is_reported_with_its_cause_and_leaves_no_file(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, portrait: str, speech: str
) -> None:
    monkeypatch.setattr(LoudIsBright, "fails_at", 3)
    status, text = run("render", portrait, speech, "-o", str(tmp_path / "o.mp4"))
    assert status == 1 and "RuntimeError: out of memory" in text and "Traceback" not in text
    assert not list(tmp_path.glob("o.mp4*"))


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No such file"):
        main.main(["render", "a.png", str(tmp_path / "b.wav"), "-o", "c.mp4", "--debug"])


def test_a_usage_error_has_status_2(run: Run) -> None:
    assert run()[0] == 2
    assert run("dance")[0] == 2
    assert run("render", "only.jpg")[0] == 2


def test_forwarded_commands_receive_their_arguments_unchanged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[list[str]] = []

    def other_main(argv: list[str]) -> int:
        seen.append(argv)
        return 7

    other = ModuleType("other")
    other.main = other_main  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, main.FORWARDED["serve"][0], other)
    assert main.main(["serve", "--port", "0", "-h"]) == 7
    assert seen == [["--port", "0", "-h"]]


def test_a_missing_extra_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> ModuleType:
        raise ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn")

    monkeypatch.setattr(main, "import_module", missing)
    status, text = run("demo")
    assert status == 1 and "'uvicorn'" in text and "pip install '.[server]'" in text


def test_a_missing_module_of_the_package_is_not_a_missing_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> ModuleType:
        raise ModuleNotFoundError(f"No module named {name!r}", name="letstalk_rt.gone")

    monkeypatch.setattr(main, "import_module", missing)
    with pytest.raises(ModuleNotFoundError):
        main.main(["eval"])


def test_version_and_help_load_no_torch() -> None:
    for option in ("--version", "--help"):
        code = (
            "import sys\nfrom letstalk_rt.cli.main import main\n"
            f"try: main([{option!r}])\nexcept SystemExit: pass\n"
            "assert not {'torch', 'av', 'PIL'} & set(sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "letstalk" in done.stdout


def test_mic_records_an_audio_file_live(
    run: Run, tmp_path: Path, portrait: str, speech: str
) -> None:
    out = tmp_path / "live.mp4"
    arguments = ["mic", portrait, "--audio", speech, "-o", str(out), "--size", "256", "--json"]
    status, text = run(*arguments)
    assert status == 0, text
    assert '"stalls"' in text.splitlines()[-1]
    with av.open(str(out)) as container:
        assert sum(1 for _ in container.decode(video=0)) >= 50
    assert "AI avatar" in av.open(str(out)).metadata["comment"]


@needs("espeak-ng")
def test_say_speaks_a_text_into_a_file(run: Run, tmp_path: Path, portrait: str) -> None:
    out = tmp_path / "said.mp4"
    arguments = ["say", portrait, "Hello there!", "-o", str(out), "--size", "256", "--json"]
    status, text = run(*arguments)
    assert status == 0, text
    assert "Hello" not in text, "what is said is not logged"
    with av.open(str(out)) as container:
        assert sum(1 for _ in container.decode(video=0)) >= 20
    with av.open(str(out)) as container:
        assert container.streams.audio[0].rate == 48_000
        audio = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    assert np.abs(audio).max() > 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["say", "FACE", "", "-o", "OUT.mp4"], "letters or digits"),
        (["say", "FACE", "\U0001f600", "-o", "OUT.mp4"], "letters or digits"),
        pytest.param(
            ["say", "FACE", "hi", "--voice", "no such voice", "-o", "OUT.mp4"],
            "no voice",
            marks=needs("espeak-ng"),
        ),
        (["say", "FACE", "hi", "--voice", "no.onnx", "-o", "OUT.mp4"], "no.onnx"),
        (["say", "FACE", "hi", "--base-url", "nowhere", "-o", "OUT.mp4"], "base URL"),
        (["mic", "nobody", "--audio", "SPEECH", "-o", "OUT.mp4"], "no avatar named 'nobody'"),
        (["mic", "FACE", "--audio", "SPEECH", "-o", "OUT.gif"], "ends in '.gif'"),
        (["mic", "FACE", "--audio", "SPEECH", "--camera", "--camera-size", "big"], "1280x720"),
        (["push", "FACE", "http://x/y", "--audio", "SPEECH"], "rtmp://"),
        (["push", "FACE", "rtmp://127.0.0.1:1/x", "--audio", "SPEECH"], "Cannot connect"),
        (["push", "FACE", "rtmp://h/x", "--bitrate", "fast"], "--bitrate"),
        (["bench", "FACE", "--seconds", "0"], "--seconds"),
        (["avatars", "add", "Bad Name", "FACE"], "cannot be used"),
        (["avatars", "remove", "mira"], "came with the package"),
    ],
)
def test_invalid_options_are_one_line_and_status_2(
    run: Run, tmp_path: Path, portrait: str, speech: str, arguments: list[str], message: str
) -> None:
    names = {"FACE": portrait, "SPEECH": speech}
    arguments = [names.get(a, a.replace("OUT", str(tmp_path / "out"))) for a in arguments]
    status, text = run(*arguments)
    last = text.splitlines()[-1]
    assert status == 2 and message in last and last.startswith("letstalk: "), text


def test_own_weights_are_passed_on(run: Run, tmp_path: Path, portrait: str, speech: str) -> None:
    own = str(tmp_path / "own.safetensors")
    for words in (["render", portrait, speech], ["mic", portrait, "--audio", speech]):
        out = str(tmp_path / "out.mp4")
        status, text = run(*words, "-o", out, "--weights", own)
        assert status == 0, text
        assert LoudIsBright.loaded_with["weights"] == Path(own)
        LoudIsBright.loaded_with = {}


def test_avatars_are_added_listed_prepared_and_removed(
    run: Run, tmp_path: Path, portrait: str
) -> None:
    status, text = run("avatars", "add", "anna", portrait)
    assert status == 0 and "consented" in text
    found = json.loads(run("avatars", "list", "--json")[1])
    assert {"name": "anna", "builtin": False}.items() <= {
        k: v for a in found["avatars"] if a["name"] == "anna" for k, v in a.items()
    }.items()
    folder = tmp_path / "folder"
    folder.mkdir()
    draw(300, 400, [(150, 200, 140)]).save(folder / "good.png")
    draw(300, 300, []).save(folder / "wall.png")
    status, text = run("avatars", "prepare", str(folder), "anna")
    assert status == 2 and "good.png" in text and "No face" in text
    assert run("avatars", "remove", "anna")[0] == 0
    assert run("avatars", "remove", "anna")[0] == 2


def test_render_accepts_an_avatar_by_name_and_prints_json(
    run: Run, tmp_path: Path, portrait: str, speech: str
) -> None:
    run("avatars", "add", "anna", portrait)
    out = tmp_path / "o.mp4"
    status, text = run("render", "anna", speech, "-o", str(out), "--json", "--no-badge")
    facts = json.loads(text.splitlines()[-1])
    assert status == 0 and (facts["width"], facts["height"]) == (512, 384)


def test_bench_reports_whether_the_machine_is_fast_enough(run: Run, portrait: str) -> None:
    status, text = run("bench", portrait, "--seconds", "0.1", "--json")
    facts = json.loads(text)
    assert status == (0 if facts["fits"] else 3) and facts["windows"] >= 3


def test_doctor_reports_a_missing_camera(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyvirtualcam", None)
    status, text = run("doctor", "--seconds", "0", "--json")
    checks = {check["name"]: check for check in json.loads(text)["checks"]}
    assert status == 0 and checks["python"]["status"] == "ok"
    assert checks["camera"]["status"] == "missing" and "[camera]" in checks["camera"]["advice"]
    assert all(check["status"] == "ok" or check["advice"] for check in checks.values())


def test_output_is_not_colored_without_a_terminal(run: Run) -> None:
    assert "\033" not in run("avatars", "list")[1]


@pytest.fixture
def directed(monkeypatch: pytest.MonkeyPatch) -> list[DirectedWindow]:
    """Let the fake model be directed; return how its windows are."""
    windows: list[DirectedWindow] = []
    monkeypatch.setattr(LoudIsBright, "is_directable", True)
    monkeypatch.setattr(LoudIsBright, "direct", lambda _, state, window: windows.append(window))
    return windows


def most(windows: list[DirectedWindow], name: str) -> float:
    return max((float(each.added[:, channel(name)].max()) for each in windows), default=0.0)


def test_render_shows_a_mood(
    run: Run, tmp_path: Path, portrait: str, speech: str, directed: list[DirectedWindow]
) -> None:
    out = str(tmp_path / "o.mp4")
    assert run("render", portrait, speech, "-o", out, "--mood", "cheerful")[0] == 0
    whole = most(directed, "smile")
    directed.clear()
    strength = ("--mood-strength", "0.5")
    assert run("render", portrait, speech, "-o", out, "--mood", "cheerful", *strength)[0] == 0
    assert whole > 0.2 and most(directed, "smile") == pytest.approx(whole / 2, rel=0.01)
    status, text = run("render", portrait, speech, "-o", out, "--mood", "furious")
    assert status == 2 and "'cheerful'" in text
    status, text = run("render", portrait, speech, "-o", out, "--mood-strength", "nan")
    assert status == 2 and "from 0 to 1" in text


def test_a_mood_needs_a_model_that_has_moods(
    run: Run, tmp_path: Path, portrait: str, speech: str
) -> None:
    out = str(tmp_path / "o.mp4")
    status, text = run("render", portrait, speech, "-o", out, "--mood", "warm")
    assert status == 2 and "'tiny'" in text
    status, text = run(
        "render", portrait, speech, "-o", out, "--mood", "warm", "--preset", "faithful-s"
    )
    assert status == 2 and "--mood needs" in text


@needs("espeak-ng")
def test_say_shows_its_tags_and_lists_the_unknown(
    run: Run, tmp_path: Path, portrait: str, directed: list[DirectedWindow]
) -> None:
    text = "[cheerful] Hello, [nods] how nice to [wobbles] meet you."
    status, told = run("say", portrait, text, "-o", str(tmp_path / "s.mp4"), "--size", "256")
    assert status == 0, told
    assert "[wobbles]" in told and "Hello" not in told and "cheerful" not in told
    assert most(directed, "smile") > 0.2 and most(directed, "pitch") > 0.05
