"""Training of gestures: what is measured in clips, a falling loss, calibration."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.data_folder import write_data_folder
from support.small_model import GESTURES, make_gesture_model

from letstalk_rt.models.audio_encoder.prosody import NUM_PROSODY_VALUES, ProsodyReader
from letstalk_rt.models.face.gestures import HEAD, NUM_GESTURES, Gestures
from letstalk_rt.models.face.spline import SPAN
from letstalk_rt.training.data.dataset import load_clips
from letstalk_rt.training.loop import LoopConfig
from letstalk_rt.training.stages.gesture_tracks import (
    GestureTrack,
    gesture_items,
    gesture_track,
    synchronous_pcm,
    usual_sizes,
)
from letstalk_rt.training.stages.gestures import (
    calibrate_gestures,
    fit_blinks,
    fit_brow_motion,
    free_run,
    initial_gestures,
    pose_matrix,
    train_gestures,
)
from letstalk_rt.types import SAMPLES_PER_FRAME

FRAMES = 200


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    root = write_data_folder(tmp_path_factory.mktemp("data"))
    return load_clips(root, tmp_path_factory.mktemp("cache"), "train")


def made_track(seed, *, blinks=()):
    """A track whose head moves when there is sound, in every second second."""
    rng = np.random.default_rng(seed)
    loud = np.arange(FRAMES) // 25 % 2
    steps = rng.normal(size=(FRAMES, NUM_GESTURES)) * (0.02 + 0.2 * loud[:, None])
    course = torch.from_numpy(np.cumsum(steps - steps.mean(0), 0)).float()
    course = course - course.mean(0)
    prosody = torch.full((FRAMES + 2, NUM_PROSODY_VALUES), -1.0)
    prosody[2:] += 1.5 * torch.from_numpy(loud)[:, None]
    pcm = rng.normal(size=(FRAMES, SAMPLES_PER_FRAME)) * (0.001 + 0.2 * loud[:, None])
    return GestureTrack(
        f"made-{seed}", course, -course, prosody, list(blinks), 0.1 * course[:, HEAD].numpy(),
        pcm.astype(np.float32).ravel(), is_real=True, is_grid=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def tracks():
    return [made_track(seed) for seed in range(4)]


class TestTracks:
    def test_a_head_that_goes_sideways_is_found(self, clips):
        head = make_gesture_model().head
        head.movements.normal_(std=0.01)
        head.movements[0] = torch.tensor([0.1, 0.0])
        moved = clips[0].landmarks.copy()
        course = np.sin(np.arange(len(moved)))
        moved[..., 0] += 5 * course[:, None]
        before, after = (
            gesture_track(clip, head, ProsodyReader())
            for clip in (clips[0], replace(clips[0], landmarks=moved))
        )
        found = (after.course - before.course)[:, 0].numpy()
        assert np.corrcoef(found, course)[0, 1] > 0.99
        mirrored = (after.mirrored - before.mirrored)[:, 0].numpy()
        assert np.corrcoef(mirrored, course)[0, 1] < -0.9

    @pytest.mark.parametrize("late", [-3, 0, 2, 50])
    def test_audio_is_moved_by_the_offset_of_the_lips(self, clips, late):
        clip = clips[0]
        moved = synchronous_pcm(replace(clip, lips_late=late))
        shift = late * SAMPLES_PER_FRAME if abs(late) < 50 else 0
        assert np.array_equal(
            moved[max(shift, 0) : len(moved) + min(shift, 0)],
            clip.pcm[max(-shift, 0) : len(moved) + min(-shift, 0)],
        )

    def test_items_hold_the_prosody_of_their_frames(self, tracks):
        items = gesture_items(tracks[0], usual_sizes(tracks), 2)
        assert len(items) == 2 * SPAN
        for first, item in enumerate(items[:SPAN]):
            windows = (FRAMES - first) // SPAN
            assert item.prosody.shape == (windows, SPAN, NUM_PROSODY_VALUES)
            assert torch.equal(item.prosody[0], tracks[0].prosody[2 + first : 2 + first + SPAN])
            assert len(item.coefficients) == windows + 3
        assert items[0].coefficients[3:-3].std() == pytest.approx(1.0, abs=0.4)


class TestTraining:
    def test_a_few_steps_lower_the_loss_and_keep_the_best(self, tracks, tmp_path):
        config = LoopConfig(
            steps=40, learning_rate=1e-2, warm_up=5, ema=0.9, report_every=1, evaluate_every=20
        )
        model = train_gestures(
            Gestures(GESTURES), tracks, tracks, usual_sizes(tracks), tmp_path, config, batch_size=4
        )
        lines = [x for x in (tmp_path / "log.jsonl").read_text().splitlines() if '"nll"' in x]
        losses = [float(line.split('"nll": ')[1].split(",")[0].rstrip("}")) for line in lines]
        assert np.mean(losses[-5:]) < np.mean(losses[:5])
        assert (tmp_path / "best.pt").exists() and not model.training

    def test_calibration_brings_the_head_to_the_range_of_the_clips(self, tracks):
        torch.manual_seed(0)
        model = Gestures(GESTURES).eval().requires_grad_(False)
        figures = calibrate_gestures(model, tracks, tracks, usual_sizes(tracks))
        pose = pose_matrix(tracks)
        ranges = []
        for track, course in zip(
            tracks, free_run(model, [t.prosody[2:] for t in tracks], 0), strict=True
        ):
            low, high = np.percentile((course[:, HEAD] @ pose).numpy(), (5, 95), axis=0)
            true = np.percentile(track.pose, 95, axis=0) - np.percentile(track.pose, 5, axis=0)
            ranges.append((high - low).mean() / true.mean())
        assert 0.5 < np.median(ranges) < 2
        assert model.speech_gain > 0 and figures["head_speech_r"] > 0.1

    def test_blinks_follow_the_pauses_of_clips_that_blink_there(self):
        silent = [frame for frame in range(10, FRAMES) if frame // 25 % 2 == 0][::20]
        weights = fit_blinks([made_track(i, blinks=silent) for i in range(6)], Gestures(GESTURES))
        assert weights[:2].sum() < -0.3

    def test_the_usual_voice_is_that_of_the_clips(self, clips):
        model = initial_gestures(clips, GESTURES, seed=0)
        assert model.prosody.usual.std() > 0 and torch.isfinite(model.prosody.usual).all()

    def test_brows_are_looked_up_in_the_latents(self, clips):
        model = make_gesture_model()
        gestures, face = model.gestures, model.face
        with_sound = [clip for clip in clips if clip.has_audio]
        measured = [gesture_track(clip, face.head, gestures.prosody) for clip in with_sound]
        gestures.brow_motion.zero_()
        fit_brow_motion(gestures, face.autoencoder, measured, with_sound, stride=2)
        assert torch.isfinite(gestures.brow_motion).all() and gestures.brow_motion.any()
