"""`letstalk eval`: measures answer to what they are named for, and judges can be trusted."""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.data_folder import face_points, write_data_folder
from support.small_dc_model import make_dc_model
from support.small_model import make_model, make_portrait, make_speech

from letstalk_rt.cli import evaluate as command
from letstalk_rt.errors import ConfigError, InputError, WeightsError
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.training.data.dataset import Clip, load_clips
from letstalk_rt.training.evaluation import long_run, portraits
from letstalk_rt.training.evaluation.clips import EvaluationModels, EvaluationResult, evaluate_clips
from letstalk_rt.training.evaluation.faces import (
    FaceTrack,
    aligned_mouth,
    blink_rate,
    head_range,
    read_faces,
)
from letstalk_rt.training.evaluation.generation import with_crop_of
from letstalk_rt.training.evaluation.image_quality import (
    likeness_to_true,
    seam_flicker,
    ssim_map,
)
from letstalk_rt.training.evaluation.long_run import TimedFrames, slope
from letstalk_rt.training.evaluation.published import PublishedMetrics
from letstalk_rt.training.evaluation.reconstruction import face_slices
from letstalk_rt.training.evaluation.report import BARS, Bar, plot, write_report
from letstalk_rt.training.evaluation.sync import (
    LIP_POINTS,
    SyncTowers,
    calibrate,
    load_towers,
    sync_loss,
    sync_score,
    train_sync,
)
from letstalk_rt.training.loop import LoopConfig


def track(points: np.ndarray) -> FaceTrack:
    return FaceTrack(points.astype(np.float32), np.ones(len(points), bool))


class TestFaces:
    def test_frames_without_a_face_take_the_nearest_one(self):
        seen = [None, face_points(1.0)[0], None, None, face_points(5.0)[0]]
        found = read_faces(lambda i: seen[i], range(5))
        assert found.found.tolist() == [False, True, False, False, True]
        assert found.missing == pytest.approx(0.6)
        assert np.allclose(found.points[2], seen[1]) and np.allclose(found.points[3], seen[4])

    def test_no_face_at_all_is_told(self):
        assert read_faces(lambda frame: None, range(3)).missing == 1

    @pytest.mark.parametrize("blinks", [0, 3])
    def test_blinks_are_counted(self, blinks):
        points = np.repeat(face_points(0.0), 250, 0)
        for low, up in ((145, 159), (374, 386)):
            points[:, low], points[:, up] = [100, 104], [100, 96]
        for a, b in ((33, 133), (263, 362)):
            points[:, a], points[:, b] = [80, 100], [110, 100]
        for blink in range(blinks):
            for place in (145, 159, 374, 386):
                points[20 + 50 * blink : 25 + 50 * blink, place] = [100, 100]
        assert blink_rate(track(points)) == pytest.approx(6 * blinks)

    def test_only_a_head_that_moves_has_a_range(self):
        points = np.repeat(face_points(0.0), 50, 0)
        assert head_range(track(points)) == pytest.approx(0)
        moved = points + np.linspace(0, 20, 50)[:, None, None]
        assert head_range(track(moved)) > 0.01

    def test_a_mouth_is_the_same_however_the_head_is_held(self):
        points = face_points(np.arange(5.0))
        turned = points @ np.array([[0.8, 0.6], [-0.6, 0.8]]) * 1.5 + [10, -20]
        np.testing.assert_allclose(
            aligned_mouth(turned, LIP_POINTS), aligned_mouth(points, LIP_POINTS), atol=1e-5
        )


