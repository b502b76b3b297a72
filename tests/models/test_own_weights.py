"""Weights files carry what they need, and wrong ones are refused with what is wrong."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.small_dc_model import (
    SCALING_FACTOR,
    make_dc_autoencoder,
    make_dc_model,
    make_dc_preset,
)

from letstalk_rt.cli.train import main as train
from letstalk_rt.errors import InputError, WeightsError
from letstalk_rt.models.autoencoder.dc_ae import DCAutoencoder
from letstalk_rt.models.loading import checksum_file, load_model, save_model
from letstalk_rt.models.presets import PRESETS

pytest.importorskip("diffusers", reason="the extra `paper` is not installed")


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A model of a layout and a scaling factor of its own; the preset knows neither."""
    model, path = make_dc_model(), tmp_path / "own.safetensors"
    model.autoencoder = make_dc_autoencoder(width=64)
    save_model(model, path)
    monkeypatch.setitem(PRESETS, "small-dc", make_dc_preset())
    return model, path


def rewrite(path, **changes):
    with safe_open(path, "pt") as file:
        header = file.metadata()
    header = {key: value for key, value in (header | changes).items() if value is not None}
    save_file(load_file(path), path, header)
    checksum_file(path).unlink(missing_ok=True)


def test_the_autoencoder_of_a_file_has_its_layout_and_scaling_factor(saved):
    model, path = saved
    loaded = load_model("small-dc", path)
    assert isinstance(loaded.autoencoder, DCAutoencoder)
    assert loaded.autoencoder.scaling_factor == SCALING_FACTOR
    frames = torch.rand(1, 2, 3, 64, 64) * 2 - 1
    wanted = model.autoencoder.encode(frames)
    torch.testing.assert_close(loaded.autoencoder.encode(frames), wanted, atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"autoencoder": None}, "do not say which autoencoder"),
        ({"autoencoder": "{}"}, "cannot be made"),
        ({"autoencoder": json.dumps({"layout": {"a": 1}, "scaling_factor": 1})}, "cannot be made"),
        ({"preset": "b"}, "holds 'b', expected 'small-dc'"),
    ],
)
def test_files_that_do_not_describe_themselves_are_refused(saved, change, reason):
    _, path = saved
    rewrite(path, **change)
    with pytest.raises(WeightsError, match=reason):
        load_model("small-dc", path)


def test_an_autoencoder_that_is_not_f32c32_is_refused(saved):
    _, path = saved
    identity = json.loads(make_dc_autoencoder().identity)
    identity["layout"]["latent_channels"] = 16
    rewrite(path, autoencoder=json.dumps(identity))
    with pytest.raises(WeightsError, match="f32c16, expected f32c32"):
        load_model("small-dc", path)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan")])
def test_a_scaling_factor_must_be_positive(saved, factor):
    _, path = saved
    identity = json.loads(make_dc_autoencoder(64).identity) | {"scaling_factor": factor}
    rewrite(path, autoencoder=json.dumps(identity))
    with pytest.raises(WeightsError, match="not positive"):
        load_model("small-dc", path)


def test_export_keeps_the_autoencoder_that_the_denoiser_was_trained_with(
    saved, tmp_path, monkeypatch
):
    model, _ = saved
    runs, out = tmp_path / "runs", tmp_path / "new.safetensors"
    (runs / "flow").mkdir(parents=True)
    torch.save(model.state_dict(), runs / "flow" / "model.pt")
    words = ["export", "--data", str(tmp_path), "--runs", str(runs), "--threads", "1"]
    words += ["--preset", "small-dc", "-o", str(out)]
    with pytest.raises(InputError, match="autoencoder.json of stage 'flow'"):
        train(words)
    (runs / "flow" / "autoencoder.json").write_text(model.autoencoder.identity)
    train(words)
    loaded = load_model("small-dc", out)
    assert loaded.autoencoder.scaling_factor == SCALING_FACTOR
    train([*words[:-1], str(tmp_path / "again.safetensors"), "--weights", str(out)])
    again = load_model("small-dc", tmp_path / "again.safetensors")
    assert again.autoencoder.identity == model.autoencoder.identity
