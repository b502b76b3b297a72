"""What options change in the motion, and that eyes close: on the small model and on drawn eyes."""

import numpy as np
import pytest
import torch
from support.small_model import face_points, make_model, make_portrait, make_speech

from letstalk_rt.errors import ConfigError, InputError
from letstalk_rt.inference.motion_control import BlinkSchedule, MotionController
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.inference.protocol import StateOptions
from letstalk_rt.models.face.eyelids import close_eyes, lid_lines
from letstalk_rt.models.face.gestures import BLINK
from letstalk_rt.models.face.head_motion import MOVEMENTS
from letstalk_rt.models.geometry.landmarks import (
    EYES,
    IRISES,
    LIPS,
    NUM_LANDMARKS,
    landmark_indices,
)
from letstalk_rt.types import FPS, MotionOptions

STILL = {"blinks_per_min": 0.0}


@pytest.fixture(scope="module")
def pipeline():
    return AvatarPipeline(make_model())


@pytest.fixture(scope="module")
def features(pipeline):
    """A portrait's, in a model that reads the movements of these tests as a trained one does."""
    points = face_points()
    axes = torch.eye(2)
    affine = [(points[:, i, None] * axes[j]) for i in range(2) for j in range(2)]
    affine += [axes[j].expand(NUM_LANDMARKS, 2) for j in range(2)]
    known = torch.stack([*affine, smile(points), glance()]).flatten(1)
    rest = torch.randn(256 - len(known), 2 * NUM_LANDMARKS)
    read = torch.linalg.qr(torch.cat([known, rest]).T).Q
    pipeline.model.autoencoder.read_points.weight.copy_(read)
    features = pipeline.init_state(make_portrait()).features
    features.points = points[None]
    return features


def smile(points):
    change = torch.zeros(NUM_LANDMARKS, 2)
    change[LIPS, 1] = 0.05 * points[LIPS, 0].abs()
    return change


def glance():
    change = torch.zeros(NUM_LANDMARKS, 2)
    change[landmark_indices(IRISES), 0] = 0.04
    return change


def moved(pipeline, features, options, displacement):
    """Landmark displacements, `(L, 2)`, as motion control leaves them."""
    read = pipeline.model.autoencoder.landmark_matrix
    latent = torch.linalg.pinv(read) @ displacement.flatten()
    motion = latent.view(1, 1, 24, 4, 4) / pipeline.model.motion_scale
    motion_control = MotionController(MotionOptions(**STILL | options), pipeline.model, features, 0)
    after = motion_control.apply(motion) * pipeline.model.motion_scale
    before = (read @ latent).view(NUM_LANDMARKS, 2)
    return before, (read @ after.flatten()).view(NUM_LANDMARKS, 2)


def size(displacement):
    return displacement.norm(dim=-1).mean().item()


def test_the_defaults_change_nothing(pipeline, features):
    motion_control = MotionController(MotionOptions(), pipeline.model, features, 0)
    motion = torch.randn(1, 4, 24, 4, 4)
    assert torch.equal(motion_control.apply(motion), motion)


@pytest.fixture
def fitted_head(pipeline):
    """The model's head goes sideways for the time of a test."""
    head = pipeline.model.head
    unfitted = head.movements, head.course
    head.movements = torch.zeros(MOVEMENTS, NUM_LANDMARKS, 2)
    head.movements[0, :, 0] = 0.1
    head.course = torch.tensor([[1.5, -0.56, 0.2]]).repeat(MOVEMENTS, 1)
    yield
    head.movements, head.course = unfitted


@pytest.mark.usefixtures("fitted_head")
def test_a_fitted_head_sways_unless_it_is_told_not_to(pipeline, features):
    motion = torch.zeros(1, 8, 24, 4, 4)

    def moved(**options):
        motion_control = MotionController(MotionOptions(**options), pipeline.model, features, 0)
        shown = pipeline.model.to_latents(motion_control.apply(motion), features.latent)
        points = pipeline.model.autoencoder.decode_landmarks(shown)
        return points - pipeline.model.autoencoder.decode_landmarks(features.latent)

    sway = moved()[0]
    assert sway[-1, :, 0].abs().mean() > 0.01
    assert torch.allclose(sway[..., 0], sway[:, :1, 0].expand(8, NUM_LANDMARKS), atol=1e-3)
    assert sway[..., 1].abs().max() < 1e-3
    assert not moved(head_motion=False).abs().max() > 1e-5


