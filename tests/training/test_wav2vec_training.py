"""A toy of `b-wav2vec2` and `l-wav2vec2` is trained on cached features; only its projector is."""

import pytest
import torch
from support.small_model import make_speech
from support.toys import DC_LAYOUT, TOY_B_WAV2VEC2, write_autoencoder, write_wav2vec
from support.training import generator

from letstalk_rt.cli.train import main as train
from letstalk_rt.errors import ConfigError, InputError
from letstalk_rt.models.audio_encoder.wav2vec_encoder import Wav2VecEncoder
from letstalk_rt.models.audio_encoder.wav2vec_stream import Wav2Vec2Stream
from letstalk_rt.models.autoencoder.dc_ae import DCAutoencoder
from letstalk_rt.models.loading import load_model
from letstalk_rt.models.presets import PRESETS
from letstalk_rt.training.data.sound_inputs import Wav2VecInput, audio_tokens
from letstalk_rt.training.evaluation import rollout

transformers = pytest.importorskip("transformers", reason="the extra `paper` is not installed")
pytest.importorskip("diffusers", reason="the extra `paper` is not installed")


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    write_autoencoder(folder / "dc")
    write_wav2vec(folder / "w2v")
    return folder


@pytest.fixture
def toy(monkeypatch, networks):
    make = DCAutoencoder.random
    monkeypatch.setattr(DCAutoencoder, "random", lambda size=512: make(size, **DC_LAYOUT))
    monkeypatch.setitem(PRESETS, TOY_B_WAV2VEC2.name, TOY_B_WAV2VEC2)
    monkeypatch.setattr(rollout, "EVALUATION_FRAMES", 8)
    return ["--preset", TOY_B_WAV2VEC2.name, "--threads", "1", "--device", "cpu",
            "--autoencoder", str(networks / "dc"), "--batch", "2"]  # fmt: skip


@pytest.fixture
def encoder(networks):
    torch.manual_seed(0)
    stream = Wav2Vec2Stream.load(networks / "w2v", TOY_B_WAV2VEC2.audio.stream)
    return Wav2VecEncoder(TOY_B_WAV2VEC2.audio, stream).eval().requires_grad_(False)


class TestCachedFeatures:
    def test_they_give_the_tokens_of_a_session(self, encoder):
        """Tokens of windows from the cache are those that a stream of hops computes."""
        sound, frames, ahead = Wav2VecInput(encoder), 24, encoder.lookahead_frames
        pcm = torch.from_numpy(make_speech(frames / 25))
        state, hop = encoder.init_state(1), 640 * encoder.block_frames
        padded = torch.cat([pcm, torch.zeros(640 * ahead)])[None]
        live = torch.cat([encoder(part, state) for part in padded.split(hop, 1)], 1)[0, ahead:]
        cached = sound.of_clip(pcm.numpy())
        assert cached.dtype == torch.bfloat16 and len(cached) == frames + ahead
        for start in (0, 4, 7):
            window = sound.window(cached, start, 4)[None]
            made = audio_tokens(encoder.projector, window)[0]
            torch.testing.assert_close(made, live[start : start + 4], atol=0.03, rtol=0.03)

    def test_silence_is_what_a_session_hears_after_a_while(self, encoder):
        sound = Wav2VecInput(encoder)
        quiet = torch.zeros(1, 640 * 240)
        live = encoder(quiet)[0, -4:]
        made = audio_tokens(encoder.projector, sound.silence(4, generator())[None])[0]
        torch.testing.assert_close(made, live, atol=0.03, rtol=0.03)

    def test_beyond_a_clip_its_ends_are_repeated(self, encoder):
        sound = Wav2VecInput(encoder)
        cached = sound.of_clip(make_speech(0.4))
        early, late = sound.window(cached, -20, 4), sound.window(cached, 30, 4)
        assert torch.equal(early, cached[:1].float().expand_as(early))
        assert torch.equal(late, cached[-1:].float().expand_as(late))


def command(stage, root, cache, runs, toy, *more):
    train([stage, "--data", str(root), "--cache", str(cache), "--runs", str(runs), *toy, *more])


def test_it_goes_from_clips_to_a_weights_file(root, cache, tmp_path, toy, networks):
    heard = ["--wav2vec", str(networks / "w2v")]
    command("flow", root, cache, tmp_path, toy, "--steps", "2", "--rate", "1e-2", *heard)
    command("distill", root, cache, tmp_path, toy, "--steps", "1")
    file = tmp_path / "toy.safetensors"
    command("export", root, cache, tmp_path, toy, "-o", str(file))
    model = load_model(TOY_B_WAV2VEC2.name, file)
    given = Wav2Vec2Stream.load(networks / "w2v", TOY_B_WAV2VEC2.audio.stream).state_dict()
    for name, value in model.audio.stream.state_dict().items():
        torch.testing.assert_close(value, given[name], atol=1e-3, rtol=1e-3)
    assert not (tmp_path / "audio").exists() and not (tmp_path / "phones").exists()

    state = torch.load(tmp_path / "flow" / "last.pt", weights_only=True)
    trained = {name.split(".")[0] for name in state["model"]}
    assert trained == {"denoiser", "audio", "mouth"}
    assert "audio.layer1.weight" in state["model"]  # the projector; wav2vec 2.0 is in no checkpoint
    assert not any("attention.q_proj" in name and "audio" in name for name in state["model"])
    final = torch.load(tmp_path / "flow" / "model.pt", weights_only=True)
    first = state["model"]["audio.layer1.weight"]
    assert not torch.equal(final["audio.projector.layer1.weight"], first)  # it moved: an average
    (shard,) = (tmp_path / "flow" / "latents").glob("shard-*.json")
    assert "wav2vec2" in shard.read_text() and "mel" not in shard.read_text()


def test_what_is_missing_or_wrong_is_named(root, cache, tmp_path, toy, networks):
    with pytest.raises(InputError, match="set --wav2vec"):
        command("flow", root, cache, tmp_path / "runs", toy)
    other = write_wav2vec(tmp_path / "other", num_hidden_layers=3)
    with pytest.raises(ConfigError, match="has 3 layers of 16, preset .* expects 2 of 16"):
        command("flow", root, cache, tmp_path / "runs", toy, "--wav2vec", str(other))
    with pytest.raises(ConfigError, match="needs neither stage 'phones' nor 'audio'"):
        command("audio", root, cache, tmp_path / "runs", toy)


def test_features_of_another_speech_model_are_refused(root, cache, tmp_path, toy, networks):
    heard = ["--steps", "1", "--wav2vec"]
    command("flow", root, cache, tmp_path, toy, *heard, str(networks / "w2v"))
    model = transformers.Wav2Vec2Model.from_pretrained(networks / "w2v")
    with torch.no_grad():
        model.feature_projection.projection.bias.add_(0.1)
    model.save_pretrained(tmp_path / "changed")
    with pytest.raises(InputError, match="made with another wav2vec2"):
        command("flow", root, cache, tmp_path, toy, *heard, str(tmp_path / "changed"))
