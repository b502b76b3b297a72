"""Regressions from landmarks to what they tell."""

import numpy as np

from letstalk_rt.training.stages.face_reader import fit_reading


def test_a_linear_relation_is_found_whatever_each_face_is_like_at_rest():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(2, 5, 2))
    tracks = [rng.normal(size=(200, 5, 2)) for _ in range(3)]
    targets = [np.tensordot(t, true, [(1, 2), (1, 2)]) for t in tracks]
    moved = [track + 10 * k for k, track in enumerate(tracks)]
    found = fit_reading(moved, targets, [np.ones(200)] * 3)
    np.testing.assert_allclose(found, true, atol=0.02)
