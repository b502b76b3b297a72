"""Measures of motion: opening range, closures, head and speech, diversity."""

import math

import numpy as np
import pytest
from support.data_folder import face_points

from letstalk_rt.training.evaluation.faces import FaceTrack
from letstalk_rt.training.evaluation.motion import (
    closures,
    count_closures,
    diversity,
    head_speech_correlation,
    value_range,
)


def track(points: np.ndarray) -> FaceTrack:
    return FaceTrack(points.astype(np.float32), np.ones(len(points), bool))


class TestMotion:
    def test_the_range_leaves_rare_openings_out(self):
        opening = np.concatenate([np.linspace(0, 0.2, 101), [0.9]])
        assert value_range(opening) == pytest.approx(0.16, abs=0.01)

    def test_closures_lie_between_openings_and_last_two_frames(self):
        opening = np.full(30, 0.2)
        opening[:3], opening[8:10], opening[15], opening[20:25] = 0, 0.01, 0, 0.02
        assert closures(opening) == [(8, 10), (20, 25)]

    @pytest.mark.parametrize("late, met", [(0, 2), (2, 2), (3, 0)])
    def test_a_closure_is_met_within_two_frames(self, late, met):
        true = np.full(40, 0.2)
        true[10:12], true[20:22] = 0, 0
        made = np.full(40, 0.2)
        made[10 - late], made[21 + late] = 0.04, 0.04
        assert count_closures(made, true) == (met, 2)

    def test_lips_that_stay_open_meet_no_closure(self):
        true = np.full(40, 0.2)
        true[10:12] = 0
        assert count_closures(np.full(40, 0.06), true) == (0, 1)

    def test_a_head_that_follows_the_voice_correlates_with_it(self):
        rng = np.random.default_rng(0)
        loud = np.repeat(rng.uniform(0, 1, 20) > 0.5, 25)
        pcm = np.repeat(loud, 640) * 0.2 * rng.normal(size=500 * 640)
        points = np.repeat(face_points(0.0), 500, 0)
        moved = points + np.cumsum(loud * rng.normal(size=500))[:, None, None]
        assert head_speech_correlation(track(moved), pcm) > 0.5
        other = points + np.cumsum(rng.normal(size=500))[:, None, None]
        assert abs(head_speech_correlation(track(other), pcm)) < 0.5
        assert math.isnan(head_speech_correlation(track(points[:20]), pcm))

    def test_seeds_that_differ_are_apart(self):
        points = np.repeat(face_points(0.0), 10, 0)
        assert diversity([track(points)] * 2) == (0, 0)
        head, opening = diversity([track(points), track(points + [5, 0])])
        assert head > 0 and opening == pytest.approx(0)