def test_without_head_motion_hair_and_shoulders_rest(pipeline, features):
    motion = torch.randn(1, 4, 24, 4, 4)
    around = motion.clone()
    around[:, :, :16] = 0

    def directed(motion, **options):
        motion_control = MotionController(
            MotionOptions(**STILL | options), pipeline.model, features, 0
        )
        return motion_control.apply(motion)

    assert directed(around, head_motion=False).abs().max() < 1e-5
    smaller = directed(around, head_motion=True, expressiveness=0.5)
    torch.testing.assert_close(smaller, around, atol=1e-4, rtol=1e-4)
    assert directed(motion, head_motion=False)[:, :, :16].abs().max() > 0.1


def test_without_head_motion_a_shift_and_a_turn_are_gone(pipeline, features):
    points = features.points[0]
    turn = 0.1 * torch.stack([-points[:, 1], points[:, 0]], 1) + torch.tensor([0.05, -0.03])
    before, after = moved(pipeline, features, {"head_motion": False}, turn)
    assert size(after) < 0.15 * size(before)


def test_expressiveness_scales_lips_and_leaves_the_head(pipeline, features):
    points = features.points[0]
    for factor in (0.0, 0.5, 1.5):
        before, after = moved(pipeline, features, {"expressiveness": factor}, smile(points))
        assert size(after[LIPS]) == pytest.approx(factor * size(before[LIPS]), abs=0.004)
    shift = torch.zeros(NUM_LANDMARKS, 2) + torch.tensor([0.1, 0.0])
    before, after = moved(pipeline, features, {"expressiveness": 0.0}, shift)
    assert size(after - before) < 0.15 * size(before)


def test_gaze_at_camera_holds_the_iris_in_its_eye(pipeline, features):
    irises = landmark_indices(IRISES)
    before, after = moved(pipeline, features, {"gaze_at_camera": True}, glance())
    rest = [point for point in range(NUM_LANDMARKS) if point not in EYES + irises]
    assert size(after[irises]) < 0.5 * size(before[irises])
    assert size(after[rest] - before[rest]) < 0.01


def test_memory_keeps_the_motion_as_the_model_made_it(pipeline):
    speech = make_speech(0.32)
    memories = []
    for options in (MotionOptions(), MotionOptions(0.2, False, 30, True)):
        state = pipeline.init_state(make_portrait(), StateOptions(motion=options))
        for hop in speech.reshape(2, 1, -1):
            pipeline.step(hop, [state])
        memories.append(state.memory.latents.clone())
    torch.testing.assert_close(*memories)


@pytest.mark.parametrize(
    "options",
    [{"expressiveness": -0.1}, {"expressiveness": 2.1}, {"blinks_per_min": float("nan")}],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match="must be from 0"):
        MotionOptions(**options)


# Blinks


@pytest.mark.parametrize("per_min", [5, 30])
def test_blinks_come_as_often_as_wanted_and_irregularly(per_min):
    eye_closures = np.array(BlinkSchedule(per_min, seed=1).eye_closures(20 * 60 * FPS))
    (shut,) = np.nonzero(eye_closures == 1)
    assert len(shut) / 20 == pytest.approx(per_min, rel=0.2)
    pauses = np.diff(shut)
    assert pauses.std() > 0.3 * pauses.mean()
    assert pauses.min() >= len(BLINK)


def test_no_blinks_where_none_are_wanted():
    assert not any(BlinkSchedule(0, seed=1).eye_closures(5000))


def test_blinks_are_the_seeds_and_begin_anew_after_a_reset():
    blinks = BlinkSchedule(15, seed=3)
    first = blinks.eye_closures(1000)
    blinks.reset()
    assert blinks.eye_closures(1000) == first == BlinkSchedule(15, seed=3).eye_closures(1000)
    assert BlinkSchedule(15, seed=4).eye_closures(1000) != first


def test_a_blink_that_nobody_saw_is_blinked_again():
    blinks, whole = BlinkSchedule(60, seed=0), BlinkSchedule(60, seed=0).eye_closures(500)
    seen = []
    for _ in range(100):
        seen += blinks.eye_closures(5)[:4]
        blinks.rewind(1)
    assert seen == whole[:400]


