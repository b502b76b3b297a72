"""Training of the lip reader: synchronised clips, a falling loss, fitted lip motion."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.data_folder import write_data_folder
from support.small_model import LIP_READER, make_model

from letstalk_rt.errors import InputError
from letstalk_rt.models.audio_encoder.lip_reader import LipReader
from letstalk_rt.models.face.lip_motion import KNOTS, LipMotion
from letstalk_rt.models.face.lip_values import LIP_VALUES, NUM_LIP_VALUES
from letstalk_rt.training.data.dataset import load_clips
from letstalk_rt.training.loop import LoopConfig
from letstalk_rt.training.stages.lips import (
    NUM_TARGETS,
    fit_components,
    fit_sizes,
    lip_clip,
    train_lips,
    without_auxiliary,
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    root = write_data_folder(tmp_path_factory.mktemp("data"))
    return load_clips(root, tmp_path_factory.mktemp("cache"), "train")


class TestTraining:
    def test_a_few_steps_lower_the_loss_and_keep_the_best(self, clips, tmp_path):
        config = LoopConfig(
            steps=30, learning_rate=3e-3, warm_up=5, ema=0.9, report_every=1, evaluate_every=15
        )
        reader = train_lips(
            clips, clips, tmp_path, config, batch_size=4, frames=20, shape=LIP_READER
        )
        lines = [
            line for line in (tmp_path / "log.jsonl").read_text().splitlines() if "loss" in line
        ]
        losses = [float(line.split('"loss": ')[1].split(",")[0]) for line in lines]
        assert np.mean(losses[-5:]) < np.mean(losses[:5])
        assert reader.config.values == NUM_TARGETS and (tmp_path / "best.pt").exists()

    def test_a_reader_without_auxiliary_targets_predicts_the_same_values(self):
        torch.manual_seed(0)
        whole = LipReader(replace(LIP_READER, values=NUM_TARGETS)).eval()
        small = without_auxiliary(whole)
        pcm = 0.1 * torch.randn(1, 6400)
        torch.testing.assert_close(small(pcm), whole(pcm)[..., :NUM_LIP_VALUES])

    @pytest.mark.parametrize("late", [-3, 0, 2])
    def test_audio_and_lips_are_synchronised(self, clips, late):
        clip, reader = clips[0], LipReader(LIP_READER)
        plain = lip_clip(clip, reader)
        moved = lip_clip(replace(clip, lips_late=late), reader)
        count = clip.num_frames - abs(late)
        assert len(moved.opening) == count and len(moved.targets) == count
        np.testing.assert_array_equal(moved.opening, plain.opening[max(late, 0) :][:count])
        torch.testing.assert_close(
            moved.features, plain.features[max(-late, 0) :][: len(moved.features)]
        )

    def test_poor_clips_are_left_out_and_filmed_ones_count_twice(self, clips):
        def weight(**changes):
            return lip_clip(replace(clips[0], **changes), LipReader(LIP_READER)).weight

        assert weight(sync=0.1) == 0 and weight(has_audio=False) == 0
        assert weight(sync=0.5, kind="real") == 2 * weight(sync=0.5, kind="generated")

    def test_sizes_need_a_filmed_clip(self, clips):
        drawn = [replace(clip, kind="generated") for clip in clips]
        with pytest.raises(InputError, match="no held-out clip"):
            fit_sizes(LipMotion(), LipReader(LIP_READER), drawn, clips)

    def test_sizes_and_components_are_fitted_to_clips(self, clips):
        motion = LipMotion()
        found = fit_sizes(motion, LipReader(LIP_READER), clips, clips)
        assert found.keys() == {f"r_{name}" for name in LIP_VALUES}
        assert motion.heard.shape == (NUM_LIP_VALUES, KNOTS) and motion.meant.any()
        fit_components(motion, make_model().autoencoder, clips)
        assert motion.natural.any()
