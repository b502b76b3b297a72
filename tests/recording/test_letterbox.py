"""Images keep their aspect ratio in a sink of another size."""

import numpy as np
import pytest

from letstalk_rt.recording.letterbox import fit


@pytest.mark.parametrize("shape", [(100, 50), (400, 200)])
def test_the_aspect_ratio_is_kept_and_the_rest_is_black(shape: tuple[int, int]) -> None:
    shown = fit(np.full((*shape, 3), 255, np.uint8), (200, 200))
    assert shown.shape == (200, 200, 3)
    assert (shown[100] > 128).all(-1).sum() == 100
    assert not shown[:, :49].any() and not shown[:, 151:].any()


def test_an_image_that_fits_is_not_changed() -> None:
    image = np.arange(12 * 8 * 3, dtype=np.uint8).reshape(12, 8, 3)
    assert np.array_equal(fit(image, (8, 12)), image)