# Lids


def eyes_picture(points):
    """A grey face with white eyes."""
    upper, lower = (torch.from_numpy(x) for x in lid_lines((points.numpy() + 1) * 127.5, 256))
    y = torch.arange(256.0)[:, None]
    white = (y >= upper) & (y <= lower) & (upper < lower)
    return white.float().expand(3, -1, -1).clone()


def test_a_closed_eye_shows_skin_and_the_rest_stays():
    points = face_points()
    picture = eyes_picture(points)
    closed = picture.clone()[None]
    close_eyes(closed, points[None], [1.0])
    at = ((points[landmark_indices(IRISES)] + 1) * 127.5).round().long()
    for x, y in at.tolist():
        assert picture[:, y, x].min() == 1
        assert closed[0, :, y, x].max() < 0.2
    changed = (closed[0] != picture).any(0).nonzero()
    eyes = (points[EYES] + 1) * 127.5
    assert changed[:, 1].min() >= eyes[:, 0].min() - 1
    assert changed[:, 1].max() <= eyes[:, 0].max() + 1
    assert changed[:, 0].max() <= eyes[:, 1].max() + 4


def test_lids_close_further_and_further():
    points = face_points()
    white = []
    for closure in (0.0, 0.35, 0.65, 1.0):
        picture = eyes_picture(points)[None]
        close_eyes(picture, points[None], [closure])
        white.append((picture > 0.5).sum().item())
    assert white == sorted(white, reverse=True)
    assert white[3] < 0.25 * white[0]


def test_lids_look_alike_at_any_size():
    points = face_points()
    small = eyes_picture(points)[None]
    large = torch.nn.functional.interpolate(small, scale_factor=3.0, mode="bilinear")
    close_eyes(small, points[None], [0.6])
    close_eyes(large, points[None], [0.6])
    difference = torch.nn.functional.avg_pool2d(large, 3) - small
    eyes = slice(100, 130), slice(76, 180)
    assert difference.abs().max() < 0.35 and difference[..., *eyes].abs().mean() < 0.02


def test_eyes_outside_the_picture_or_shut_are_left_alone():
    points = face_points()
    for strange in (points + 5, points - 5, points * 0):
        picture = torch.zeros(1, 3, 256, 256)
        close_eyes(picture, strange[None], [1.0])
        assert torch.isfinite(picture).all()


# Interrupts


def test_after_an_interrupt_the_motion_goes_on_from_the_last_frame_that_was_seen(pipeline):
    options = MotionOptions(**STILL)
    state = pipeline.init_state(make_portrait(), StateOptions(motion=options))
    for hop in make_speech(0.48).reshape(3, 1, -1):
        pipeline.step(hop, [state])
    seen = state.memory.latents[:, -1 - 3].clone()
    pipeline.interrupt(state, unseen=3)
    torch.testing.assert_close(state.memory.latents[:, -1], seen)
    new = torch.ones(1, 4, 24, 4, 4)
    eased, after = state.motion_control.apply(new), state.motion_control.apply(new)
    torch.testing.assert_close(after - eased, torch.cat([(1 - seen) / 2, 0 * new[0, 1:]])[None])


def test_another_face_goes_on_in_the_same_motion(pipeline):
    state = pipeline.init_state(make_portrait(1))
    hops = make_speech(0.48).reshape(3, 1, -1)
    pipeline.step(hops[0], [state])
    memory = state.memory.latents.clone()
    pipeline.change_portrait(state, make_portrait(2, size=64))
    torch.testing.assert_close(state.memory.latents, memory)
    assert pipeline.step(hops[1], [state])[0].shape == (4, 64, 80, 3)


@pytest.mark.parametrize("lookahead", [0, 1])
def test_less_look_ahead_hears_the_same_sound_sooner(pipeline, lookahead):
    speech = make_speech(0.96).reshape(6, 1, -1)
    tokens = {}
    for frames in (lookahead, 2):
        state = pipeline.init_state(make_portrait(), StateOptions(lookahead_frames=frames))
        heard = [pipeline.audio_stage.encode(torch.from_numpy(hop), [state]) for hop in speech]
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
