"""Judging a flow: as it was trained, and so that a still picture does not win."""

from dataclasses import dataclass, replace

import pytest
import torch
from support.raw_videos import speech, talking_faces
from support.small_model import PRESET, make_model

from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.loading import load_model
from letstalk_rt.models.presets import get_preset
from letstalk_rt.training.data.dataset import Clip
from letstalk_rt.training.data.tracks import encode_clip, encode_clips
from letstalk_rt.training.evaluation import rollout
from letstalk_rt.training.evaluation.decoded import DecodedLips, HeardGap
from letstalk_rt.training.evaluation.rollout import (
    Sampling,
    evaluate_flow,
    flow_sampling,
    score,
)

FRAMES = 40


class PlainAutoencoder(torch.nn.Module):
    """The embedded model's autoencoder as one whose latents hold no landmarks, as DC-AE is."""

    landmarks = None
    image_size = 256

    def __init__(self):
        super().__init__()
        self.inner = load_model("tiny").autoencoder
        self.latent_shape = self.inner.latent_shape
        self.portrait = None

    def encode_portrait(self, image):
        features = self.inner.encode_portrait(image)
        self.portrait = self.portrait or features
        return features

    def encode(self, frames, portrait):
        return self.inner.encode(frames, portrait)

    def decode(self, latents, portrait):
        first = self.inner.encode_portrait(self.portrait.image[:1])
        return self.inner.decode(latents, first)


@dataclass
class Judged:
    """What `evaluate_flow` asks of a model."""

    autoencoder: PlainAutoencoder
    motion_scale: torch.Tensor
    audio: object


@pytest.fixture(scope="module")
def judged():
    return Judged(PlainAutoencoder(), torch.ones(24, 1, 1), make_model().audio)


@pytest.fixture(scope="module")
def track(judged):
    frames = talking_faces()[0][:FRAMES]
    read = DecodedLips(judged.autoencoder.inner.mean_points.device)
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
    opening, certainty = read.read(tensor)
    assert (certainty > 0.72).mean() > 0.9 and opening.std() > 0.002
    targets = torch.zeros(FRAMES, 11)
    targets[:, 0] = 3 * torch.from_numpy(opening)
    clip = Clip("mira-1", "real", frames, _no_mesh(), _no_shapes(), speech()[: FRAMES * 640], True)
    arrays = encode_clip(judged.autoencoder, clip, gap=HeardGap())
    made = encode_clips(judged.autoencoder, [clip])[0]
    audio = replace(made.audio_clip, targets=targets)
    return replace(made, audio_clip=audio, heard=arrays["heard"])


def _no_mesh():
    return torch.rand(FRAMES, 478, 2).numpy() * 256


def _no_shapes():
    return torch.zeros(FRAMES, 52).numpy()


def test_a_still_picture_does_not_score_best(judged, track, monkeypatch):
    monkeypatch.setattr(rollout, "EVALUATION_FRAMES", FRAMES)
    lips = DecodedLips()

    def talking(model, mel, portrait, **_):
        noise = torch.Generator().manual_seed(0)
        true = track.latents[0, :FRAMES]
        return (true + 0.05 * true.std() * torch.randn(true.shape, generator=noise))[None]

    def still(model, mel, portrait, **_):
        return portrait[:, None].expand(-1, FRAMES, -1, -1, -1)

    made, stood = (
        evaluate_flow(judged, [track], Sampling(1), lips, generator=g) for g in (talking, still)
    )
    # By the error of latents, which judged before, the still picture is nearly as good as any.
    assert score(made) > 0.6 and score(stood) == 0
    assert made["sync"] > 0.3 and stood["sync"] == 0 and made["faces"] == 1


def test_noise_has_no_face_and_no_score(judged, track, monkeypatch):
    monkeypatch.setattr(rollout, "EVALUATION_FRAMES", 8)

    def noise(model, mel, portrait, **_):
        return 40 * torch.randn(1, 8, *portrait.shape[1:])

    figures = evaluate_flow(judged, [track], Sampling(1), DecodedLips(), generator=noise)
    assert figures["faces"] == 0 and score(figures) == 0


def test_a_flow_is_sampled_as_it_was_trained():
    assert flow_sampling(get_preset("b")) == Sampling(8, 1.0, plain=True)
    tiny = get_preset("tiny")
    assert flow_sampling(tiny) == Sampling(tiny.steps, tiny.guidance)


def test_plain_sampling_asks_for_velocities_without_guidance():
    shape = replace(PRESET.denoiser, second_time=True, guidance_input=True)
    torch.manual_seed(0)
    model = AvatarModel(replace(PRESET, denoiser=shape)).eval()
    asked = []

    def predict(x, t, tokens, portrait, cache, *, end=None, guidance=None):
        asked.append((end, guidance))
        return torch.zeros_like(x)

    mel, portrait = torch.zeros(1, 64, 4 * (4 + 2)), torch.zeros(1, 24, 4, 4)
    model.denoiser.predict = predict
    rollout.generate(model, mel, portrait, steps=3, plain=True)
    assert len(asked) == 3
    assert all(end is None and float(weight) == 1 for end, weight in asked)


def test_many_clips_are_judged_a_few_at_a_time(judged, track, monkeypatch):
    monkeypatch.setattr(rollout, "EVALUATION_FRAMES", 16)
    sizes = []

    def counting(model, mel, portrait, **_):
        sizes.append(len(mel))
        return torch.zeros(len(mel), 16, *portrait.shape[1:])

    class NoLips:
        def __call__(self, autoencoder, latents):
            return torch.rand(len(latents)).numpy()

    evaluate_flow(judged, [track] * 100, Sampling(1), NoLips(), generator=counting)
    assert max(sizes) <= 4 and sum(sizes) == 2 * rollout.MAX_TRACKS