class TestPictures:
    def test_ssim_is_one_for_the_same_picture_and_falls_with_noise(self):
        torch.manual_seed(0)
        picture = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8) * 2 - 1, 64)
        noisy = [picture + s * torch.randn(picture.shape) for s in (0.0, 0.1, 0.5)]
        values = [float(ssim_map(n, picture).mean()) for n in noisy]
        assert values[0] == pytest.approx(1) and values[0] > values[1] > values[2]

    def test_ssim_of_flat_pictures_is_the_formula_s(self):
        a, b = torch.full((1, 3, 16, 16), 0.5), torch.full((1, 3, 16, 16), 0.25)
        c1 = 0.02**2
        wanted = (2 * 0.5 * 0.25 + c1) / (0.5**2 + 0.25**2 + c1)
        torch.testing.assert_close(
            ssim_map(a, b), torch.full((1, 1, 6, 6), wanted), atol=1e-4, rtol=0
        )

    @pytest.mark.parametrize("lookahead", [0, 2])
    def test_flicker_at_seams_is_seen_where_the_seams_are(self, lookahead):
        step = np.where((np.arange(41) + lookahead) % 4 == 0, 6, 2)
        level = np.cumsum(step)[:, None, None, None]
        frames = np.broadcast_to(level, (41, 8, 8, 3)).astype(np.uint8)
        assert seam_flicker(frames, 4, lookahead) == pytest.approx(3)
        assert seam_flicker(frames, 4, lookahead + 1) < 1

    def test_a_still_video_has_no_figure(self):
        assert math.isnan(seam_flicker(np.zeros((9, 4, 4, 3), np.uint8), 4, 2))


def talking_clip(seed: int, frames: int = 200) -> Clip:
    """A clip whose lips follow the loudness of its sound."""
    rng = np.random.default_rng(seed)
    loud = np.convolve(rng.uniform(0, 1, frames + 8) ** 2, np.ones(3) / 3, "same")[:frames]
    sound = make_speech(frames / 25, seed) * 0 + 0.2 * rng.normal(size=frames * 640)
    pcm = (sound * np.repeat(loud, 640)).astype(np.float32)
    landmarks = np.repeat(face_points(0.0), frames, 0)
    landmarks[:, 14, 1] += 12 * loud
    landmarks[:, 17, 1] += 12 * loud
    still = np.zeros((frames, 1, 1, 3), np.uint8)
    shapes = np.zeros((frames, 52), np.float32)
    return Clip(f"clip-{seed}", "real", still, landmarks.astype(np.float32), shapes, pcm, True)


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """Towers trained for a moment on clips whose lips follow the sound."""
    folder = tmp_path_factory.mktemp("sync")
    config = LoopConfig(steps=60, learning_rate=3e-3, warm_up=5, ema=0.9, evaluate_every=30)
    clips = [talking_clip(seed) for seed in range(6)]
    train_sync(clips, [talking_clip(9)], folder, config, batch_size=8)
    return load_towers(folder / "best.pt")


class TestSync:
    def test_the_score_is_calibrated_on_truth_shifted_and_wrong_sound(self, towers):
        found = calibrate(towers, [talking_clip(seed) for seed in (20, 21, 22)])
        assert found["sync_found"] == 1 and found["sync_found_shifted"] == 1
        assert found["sync_true"] > 2 * found["sync_true_shuffled"]

    @pytest.mark.parametrize("late", [-6, 6])
    def test_lips_that_are_late_are_found_late(self, towers, late):
        clip = talking_clip(30)
        score = sync_score(towers, np.roll(clip.landmarks, late, 0), clip.pcm)
        assert abs(score.offset - late) <= 1

    def test_the_loss_falls_where_moments_fit(self):
        torch.manual_seed(0)
        one, other = torch.nn.functional.normalize(torch.randn(2, 2, 16, 8), dim=-1)
        sharp = torch.tensor(3.0)
        assert sync_loss(one, one, sharp) < sync_loss(one, other, sharp)

    def test_clips_that_are_too_short_are_named(self, tmp_path):
        with pytest.raises(InputError, match="64 frames"):
            train_sync([talking_clip(0, 20)], [], tmp_path, LoopConfig(steps=1))

    def test_another_file_is_named(self, tmp_path):
        torch.save({"some": torch.zeros(1)}, tmp_path / "other.pt")
        with pytest.raises(WeightsError, match="letstalk train sync"):
            load_towers(tmp_path / "other.pt")


