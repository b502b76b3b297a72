"""Lower faces of films that the denoiser generates, window by window."""

import pytest
import torch
from support.small_model import make_lip_model, stir

from letstalk_rt.inference.lower_face import LowerFaces, has_lower_faces
from letstalk_rt.inference.speech_motion import SpeechMotion
from letstalk_rt.models.autoencoder.latents import without_background_flow
from letstalk_rt.models.avatar_model import with_landmark_branch
from letstalk_rt.models.landmark_condition import LandmarkBranch

WINDOWS = 4


@pytest.fixture(scope="module")
def model():
    plain = make_lip_model()
    torch.manual_seed(2)
    branch = LandmarkBranch(plain.denoiser.config.width, plain.denoiser.config.side)
    stir(branch)
    return with_landmark_branch(plain, branch)


@pytest.fixture(scope="module")
def film(model):
    """A reference, frames of a film, and the tokens of a sound."""
    torch.manual_seed(3)
    shape = model.denoiser.config
    latents = 0.1 * torch.randn(1 + WINDOWS, shape.window, 24, 4, 4)
    tokens = torch.randn(WINDOWS, shape.window, shape.audio_tokens, shape.audio_width)
    latents = without_background_flow(latents)
    return latents[0, 0], latents[1:], tokens


def faces(model, film, seed=0):
    return LowerFaces(model, film[0], SpeechMotion(model, film[0]), seed)


def shown(lower, film, windows=range(WINDOWS)):
    return torch.stack([lower.generate(film[1][i], film[2][i]) for i in windows])


def test_only_a_model_that_is_told_the_rest_of_the_face_has_them(model):
    assert has_lower_faces(model) and not has_lower_faces(make_lip_model())


def test_the_seed_decides_and_a_reset_returns_to_the_beginning(model, film):
    lower = faces(model, film)
    first = shown(lower, film)
    lower.reset()
    assert torch.equal(shown(lower, film), first)
    assert torch.equal(shown(faces(model, film), film), first)
    assert not torch.equal(shown(faces(model, film, seed=1), film), first)


def test_what_speech_does_not_move_stays_the_films_own(model, film):
    lower, motion = faces(model, film), SpeechMotion(model, film[0])
    change = shown(lower, film) - film[1]
    assert change.abs().max() > 1e-3
    moved = torch.linalg.matrix_rank(change.flatten(0, 1).flatten(1), tol=1e-4)
    assert moved <= len(model.lip_motion.natural)
    again = motion.with_speech_of(film[1][0], film[1][0] + change[0])
    assert not torch.equal(again, film[1][0])


def test_sound_face_and_the_windows_before_all_count_and_the_future_does_not(model, film):
    reference, latents, tokens = film
    whole = shown(faces(model, film), film)
    for other in ((reference, latents, tokens.flip(0)), (reference, latents.flip(0), tokens)):
        lower = faces(model, film)
        found = shown(lower, other)
        assert not torch.allclose(found[0] - other[1][0], whole[0] - latents[0], atol=1e-5)
    lower = faces(model, film)
    assert torch.equal(shown(lower, film, [0, 1]), whole[:2])
    lower.forget()
    assert not torch.equal(shown(lower, film, [2])[0], whole[2])


def test_a_window_that_was_not_shown_is_forgotten(model, film):
    count = model.denoiser.config.window
    lower, other = faces(model, film), faces(model, film)
    shown(lower, film, [0, 3])
    lower.rewind(count)
    shown(other, film, [0, 1])
    other.rewind(count)
    assert torch.equal(shown(lower, film, [2]), shown(other, film, [2]))
