"""Figures of frames and sample videos."""

import math

import av
import numpy as np
import pytest
import torch
from PIL import Image
from support.mouths import frontal_face
from support.small_model import AUTOENCODER, PRESET, stir
from torch import nn

from letstalk_rt.models.autoencoder.mouth_painter import MouthPainter, MouthPainterConfig
from letstalk_rt.models.autoencoder.reference import ReferenceAutoencoder
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.geometry.landmarks import NUM_LANDMARKS
from letstalk_rt.training.data.audio_features import (
    best_lag,
    correlation,
)
from letstalk_rt.training.evaluation import reconstruction
from letstalk_rt.training.evaluation.reconstruction import (
    evaluate_reconstruction,
    mouth_box,
    psnr,
    reconstruct,
    sharpness,
)
from letstalk_rt.training.evaluation.rollout import Sampling, save_sample


def frames_of(path):
    with av.open(str(path)) as container:
        kinds = {stream.type for stream in container.streams}
        return kinds, [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]


class TestFigures:
    def test_correlation(self):
        x = np.arange(9.0)
        assert correlation(x, 3 * x + 1) == pytest.approx(1)
        assert correlation(x, -x) == pytest.approx(-1)
        assert correlation(x, np.ones(9)) == 0

    @pytest.mark.parametrize("late", [-3, 0, 4])
    def test_the_best_lag_is_positive_when_the_made_one_is_late(self, late):
        true = np.random.default_rng(0).normal(size=80)
        assert best_lag(np.roll(true, late), true) == (late, pytest.approx(1))

    def test_psnr_of_a_known_error(self):
        true = torch.zeros(2, 3, 4, 4)
        made = torch.stack([true[0] + 0.2, true[1] + 0.02])
        torch.testing.assert_close(psnr(made, true), torch.tensor([20.0, 40.0]))

    def test_blur_lowers_sharpness(self):
        torch.manual_seed(0)
        sharp = torch.rand(1, 3, 32, 32)
        assert sharpness(nn.functional.avg_pool2d(sharp, 3, 1, 1)) < 0.5 * sharpness(sharp)

    def test_the_mouth_box_holds_the_lips(self):
        points = np.zeros((NUM_LANDMARKS, 2), np.float32)
        points[::2] = [0.2, 0.1]
        left, top, right, bottom = mouth_box(points, 256)
        assert left < 128 and top < 128 and right > 128 * 1.2 and bottom > 128 * 1.1

    def test_reconstruction_is_judged_against_the_first_frame(self, clips):
        torch.manual_seed(0)
        model = ReferenceAutoencoder(AUTOENCODER).eval()
        figures = evaluate_reconstruction(model, clips[:1], every=12)
        assert set(figures) == {"psnr", "psnr_mouth", "sharpness_ratio"}
        assert all(math.isfinite(value) for value in figures.values())

    def test_a_mouth_painter_changes_mouths_only(self, clips):
        torch.manual_seed(0)
        model = ReferenceAutoencoder(AUTOENCODER).eval()
        model.set_mean_landmarks((frontal_face(14.0, at=(128, 128))[0] - 128) / 128)
        painter = MouthPainter(MouthPainterConfig(widths=(8, 8, 8), bank=2)).eval()
        plain = reconstruct(model, clips[0], [1, 2])
        changed = (reconstruct(model, clips[0], [1, 2], painter=painter) - plain).abs().amax((0, 1))
        assert float(changed[120:136, 104:152].mean()) > 0.05
        assert float(changed[:80].max()) < 0.01


class TestSamples:
    def test_a_sample_of_the_autoencoder_shows_true_and_rebuilt_frames(self, clips, tmp_path):
        model = ReferenceAutoencoder(AUTOENCODER)
        longest = max(clip.num_frames for clip in clips)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reconstruction, "SAMPLE_FRAMES", longest)
            reconstruction.save_samples(model, clips[:1], tmp_path / "sample")
        kinds, frames = frames_of(tmp_path / "sample.mp4")
        assert kinds == {"video"} and len(frames) == longest
        assert frames[0].shape == (512, 256, 3)
        true = clips[0].frames[0].astype(float)
        assert np.abs(frames[0][:256] - true).mean() < 12
        with Image.open(tmp_path / "sample.png") as sheet:
            assert sheet.size == (5 * 256, 256)

    def test_a_sample_of_the_generator_has_its_sound(self, clips, tmp_path):
        torch.manual_seed(0)
        model = AvatarModel(PRESET)
        stir(model)
        save_sample(model.eval(), clips[0], tmp_path / "sample.mp4", Sampling(steps=1))
        kinds, frames = frames_of(tmp_path / "sample.mp4")
        assert kinds == {"video", "audio"} and len(frames) == clips[0].num_frames // 4 * 4
