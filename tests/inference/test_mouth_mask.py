"""What dubbing replaces of a crop, and which part of it has to be decoded for that."""

import numpy as np
import pytest

from letstalk_rt.inference.mouth_mask import lips_mask, mouth_mask, mouth_outline, part_around
from letstalk_rt.models.autoencoder.latents import WHOLE_FRAME
from letstalk_rt.models.loading import load_model


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    """Landmarks of the mean face in pixels of a crop."""
    model = load_model("tiny").face
    assert model is not None
    points = (model.autoencoder.mean_points + 1) * 128
    return points.float().numpy()


def test_a_part_holds_the_whole_mask_with_a_margin(face):
    for moved in (face, face + [30, -20], face - [25, 0]):
        outline = mouth_outline(moved, moved + [0, 4])
        part = part_around(outline)
        assert part != WHOLE_FRAME
        whole, mask = mouth_mask(outline, WHOLE_FRAME), mouth_mask(outline, part)
        np.testing.assert_array_equal(mask, whole[part.pixels])
        assert np.count_nonzero(mask) == np.count_nonzero(whole) > 1000
        lips = lips_mask(WHOLE_FRAME, moved)
        np.testing.assert_array_equal(lips_mask(part, moved), lips[part.pixels])
        assert lips_mask(part, moved).sum() == lips.sum(dtype=int) > 100


def test_parts_have_the_same_size_everywhere_and_a_large_face_takes_the_whole_crop(face):
    sizes = {
        tuple(side.stop - side.start for side in (part.rows, part.columns))
        for part in (part_around(mouth_outline(face + [x, 0])) for x in range(-30, 30, 5))
    }
    assert len(sizes) == 1
    assert part_around(mouth_outline((face - 128) * 1.6 + 128)) == WHOLE_FRAME