class TestLongRun:
    def test_slopes_and_their_chance(self):
        times = np.arange(20) / 6
        rng = np.random.default_rng(0)
        rate, chance = slope(times, 0.9 - 0.05 * times + rng.normal(0, 0.01, 20))
        assert rate == pytest.approx(-0.05, abs=0.01) and chance < 1e-3
        assert slope(times, rng.normal(0, 0.01, 20))[1] > 0.05
        assert slope(times, np.full(20, 0.5)) == (0.0, 1.0)

    def test_windows_are_the_slowest_frames(self):
        timed = TimedFrames(iter(()))
        timed.seconds = [0.1, 0.0, 0.0, 0.0] * 10
        assert timed.figures(4) == pytest.approx({"fps": 40.0, "window_p99_ms": 100.0})


class TestReport:
    def test_bars_are_met_or_missed(self):
        assert Bar("", low=0.5).met(0.5) and not Bar("", high=1.1).met(1.2)
        assert not Bar("", low=0).met(float("nan"))

    def test_a_plot_leaves_gaps(self):
        drawn = plot(("a",), [np.array([1.0, 2.0, np.nan, 1.0])])
        assert drawn.count("M") == 2 and "nan" not in drawn

    def test_the_file_holds_all_it_shows(self, tmp_path):
        findings = EvaluationResult(figures={"psnr": 31.0, "fps": 20.0, "drift": None})
        findings.sheets.append(("<b>", np.zeros((8, 8, 3), np.uint8)))
        findings.curves.append(("one", np.zeros((2, 5))))
        findings.slices.append({"start_s": 0.0, "identity": 0.9})
        write_report(findings, tmp_path / "deep" / "report.html")
        text = (tmp_path / "deep" / "report.html").read_text()
        assert "&lt;b&gt;" in text and "data:image/jpeg;base64," in text
        assert ">met<" in text and ">missed<" in text
        assert "http" not in text.replace("http-equiv", "")
        write_report(findings, tmp_path / "faceless.html", pictures=False)
        text = (tmp_path / "faceless.html").read_text()
        assert "data:image" not in text and "Images" not in text and ">met<" in text


REQUIRED = {
    "psnr", "psnr_mouth", "mouth_corr", "mouth_corr_grid", "mouth_lag", "mouth_corr_shuffled",
    "identity_ratio", "sharpness_ratio", "seam_flicker", "silence_openness_ratio", "drift", "fps",
    "mouth_corr_filmed", "mouth_range_ratio", "opening_range_ratio", "mouth_width_ratio",
    "mouth_width_range_ratio", "mouth_width_corr", "closure_recall",
    "closure_recall_shuffled", "open_portrait_gap", "head_range_ratio", "head_speech_r",
    "blinks_per_min", "diversity_head", "diversity_opening",
}  # fmt: skip


class BrightnessLandmarker:
    """A landmarker that finds a mouth as open as the picture is bright."""

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        return face_points(float(rgb.mean()) / 40)[0].astype(np.float32)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    root = write_data_folder(tmp_path_factory.mktemp("data"))
    cache = tmp_path_factory.mktemp("cache")
    return load_clips(root, cache, "train") + load_clips(root, cache, "eval")


@pytest.fixture(scope="module")
def findings(clips, towers):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(portraits, "STILL_FRAMES", 24)
        patch.setattr(portraits, "SILENT_FRAMES", 8)
        patch.setattr(long_run, "SLICE_S", 1)
        return judge_all(clips, towers)


def judge_all(clips, towers):
    judges = EvaluationModels(
        BrightnessLandmarker(),
        lambda portrait, frames: 0.8,
        towers,
        PublishedMetrics(inception=lambda frames: frames.mean((1, 2))),
    )
    stills = [(f"still-{seed}", make_portrait(seed)) for seed in range(2)]
    return command.evaluate(AvatarPipeline(make_model()), judges, clips, stills, long_s=3)


