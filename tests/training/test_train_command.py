"""`letstalk train` names what is missing."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from support import data_folder
from support.small_model import GESTURES, LIP_READER, PRESET, make_lip_model

from letstalk_rt.cli.train import main as train
from letstalk_rt.errors import ConfigError, InputError
from letstalk_rt.models.autoencoder.eye_painter import EyePainter
from letstalk_rt.models.autoencoder.eyelid_painter import EyelidPainter
from letstalk_rt.models.autoencoder.mouth_painter import MouthPainter, MouthPainterConfig
from letstalk_rt.models.autoencoder.reference import ReferenceAutoencoder
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.face.gestures import Gestures
from letstalk_rt.models.face.lip_refiner import LipRefiner
from letstalk_rt.models.face.pose_reader import PoseReader
from letstalk_rt.models.loading import load_model, save_model
from letstalk_rt.models.presets import EYE_PAINTER, PRESETS, with_landmark_condition
from letstalk_rt.training.loop import LoopConfig, Run


class TestCommand:
    def test_an_unknown_device_is_named(self, root, cache, tmp_path):
        with pytest.raises(ConfigError, match="device must be"):
            train(["finder", "--data", str(root), "--cache", str(cache), "--runs", str(tmp_path),
                   "--threads", "1", "--device", "abacus"])  # fmt: skip

    def test_a_stage_that_was_not_run_is_named(self, root, cache, tmp_path):
        with pytest.raises(InputError, match="run that stage first"):
            train(["export", "--data", str(root), "--cache", str(cache), "--runs", str(tmp_path),
                   "--threads", "1"])  # fmt: skip

    def test_a_mouth_painter_is_added_to_a_weights_file(self, root, tmp_path, monkeypatch):
        config = MouthPainterConfig(widths=(8, 8, 8), bank=2)
        monkeypatch.setitem(PRESETS, "small", replace(PRESET, mouth_painter=config))
        save_model(AvatarModel(PRESET), tmp_path / "base.safetensors")
        painter = MouthPainter(config)
        (tmp_path / "runs" / "painter").mkdir(parents=True)
        torch.save(painter.state_dict(), tmp_path / "runs" / "painter" / "model.pt")
        train(["export", "--data", str(root), "--runs", str(tmp_path / "runs"), "--threads", "1",
               "--preset", "small", "--weights", str(tmp_path / "base.safetensors"),
               "-o", str(tmp_path / "new.safetensors")])  # fmt: skip
        exported = load_model("small", tmp_path / "new.safetensors")
        assert exported.mouth_painter is not None
        stem = exported.mouth_painter.stem.weight
        torch.testing.assert_close(stem, painter.stem.weight, rtol=2**-10, atol=1e-7)

    def test_gestures_are_added_to_a_weights_file(self, root, tmp_path, monkeypatch):
        monkeypatch.setitem(PRESETS, "small", replace(PRESET, gestures=GESTURES))
        save_model(AvatarModel(PRESET), tmp_path / "base.safetensors")
        gestures = Gestures(GESTURES)
        (tmp_path / "runs" / "gestures").mkdir(parents=True)
        torch.save(gestures.state_dict(), tmp_path / "runs" / "gestures" / "model.pt")
        train(["export", "--data", str(root), "--runs", str(tmp_path / "runs"), "--threads", "1",
               "--preset", "small", "--weights", str(tmp_path / "base.safetensors"),
               "-o", str(tmp_path / "new.safetensors")])  # fmt: skip
        exported = load_model("small", tmp_path / "new.safetensors").gestures
        assert exported is not None
        torch.testing.assert_close(exported.inertia, gestures.inertia)
        train(["export", "--data", str(root), "--runs", str(tmp_path / "none"), "--threads", "1",
               "--preset", "small", "--weights", str(tmp_path / "new.safetensors"),
               "-o", str(tmp_path / "again.safetensors")])  # fmt: skip
        kept = load_model("small", tmp_path / "again.safetensors").gestures
        assert kept is not None and torch.equal(kept.inertia, exported.inertia)

    @pytest.mark.parametrize(
        "part, stage, make",
        [
            ("lip_refiner", "refiner", LipRefiner),
            ("eyelid_painter", "eyelids", EyelidPainter),
            ("eye_painter", "eyes", lambda: EyePainter(EYE_PAINTER)),
            ("pose_reader", "pose", PoseReader),
        ],
    )
    def test_a_part_is_added_to_a_weights_file(
        self, part, stage, make, root, tmp_path, monkeypatch
    ):
        shape = EYE_PAINTER if part == "eye_painter" else True
        monkeypatch.setitem(PRESETS, "small", replace(PRESET, **{part: shape}))
        save_model(AvatarModel(PRESET), tmp_path / "base.safetensors")
        module = make()
        (tmp_path / "runs" / stage).mkdir(parents=True)
        torch.save(module.state_dict(), tmp_path / "runs" / stage / "model.pt")
        train(["export", "--data", str(root), "--runs", str(tmp_path / "runs"), "--threads", "1",
               "--preset", "small", "--weights", str(tmp_path / "base.safetensors"),
               "-o", str(tmp_path / "new.safetensors")])  # fmt: skip
        exported = getattr(load_model("small", tmp_path / "new.safetensors"), part).state_dict()
        for name, value in module.state_dict().items():
            step = float(value.abs().max()) / 127
            torch.testing.assert_close(exported[name], value, atol=step, rtol=0)

    def test_a_landmark_condition_is_trained_and_exported(self, root, tmp_path, monkeypatch):
        base = replace(PRESET, lips=LIP_READER)
        monkeypatch.setitem(PRESETS, "small", with_landmark_condition(base, has=True))
        save_model(make_lip_model(), tmp_path / "base.safetensors")
        common = ["--data", str(root), "--runs", str(tmp_path / "runs"), "--threads", "1",
                  "--preset", "small", "--weights", str(tmp_path / "base.safetensors")]  # fmt: skip
        train(["landmarks", *common, "--steps", "2", "--batch", "2"])
        train(["export", *common, "-o", str(tmp_path / "new.safetensors")])
        exported = load_model("small", tmp_path / "new.safetensors").denoiser.landmarks
        assert exported is not None and exported.tokens.weight.any()

    def test_a_preset_without_a_landmark_condition_is_named(self, root, tmp_path, monkeypatch):
        monkeypatch.setitem(PRESETS, "small", PRESET)
        with pytest.raises(ConfigError, match="preset 'small' has no landmark condition"):
            train(["landmarks", "--data", str(root), "--runs", str(tmp_path), "--threads", "1",
                   "--preset", "small"])  # fmt: skip

    def test_gestures_are_trained_and_exported(self, tmp_path, monkeypatch):
        monkeypatch.setattr(data_folder, "FRAMES", 60)
        monkeypatch.setattr(data_folder, "frame_level", lambda seed, index: 40 + seed)
        rows = [
            {"name": f"{name}-1", "split": "train", "tag": "ship", "kind": "real"}
            for name in ("ella", "fred", "gina")
        ]
        root = tmp_path / "data"
        (root / "clips").mkdir(parents=True)
        for seed, row in enumerate(rows):
            data_folder.write_clip(root / "clips", row["name"], seed)
        lines = [json.dumps(row) for row in rows]
        (root / "clips.jsonl").write_text("\n".join(lines))
        monkeypatch.setitem(PRESETS, "small", replace(PRESET, gestures=GESTURES))
        save_model(AvatarModel(PRESET), tmp_path / "base.safetensors")
        common = ["--data", str(root), "--cache", str(tmp_path / "cache"), "--runs",
                  str(tmp_path / "runs"), "--threads", "1", "--preset", "small",
                  "--weights", str(tmp_path / "base.safetensors")]  # fmt: skip
        train(["gestures", *common, "--steps", "2", "--batch", "2"])
        train(["export", *common, "-o", str(tmp_path / "new.safetensors")])
        gestures = load_model("small", tmp_path / "new.safetensors").gestures
        assert gestures is not None and gestures.prosody.usual.any()

    def test_gestures_without_filmed_clips_are_refused(self, root, cache, tmp_path, monkeypatch):
        monkeypatch.setitem(PRESETS, "small", replace(PRESET, gestures=GESTURES))
        save_model(AvatarModel(PRESET), tmp_path / "base.safetensors")
        with pytest.raises(InputError, match="need filmed clips with audio"):
            train(["gestures", "--data", str(root), "--cache", str(cache), "--runs", str(tmp_path),
                   "--threads", "1", "--preset", "small",
                   "--weights", str(tmp_path / "base.safetensors")])  # fmt: skip

    def test_a_preset_without_gestures_is_named(self, root, cache, tmp_path, monkeypatch):
        monkeypatch.setitem(PRESETS, "small", PRESET)
        save_model(AvatarModel(PRESET), tmp_path / "base.safetensors")
        with pytest.raises(ConfigError, match="preset 'small' has no gestures"):
            train(["gestures", "--data", str(root), "--cache", str(cache), "--runs", str(tmp_path),
                   "--threads", "1", "--preset", "small",
                   "--weights", str(tmp_path / "base.safetensors")])  # fmt: skip

    def test_a_lip_reader_of_another_shape_replaces_that_of_a_weights_file(
        self, root, tmp_path, monkeypatch
    ):
        old, new = replace(LIP_READER, members=1), LIP_READER
        monkeypatch.setitem(PRESETS, "small", replace(PRESET, lips=old))
        save_model(AvatarModel(PRESETS["small"]), tmp_path / "base.safetensors")
        monkeypatch.setitem(PRESETS, "small", replace(PRESET, lips=replace(new, members=3)))
        command = ["export", "--data", str(root), "--runs", str(tmp_path / "runs"),
                   "--threads", "1", "--preset", "small",
                   "--weights", str(tmp_path / "base.safetensors"),
                   "-o", str(tmp_path / "new.safetensors")]  # fmt: skip
        train(command)
        assert load_model("small", tmp_path / "new.safetensors").preset.lips == old
        trained = AvatarModel(replace(PRESET, lips=new)).state_dict()
        parts = {k: v for k, v in trained.items() if k.startswith(("lips.", "lip_motion."))}
        (tmp_path / "runs" / "lips").mkdir(parents=True)
        stored = {"shape": asdict(new), "weights": parts}
        torch.save(stored, tmp_path / "runs" / "lips" / "model.pt")
        train(command)
        exported = load_model("small", tmp_path / "new.safetensors")
        assert exported.lips is not None and exported.preset.lips == new
        weight = exported.lips.enter.weight
        torch.testing.assert_close(weight, parts["lips.enter.weight"], rtol=2**-10, atol=1e-7)

    def test_a_decoder_of_another_shape_replaces_that_of_a_weights_file(
        self, root, tmp_path, monkeypatch
    ):
        shape = replace(PRESET.autoencoder, decoder=(8, 8, 16), reference=(8, 8, 4))
        monkeypatch.setitem(PRESETS, "small", replace(PRESET, autoencoder=shape))
        save_model(AvatarModel(PRESET), tmp_path / "base.safetensors")
        arguments = ["export", "--data", str(root), "--runs", str(tmp_path / "runs"), "--threads",
                     "1", "--preset", "small", "--weights", str(tmp_path / "base.safetensors"),
                     "-o", str(tmp_path / "new.safetensors")]  # fmt: skip
        with pytest.raises(InputError, match="'decoder' does not exist; run that stage first"):
            train(arguments)
        trained = ReferenceAutoencoder(shape)
        Run(tmp_path / "runs" / "decoder", trained, LoopConfig(steps=1)).save()
        train(arguments)
        exported = load_model("small", tmp_path / "new.safetensors").autoencoder
        kept = trained.decoder.spread.weight
        torch.testing.assert_close(exported.decoder.spread.weight, kept, rtol=2**-10, atol=1e-7)

    def test_a_preset_without_mouth_painter_is_named(self, root, tmp_path):
        with pytest.raises(ConfigError, match="preset 'b' has no mouth painter"):
            train(["painter", "--data", str(root), "--runs", str(tmp_path), "--threads", "1",
                   "--preset", "b"])  # fmt: skip

    def test_a_painter_to_distil_is_missed_in_the_weights(self, root, tmp_path, monkeypatch):
        monkeypatch.setitem(PRESETS, "small", PRESET)
        save_model(AvatarModel(PRESET), tmp_path / "base.safetensors")
        with pytest.raises(ConfigError, match="'small' hold no mouth painter to distil"):
            train(["painter", "--distill", "--data", str(root), "--runs", str(tmp_path),
                   "--threads", "1", "--preset", "small",
                   "--weights", str(tmp_path / "base.safetensors")])  # fmt: skip

    def test_surroundings_alone_need_a_denoiser_to_go_on_with(self, root, tmp_path):
        with pytest.raises(InputError, match="name its run with --start"):
            train(["flow", "--data", str(root), "--runs", str(tmp_path), "--threads", "1",
                   "--surroundings"])  # fmt: skip

    def test_clips_without_blendshapes_are_refused_where_they_are_learnt(self, cache, tmp_path):
        root = tmp_path / "data"
        (root / "clips").mkdir(parents=True)
        data_folder.write_clip(root / "clips", "hans-1", 0)
        row = {"name": "hans-1", "split": "train", "tag": "ship", "kind": "real"}
        (root / "clips.jsonl").write_text(json.dumps(row | {"landmarks": "own"}))
        with pytest.raises(InputError, match="'hans-1'; prepare them with --landmarks mediapipe"):
            train(["audio", "--data", str(root), "--cache", str(tmp_path / "cache"), "--runs",
                   str(tmp_path), "--threads", "1"])  # fmt: skip

    def test_a_wrong_folder_is_named(self, tmp_path):
        with pytest.raises(InputError, match="no clips.jsonl"):
            train(["autoencoder", "--data", str(tmp_path), "--threads", "1"])
