"""What the pipeline computes at each quality level: less, for frames of the same size."""

import numpy as np
import pytest
import torch
from support.small_model import make_model, make_portrait, make_speech

from letstalk_rt.errors import ConfigError
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.inference.quality import FULL_QUALITY, Quality, plan_window
from letstalk_rt.models.autoencoder.mouth_painter import MouthPainter, MouthPainterConfig
from letstalk_rt.models.avatar_model import with_part
from letstalk_rt.models.parts import MOUTH_PAINTER

HOPS = make_speech(6 * 0.16, 0).reshape(6, 1, 2560)


@pytest.fixture(scope="module")
def pipeline():
    torch.manual_seed(0)
    painter = MouthPainter(MouthPainterConfig(widths=(8, 8, 8), bank=2))
    return AvatarPipeline(with_part(make_model(), MOUTH_PAINTER, painter))


def play(pipeline, quality, hops=HOPS, size=320):
    """Return the frames of a session of this quality, `(N, H, W, 3)`."""
    state = pipeline.init_state(make_portrait(size=size))
    pipeline.set_quality(state, quality)
    return np.concatenate([pipeline.step(hop, [state], lambda part: None)[0] for hop in hops])


def test_levels_go_from_full_quality_down_and_each_costs_less(pipeline):
    levels = pipeline.quality_levels
    assert levels[0] == FULL_QUALITY and len(levels) == 6
    costs = [level.cost for level in levels]
    assert costs == sorted(costs, reverse=True) and len(set(costs)) == 6
    assert [level.fps for level in levels] == [25, 25, 25, 20, 15, 12]


def test_frames_keep_their_size_at_every_level(pipeline):
    full = play(pipeline, FULL_QUALITY)
    for quality in pipeline.quality_levels[1:]:
        frames = play(pipeline, quality)
        assert frames.shape == full.shape and frames.dtype == np.uint8
        assert not np.array_equal(frames, full)


def test_decoded_frames_are_those_of_full_quality_and_others_are_like_them(pipeline):
    full, followed = play(pipeline, FULL_QUALITY), play(pipeline, Quality(decode_every=2))
    np.testing.assert_array_equal(followed[::2], full[::2])
    between, copied = (
        np.abs(frames.astype(int) - full[1::2]).mean() for frames in (followed[1::2], full[::2])
    )
    assert 0 < between < copied, "nearer to the frame itself than the frame before is"


def test_at_20_fps_one_frame_in_five_repeats_the_image_before(pipeline):
    full, slow = play(pipeline, FULL_QUALITY), play(pipeline, Quality(fps=20))
    repeats = [n for n in range(1, len(full)) if np.array_equal(slow[n], slow[n - 1])]
    assert repeats == [4, 9, 14, 19]
    kept = [n for n in range(len(full)) if n not in repeats]
    np.testing.assert_array_equal(slow[kept], full[kept])


def test_sessions_of_one_batch_have_levels_of_their_own(pipeline):
    levels = pipeline.quality_levels
    states = [pipeline.init_state(make_portrait(size=320)) for _ in levels]
    for state, quality in zip(states, levels, strict=True):
        pipeline.set_quality(state, quality)
    assert len({pipeline.batch_key(state) for state in states}) == 1
    batches = [pipeline.step(np.repeat(hop, len(levels), 0), states) for hop in HOPS]
    for index, quality in enumerate(levels):
        together = np.concatenate([batch[index] for batch in batches])
        alone = play(pipeline, quality)
        assert np.abs(together.astype(int) - alone).max() <= 2, quality


def test_full_quality_can_be_set_again(pipeline):
    state = pipeline.init_state(make_portrait(size=320))
    pipeline.set_quality(state, pipeline.quality_levels[-1])
    frames = [pipeline.step(HOPS[0], [state])[0]]
    pipeline.set_quality(state, FULL_QUALITY)
    frames += [pipeline.step(hop, [state])[0] for hop in HOPS[1:]]
    full = play(pipeline, FULL_QUALITY)
    np.testing.assert_array_equal(np.concatenate(frames)[4:], full[4:])


@pytest.mark.parametrize("steps", range(1, 6))
def test_a_portrait_of_another_size_begins_with_an_image_of_its_own(pipeline, steps):
    """Whatever the place in the pattern of repeated images, one window in five begins with one."""
    state = pipeline.init_state(make_portrait(size=320))
    pipeline.set_quality(state, Quality(fps=20))
    for hop in HOPS[:steps]:
        pipeline.step(hop, [state])
    pipeline.change_portrait(state, make_portrait(1, size=64))
    parts = []
    (window,) = pipeline.step(HOPS[5], [state], lambda windows: parts.extend(windows))
    assert window.shape == (4, 64, 80, 3)
    assert [part.shape[1:] for part in parts] == [(64, 80, 3)] * len(parts)
    assert not any(np.array_equal(window[n], window[n - 1]) for n in range(1, 4))


def test_qualities_that_cannot_be_are_refused(pipeline):
    state = pipeline.init_state(make_portrait(size=64))
    for quality in (Quality(fps=0), Quality(fps=30), Quality(decode_every=0)):
        with pytest.raises(ConfigError, match="from 1 to 25, decode_every at least 1"):
            pipeline.set_quality(state, quality)
    assert len(pipeline.step(HOPS[0], [state])[0]) == 4


def test_frames_that_follow_another_come_after_one_that_is_decoded():
    assert plan_window(FULL_QUALITY, 0, 4) == [0, 1, 2, 3]
    assert plan_window(Quality(decode_every=2), 0, 4) == [0, 0, 2, 2]
    assert plan_window(Quality(decode_every=2, fps=20), 4, 4) == [None, 1, 1, 3]
    assert plan_window(Quality(decode_every=9), 8, 4) == [0, 0, 0, 0]
