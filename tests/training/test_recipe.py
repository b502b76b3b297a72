"""The recipe of docs/training.md runs on toys, from raw videos to figures, command by command."""

import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from support.data_folder import write_flac
from support.raw_videos import on_a_wall, speech, talking_faces, write_raw
from support.toys import write_autoencoder, write_wav2vec

pytest.importorskip("transformers", reason="the extra `paper` is not installed")
pytest.importorskip("diffusers", reason="the extra `paper` is not installed")
pytest.importorskip("scenedetect", reason="the extra `train` is not installed")

from support.toy_command import in_small, killed_at, toys

import letstalk_rt
from letstalk_rt.cli.main import main as letstalk

ROOT = Path(__file__).parents[2]
FRAMES = 30
PEOPLE = {"RD_Radio1": 0, "WDA_Leon0": 1, "WRA_Mira0": 0}


def recipe():
    """The block of commands under the heading of the recipe, as bash reads it."""
    text = (ROOT / "docs" / "training.md").read_text()
    section = text.split("\n## HDTF on one to eight H100s\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    return block


def commands():
    """The recipe's commands as lists of words, with variables replaced."""
    known, found = {}, []
    for line in recipe().replace("\\\n", " ").splitlines():
        if assigned := re.fullmatch(r'(\w+)="(.*)"', line):
            known[assigned[1]] = assigned[2]
        elif line:
            for name, value in known.items():
                line = line.replace(f"${name}", value)
            found.append(shlex.split(line, comments=True))
    return [words for words in found if words]


def of_letstalk(words):
    """The arguments of `letstalk` in a command that torchrun starts or not."""
    if words[0] == "torchrun":
        return ["train", *words[words.index("letstalk_rt.cli.train") + 1 :]]
    assert words[0] == "letstalk", words
    return words[1:]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with all that the recipe names: raw videos, HDTF's lists, networks, speech."""
    folder = tmp_path / "place"
    monkeypatch.setenv("LETSTALK_HOME", str(tmp_path / "home"))
    faces = [on_a_wall(frames[:FRAMES]) for frames in talking_faces()]
    (folder / "RAW").mkdir(parents=True)
    (folder / "HDTF_dataset").mkdir()
    for name, face in PEOPLE.items():
        suffix = {"RD": "webm", "WDA": "mkv", "WRA": "mp4"}[name.partition("_")[0]]
        write_raw(folder / "RAW" / f"{name}.{suffix}", faces[face], speech()[: FRAMES * 640])
        part, _, person = name.partition("_")
        lists = folder / "HDTF_dataset"
        (lists / f"{part}_annotion_time.txt").write_text(f"{person}.mp4 00:00-00:02\n")
        (lists / f"{part}_crop_wh.txt").write_text(f"{person}_0.mp4 0 480 0 300\n")
        (lists / f"{part}_resolution.txt").write_text(f"{person}.mp4 300\n")
    write_autoencoder(folder / "DC_AE")
    write_wav2vec(folder / "WAV2VEC2")
    write_flac(folder / "SPEECH.wav", speech()[: 640 * 12])
    return folder


def result(folder, stage):
    return torch.load(folder / stage / "last.pt", weights_only=True)


def assert_same(one, other):
    assert one["step"] == other["step"]
    for part in ("model", "averaged"):
        for name, value in one[part].items():
            assert torch.equal(value, other[part][name]), name


def assert_made(folder):
    """Check what the recipe leaves: two weights files, two videos that move."""
    for name in ("b", "faithful-s"):
        assert (folder / f"{name}.safetensors").exists()
        with av.open(str(folder / f"{name}.mp4")) as container:
            frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        assert len(frames) == 12
        assert any(not np.array_equal(frame, frames[0]) for frame in frames)


async def streamed(weights):
    """Return what a session with a toy in the place of `b` shows of some speech."""
    shown = []
    with letstalk_rt.Avatar.load("mira", "toy-b", weights=weights, device="cpu") as avatar:
        async with avatar.session() as session:
            await session.push_audio(speech()[: 640 * 6], 16_000)
            await session.end_segment()
            async for item in session:
                if isinstance(item, letstalk_rt.SegmentEnd):
                    return shown
                shown.append(item.rgb)
    raise AssertionError("the segment has an end")


def test_every_command_runs_and_a_stopped_training_ends_as_one_that_was_not(
    place, monkeypatch, capsys
):
    monkeypatch.chdir(place)
    figures = {}
    with toys():
        for words in map(of_letstalk, commands()):
            small = in_small(words)
            if words[:2] in (["train", "flow"], ["train", "faithful"]):

                def stop():
                    raise KeyboardInterrupt

                runs = ["--runs", "stopped"]
                with killed_at(2, stop):
                    assert letstalk([*small, *runs]) == 130
                assert result(place / "stopped", words[1])["step"] == 2
                assert letstalk([*small, *runs]) == 0
            capsys.readouterr()
            assert letstalk(small) == 0, small
            if words[0] == "eval":
                line = capsys.readouterr().out.splitlines()[-1]
                figures[words[words.index("--preset") + 1]] = json.loads(line)
    for stage in ("flow", "faithful"):
        assert_same(result(place / "runs", stage), result(place / "stopped", stage))
    assert_made(place)
    with toys():
        frames = asyncio.run(asyncio.wait_for(streamed(place / "b.safetensors"), 300))
    assert len(frames) >= 6 and any(not np.array_equal(frame, frames[0]) for frame in frames)
    for preset in ("b", "faithful-s"):
        assert figures[preset]["clips"] == 1
        assert isinstance(figures[preset]["mouth_corr"], float), preset


LETSTALK = """#!/bin/bash
exec {python} -m support.toy_command "$@"
"""
TORCHRUN = """#!/bin/bash
while [ "$1" != letstalk_rt.cli.train ]; do shift; done
exec {python} -m torch.distributed.run --nproc-per-node=2 --standalone --master-port=0 \\
  -m support.toy_command train "${{@:2}}"
"""


@pytest.mark.slow
def test_two_processes_run_the_recipe_and_resume_after_a_kill(place, tmp_path):
    """Bash runs the block of the documentation as it stands; torchrun starts two processes."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("letstalk", LETSTALK), ("torchrun", TORCHRUN)):
        (programs / name).write_text(text.format(python=sys.executable))
        (programs / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "TMPDIR": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }

    def run(words, **more):
        return subprocess.run(
            words, cwd=place, env=environment | more, capture_output=True, text=True, timeout=900
        )

    done = run(["bash", "-ec", recipe()])
    assert done.returncode == 0, done.stderr[-3000:]
    assert_made(place)
    for words in commands():
        if words[0] == "torchrun" and "distill" not in words:
            stage = of_letstalk(words)[1]
            again = [*words, "--runs", "killed"]
            killed = run(again, TOY_KILLED_AT="2")
            assert killed.returncode != 0 and "SIGKILL" in killed.stderr
            assert result(place / "killed", stage)["step"] == 2
            resumed = run(again)
            assert resumed.returncode == 0, resumed.stderr[-3000:]
            assert_same(result(place / "runs", stage), result(place / "killed", stage))
