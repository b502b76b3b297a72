"""A toy of the presets `b` and `l` goes from clips to a model without phones."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from support.data_folder import write_clip
from support.toys import DC_LAYOUT, TOY_B, write_autoencoder

from letstalk_rt.cli.train import main as train
from letstalk_rt.errors import InputError
from letstalk_rt.models.autoencoder.dc_ae import DCAutoencoder
from letstalk_rt.models.landmark_condition import FilmBranch
from letstalk_rt.models.loading import load_model
from letstalk_rt.models.presets import PRESETS, DCAutoencoderConfig
from letstalk_rt.training.evaluation import rollout
from letstalk_rt.training.loop import Run

pytest.importorskip("diffusers", reason="the extra `paper` is not installed")


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The options of a toy whose autoencoder is a folder in diffusers' format."""
    write_autoencoder(tmp_path / "dc")
    make = DCAutoencoder.random
    monkeypatch.setattr(DCAutoencoder, "random", lambda size=512: make(size, **DC_LAYOUT))
    monkeypatch.setitem(PRESETS, "toy", replace(TOY_B, name="toy"))
    monkeypatch.setattr(rollout, "EVALUATION_FRAMES", 8)
    return ["--preset", "toy", "--threads", "1", "--device", "cpu", "--autoencoder",
            str(tmp_path / "dc"), "--batch", "2"]  # fmt: skip


def run_flow(root, cache, runs, toy, steps="4", *more):
    train(["flow", "--data", str(root), "--cache", str(cache), "--runs", str(runs), *toy,
           "--steps", steps, *more])  # fmt: skip
    return torch.load(runs / "flow" / "model.pt", weights_only=True)


def test_a_killed_flow_ends_as_one_that_was_not_killed(root, cache, tmp_path, toy, monkeypatch):
    whole = run_flow(root, cache, tmp_path / "whole", toy)
    save, saved = Run.save, []

    def killed(run, *, wait=True):
        save(run, wait=wait)
        saved.append(run.step)
        if run.step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", killed)
        patch.setattr(
            "letstalk_rt.training.loop.time.monotonic", iter(range(0, 10**6, 500)).__next__
        )
        with pytest.raises(KeyboardInterrupt):
            run_flow(root, cache, tmp_path / "parts", toy)
    assert saved[-1] == 2
    again = run_flow(root, cache, tmp_path / "parts", toy)
    for name, value in whole.items():
        assert torch.equal(value, again[name]), name
    # Samples are written for this preset, too, and no stage before was needed.
    assert list((tmp_path / "parts" / "flow").glob("sample-*.mp4"))
    assert not (tmp_path / "parts" / "audio").exists()
    assert whole["latent_scale"].std() > 0


def test_a_run_started_from_another_keeps_its_scales_average_and_optimiser(
    root, cache, tmp_path, toy
):
    run_flow(root, cache, tmp_path / "first", toy, "2")
    first = torch.load(tmp_path / "first" / "flow" / "last.pt", weights_only=True)
    scales = torch.load(tmp_path / "first" / "flow" / "scales.pt", weights_only=True)
    scales["motion_scale"] *= 2  # as if they were of other clips
    torch.save(scales, tmp_path / "first" / "flow" / "scales.pt")
    second = run_flow(root, cache, tmp_path / "second", toy, "1", "--rate", "1e-12",
                      "--start", str(tmp_path / "first" / "flow"))  # fmt: skip
    assert torch.equal(second["motion_scale"], scales["motion_scale"])
    state = torch.load(tmp_path / "second" / "flow" / "last.pt", weights_only=True)
    steps = [int(s["step"]) for s in state["optimizer"]["state"].values()]
    assert set(steps) == {3}  # two of the first run and its own
    name = "denoiser.head.weight"
    torch.testing.assert_close(state["model"][name], first["model"][name], atol=1e-6, rtol=0)


def test_clips_that_come_later_do_not_change_the_scales(root, cache, tmp_path, toy):
    """A denoiser that was trained with some scales goes on with them."""
    data = tmp_path / "data"
    shutil.copytree(root, data)
    first = run_flow(data, cache, tmp_path / "runs", toy, "1")
    row = {"name": "emil-1", "split": "train", "tag": "ship", "kind": "real"}
    write_clip(data / "clips", row["name"], 4)
    with (data / "clips.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    second = run_flow(data, cache, tmp_path / "runs", toy, "2")
    for name in ("latent_mean", "latent_scale", "motion_scale"):
        assert torch.equal(first[name], second[name])
    stored = (tmp_path / "runs" / "flow" / "latents" / "manifest.json").read_text()
    assert "emil-1" in stored


def test_clips_smaller_than_the_model_are_refused(root, cache, tmp_path, toy, monkeypatch):
    large = replace(
        TOY_B,
        autoencoder=DCAutoencoderConfig(512),
        denoiser=replace(TOY_B.denoiser, side=16),
    )
    monkeypatch.setitem(PRESETS, "toy", large)
    with pytest.raises(InputError, match=r"256x256 px, expected 512x512.*--size 512"):
        run_flow(root, cache, tmp_path / "runs", toy)


def test_the_scaling_factor_of_the_autoencoder_survives_export(root, cache, tmp_path, toy):
    config = tmp_path / "dc" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scaling_factor": 0.3189}))
    run_flow(root, cache, tmp_path / "runs", toy, "1")
    out = tmp_path / "toy.safetensors"
    train(["export", "--data", str(root), "--runs", str(tmp_path / "runs"), *toy, "-o", str(out)])
    assert load_model("toy", out).autoencoder.scaling_factor == 0.3189


def test_conditions_of_films_are_trained_exported_and_ablated(root, cache, tmp_path, toy):
    runs = tmp_path / "runs"
    run_flow(root, cache, runs, toy, "2")
    common = ["--data", str(root), "--cache", str(cache), "--runs", str(runs), *toy]
    before = sorted((runs / "flow" / "latents").glob("*.bin"))
    train(["landmarks", *common, "--steps", "2"])
    assert sorted((runs / "flow" / "latents").glob("*.bin")) == before  # they are used again
    out = tmp_path / "toy.safetensors"
    train(["export", *common, "-o", str(out)])
    branch = load_model("toy", out).denoiser.landmarks
    assert isinstance(branch, FilmBranch) and branch.tokens.weight.any()
    train(["landmarks", *common, "--steps", "1", "--ablate"])
    table = json.loads((runs / "ablate-landmarks" / "table.json").read_text())
    assert len(table) == 4 and {"mouth", "rest", "mouth_without"} < set(table[0])


def test_a_damaged_clip_does_not_stop_the_training(root, cache, tmp_path, toy, capsys):
    data = tmp_path / "data"
    shutil.copytree(root, data)
    write_clip(data / "clips", "gone-1", 9)
    row = {"name": "gone-1", "split": "train", "tag": "ship", "kind": "real", "size_px": 256}
    with (data / "clips.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    (data / "clips" / "gone-1.mp4").write_bytes(b"no video")
    run_flow(data, cache, tmp_path / "runs", toy, "1")
    assert "clip 'gone-1' cannot be read" in capsys.readouterr().err
