"""Beyond a picture its background goes on, not what its edge cuts off."""

import numpy as np
import pytest

from letstalk_rt.portrait.edge_fill import fill_edges


def picture(height: int = 100, width: int = 120) -> np.ndarray:
    """A grey wall with dark hair cut off at the upper edge of the real part."""
    rgb = np.full((height, width, 3), 200, np.uint8)
    rgb[:50, 50:70] = 20
    return rgb


def test_hair_that_is_cut_off_leaves_no_stripe() -> None:
    filled = fill_edges(picture(), (0, 30, 120, 100))
    assert np.abs(filled[:15].astype(int) - 200).max() <= 4
    assert filled[29, 60].mean() < 80  # near the edge it goes on


def test_what_is_real_stays() -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (90, 100, 3), dtype=np.uint8)
    filled = fill_edges(rgb, (10.4, 5, 93, 80.2))
    assert np.array_equal(filled[7:78, 13:91], rgb[7:78, 13:91])


def test_a_picture_that_is_all_real_is_given_back() -> None:
    rgb = picture()
    assert fill_edges(rgb, (-5.0, 0.0, 130.0, 100.0)) is rgb


@pytest.mark.parametrize("inside", [(40, 0, 120, 100), (0, 0, 80, 100), (0, 0, 120, 60)])
def test_each_side_is_filled_with_what_is_next_to_it(inside: tuple[int, int, int, int]) -> None:
    rgb = np.zeros((100, 120, 3), np.uint8)
    left, top, right, bottom = inside
    rgb[top:bottom, left:right] = 150
    assert np.abs(fill_edges(rgb, inside).astype(int) - 150).max() <= 1


def test_one_real_pixel_is_enough() -> None:
    rgb = np.zeros((20, 20, 3), np.uint8)
    rgb[10, 10] = 99
    assert (fill_edges(rgb, (10, 10, 11, 11)) == 99).all()
