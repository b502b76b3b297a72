"""Answers to a watched face: half as large, and 0.3 to 0.6 s later."""

import numpy as np
import pytest

from letstalk_rt.performance.mirroring import MAX_SMILE, Mirror, Seen
from letstalk_rt.types import FPS


def watch(seconds, smile=lambda s: 0.0, pitch=lambda s: 0.0):
    """Return the smile of each frame, and the frames in which nods begin, with their amounts."""
    mirror, smiles, nods = Mirror(), [], []
    for number in range(int(seconds * FPS)):
        now_s = number / FPS
        mirror.see(Seen(now_s, smile(now_s), pitch(now_s)))
        added, gesture = mirror.frame(now_s)
        smiles.append(added)
        if gesture is not None:
            assert gesture.name == "nod"
            nods.append((now_s, gesture.amount))
    return np.array(smiles), nods


def nod_at(begin_s, depth=0.16, takes_s=0.5):
    def pitch(s):
        share = (s - begin_s) / takes_s
        return depth * np.sin(np.pi * share) if 0 <= share <= 1 else 0.0

    return pitch


def test_a_smile_is_answered_by_half_of_it_and_later():
    smiles, nods = watch(4, lambda s: 0.6 * (1.0 <= s < 2.5))
    assert not smiles[: int(1.3 * FPS)].any(), "not before 0.3 s"
    assert smiles[int(1.6 * FPS)] > 0.05, "but within 0.6 s"
    assert smiles.max() == pytest.approx(0.3, abs=0.02)
    assert smiles[-1] < 0.02 and not nods
    assert np.abs(np.diff(smiles)).max() < 0.1


def test_the_largest_smile_is_bounded():
    assert watch(3, lambda s: 1.0)[0].max() <= MAX_SMILE


def test_a_nod_is_answered_once_and_by_half_of_it():
    _, nods = watch(4, pitch=nod_at(1.0))
    ((begin_s, amount),) = nods
    lowest_s = 1.25
    assert 0.3 <= begin_s - lowest_s <= 0.6
    assert amount == pytest.approx(0.5 * 0.16 / 0.13, abs=0.15)


@pytest.mark.parametrize(
    "pitch",
    [lambda s: 0.2 * (s > 1), lambda s: 0.02 * np.sin(9 * s), nod_at(1.0, takes_s=4.0)],
    ids=["looks down", "sways", "bows slowly"],
)
def test_what_is_no_nod_is_not_answered(pitch):
    assert not watch(4, pitch=pitch)[1]


def test_two_nods_in_a_row_are_one_answer():
    first, second = nod_at(1.0, takes_s=0.4), nod_at(1.4, takes_s=0.4)
    assert len(watch(4, pitch=lambda s: first(s) + second(s))[1]) == 1


def test_a_face_that_is_lost_is_answered_no_longer():
    mirror = Mirror()
    for number in range(50):
        mirror.see(Seen(number / FPS, 0.6, 0.0))
        last, _ = mirror.frame(number / FPS)
    for number in range(50, 125):
        faded, _ = mirror.frame(number / FPS)
    assert last > 0.25 and faded == 0
