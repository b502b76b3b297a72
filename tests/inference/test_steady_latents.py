"""Means of latents over neighbouring frames."""

import torch

from letstalk_rt.inference.steady_latents import (
    MOOD_FRAMES,
    STEADY_FRAMES,
    PlacedLatent,
    moods,
    steady_latent,
)


def faces(*places: object) -> list[PlacedLatent]:
    """Return faces at places, the latent of the n-th of which is n."""
    return [PlacedLatent(place, torch.full((1,), float(n))) for n, place in enumerate(places)]


def test_a_still_head_is_averaged_over_its_neighbours_only():
    row = faces(*"aaaaaaaa")
    latent = steady_latent(row[4], reversed(row[:4]), row[5:])
    assert float(latent) == 4
    assert float(steady_latent(row[0], [], row[1:])) == STEADY_FRAMES / 2


def test_other_crops_and_frames_without_a_face_end_the_mean():
    row = faces(*"aabba")
    assert float(steady_latent(row[2], reversed(row[:2]), row[3:])) == 2.5
    assert float(steady_latent(row[1], [None, row[0]], row[2:])) == 1


def test_the_mood_is_the_mean_of_all_faces_around():
    row = [*faces(*"abc"), None]
    assert moods(row) == [1, 1, 1, None]
    long = faces(*range(3 * MOOD_FRAMES))
    assert moods(long)[MOOD_FRAMES] == MOOD_FRAMES
    assert moods(long)[0] == MOOD_FRAMES / 2
