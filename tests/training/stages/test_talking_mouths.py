"""Statistics of mouths that talk: components of latents, and the mouth at rest."""

from dataclasses import replace

from support.small_model import make_model

from letstalk_rt.models.face.talking_mouth import TalkingMouth
from letstalk_rt.models.geometry.landmarks import LIPS_INNER
from letstalk_rt.training.stages.talking_mouths import fit_components, fit_neutral


def test_components_are_fitted_to_the_latents_of_filmed_clips(clips):
    mouth = TalkingMouth()
    autoencoder = make_model().autoencoder
    fit_components(mouth, autoencoder, [clip for clip in clips if clip.kind == "real"])
    natural = mouth.natural.clone()
    assert natural.any()
    fit_components(mouth, autoencoder, clips)
    assert mouth.natural.equal(natural), "clips that a network made do not count"


def test_the_neutral_mouth_is_fitted_to_clips_whose_lips_close(clips):
    clip, mouth = clips[0], TalkingMouth()
    points = clip.landmarks.copy()
    upper, lower = LIPS_INNER[15], LIPS_INNER[5]
    points[::2, lower] = points[::2, upper]
    points[1::2, lower] = points[1::2, upper] + [0, 30]
    fit_neutral(mouth, [replace(clip, landmarks=points)])
    assert mouth.neutral.weight.any() and mouth.neutral.bias.any()


def test_clips_that_never_close_do_not_teach_the_neutral_mouth(clips):
    clip, mouth = clips[0], TalkingMouth()
    points = clip.landmarks.copy()
    points[:, LIPS_INNER[5]] = points[:, LIPS_INNER[15]] + [0, 30]
    fit_neutral(mouth, [replace(clip, landmarks=points)])
    assert not mouth.neutral.weight.any()
