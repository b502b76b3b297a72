"""Training of the motion denoiser: codes measured in clips, blinks as events, lips to scale."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from letstalk_rt.cli.train_motion import motion_file
from letstalk_rt.errors import InputError
from letstalk_rt.models.face.lip_values import GAPS
from letstalk_rt.models.motion.code import (
    LIPS,
    MIRRORED,
    NUM_MOTION,
    NUM_STYLE,
    REST,
    channel,
)
from letstalk_rt.models.motion.denoiser import PAST_WINDOWS, MotionDenoiser, MotionDenoiserConfig
from letstalk_rt.models.motion.speech_encoder import SpeechEncoderConfig
from letstalk_rt.training.loop import LoopConfig
from letstalk_rt.training.stages.motion import (
    MotionItems,
    evaluate_motion,
    fit_lips,
    fit_statistics,
    free_run,
    train_motion,
)
from letstalk_rt.training.stages.motion_clips import (
    MotionClip,
    blink_onsets,
    motion_clip,
    motion_codes,
)

CONFIG = MotionDenoiserConfig(
    SpeechEncoderConfig(width=16), memory=3, width=24, depth=1, heads=2, head_width=16, head_depth=1
)


def drawn_clip(seed=0, frames=120, **changes):
    """A clip whose codes wander and whose lip gap follows one band of its speech."""
    rng = np.random.default_rng(seed)
    wander = np.cumsum(rng.standard_normal((frames, NUM_MOTION)), 0) * 0.05
    inputs = rng.standard_normal((frames + 2, 160)) * 0.3
    codes = torch.from_numpy(wander - wander.mean(0)).float()
    codes[:, 0] = torch.from_numpy(inputs[:frames, :40].mean(1)).float()
    clip = MotionClip(
        name=f"clip{seed}",
        inputs=torch.from_numpy(inputs).float(),
        codes=codes,
        shapes=torch.randn(frames, 24),
        blinks=[40, 80],
        style=torch.randn(NUM_STYLE),
        lip_weight=1.0,
        is_real=True,
        is_grid=False,
    )
    return replace(clip, **changes)


@pytest.fixture
def denoiser():
    torch.manual_seed(0)
    return MotionDenoiser(CONFIG)


def test_codes_are_relative_to_the_face_at_rest(clips):
    spoken = next(clip for clip in clips if clip.has_audio)
    measured = motion_clip(spoken, MotionDenoiser().speech)
    count = spoken.num_frames
    assert measured.codes.shape == (count, NUM_MOTION)
    assert torch.isfinite(measured.codes).all()
    for name in ("yaw", "gaze_x", "smile"):
        assert abs(np.median(motion_codes(spoken)[:, channel(name)])) < 1e-3
    assert np.array_equal(measured.codes.numpy(), motion_codes(spoken))
    assert len(measured.inputs) == count + 2


def test_a_trackers_noise_is_not_learned_as_trembling(clips):
    spoken = next(clip for clip in clips if clip.has_audio)
    frames = np.arange(spoken.num_frames)
    slow, shake = np.sin(frames / 8), (-1.0) ** frames
    read = {}
    for name, moved in (("slow", slow), ("both", slow + 0.5 * shake)):
        pose = spoken.pose.copy()
        angle = 0.1 * moved
        pose[:, 0, 0], pose[:, 0, 2] = np.cos(angle), np.sin(angle)
        pose[:, 2, 0], pose[:, 2, 2] = -np.sin(angle), np.cos(angle)
        yaw = motion_codes(replace(spoken, pose=pose))[1:-1, channel("yaw")]
        read[name] = yaw - yaw.mean()
    assert np.ptp(read["slow"]) > 0.05
    np.testing.assert_allclose(read["both"], read["slow"], atol=0.01)


def test_speech_and_codes_of_a_late_clip_are_brought_together(clips):
    spoken = next(clip for clip in clips if clip.has_audio)
    speech = MotionDenoiser().speech
    plain = motion_clip(replace(spoken, lips_late=0), speech)
    late = motion_clip(replace(spoken, lips_late=2), speech)
    early = motion_clip(replace(spoken, lips_late=-2), speech)
    assert torch.equal(late.codes, plain.codes[2:]) and torch.equal(late.inputs, plain.inputs[:-2])
    assert torch.equal(early.codes, plain.codes[:-2])
    assert torch.equal(early.inputs, plain.inputs[2:])


def test_lips_of_poor_clips_are_left_out_and_filmed_ones_count_twice(clips):
    spoken, speech = next(clip for clip in clips if clip.has_audio), MotionDenoiser().speech

    def weight(**changes):
        return motion_clip(replace(spoken, **changes), speech).lip_weight

    assert weight(sync=0.1) == 0 and weight(has_audio=False) == 0
    assert weight(sync=0.5, kind="real") == 2 * weight(sync=0.5, kind="generated") > 0


def test_blinks_begin_where_lids_fall_fast_and_rise_again():
    shut = np.zeros(200)
    for start in (30, 100):
        shut[start : start + 5] = (0.4, 0.9, 1.0, 0.5, 0.2)
    shut[150:] = 0.9  # looks down
    assert blink_onsets(shut) == [30, 100]


def test_items_hold_blinks_as_frames_of_windows_and_half_are_mirrored(denoiser):
    clip = drawn_clip()
    items = MotionItems([clip], denoiser, windows=3)
    batch = items.draw(256, torch.Generator().manual_seed(0))
    assert batch.codes.shape == (256, 24, NUM_MOTION) and batch.blinks.shape == (256, 3)
    assert set(batch.blinks.flatten().tolist()) == {0, 1, 2, 3, 4}
    yaw = channel("yaw")
    assert MIRRORED[yaw] == -1.0
    windows = clip.codes.unfold(0, 24, 1)
    plain = sum(
        bool(torch.isclose(windows[:, yaw], codes[:, yaw], atol=1e-4).all(1).any())
        for codes in batch.codes
    )
    assert 80 < plain < 176


def test_short_clips_are_refused(denoiser):
    with pytest.raises(InputError, match="no clip has more than"):
        MotionItems([drawn_clip(frames=20)], denoiser, windows=3)


def test_what_is_not_predicted_in_filmed_clips_is_white(denoiser):
    clips = [drawn_clip(seed) for seed in range(4)]
    fit_statistics(denoiser, clips)
    reach = PAST_WINDOWS * denoiser.config.window
    pieces = torch.cat(
        [
            denoiser.to_normal(clip.codes)[:, REST].unfold(0, reach + 4, 1).transpose(1, 2)
            for clip in clips
        ]
    )
    past, true = pieces[:, :reach], pieces[:, reach:]
    white = denoiser.white(true, past)
    assert 0.9 < float(white.std()) < 1.1
    held = (true - past[:, -1:]).pow(2).mean()
    predicted = denoiser.unwhite(torch.zeros_like(white), past)
    assert (true - predicted).pow(2).mean() < 0.95 * held, "better than to hold still"
    with pytest.raises(InputError, match="kind 'real'"):
        fit_statistics(denoiser, [drawn_clip(is_real=False)])


def test_a_few_steps_learn_lips_and_a_stopped_run_resumes(denoiser, tmp_path):
    clips, other = [drawn_clip(seed) for seed in range(3)], [drawn_clip(9)]
    config = LoopConfig(steps=100, learning_rate=1e-2, warm_up=5, ema=0.8, report_every=50)
    trained = train_motion(clips, other, tmp_path, config, denoiser, batch_size=8)
    assert evaluate_motion(trained, other)["r_gap"] > 0.4
    assert (trained.lip_levels[:, -1] > trained.lip_levels[:, 0]).all()
    again = train_motion(clips, other, tmp_path, config, MotionDenoiser(CONFIG), batch_size=8)
    assert torch.equal(again.lips.weight, trained.lips.weight)


def test_shown_lips_rest_in_silence_and_move_as_far_as_peoples(denoiser):
    clips = [drawn_clip(seed) for seed in range(3)]
    torch.nn.init.normal_(denoiser.lips.weight)
    fit_lips(denoiser, clips, clips)
    heard = denoiser.speech(torch.zeros(1, 64_000))
    silent = denoiser.shown_lips(denoiser.predict_lips(heard.features, heard.lips))[0, -1]
    assert silent[GAPS].abs().max() < 1e-4
    shown = free_run(denoiser, clips[1], torch.Generator())[:, LIPS]
    spans = [x.quantile(0.95, 0) - x.quantile(0.05, 0) for x in (shown, clips[1].codes[:, LIPS])]
    assert 0.4 < float((spans[0] / spans[1]).median()) < 2.5


def test_its_file_lies_in_the_folder_of_the_run(tmp_path):
    assert motion_file(tmp_path) == tmp_path / "motion" / "model.pt"