class TestWhole:
    def test_all_figures_are_there_and_are_json(self, findings):
        line = json.loads(command.json_line(findings.figures))
        assert line.keys() >= REQUIRED and line.keys() >= set(BARS)
        assert line["clips"] == 3, "the mute clip is left out"
        assert line["identity_ratio"] == 1 and line["fps"] > 0
        assert line["fid"] > 0 and line["fid_samples"] > 3 and "fvd" not in line

    def test_truth_and_shuffled_sound_stand_beside(self, findings):
        for row in findings.clips:
            for name in ("seam_flicker_true", "blinks_true", "head_range_true", "identity_true",
                         "interior_contrast_true", "interior_ab_shuffled"):  # fmt: skip
                assert name in row
            assert {"sync", "sync_true", "sync_shuffled", "mouth_corr_shuffled"} <= row.keys()

    def test_the_long_run_has_slices_and_slopes(self, findings):
        assert [row["start_s"] for row in findings.slices] == [0, 1, 2]
        assert findings.figures["long_s"] == 3
        assert findings.figures["drift"] == 0, "likeness was constant"

    def test_what_cannot_be_measured_is_null(self):
        assert command.json_line({"a": float("nan"), "b": 1}) == '{"a": null, "b": 1}'

    def test_without_any_sound_it_is_said(self, clips):
        mute = [replace(clips[0], has_audio=False)]
        with pytest.raises(InputError, match="no clip to evaluate has audio"):
            evaluate_clips(
                AvatarPipeline(make_model()),
                EvaluationModels(BrightnessLandmarker(), len),
                mute,
                EvaluationResult(),
            )

    def test_contact_sheets_are_written(self, findings, tmp_path: Path):
        command.save_samples(findings, tmp_path)
        assert (tmp_path / "anna-GRID-1.png").exists()
        assert (tmp_path / "mouths-anna-GRID-1.png").exists()

    @pytest.mark.parametrize(
        "options, wrong",
        [(["--long-s", "5"], "at least 10, got 5"), (["--clips", "-1"], "--clips must not be neg")],
    )
    def test_options_out_of_range_are_named(self, options, wrong):
        with pytest.raises(ConfigError, match=wrong):
            command.main(["--data", "data", *options])

    def test_few_clips_are_taken_from_all_over(self):
        assert command.spread(list("abcdefghi"), 3) == ["a", "e", "i"]

    def test_towers_hold_little(self):
        assert sum(p.numel() for p in SyncTowers().parameters()) < 400_000


def test_a_model_without_landmarks_is_measured_in_clips_of_any_size(tmp_path, monkeypatch):
    pytest.importorskip("diffusers", reason="the extra `paper` is not installed")
    monkeypatch.setattr(portraits, "STILL_FRAMES", 8)
    monkeypatch.setattr(portraits, "SILENT_FRAMES", 4)
    monkeypatch.setattr(long_run, "SLICE_S", 1)
    judges = EvaluationModels(BrightnessLandmarker(), lambda portrait, frames: 0.8)
    root = write_data_folder(tmp_path / "data", size_px=320)
    clips = load_clips(root, tmp_path, "train", size_px=320)[:2]
    pipeline = AvatarPipeline(make_dc_model())
    stills = [("still", with_crop_of(make_portrait(0), 320))]
    found = command.evaluate(pipeline, judges, clips, stills, long_s=1)
    line = json.loads(command.json_line(found.figures))
    assert line["preset"] == "small-dc" and line["psnr"] > 0 and line["clips"] >= 1
    assert line["size_px"] == 320 and line["psnr_generated"] > 0
    assert found.sheets[0][1].shape[0] == 2 * 320  # true frames above generated ones


@pytest.mark.parametrize(
    "preset, size_px",
    [("tiny", 256), ("b", 512), ("faithful-s", 512), ("faithful-v1-s-2", 256)],
)
def test_models_are_judged_at_their_own_size(preset, size_px):
    assert command.evaluated_size(argparse.Namespace(preset=preset)) == size_px


def test_the_truth_is_like_itself_and_a_brighter_video_less():
    true = np.random.default_rng(0).integers(0, 200, (3, 32, 32, 3), dtype=np.uint8)
    same, shifted = likeness_to_true(true, true), likeness_to_true(true + 10, true)
    assert same == (pytest.approx(86.0, abs=0.1), pytest.approx(1))
    assert shifted[0] == pytest.approx(20 * np.log10(255 / 10), abs=0.1) and shifted[1] < 1


def test_the_face_is_at_the_same_place_at_every_size():
    assert face_slices(256) == (slice(70, 226), slice(64, 192))
    assert face_slices(512) == (slice(140, 452), slice(128, 384))
