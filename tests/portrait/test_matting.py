"""The matte keeps the person and drops the background, whatever the portrait's framing."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from letstalk_rt.portrait.matting import person_matte
from letstalk_rt.types import Portrait

SKIN, HAIR, CLOTH = (224, 172, 140), (50, 30, 22), (60, 50, 120)


def drawn(size: tuple[int, int], box: tuple[float, float, float], wall: float = 140.0):
    """Give a portrait of a drawn head and shoulders in that box, and where the person is."""
    width, height = size
    left, top, side = box
    noise = np.random.default_rng(0).normal(wall, 6, (height, width, 3)).clip(0, 255)
    image, truth = Image.fromarray(noise.astype(np.uint8)), Image.new("L", size, 0)

    def put(shape: tuple[float, float, float, float], colour: tuple[int, int, int]) -> None:
        x0, y0, x1, y1 = shape
        place = (left + x0 * side, top + y0 * side, left + x1 * side, top + y1 * side)
        ImageDraw.Draw(image).ellipse(place, fill=colour)
        ImageDraw.Draw(truth).ellipse(place, fill=255)

    put((-0.25, 0.9, 1.25, 2.2), CLOTH)
    put((0.22, 0.08, 0.78, 0.7), HAIR)
    put((0.28, 0.2, 0.72, 0.9), SKIN)
    canvas = np.asarray(image).copy()
    return Portrait(canvas, canvas[:256, :256], box), np.asarray(truth) > 0


@pytest.mark.parametrize(
    "size, box",
    [((256, 256), (40, 20, 176)), ((320, 240), (90, 10, 150)), ((240, 320), (-10, -20, 260))],
    ids=["square", "wide", "cut off at the sides"],
)
def test_the_person_is_white_and_the_wall_is_black(size, box):
    portrait, truth = drawn(size, box)
    matte = person_matte(portrait)
    assert matte.shape == truth.shape and matte.dtype == np.uint8
    both = ((matte > 127) & truth).sum() / ((matte > 127) | truth).sum()
    assert both > 0.93, both


def test_a_portrait_gives_the_same_matte_every_time():
    portrait, _ = drawn((256, 256), (40, 20, 176))
    assert np.array_equal(person_matte(portrait), person_matte(portrait))


def test_the_canvas_is_not_touched():
    portrait, _ = drawn((256, 256), (40, 20, 176))
    before = portrait.canvas.copy()
    person_matte(portrait)
    assert np.array_equal(portrait.canvas, before)


def test_a_face_that_fills_the_picture_is_all_person():
    portrait, _ = drawn((256, 256), (-600, -600, 1500))
    assert (person_matte(portrait) > 250).mean() > 0.99
