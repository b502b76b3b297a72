"""`letstalk train` names what is missing."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import data_folder
from support.small_model import PRESET, make_model, stir

from letstalk_rt.cli.train import main as train
from letstalk_rt.errors import ConfigError, InputError
from letstalk_rt.models.autoencoder.eye_painter import EyePainter
from letstalk_rt.models.autoencoder.mouth_painter import MouthPainter, MouthPainterConfig
from letstalk_rt.models.autoencoder.reference import ReferenceAutoencoder
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.face.lip_refiner import LipRefiner
from letstalk_rt.models.face.pose_reader import PoseReader
from letstalk_rt.models.loading import load_model, save_model
from letstalk_rt.models.motion.denoiser import MotionDenoiserConfig
from letstalk_rt.models.parts import MOTION, MOUTH_PAINTER, with_parts
from letstalk_rt.models.presets import EYE_PAINTER, PRESETS
from letstalk_rt.training.loop import LoopConfig, Run

CONDITION = "denoiser.landmarks"


def move_face(tracks: Path, seed: int) -> None:
    """Let the head of a clip turn, and all landmarks move; drawn clips hold them still."""
    arrays, rng = dict(np.load(tracks)), np.random.default_rng(seed)
    arrays["landmarks"] += rng.normal(0, 1, arrays["landmarks"].shape).astype(np.float16)
    turns = rng.normal(0, 0.05, (len(arrays["pose"]), 3, 3))
    turned = torch.linalg.matrix_exp(torch.from_numpy(turns - turns.transpose(0, 2, 1)))
    arrays["pose"][:, :3, :3] = turned.numpy()
    np.savez(tracks, **arrays)


class TestCommand:
    def test_an_unknown_device_is_named(self, root, cache, tmp_path):
        with pytest.raises(ConfigError, match="device must be"):
            train(["detector", "--data", str(root), "--cache", str(cache), "--runs", str(tmp_path),
                   "--threads", "1", "--device", "abacus"])  # fmt: skip

    def test_a_stage_that_was_not_run_is_named(self, root, cache, tmp_path):
        with pytest.raises(InputError, match="run that stage first"):
            train(["export", "--data", str(root), "--cache", str(cache), "--runs", str(tmp_path),
                   "--threads", "1"])  # fmt: skip

    def test_a_mouth_painter_is_added_to_a_weights_file(self, root, tmp_path, monkeypatch):
        config = MouthPainterConfig(widths=(8, 8, 8), bank=2)
        preset = with_parts(PRESET, {*PRESET.parts, "mouth_painter"})
        monkeypatch.setitem(PRESETS, "small", replace(preset, mouth_painter=config))
        save_model(AvatarModel(PRESET), tmp_path / "base.safetensors")
        painter = MouthPainter(config)
        (tmp_path / "runs" / "painter").mkdir(parents=True)
        torch.save(painter.state_dict(), tmp_path / "runs" / "painter" / "model.pt")
        train(["export", "--data", str(root), "--runs", str(tmp_path / "runs"), "--threads", "1",
               "--preset", "small", "--weights", str(tmp_path / "base.safetensors"),
               "-o", str(tmp_path / "new.safetensors")])  # fmt: skip
        exported = load_model("small", tmp_path / "new.safetensors")
        stem = exported.part(MOUTH_PAINTER).stem.weight
        torch.testing.assert_close(stem, painter.stem.weight, rtol=2**-10, atol=1e-7)

    @pytest.mark.parametrize(
        "part, stage, make",
        [
            ("lip_refiner", "refiner", LipRefiner),
            ("eye_painter", "eyes", lambda: EyePainter(EYE_PAINTER)),
            ("pose_reader", "pose", PoseReader),
        ],
    )
    def test_a_part_is_added_to_a_weights_file(
        self, part, stage, make, root, tmp_path, monkeypatch
    ):
        monkeypatch.setitem(PRESETS, "small", with_parts(PRESET, {*PRESET.parts, part}))
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
        base = with_parts(PRESET, {*PRESET.parts, "motion"})
        monkeypatch.setitem(PRESETS, "small", with_parts(PRESET, {*base.parts, CONDITION}))
        model = AvatarModel(base)
        stir(model)
        save_model(model, tmp_path / "base.safetensors")
        common = ["--data", str(root), "--runs", str(tmp_path / "runs"), "--threads", "1",
                  "--preset", "small", "--weights", str(tmp_path / "base.safetensors")]  # fmt: skip
        train(["landmarks", *common, "--steps", "2", "--batch", "2"])
        train(["export", *common, "-o", str(tmp_path / "new.safetensors")])
        exported = load_model("small", tmp_path / "new.safetensors")
        branch = exported.denoiser.landmarks
        assert branch is not None and branch.tokens.weight.any()
        assert "motion" in exported.preset.parts, "the part that was given is kept"

    def test_a_landmark_condition_needs_a_motion_denoiser(self, root, tmp_path, monkeypatch):
        base = with_parts(PRESET, {*PRESET.parts, "motion"})
        monkeypatch.setitem(PRESETS, "small", with_parts(PRESET, {*base.parts, CONDITION}))
        save_model(AvatarModel(PRESET), tmp_path / "base.safetensors")
        with pytest.raises(InputError, match="run the stage 'motion' first"):
            train(["landmarks", "--data", str(root), "--runs", str(tmp_path), "--threads", "1",
                   "--preset", "small",
                   "--weights", str(tmp_path / "base.safetensors")])  # fmt: skip

    def test_a_preset_without_a_landmark_condition_is_named(self, root, tmp_path, monkeypatch):
        monkeypatch.setitem(PRESETS, "small", PRESET)
        with pytest.raises(ConfigError, match="preset 'small' has no landmark condition"):
            train(["landmarks", "--data", str(root), "--runs", str(tmp_path), "--threads", "1",
                   "--preset", "small"])  # fmt: skip

    def test_a_motion_denoiser_is_trained_and_exported(self, tmp_path, monkeypatch):
        monkeypatch.setattr(data_folder, "FRAMES", 100)
        monkeypatch.setattr(data_folder, "frame_level", lambda seed, index: 40 + seed)
        rows = [
            {"name": f"{name}-1", "split": "train", "tag": "ship", "kind": "real"}
            for name in ("ella", "fred", "gina")
        ]
        root = tmp_path / "data"
        (root / "clips").mkdir(parents=True)
        for seed, row in enumerate(rows):
            data_folder.write_clip(root / "clips", row["name"], seed)
            move_face(root / "clips" / f"{row['name']}.npz", seed)
        (root / "clips.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        preset = with_parts(PRESET, {*PRESET.parts, "motion"})
        preset = replace(preset, motion=MotionDenoiserConfig())
        monkeypatch.setitem(PRESETS, "small", preset)
        save_model(make_model(), tmp_path / "base.safetensors")
        common = ["--data", str(root), "--cache", str(tmp_path / "cache"), "--runs",
                  str(tmp_path / "runs"), "--threads", "1", "--preset", "small",
                  "--weights", str(tmp_path / "base.safetensors")]  # fmt: skip
        train(["motion", *common, "--steps", "2", "--batch", "2"])
        train(["export", *common, "-o", str(tmp_path / "new.safetensors")])
        motion = load_model("small", tmp_path / "new.safetensors").part(MOTION)
        assert motion.speech.usual.any() and motion.lip_levels.any()
        assert motion.expression.face.any() and motion.expression.mouth.natural.any()

    def test_a_motion_denoiser_needs_clips_with_audio(self, tmp_path, monkeypatch):
        root = data_folder.write_data_folder(tmp_path / "data")
        for audio in (root / "clips").glob("*.flac"):
            audio.unlink()
        monkeypatch.setitem(PRESETS, "small", with_parts(PRESET, {*PRESET.parts, "motion"}))
        save_model(AvatarModel(PRESET), tmp_path / "base.safetensors")
        with pytest.raises(InputError, match="needs clips with audio"):
            train(["motion", "--data", str(root), "--cache", str(tmp_path / "cache"), "--runs",
                   str(tmp_path), "--threads", "1", "--preset", "small",
                   "--weights", str(tmp_path / "base.safetensors")])  # fmt: skip

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
        with pytest.raises(ConfigError, match="'small' has no 'mouth_painter'"):
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
