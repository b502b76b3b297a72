"""What sessions are told: options, look-ahead, another face, and an interrupt."""

import copy

import numpy as np
import pytest
import torch
from support.small_model import make_model, make_portrait, make_speech

from letstalk_rt.errors import ConfigError, InputError
from letstalk_rt.inference.audio_stage import AudioState
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.inference.protocol import StateOptions
from letstalk_rt.inference.sample_stage import LatentState, SampleStage
from letstalk_rt.types import MotionOptions


@pytest.fixture(scope="module")
def pipeline():
    return AvatarPipeline(make_model())


@pytest.mark.parametrize(
    "options",
    [{"expressiveness": -0.1}, {"expressiveness": 2.1}, {"blinks_per_min": float("nan")}],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match="must be from 0"):
        MotionOptions(**options)


@pytest.mark.parametrize(
    "options", [{"expressiveness": 0.5}, {"head_motion": False}, {"gaze_at_camera": True}]
)
def test_options_that_need_a_motion_denoiser_are_refused_without_one(pipeline, options):
    made = StateOptions(motion=MotionOptions(**options))
    with pytest.raises(ConfigError, match="has no motion denoiser"):
        pipeline.init_state(make_portrait(), made)


def test_no_camera_drives_a_model_without_a_motion_denoiser(pipeline):
    state = pipeline.init_state(make_portrait())
    with pytest.raises(ConfigError, match="no camera can drive"):
        pipeline.steer(state, lambda first, count: None)


def test_after_an_interrupt_the_motion_goes_on_from_the_last_frame_that_was_seen(pipeline):
    state = pipeline.init_state(make_portrait())
    for hop in make_speech(0.48).reshape(3, 1, -1):
        pipeline.step(hop, [state])
    memory = state[LatentState].memory
    seen = memory.latents[:, -1 - 3].clone()
    pipeline.interrupt(state, unseen=3)
    torch.testing.assert_close(memory.latents[:, -1], seen)
    tokens = pipeline.audio_stage(torch.zeros(1, pipeline.hop), [state[AudioState]])
    again = copy.deepcopy(state[LatentState])
    again.ease_start = None
    stage = SampleStage(pipeline.model, pipeline.guidance, pipeline.model.denoiser.predict)
    with torch.inference_mode():
        eased, plain = (stage(tokens, state.times, [one])[0] for one in (state[LatentState], again))
    torch.testing.assert_close(eased[0], (seen[0] + plain[0]) / 2)
    torch.testing.assert_close(eased[1:], plain[1:])


def test_another_face_goes_on_in_the_same_motion(pipeline):
    state = pipeline.init_state(make_portrait(1))
    hops = make_speech(0.48).reshape(3, 1, -1)
    pipeline.step(hops[0], [state])
    memory = state[LatentState].memory.latents.clone()
    pipeline.change_portrait(state, make_portrait(2, size=64))
    torch.testing.assert_close(state[LatentState].memory.latents, memory)
    assert pipeline.step(hops[1], [state])[0].shape == (4, 64, 80, 3)


@pytest.mark.parametrize("lookahead", [0, 1])
def test_less_look_ahead_hears_the_same_sound_sooner(pipeline, lookahead):
    speech = make_speech(0.96).reshape(6, 1, -1)
    tokens = {}
    for frames in (lookahead, 2):
        state = pipeline.init_state(make_portrait(), StateOptions(lookahead_frames=frames))
        heard = [
            pipeline.audio_stage(torch.from_numpy(hop), [state[AudioState]], state.lookahead_frames)
            for hop in speech
        ]
        tokens[frames] = torch.cat(heard, 1)
    ahead = 2 - lookahead
    whole, early = tokens[2][0, ahead:], tokens[lookahead][0, :-ahead]
    known = [i for i in range(len(early)) if i % 4 < 4 - ahead]
    torch.testing.assert_close(early[known], whole[known], atol=1e-4, rtol=1e-4)


def test_sessions_that_look_ahead_differently_are_not_mixed(pipeline):
    states = [
        pipeline.init_state(make_portrait(), StateOptions(lookahead_frames=n)) for n in (0, 2)
    ]
    with pytest.raises(InputError, match="look-ahead"):
        pipeline.step(np.zeros((2, 2560), np.float32), states)


@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"steps": 51}, {"lookahead_frames": -1}, {"lookahead_frames": 3}]
)
def test_steps_and_look_ahead_out_of_range_are_refused(pipeline, options):
    with pytest.raises(ConfigError, match="must be"):
        pipeline.init_state(make_portrait(), StateOptions(**options))


def test_sessions_fit_together_that_agree_in_steps_and_look_ahead(pipeline):
    portrait, other = make_portrait(), make_portrait(size=64)
    alike = [pipeline.init_state(make_portrait(n), StateOptions(seed=n)) for n in range(2)]
    alike.append(pipeline.init_state(other))
    apart = [
        pipeline.init_state(portrait, StateOptions(steps=3)),
        pipeline.init_state(portrait, StateOptions(lookahead_frames=0)),
    ]
    keys = [pipeline.batch_key(state) for state in alike + apart]
    assert keys[0] == keys[1] == keys[2] and len(set(keys)) == 3
    pipeline.change_portrait(alike[0], other)
    assert pipeline.batch_key(alike[0]) == keys[0]
