"""Weights come back as they were written, or the error says why not."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.small_model import (
    GESTURES,
    LIP_READER,
    PRESET,
    make_gesture_model,
    make_model,
    stir,
)
from torch import Tensor

from letstalk_rt.errors import ConfigError, WeightsError
from letstalk_rt.models.audio_encoder.lip_reader import LipReaderConfig
from letstalk_rt.models.autoencoder.mouth_painter import MouthPainter, MouthPainterConfig
from letstalk_rt.models.avatar_model import AvatarModel, with_gestures, with_mouth_painter
from letstalk_rt.models.face.gestures import Gestures
from letstalk_rt.models.loading import (
    checksum_file,
    load_model,
    packaged_weights,
    save_model,
)
from letstalk_rt.models.presets import EYE_PAINTER, PRESETS, with_landmark_condition

HEADER = {"format": "letstalk_rt 1", "preset": "small", "lookahead_ms": "80"}
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


class TestMouthPainter:
    CONFIG = MouthPainterConfig(widths=(8, 8, 8), bank=2)

    @pytest.fixture
    def preset(self, monkeypatch):
        preset = replace(PRESET, mouth_painter=self.CONFIG)
        monkeypatch.setitem(PRESETS, "small", preset)
        return preset

    def test_it_is_saved_and_loaded(self, model, preset, tmp_path):
        painter = MouthPainter(self.CONFIG)
        stir(painter)
        save_model(with_mouth_painter(model, painter), tmp_path / "small.safetensors")
        loaded = load_model("small", tmp_path / "small.safetensors")
        assert loaded.preset == preset and loaded.mouth_painter is not None
        for name, value in painter.state_dict().items():
            found = loaded.mouth_painter.state_dict()[name]
            torch.testing.assert_close(found, value, rtol=2**-10, atol=1e-7)

    def test_its_shape_is_that_of_the_file(self, model, preset, tmp_path):
        shape = MouthPainterConfig(widths=(8, 16, 8), bank=3, blocks=(1, 2, 1))
        save_model(with_mouth_painter(model, MouthPainter(shape)), tmp_path / "small.safetensors")
        loaded = load_model("small", tmp_path / "small.safetensors")
        assert loaded.preset.mouth_painter == shape and loaded.mouth_painter is not None
        assert loaded.mouth_painter.config == shape

    def test_a_file_of_before_has_the_shape_of_the_preset(self, model, preset, tmp_path):
        path = tmp_path / "small.safetensors"
        save_model(with_mouth_painter(model, MouthPainter(self.CONFIG)), path)
        rewrite(path, load_file(path), HEADER | {"mouth_painter": "yes"})
        assert load_model("small", path).preset.mouth_painter == self.CONFIG

    @pytest.mark.parametrize("shape", ["no", "3", '{"depth": 3}', '{"blocks": [1, 2]}'])
    def test_an_unknown_shape_is_named(self, shape, saved, preset):
        rewrite(saved, load_file(saved), HEADER | {"mouth_painter": shape})
        with pytest.raises(WeightsError, match="a mouth painter that this version does not know"):
            load_model("small", saved)

    def test_a_file_without_one_loads_without_it(self, saved, preset):
        loaded = load_model("small", saved)
        assert loaded.mouth_painter is None and loaded.preset.mouth_painter is None

    def test_a_header_with_one_requires_its_tensors(self, saved, preset):
        rewrite(saved, load_file(saved), HEADER | {"mouth_painter": "yes"})
        with pytest.raises(WeightsError, match="tensors differ, first 'mouth_painter"):
            load_model("small", saved)

    def test_it_can_be_replaced(self, model):
        first, second = MouthPainter(self.CONFIG), MouthPainter(self.CONFIG)
        both = with_mouth_painter(with_mouth_painter(model, first), second)
        assert both.mouth_painter is not None
        assert torch.equal(both.mouth_painter.head.weight, second.head.weight)
        assert torch.equal(both.motion_scale, model.motion_scale)


class TestGestures:
    @pytest.fixture
    def preset(self, monkeypatch):
        preset = replace(PRESET, gestures=GESTURES)
        monkeypatch.setitem(PRESETS, "small", preset)
        return preset

    def test_they_are_saved_and_loaded(self, preset, tmp_path):
        model = make_gesture_model()
        save_model(model, tmp_path / "small.safetensors")
        loaded = load_model("small", tmp_path / "small.safetensors")
        assert loaded.preset == preset and loaded.gestures is not None
        for name, value in model.gestures.state_dict().items():
            found = loaded.gestures.state_dict()[name]
            torch.testing.assert_close(found, value, rtol=2**-10, atol=1e-7)
        assert torch.equal(loaded.gestures.amplitude, model.gestures.amplitude)

    def test_a_file_without_them_loads_without_them(self, saved, preset):
        loaded = load_model("small", saved)
        assert loaded.gestures is None and loaded.preset.gestures is None

    def test_a_header_with_them_requires_their_tensors(self, saved, preset):
        rewrite(saved, load_file(saved), HEADER | {"gestures": "yes"})
        with pytest.raises(WeightsError, match="tensors differ, first 'gestures"):
            load_model("small", saved)

    def test_they_are_added_beside_a_mouth_painter(self, model):
        painter = MouthPainter(TestMouthPainter.CONFIG)
        both = with_gestures(with_mouth_painter(model, painter), Gestures(GESTURES))
        assert both.mouth_painter is not None and both.gestures is not None
        assert torch.equal(both.mouth_painter.head.weight, painter.head.weight)

    @pytest.mark.parametrize(
        "wrong, match",
        [
            ({"gestures": replace(GESTURES, lookahead_ms=40)}, "look-ahead of 80 ms, got 40 ms"),
            ({"denoiser": replace(PRESET.denoiser, window=2)}, "a window of 4 frames"),
        ],
    )
    def test_shapes_that_do_not_fit_are_named(self, wrong, match):
        with pytest.raises(ConfigError, match=match):
            AvatarModel(replace(PRESET, **({"gestures": GESTURES} | wrong)))


class TestLipReader:
    """The header holds the shape of the lip reader, so files of several shapes can be loaded."""

    def saved(self, monkeypatch, tmp_path, shape):
        preset = replace(PRESET, lips=shape)
        monkeypatch.setitem(PRESETS, "small", preset)
        save_model(AvatarModel(preset), tmp_path / "small.safetensors")
        return tmp_path / "small.safetensors"

    def test_a_file_may_hold_another_shape_than_the_preset(self, monkeypatch, tmp_path):
        shape = replace(LIP_READER, members=2, bands=24)
        path = self.saved(monkeypatch, tmp_path, shape)
        monkeypatch.setitem(PRESETS, "small", replace(PRESET, lips=LIP_READER))
        loaded = load_model("small", path)
        assert loaded.lips is not None and loaded.lips.config == shape == loaded.preset.lips

    def test_a_file_that_does_not_say_holds_the_first_shape(self, monkeypatch, tmp_path):
        first = LipReaderConfig(members=1, bands=64, floor=1e-4, voiced_level=-1.2)
        path = self.saved(monkeypatch, tmp_path, first)
        rewrite(path, load_file(path))
        loaded = load_model("small", path)
        assert loaded.lips is not None and loaded.lips.config == first

    @pytest.mark.parametrize("header", ['{"ears": 2}', "round"])
    def test_an_unknown_shape_is_refused(self, monkeypatch, tmp_path, header):
        path = self.saved(monkeypatch, tmp_path, LIP_READER)
        rewrite(path, load_file(path), HEADER | {"lips": header})
        with pytest.raises(WeightsError, match="does not know"):
            load_model("small", path)


class TestOptionalParts:
    @pytest.fixture(params=["lip_refiner", "eyelid_painter", "eye_painter", "pose_reader"])
    def part(self, request):
        return request.param

    @pytest.fixture
    def preset(self, part, monkeypatch):
        shape = EYE_PAINTER if part == "eye_painter" else True
        preset = replace(PRESET, **{part: shape})
        monkeypatch.setitem(PRESETS, "small", preset)
        return preset

    def test_it_is_saved_and_loaded(self, part, preset, tmp_path):
        torch.manual_seed(0)
        model = AvatarModel(preset)
        save_model(model, tmp_path / "small.safetensors")
        loaded = load_model("small", tmp_path / "small.safetensors")
        assert loaded.preset == preset
        stored = getattr(loaded, part).state_dict()
        for name, value in getattr(model, part).state_dict().items():
            step = float(value.abs().max()) / 127
            torch.testing.assert_close(stored[name], value, atol=step, rtol=0)

    def test_a_file_without_it_loads_without_it(self, saved, part, preset):
        loaded = load_model("small", saved)
        assert getattr(loaded, part) is None and not getattr(loaded.preset, part)

    def test_a_header_with_it_requires_its_tensors(self, saved, part, preset):
        rewrite(saved, load_file(saved), HEADER | {part: "yes"})
        with pytest.raises(WeightsError, match=f"tensors differ, first '{part}"):
            load_model("small", saved)


class TestLandmarkCondition:
    @pytest.fixture
    def preset(self, monkeypatch):
        preset = with_landmark_condition(PRESET, has=True)
        monkeypatch.setitem(PRESETS, "small", preset)
        return preset

    def test_it_is_saved_and_loaded(self, preset, tmp_path):
        model = AvatarModel(preset)
        save_model(model, tmp_path / "small.safetensors")
        loaded = load_model("small", tmp_path / "small.safetensors")
        assert loaded.preset == preset
        torch.testing.assert_close(
            loaded.denoiser.landmarks.read[0].weight,
            model.denoiser.landmarks.read[0].weight,
            atol=1e-3,
            rtol=0,
        )

    def test_a_file_without_it_loads_without_it(self, saved, preset):
        loaded = load_model("small", saved)
        assert loaded.denoiser.landmarks is None and loaded.preset == PRESET

    def test_a_header_with_it_requires_its_tensors(self, saved, preset):
        rewrite(saved, load_file(saved), HEADER | {"landmark_condition": "yes"})
        with pytest.raises(WeightsError, match=r"tensors differ, first 'denoiser\.landmarks"):
            load_model("small", saved)
