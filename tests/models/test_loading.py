"""Weights come back as they were written, or the error says why not."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.small_model import PRESET, make_model, stir
from torch import Tensor

from letstalk_rt.errors import ConfigError, WeightsError
from letstalk_rt.models.autoencoder.mouth_painter import MouthPainter, MouthPainterConfig
from letstalk_rt.models.avatar_model import AvatarModel, with_part
from letstalk_rt.models.loading import (
    checksum_file,
    load_model,
    packaged_weights,
    save_model,
)
from letstalk_rt.models.motion.denoiser import MotionDenoiserConfig
from letstalk_rt.models.parts import MOTION, MOUTH_PAINTER, PARTS, with_parts
from letstalk_rt.models.presets import PRESETS, get_preset

HEADER = {
    "format": "letstalk_rt 2",
    "preset": "small",
    "lookahead_ms": "80",
    "parts": json.dumps(dict.fromkeys(PRESET.parts)),
}
PACKED = "autoencoder.reference.fine.0.conv1.weight"


@pytest.fixture(scope="module")
def model() -> AvatarModel:
    made = make_model()
    torch.manual_seed(1)
    for buffer in made.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    stir(made)
    return made


@pytest.fixture
def saved(model: AvatarModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(PRESETS, "small", PRESET)
    path = tmp_path / "small.safetensors"
    save_model(model, path)
    return path


def rewrite(path: Path, tensors: dict[str, Tensor], header: dict[str, str] | None = HEADER) -> None:
    """Write a file that is whole but not ours; nothing vouches for it."""
    save_file(tensors, path, header)
    checksum_file(path).unlink()


def test_a_model_comes_back_within_half_precision(model, saved):
    loaded = load_model("small", saved)
    kept = load_file(saved)
    for name, value in model.state_dict().items():
        found = loaded.state_dict()[name]
        assert found.dtype == value.dtype
        if kept[name].dtype != torch.int8:
            torch.testing.assert_close(found, value, rtol=2**-10, atol=1e-7)


def test_sensitive_tensors_come_back_bit_for_bit(model, saved):
    found, true = load_model("small", saved).state_dict(), model.state_dict()
    names = [n for n in true if n.endswith(("mean", "_scale", "mean_points", "points.weight"))]
    names = [n for n in names if not n.endswith("running_mean")]
    assert len(names) == 6
    assert all(torch.equal(found[name], true[name]) for name in names)


def test_packed_matrices_are_off_by_half_a_level_at_most(model, saved):
    found, kept = load_model("small", saved).state_dict(), load_file(saved)
    packed = [name for name, value in kept.items() if value.dtype == torch.int8]
    assert PACKED in packed
    for name in packed:
        assert name.startswith(("autoencoder.encoder.", "autoencoder.reference."))
        true = model.state_dict()[name]
        level = true.flatten(1).abs().amax(1) / 127
        error = (found[name] - true).flatten(1).abs().amax(1)
        assert (error <= 0.5 * level + 1e-6).all()
        assert kept[name].abs().amax() == 127


def test_a_channel_of_zeros_stays_zero(saved, tmp_path):
    model = make_model()
    model.get_parameter(PACKED)[3] = 0
    save_model(model, saved)
    assert not load_model("small", saved).get_parameter(PACKED)[3].any()


def test_a_loaded_model_is_for_inference(saved):
    loaded = load_model("small", saved)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


def test_the_checksum_lies_beside_the_file(saved):
    assert checksum_file(saved).name == "small.sha256"
    digest = hashlib.sha256(saved.read_bytes()).hexdigest()
    assert checksum_file(saved).read_text().strip() == digest


def test_the_packages_own_weights_are_named_after_the_preset():
    path = packaged_weights("tiny")
    assert (path.parent.name, path.name) == ("weights", "tiny.safetensors")


def test_an_unknown_preset_is_named(saved):
    with pytest.raises(ConfigError, match="unknown preset 'huge'; known: .*tiny"):
        load_model("huge", saved)


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_missing_weights_are_named(saved, tmp_path, kind):
    path = tmp_path / ("absent.safetensors" if kind == "missing" else "")
    with pytest.raises(WeightsError, match="no weights at .*letstalk train"):
        load_model("small", path)


def test_a_changed_byte_is_found(saved):
    data = bytearray(saved.read_bytes())
    data[-1] ^= 1
    saved.write_bytes(data)
    with pytest.raises(WeightsError, match="small.safetensors is damaged: its checksum differs"):
        load_model("small", saved)


@pytest.mark.parametrize("content", [b"", None], ids=["empty", "half"])
def test_what_is_not_a_weights_file_is_named(saved, content):
    checksum_file(saved).unlink()
    saved.write_bytes(saved.read_bytes()[:5000] if content is None else content)
    with pytest.raises(WeightsError, match="not a safetensors file"):
        load_model("small", saved)


def test_a_model_of_another_preset_is_named(saved, monkeypatch):
    monkeypatch.setitem(PRESETS, "other", PRESET)
    with pytest.raises(WeightsError, match="holds 'small', expected 'other'"):
        load_model("other", saved)


@pytest.mark.parametrize("header", [None, {"format": "pt"}])
def test_a_file_of_another_program_is_named(saved, header):
    rewrite(saved, load_file(saved), header)
    with pytest.raises(WeightsError, match="holds 'an unknown model'"):
        load_model("small", saved)


def test_a_missing_tensor_is_named(saved):
    tensors = load_file(saved)
    del tensors["denoiser.slots"]
    rewrite(saved, tensors)
    with pytest.raises(WeightsError, match="1 tensors differ, first 'denoiser.slots'"):
        load_model("small", saved)


def test_a_tensor_too_many_is_named(saved):
    rewrite(saved, {**load_file(saved), "denoiser.extra": torch.zeros(1)})
    with pytest.raises(WeightsError, match="first 'denoiser.extra'"):
        load_model("small", saved)


def test_a_tensor_of_another_shape_is_named(saved):
    tensors = load_file(saved)
    rewrite(saved, {**tensors, "denoiser.slots": tensors["denoiser.slots"][:-1].contiguous()})
    with pytest.raises(WeightsError, match=r"slots has shape \(10, 32\).* expects \(11, 32\)"):
        load_model("small", saved)


@pytest.mark.parametrize("scale", [None, torch.ones(3)], ids=["missing", "too short"])
def test_a_packed_matrix_without_its_scale_is_named(saved, scale):
    tensors = load_file(saved)
    del tensors[PACKED + ".scale8"]
    if scale is not None:
        tensors[PACKED + ".scale8"] = scale
    rewrite(saved, tensors)
    with pytest.raises(WeightsError, match="conv1.weight has .*int8"):
        load_model("small", saved)


@pytest.mark.parametrize("lookahead_ms", [0, 160])
def test_the_look_ahead_comes_back_with_the_weights(lookahead_ms, tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "small", PRESET)
    audio = replace(PRESET.audio, lookahead_ms=lookahead_ms)
    made = AvatarModel(replace(PRESET, audio=audio))
    save_model(made, tmp_path / "small.safetensors")
    loaded = load_model("small", tmp_path / "small.safetensors")
    assert loaded.audio.lookahead_frames == lookahead_ms // 40


def test_a_file_that_does_not_say_its_look_ahead_is_named(saved):
    rewrite(saved, load_file(saved), {k: v for k, v in HEADER.items() if k != "lookahead_ms"})
    with pytest.raises(WeightsError, match="lacks a look-ahead"):
        load_model("small", saved)


class TestParts:
    """Every part is saved and loaded by the same lines; what a file lacks, the model lacks."""

    SMALL = replace(PRESET, mouth_painter=MouthPainterConfig(widths=(8, 8, 8), bank=2))

    @pytest.fixture(params=[part.name for part in PARTS if part.name not in PRESET.parts])
    def name(self, request):
        return request.param

    @pytest.fixture
    def preset(self, name, monkeypatch):
        preset = with_parts(self.SMALL, {*PRESET.parts, name})
        monkeypatch.setitem(PRESETS, "small", preset)
        return preset

    def test_it_is_saved_and_loaded(self, name, preset, tmp_path):
        torch.manual_seed(0)
        model = AvatarModel(preset)
        stir(model.get_submodule(name))
        save_model(model, tmp_path / "small.safetensors")
        loaded = load_model("small", tmp_path / "small.safetensors")
        assert loaded.preset == preset
        stored = loaded.get_submodule(name).state_dict()
        for key, value in model.get_submodule(name).state_dict().items():
            step = float(value.float().abs().max()) / 127
            torch.testing.assert_close(stored[key], value, atol=step, rtol=0)

    def test_a_file_without_it_loads_without_it(self, saved, name, preset):
        loaded = load_model("small", saved)
        assert loaded.preset.parts == PRESET.parts

    def test_a_header_with_it_requires_its_tensors(self, saved, name, preset):
        header = HEADER | {"parts": json.dumps(dict.fromkeys(preset.parts))}
        rewrite(saved, load_file(saved), header)
        with pytest.raises(WeightsError, match=f"tensors differ, first '{re.escape(name)}"):
            load_model("small", saved)

    def test_a_painters_shape_is_that_of_the_file(self, model, monkeypatch, tmp_path):
        monkeypatch.setitem(PRESETS, "small", self.SMALL)
        shape = MouthPainterConfig(widths=(8, 16, 8), bank=3, blocks=(1, 2, 1))
        painted = with_part(model, MOUTH_PAINTER, MouthPainter(shape))
        save_model(painted, tmp_path / "small.safetensors")
        loaded = load_model("small", tmp_path / "small.safetensors")
        assert loaded.preset.mouth_painter == shape == loaded.part(MOUTH_PAINTER).config

    @pytest.mark.parametrize("shape", ["no", 3, {"depth": 3}, {"blocks": [1, 2]}])
    def test_an_unknown_shape_of_a_painter_is_named(self, shape, saved):
        header = HEADER | {"parts": json.dumps({"mouth_painter": shape})}
        rewrite(saved, load_file(saved), header)
        with pytest.raises(WeightsError, match="a mouth painter that this version does not know"):
            load_model("small", saved)

    def test_it_can_be_added_and_replaced(self, model):
        config = self.SMALL.mouth_painter
        first, second = MouthPainter(config), MouthPainter(config)
        both = with_part(with_part(model, MOUTH_PAINTER, first), MOUTH_PAINTER, second)
        assert both.preset.mouth_painter == config
        assert torch.equal(both.part(MOUTH_PAINTER).head.weight, second.head.weight)
        assert torch.equal(both.motion_scale, model.motion_scale)

    def test_asking_for_one_that_is_missing_says_what_that_means(self, model):
        assert model.get(MOTION) is None
        with pytest.raises(ConfigError, match="has no 'motion' and so lets the denoiser"):
            model.part(MOTION)

    @pytest.mark.parametrize(
        "wrong, match",
        [
            ({"parts": ("ears",)}, "there is no part 'ears'"),
            ({"motion": MotionDenoiserConfig(window=2)}, "a window of 4 frames"),
            ({"motion": MotionDenoiserConfig().with_lookahead(40)}, "look-ahead of 80 ms"),
        ],
    )
    def test_shapes_that_do_not_fit_are_named(self, wrong, match):
        with pytest.raises(ConfigError, match=match):
            AvatarModel(replace(PRESET, **({"parts": ("motion",)} | wrong)))

    def test_a_model_without_landmarks_has_none(self):
        with pytest.raises(ConfigError, match="latents hold landmarks"):
            AvatarModel(replace(get_preset("b"), parts=("motion",)))


def test_weights_of_an_earlier_version_are_refused_with_the_reason(saved):
    rewrite(saved, load_file(saved), HEADER | {"format": "letstalk_rt 1"})
    with pytest.raises(WeightsError, match="is of an earlier version, whose lip network"):
        load_model("small", saved)


@pytest.mark.parametrize(
    "parts, match", [(None, "does not say"), ("[1]", "does not say"), ('{"ears": null}', "'ears'")]
)
def test_a_header_whose_parts_are_unknown_is_refused(saved, parts, match):
    header = {k: v for k, v in HEADER.items() if k != "parts"}
    rewrite(saved, load_file(saved), header if parts is None else header | {"parts": parts})
    with pytest.raises(WeightsError, match=match):
        load_model("small", saved)
