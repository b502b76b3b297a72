"""Lower faces of films that the denoiser generates, window by window."""

import pytest
import torch
from support.small_model import make_motion_model, stir

from letstalk_rt.inference.lower_face import LowerFaces, has_lower_faces
from letstalk_rt.inference.speech_motion import SpeechMotion
from letstalk_rt.models.autoencoder.latents import without_background_flow
from letstalk_rt.models.avatar_model import with_part
from letstalk_rt.models.landmark_condition import LandmarkBranch
from letstalk_rt.models.parts import LANDMARK_CONDITION

WINDOWS = 4


@pytest.fixture(scope="module")
def model():
    plain = make_motion_model()
    torch.manual_seed(2)
    branch = LandmarkBranch(plain.denoiser.config.width, plain.denoiser.config.side)
    stir(branch)
    return with_part(plain, LANDMARK_CONDITION, branch)


@pytest.fixture(scope="module")
def film(model):
    """A reference, frames of a film, and the tokens of a sound."""
    torch.manual_seed(3)
    shape = model.denoiser.config
    latents = 0.1 * torch.randn(1 + WINDOWS, shape.window, 24, 4, 4)
    tokens = torch.randn(WINDOWS, shape.window, shape.audio_tokens, shape.audio_width)
    latents = without_background_flow(latents)
    return latents[0, 0], latents[1:], tokens


@pytest.fixture(scope="module")
def motion(model, film):
    return SpeechMotion(model, film[0])


def shown(lower, film, motion, windows=range(WINDOWS)):
    return torch.stack([lower.generate(film[1][i], film[2][i], motion) for i in windows])


def test_only_a_model_that_is_told_the_rest_of_the_face_has_them(model):
    assert has_lower_faces(model) and not has_lower_faces(make_motion_model())


def test_the_seed_decides_and_a_reset_returns_to_the_beginning(model, film, motion):
    lower = LowerFaces(model)
    first = shown(lower, film, motion)
    lower.reset()
    assert torch.equal(shown(lower, film, motion), first)
    assert torch.equal(shown(LowerFaces(model), film, motion), first)
    assert not torch.equal(shown(LowerFaces(model, seed=1), film, motion), first)


def test_what_speech_does_not_move_stays_the_films_own(model, film, motion):
    lower = LowerFaces(model)
    change = shown(lower, film, motion) - film[1]
    assert change.abs().max() > 1e-3
    moved = torch.linalg.matrix_rank(change.flatten(0, 1).flatten(1), tol=1e-4)
    assert moved <= len(model.motion.expression.mouth.natural)
    again = motion.with_speech_of(film[1][0], film[1][0] + change[0])
    assert not torch.equal(again, film[1][0])


def test_sound_face_and_the_windows_before_all_count_and_the_future_does_not(model, film, motion):
    reference, latents, tokens = film
    whole = shown(LowerFaces(model), film, motion)
    for other in ((reference, latents, tokens.flip(0)), (reference, latents.flip(0), tokens)):
        lower = LowerFaces(model)
        found = shown(lower, other, motion)
        assert not torch.allclose(found[0] - other[1][0], whole[0] - latents[0], atol=1e-5)
    lower = LowerFaces(model)
    assert torch.equal(shown(lower, film, motion, [0, 1]), whole[:2])
    lower.forget()
    assert not torch.equal(shown(lower, film, motion, [2])[0], whole[2])


def test_a_window_that_was_not_shown_is_forgotten(model, film, motion):
    count = model.denoiser.config.window
    lower, other = LowerFaces(model), LowerFaces(model)
    shown(lower, film, motion, [0, 3])
    lower.rewind(count)
    shown(other, film, motion, [0, 1])
    other.rewind(count)
    assert torch.equal(shown(lower, film, motion, [2]), shown(other, film, motion, [2]))


def test_another_reference_goes_on_from_the_same_windows(model, film, motion):
    other = SpeechMotion(model, film[1][0, 0])
    lower = LowerFaces(model)
    shown(lower, film, motion, [0, 1])
    there = lower.generate(film[1][2], film[2][2], other)
    fresh = LowerFaces(model)
    shown(fresh, film, other, [0, 1])
    assert not torch.equal(there, fresh.generate(film[1][2], film[2][2], other))
    turned = LowerFaces(model)
    shown(turned, film, motion, [0, 1])
    copy = SpeechMotion(model, film[0])  # the same reference, as another object
    torch.testing.assert_close(
        turned.generate(film[1][2], film[2][2], copy), shown(LowerFaces(model), film, motion)[2]
    )
