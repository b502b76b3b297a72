"""What the benchmark of faces counts."""

import bench_faces
import numpy as np
from bench_faces import Head, Scene, judge

SCENE = Scene("pair", np.zeros((1, 1, 3), np.uint8), (Head(100, 100, 50), Head(300, 100, 80)))


def test_a_face_that_is_elsewhere_or_of_another_size_is_missed():
    row = judge(SCENE, [Head(302, 98, 82), Head(100, 100, 75)])
    assert (row["missed"], row["false"], row["largest"]) == (1, 1, True)
    assert judge(SCENE, [])["missed"] == 2 and not judge(SCENE, [])["largest"]


def test_the_smaller_first_is_not_the_largest_first():
    row = judge(SCENE, [Head(100, 100, 50), Head(300, 100, 80)])
    assert (row["missed"], row["false"], row["largest"]) == (0, 0, False)


def test_a_result_is_good_only_if_it_is_whole_and_every_kind_meets_the_bar():
    kinds = {"pair": {"all_found": 0.99, "largest_first": 0.98}}
    assert bench_faces.is_good({"kinds": kinds})
    assert not bench_faces.is_good({"kinds": kinds, "partial": "ended"})
    kinds["row"] = {"all_found": 0.97, "largest_first": 1.0}
    assert not bench_faces.is_good({"kinds": kinds})
