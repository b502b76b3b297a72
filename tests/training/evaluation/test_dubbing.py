"""The figures of dubbing tell a hidden seam from one that is seen."""

import numpy as np
import pytest
from support.films import syllables

from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.training.evaluation.dubbing import Dubbed, heard_gaps, quality, seams

SIDE = 64


def film(count: int = 6) -> np.ndarray:
    """Make frames of a soft pattern that moves by a pixel."""
    y, x = np.mgrid[:SIDE, : SIDE + count]
    wave = 128 + 50 * np.sin(x / 5) + 30 * np.cos(y / 7)
    frames = [wave[:, i : i + SIDE] for i in range(count)]
    return np.repeat(np.stack(frames)[..., None], 3, -1).astype(np.uint8)


def masks(count: int = 6) -> np.ndarray:
    """Make round masks with a soft edge."""
    y, x = np.mgrid[:SIDE, :SIDE]
    depth = 20 - np.hypot(x - 32, y - 32)
    return np.repeat(np.clip(depth / 8, 0, 1)[None], count, 0).astype(np.float32)


def landmarks() -> np.ndarray:
    """Return landmarks in the middle half of each frame."""
    spread = np.random.default_rng(0).uniform(SIDE / 4, 3 * SIDE / 4, (478, 2))
    return np.repeat(spread[None], 6, 0).astype(np.float32)


def test_a_film_that_did_not_change_has_neither_seam_nor_loss():
    found = seams(Dubbed(film(), film(), masks(), 0))
    assert found == {"dub_border": 1.0, "dub_colour_step": 0.0, "dub_flicker": 1.0}
    kept = quality(Dubbed(film(), film(), masks(), 3), landmarks())
    assert kept["dub_psnr_mouth"] > 100 and kept["dub_ssim_mouth"] == pytest.approx(1)
    assert kept["dub_outside_changed"] == 0 and kept["dub_passed"] == 0.5


def test_edges_colours_and_flicker_at_the_seam_are_seen():
    mask = masks()
    edge, pale, flickering = film(), film(), film()
    edge[(mask > 0.3) & (mask < 0.6)] += 60
    pale[mask > 0] += 10
    flickering[::2][mask[::2] > 0] += 20
    assert seams(Dubbed(film(), edge, mask, 0))["dub_border"] > 1.5
    assert seams(Dubbed(film(), pale, mask, 0))["dub_colour_step"] > 5
    assert seams(Dubbed(film(), flickering, mask, 0))["dub_flicker"] > 1.5


def test_a_change_outside_the_mask_is_counted():
    after = film()
    after[2, 0, 0] += 1
    after[3, 32, 32] += 1
    assert quality(Dubbed(film(), after, masks(), 0), landmarks())["dub_outside_changed"] == 1


def test_gaps_that_are_heard_move_with_the_sound_and_rest_in_silence():
    pipeline = AvatarPipeline.load(dtype="float32")
    spoken = heard_gaps(pipeline, syllables(1.2), 25)
    silent = heard_gaps(pipeline, np.zeros(1600, np.float32), 25)
    assert spoken.shape == silent.shape == (25,)
    assert np.ptp(spoken) > 5 * np.ptp(silent)
