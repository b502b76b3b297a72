"""Sessions with gestures: what moves the head and closes the eyes, and how options change it."""

import numpy as np
import pytest
import torch
from support.small_model import face_points, make_gesture_model, make_portrait, make_speech

from letstalk_rt.inference.motion_control import MotionController
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.inference.protocol import StateOptions
from letstalk_rt.models.batch_state import tensors
from letstalk_rt.models.face.gestures import BROWS, GAZE, NUM_GESTURES
from letstalk_rt.models.face.head_motion import face_size, rigid_projection
from letstalk_rt.models.geometry.landmarks import IRISES, NUM_LANDMARKS, landmark_indices
from letstalk_rt.types import MotionOptions

HOPS = 5


@pytest.fixture(scope="module")
def pipeline():
    return AvatarPipeline(make_gesture_model())


def options(seed=0, **motion):
    return StateOptions(seed, motion=MotionOptions(**motion))


def gestures(pipeline, states, speech):
    """Gestures `(B, 4 hops, D)` and eye closures of sessions that hear speech `(B, n)`."""
    windows = [
        pipeline.audio_stage.gesture(torch.from_numpy(hop).clone(), states)
        for hop in np.split(speech, speech.shape[1] // pipeline.hop, 1)
    ]
    motion = torch.cat([w.motion for w in windows], 1)
    return motion, torch.cat([w.eye_closures for w in windows], 1)


def speech(*seeds):
    return np.stack([make_speech(HOPS * 0.16, seed) for seed in seeds])


class TestSessions:
    def test_seed_and_sound_decide_the_gestures(self, pipeline):
        def made(seed, sound):
            state = pipeline.init_state(make_portrait(), options(seed))
            return gestures(pipeline, [state], speech(sound))[0]

        assert torch.equal(made(0, 0), made(0, 0))
        assert not torch.equal(made(0, 0), made(1, 0))
        assert not torch.equal(made(0, 0), made(0, 1))

    def test_a_batch_is_as_good_as_alone(self, pipeline):
        def state(seed):
            motion = {"blinks_per_min": 60.0 - 30 * seed}
            return pipeline.init_state(make_portrait(), options(seed, **motion))

        together, closed = gestures(pipeline, [state(0), state(1)], speech(3, 4))
        for index in range(2):
            alone, shut = gestures(pipeline, [state(index)], speech(3 + index))
            torch.testing.assert_close(together[index], alone[0])
            torch.testing.assert_close(closed[index], shut[0])

    def test_reset_equals_new(self, pipeline):
        state = pipeline.init_state(make_portrait())
        first = pipeline.step(speech(0)[:, : pipeline.hop], [state])
        state.reset()
        assert np.array_equal(pipeline.step(speech(0)[:, : pipeline.hop], [state]), first)

    def test_an_interrupt_forgets_the_speech_and_goes_on_from_the_last_frame_shown(self, pipeline):
        state = pipeline.init_state(make_portrait())
        motion, _ = gestures(pipeline, [state], speech(0))
        pipeline.interrupt(state, unseen=3)
        sound = state.gestures
        for heard, silent in zip(tensors(sound.prosody), tensors(sound.silence), strict=True):
            assert torch.equal(heard, silent) and heard.data_ptr() != silent.data_ptr()
        silence = np.zeros((1, pipeline.hop), np.float32)
        following, _ = gestures(pipeline, [state], silence)
        largest = motion[0].diff(dim=0).norm(dim=1).max()
        assert (following[0, 0] - motion[0, -4]).norm() < 2 * largest

    def test_addresses_do_not_change(self, pipeline):
        state = pipeline.init_state(make_portrait())
        parts = [state.gestures.prosody, state.gestures.motion]
        before = [t.data_ptr() for part in parts for t in tensors(part)]
        gestures(pipeline, [state], speech(0))
        pipeline.interrupt(state, unseen=2)
        state.reset()
        assert [t.data_ptr() for part in parts for t in tensors(part)] == before

    def test_eyes_close_as_the_gestures_say(self, pipeline):
        """The same session with and without blinks differs in the frames of its blinks alone."""
        seed = next(s for s in range(50) if blinks_of(pipeline, s).any())
        shut = blinks_of(pipeline, seed)
        frames = []
        for per_min in (60.0, 0.0):
            state = pipeline.init_state(
                make_portrait(), options(seed, blinks_per_min=per_min, head_motion=False)
            )
            hops = np.split(speech(0), HOPS, 1)
            frames.append(np.concatenate([pipeline.step(hop, [state])[0] for hop in hops]))
        changed = (frames[0] != frames[1]).any((1, 2, 3))
        assert not changed[~shut].any()

    def test_a_smaller_look_ahead_is_possible(self, pipeline):
        state = pipeline.init_state(make_portrait(), StateOptions(lookahead_frames=0))
        motion, _ = gestures(pipeline, [state], speech(0))
        assert motion.shape == (1, 4 * HOPS, NUM_GESTURES)


def blinks_of(pipeline, seed):
    state = pipeline.init_state(make_portrait(), options(seed, blinks_per_min=60.0))
    return (gestures(pipeline, [state], speech(0))[1][0] > 0).numpy()


@pytest.fixture(scope="module")
def features(pipeline):
    """A portrait's, in a model whose latents hold every landmark that these tests read."""
    points = face_points()
    moved = torch.zeros(3, NUM_LANDMARKS, 2)
    moved[0, :, 0] = 1
    moved[1, landmark_indices(IRISES), 0] = 1
    moved[2, landmark_indices(IRISES), 1] = 1
    rest = torch.randn(253, 2 * NUM_LANDMARKS, generator=torch.Generator().manual_seed(0))
    read = torch.linalg.qr(torch.cat([moved.flatten(1), rest]).T).Q
    pipeline.model.autoencoder.read_points.weight.copy_(read)
    features = pipeline.init_state(make_portrait()).features
    features.points = points[None]
    return features


class TestControl:
    def shown(self, pipeline, features, row, motion=None, **motion_options):
        """Displacements of landmarks `(L, 2)`, and the latent, for one gesture or for motion."""
        control = MotionController(MotionOptions(**motion_options), pipeline.model, features, 0)
        given = torch.zeros(1, 1, NUM_GESTURES)
        given[..., row] = 1.0
        motion = torch.zeros(1, 1, 24, 4, 4) if motion is None else motion
        latent = (control.apply(motion, gestures=given) * pipeline.model.motion_scale).flatten()
        read = pipeline.model.autoencoder.landmark_matrix
        return (read @ latent).view(NUM_LANDMARKS, 2), latent

    def test_the_head_moves_unless_it_is_told_not_to(self, pipeline, features):
        moved, _ = self.shown(pipeline, features, 0)
        size = 0.1 * face_size(face_points())
        torch.testing.assert_close(moved[:, 0], size.expand(NUM_LANDMARKS), rtol=0.02, atol=1e-3)
        still, _ = self.shown(pipeline, features, 0, head_motion=False)
        assert not still.any()

    def test_expressiveness_scales_the_brows_and_leaves_the_head(self, pipeline, features):
        one, _, two = (
            self.shown(pipeline, features, BROWS, expressiveness=e)[1] for e in (1.0, 0.0, 2.0)
        )
        assert one.any()
        torch.testing.assert_close(two, 2 * one)
        assert not self.shown(pipeline, features, BROWS, expressiveness=0.0)[1].any()
        head = [self.shown(pipeline, features, 0, expressiveness=e)[1] for e in (0.0, 2.0)]
        torch.testing.assert_close(*head)

    def test_gaze_moves_the_irises_unless_it_stays_at_the_camera(self, pipeline, features):
        irises = landmark_indices(IRISES)
        others = [i for i in range(NUM_LANDMARKS) if i not in irises]
        moved, _ = self.shown(pipeline, features, GAZE.start)
        assert moved[irises, 0].mean() == pytest.approx(float(face_size(face_points())), rel=0.02)
        assert moved[others].abs().max() < 0.05 * moved[irises, 0].mean()
        held, _ = self.shown(pipeline, features, GAZE, gaze_at_camera=True)
        assert not held.any()

    def test_the_denoiser_does_not_move_the_head(self, pipeline, features):
        motion = torch.zeros(1, 1, 384)
        read = pipeline.model.autoencoder.landmark_matrix
        shift = torch.zeros(NUM_LANDMARKS, 2)
        shift[:, 0] = 0.2
        motion[0, 0] = torch.linalg.pinv(read) @ shift.flatten()
        motion = motion.view(1, 1, 24, 4, 4) / pipeline.model.motion_scale
        moved, _ = self.shown(pipeline, features, slice(0, 0), motion)
        rigid = rigid_projection(face_points()) @ moved.flatten()
        assert rigid.abs().max() < 0.15 * 0.2
