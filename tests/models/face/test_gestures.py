"""Gestures: streaming, options of a session, and what a rewind leaves of a motion."""

import pytest
import torch

from letstalk_rt.models.audio_encoder.prosody import NUM_PROSODY_VALUES
from letstalk_rt.models.batch_state import gather, scatter, tensors
from letstalk_rt.models.face.gestures import (
    BLINK,
    LEAST_PAUSE,
    NUM_NOISE,
    GestureConfig,
    Gestures,
)
from letstalk_rt.models.face.spline import SPAN, continue_from, design_matrix, fit_spline
from letstalk_rt.types import FPS

LOUD, QUIET = 0.8, -1.4


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = Gestures(GestureConfig(audio_width=8, width=12))
    model.amplitude.fill_(1.0)
    with torch.no_grad():
        model.inertia[1:] = 0.0
        model.inertia[0] = 0.9
    return model.eval().requires_grad_(False)


def inputs(windows, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    prosody = torch.randn(batch, SPAN * windows, NUM_PROSODY_VALUES, generator=generator)
    return prosody, torch.randn(batch, windows, NUM_NOISE, generator=generator)


def run(model, prosody, noise, state, split):
    parts = [
        model(p, n, state)
        for p, n in zip(
            prosody.split([SPAN * n for n in split], 1), noise.split(split, 1), strict=True
        )
    ]
    return torch.cat([p.motion for p in parts], 1), torch.cat([p.eye_closures for p in parts], 1)


@pytest.mark.parametrize("split", [[1] * 6, [2, 1, 3]])
def test_pieces_equal_the_whole(model, split):
    prosody, noise = inputs(6, batch=2)
    whole = model(prosody, noise, model.init_state(2, 30))
    motion, closures = run(model, prosody, noise, model.init_state(2, 30), split)
    torch.testing.assert_close(motion, whole.motion)
    torch.testing.assert_close(closures, whole.eye_closures)


def test_the_future_does_not_change_the_past(model):
    prosody, noise = inputs(6)
    later = prosody.clone()
    later[:, 4 * SPAN :] = 2.0
    before = model(prosody, noise, model.init_state(1)).motion
    after = model(later, noise, model.init_state(1)).motion
    torch.testing.assert_close(after[:, : 4 * SPAN], before[:, : 4 * SPAN])
    assert not torch.equal(after, before)


def test_a_reset_state_equals_a_new_one(model):
    state = model.init_state(1, 20)
    model(*inputs(6), state)
    state.reset()
    assert all(map(torch.equal, tensors(state), tensors(model.init_state(1, 20))))


def test_sessions_do_not_mix_in_a_batch(model):
    given = [inputs(4, seed=seed) for seed in (1, 2)]
    alone = [model(*pair, model.init_state(1, 10 * i)) for i, pair in enumerate(given)]
    states = [model.init_state(1, 0), model.init_state(1, 10)]
    batch = gather(states)
    together = model(*(torch.cat(part) for part in zip(*given, strict=True)), batch)
    scatter(batch, states)
    for index, window in enumerate(alone):
        torch.testing.assert_close(together.motion[index], window.motion[0])
        torch.testing.assert_close(together.eye_closures[index], window.eye_closures[0])
    assert torch.equal(states[0].shown[0], batch.shown[0])


def test_addresses_do_not_change(model):
    state = model.init_state(1)
    before = [part.data_ptr() for part in tensors(state)]
    model(*inputs(3), state)
    state.rewind(3)
    state.reset()
    assert [part.data_ptr() for part in tensors(state)] == before


def test_motion_is_smooth_where_windows_meet(model):
    prosody, noise = inputs(200)
    motion = model(prosody, noise, model.init_state(1)).motion[0]
    jerk = motion.diff(dim=0).diff(dim=0).diff(dim=0).abs().mean(1)
    at_seams = torch.arange(len(jerk)) % SPAN == SPAN - 2
    speed = motion.diff(dim=0).abs().mean()
    assert jerk[at_seams].max() < 2 * speed
    assert motion.diff(dim=0).diff(dim=0).abs().mean() < speed


@pytest.mark.parametrize("frames", [1, 3, 6, 30])
def test_after_a_rewind_motion_goes_on_from_the_frame_before(model, frames):
    state = model.init_state(1)
    prosody, noise = inputs(20)
    shown = model(prosody, noise, state).motion[0]
    state.rewind(frames)
    last = shown[: len(shown) - frames]
    following = model(*inputs(1, seed=5), state).motion[0]
    step = last[-1] - last[-2]
    assert (following[0] - last[-1] - step).abs().max() < 3 * shown.diff(dim=0).diff(
        dim=0
    ).abs().max()
    assert (following[0] - last[-1]).norm() < 3 * shown.diff(dim=0).norm(dim=1).max()


def test_nothing_happens_if_nothing_is_rewound(model):
    state, untouched = model.init_state(1), model.init_state(1)
    for each in (state, untouched):
        model(*inputs(3), each)
    state.rewind(0)
    assert all(map(torch.equal, tensors(state), tensors(untouched)))


def test_loud_speech_moves_the_face_more(model):
    _, noise = inputs(300)
    model.speech_gain.fill_(0.8)

    def spread(level):
        prosody = torch.full((1, 300 * SPAN, NUM_PROSODY_VALUES), level)
        return model(prosody, noise, model.init_state(1)).motion.diff(dim=1).abs().mean()

    loud, quiet = spread(LOUD), spread(QUIET)
    model.speech_gain.fill_(0.0)
    assert loud > 2 * quiet > 0


def test_motion_stays_within_bounds(model):
    with torch.no_grad():
        model.log_scale.fill_(1.5)
    motion = model(*inputs(400), model.init_state(1)).motion
    with torch.no_grad():
        model.log_scale.fill_(-1.0)
    assert motion.abs().max() <= 4.0
    assert motion.abs().max() > 2.5


@pytest.mark.parametrize("per_min", [5, 15, 40])
def test_blinks_come_as_often_as_wanted(model, per_min):
    windows, sessions = 1500, 20
    prosody = torch.zeros(sessions, SPAN * windows, NUM_PROSODY_VALUES)
    noise = torch.randn(sessions, windows, NUM_NOISE, generator=torch.Generator().manual_seed(1))
    closures = model(prosody, noise, model.init_state(sessions, per_min)).eye_closures
    minutes = sessions * windows * SPAN / FPS / 60
    assert (closures == 1).sum() / minutes == pytest.approx(per_min, rel=0.1)
    for session in closures:
        (shut,) = torch.nonzero(session == 1, as_tuple=True)
        assert shut.diff().min() >= LEAST_PAUSE
        shape = session[shut[1] - 2 : shut[1] + 4].tolist()
        assert shape == pytest.approx(BLINK)


def test_blinks_come_where_the_data_has_them(model):
    model.blink_weights.copy_(torch.tensor([-1.0, 0.0, 0.0]))
    sessions, windows = 20, 400
    noise = torch.randn(sessions, windows, NUM_NOISE, generator=torch.Generator().manual_seed(1))

    def count(level):
        prosody = torch.full((sessions, SPAN * windows, NUM_PROSODY_VALUES), level)
        return (model(prosody, noise, model.init_state(sessions, 20)).eye_closures == 1).sum()

    quiet, loud = count(QUIET), count(LOUD)
    model.blink_weights.zero_()
    assert quiet > 2 * loud > 0


def test_no_blinks_where_none_are_wanted(model):
    assert not model(*inputs(500), model.init_state(1, 0.0)).eye_closures.any()


def test_an_unfitted_network_rests():
    model = Gestures(GestureConfig(audio_width=8, width=12)).eval()
    assert not model(*inputs(10), model.init_state(1)).motion.any()


# Splines


def test_a_spline_is_found_again():
    coefficients = torch.randn(23, 3, generator=torch.Generator().manual_seed(0))
    course = design_matrix(20) @ coefficients
    found = fit_spline(course, ridge=1e-7)
    torch.testing.assert_close(design_matrix(20) @ found, course, atol=1e-3, rtol=1e-3)


def test_a_parabola_is_continued():
    time = torch.arange(3 + SPAN, dtype=torch.float32)[None, :, None]
    course = 0.02 * time**2 - 0.1 * time + 1
    start = continue_from(course[:, :3])
    last = start[:, 2:] + (start[:, 2:] - start[:, 1:2])
    last = last + (start[:, 2:] - 2 * start[:, 1:2] + start[:, :1])
    following = design_matrix(1) @ torch.cat([start, last], 1)
    torch.testing.assert_close(following, course[:, 3:], atol=1e-4, rtol=1e-4)
