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
from letstalk_rt.models.geometry.landmarks import LIPS_INNER
from letstalk_rt.training.data.dataset import load_clips
from letstalk_rt.training.loop import LoopConfig
from letstalk_rt.training.stages.lips import (
    NUM_TARGETS,
    OPENING,
    fit_components,
    fit_neutral,
    fit_sizes,
    lip_clip,
    parts_by_source,
    train_member,
    without_auxiliary,
)


def member():
    return LipReader(replace(LIP_READER, members=1)).eval()


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    root = write_data_folder(tmp_path_factory.mktemp("data"))
    return load_clips(root, tmp_path_factory.mktemp("cache"), "train")


class TestTraining:
    def test_a_few_steps_lower_the_loss(self, clips, tmp_path):
        config = LoopConfig(
            steps=30, learning_rate=3e-3, warm_up=5, ema=0.9, report_every=1, evaluate_every=15
        )
        reader = train_member(
            clips, clips, tmp_path, config, batch_size=4, frames=20, shape=LIP_READER
        )
        lines = [
            line for line in (tmp_path / "log.jsonl").read_text().splitlines() if "loss" in line
        ]
        losses = [float(line.split('"loss": ')[1].split(",")[0]) for line in lines]
        assert np.mean(losses[-5:]) < np.mean(losses[:5])
        assert reader.config.values == NUM_TARGETS and reader.config.members == 1

    def test_without_auxiliary_targets_the_gap_takes_its_mean_with_the_opening(self):
        torch.manual_seed(0)
        whole = LipReader(replace(LIP_READER, values=NUM_TARGETS)).eval()
        small = without_auxiliary(whole)
        pcm = 0.1 * torch.randn(1, 6400)
        found, expected = small(pcm), whole(pcm)
        gap = (expected[..., 0] + expected[..., OPENING]) / 2
        torch.testing.assert_close(found[..., 0], gap, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found[..., 1:], expected[..., 1:NUM_LIP_VALUES])

    def test_each_member_is_trained_without_some_sources(self, clips):
        several = [replace(clips[0], name=f"{source}-{k}") for source in "abc" for k in range(2)]
        parts = parts_by_source(several, 2)
        assert sorted(c.name for part in parts for c in part) == [c.name for c in several]
        sources = [{c.source for c in part} for part in parts]
        assert all(sources) and not sources[0] & sources[1]

    def test_clips_of_one_source_are_refused(self, clips):
        with pytest.raises(InputError, match="one source"):
            parts_by_source([clips[0]], 2)

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
        with pytest.raises(InputError, match="kind 'real'"):
            fit_sizes(LipMotion(), [member()], [drawn])

    def test_sizes_and_components_are_fitted_to_clips(self, clips):
        motion = LipMotion()
        found = fit_sizes(motion, [member(), member()], [clips[:1], clips[1:]])
        assert found.keys() == {f"r_{name}" for name in LIP_VALUES}
        assert motion.heard.shape == (NUM_LIP_VALUES, KNOTS) and motion.meant.any()
        fit_components(motion, make_model().autoencoder, clips)
        assert motion.natural.any()

    def test_the_neutral_mouth_is_fitted_to_clips_whose_lips_close(self, clips):
        clip, motion = clips[0], LipMotion()
        points = clip.landmarks.copy()
        upper, lower = LIPS_INNER[15], LIPS_INNER[5]
        points[::2, lower] = points[::2, upper]
        points[1::2, lower] = points[1::2, upper] + [0, 30]
        fit_neutral(motion, [replace(clip, landmarks=points)])
        assert motion.neutral.weight.any() and motion.neutral.bias.any()

    def test_clips_that_never_close_do_not_teach_the_neutral_mouth(self, clips):
        clip, motion = clips[0], LipMotion()
        points = clip.landmarks.copy()
        points[:, LIPS_INNER[5]] = points[:, LIPS_INNER[15]] + [0, 30]
        fit_neutral(motion, [replace(clip, landmarks=points)])
        assert not motion.neutral.weight.any()
