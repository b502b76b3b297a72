"""The paper's audio path in the place of our own: streaming, and in the whole pipeline."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.small_model import DENOISER, PRESET, make_portrait, make_speech, stir

from letstalk_rt.errors import ConfigError
from letstalk_rt.inference.audio_stage import AudioState
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.inference.protocol import StateOptions
from letstalk_rt.models import loading
from letstalk_rt.models.audio_encoder.wav2vec_encoder import Wav2VecEncoder, Wav2VecEncoderConfig
from letstalk_rt.models.audio_encoder.wav2vec_stream import Wav2Vec2StreamConfig
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.batch_state import tensors
from letstalk_rt.models.presets import PRESETS, get_preset, with_lookahead
from letstalk_rt.training.data.audio_features import mel_encoder

pytest.importorskip("transformers")

STREAM = Wav2Vec2StreamConfig(
    layers=2, width=32, heads=4, ffn=48, conv_width=8, context_frames=8, lookahead_ms=80
)
AUDIO = Wav2VecEncoderConfig(stream=STREAM, reach=1, hidden=16, tokens=3, token_width=8)
HEARING = replace(
    PRESET, name="hearing", audio=AUDIO, denoiser=replace(DENOISER, audio_tokens=3, audio_width=8)
)


def make_encoder(config=AUDIO):
    torch.manual_seed(0)
    encoder = Wav2VecEncoder(config)
    stir(encoder)
    return encoder.eval().requires_grad_(False)


def make(preset=HEARING):
    torch.manual_seed(0)
    model = AvatarModel(preset)
    stir(model)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def encoder():
    return make_encoder()


@pytest.fixture(scope="module")
def pipeline():
    return AvatarPipeline(make())


def speech(frames, seed=0):
    return torch.from_numpy(make_speech(frames / 25, seed))[None]


def hops(count, seed=0):
    return make_speech(count * 0.16, seed).reshape(count, 1, 2560)


def play(pipeline, state, sound):
    return np.concatenate([pipeline.step(hop, [state])[0] for hop in sound])


class TestStream:
    def test_chunks_equal_the_whole(self, encoder):
        sound = speech(24)
        state = encoder.init_state(1)
        pieces = [encoder(piece, state) for piece in sound.split(8 * 640, 1)]
        whole = encoder(sound)
        assert whole.shape == (1, 24, 3, 8)
        torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("ms, frames", [(0, 1), (80, 3)])
    def test_the_look_ahead_is_as_declared(self, ms, frames):
        encoder = make_encoder(AUDIO.with_lookahead(ms))
        assert encoder.lookahead_frames == frames and encoder.config.lookahead_ms == ms
        sound, other = speech(24), speech(24)
        other[:, 16 * 640 :] = speech(8, seed=5)
        same = (encoder(sound) - encoder(other)).abs().amax((0, 2, 3)) < 1e-5
        assert same[:16].all() and not same[16:].any()

    def test_reset_equals_new_and_addresses_stay(self, encoder):
        state = encoder.init_state(1)
        before = [part.data_ptr() for part in tensors(state)]
        encoder(speech(8, seed=3), state)
        state.reset()
        assert [part.data_ptr() for part in tensors(state)] == before
        torch.testing.assert_close(encoder(speech(8), state), encoder(speech(8)))

    def test_sessions_do_not_mix(self, encoder):
        first, second = speech(16), speech(16, seed=1)
        together = encoder(torch.cat([first, second]))
        torch.testing.assert_close(together[:1], encoder(first), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(together[1:], encoder(second), atol=1e-4, rtol=1e-4)

    def test_weights_of_wav2vec_are_loaded_from_a_folder(self, tmp_path):
        import transformers

        shape = transformers.Wav2Vec2Config(
            num_hidden_layers=1,
            hidden_size=32,
            num_attention_heads=2,
            intermediate_size=40,
            conv_dim=(8,) * 7,
        )
        transformers.Wav2Vec2Model(shape).save_pretrained(tmp_path)
        encoder = Wav2VecEncoder.load(tmp_path, AUDIO)
        assert encoder.config.stream.ffn == 40 and encoder.projector.config.layers == 1
        assert encoder(speech(8)).shape == (1, 8, 3, 8)


class TestPipeline:
    def test_speech_moves_the_face(self, pipeline):
        portrait, sound = make_portrait(), hops(4)
        spoken = play(pipeline, pipeline.init_state(portrait), sound)
        silent = play(pipeline, pipeline.init_state(portrait), np.zeros_like(sound))
        assert pipeline.lookahead_frames == 3 and spoken.shape[0] == 16
        assert np.abs(spoken.astype(int) - silent).max() > 5

    def test_a_batch_equals_single_sessions(self, pipeline):
        portraits, sounds = [make_portrait(i) for i in range(2)], [hops(3, i) for i in range(2)]
        states = [pipeline.init_state(p, StateOptions(i)) for i, p in enumerate(portraits)]
        together = [pipeline.step(np.concatenate(pcm), states) for pcm in zip(*sounds, strict=True)]
        for index in range(2):
            alone = play(
                pipeline, pipeline.init_state(portraits[index], StateOptions(index)), sounds[index]
            )
            shown = np.concatenate([pictures[index] for pictures in together])
            assert np.abs(shown.astype(int) - alone).max() <= 1

    def test_reset_and_interrupt_bring_back_silence(self, pipeline):
        state = pipeline.init_state(make_portrait())
        settled = [part.clone() for part in tensors(state[AudioState].encoder)]
        for forget in (state.reset, lambda: pipeline.interrupt(state)):
            play(pipeline, state, hops(2))
            forget()
            after = zip(tensors(state[AudioState].encoder), settled, strict=True)
            assert all(torch.equal(now, then) for now, then in after)

    @pytest.mark.parametrize("frames", [0, 2])
    def test_less_look_ahead_may_be_asked_for(self, pipeline, frames):
        sound, portrait = hops(3), make_portrait()
        state = pipeline.init_state(portrait, StateOptions(lookahead_frames=frames))
        whole = pipeline.init_state(portrait)
        shown, waited = (play(pipeline, s, sound) for s in (state, whole))
        assert shown.shape == waited.shape and not np.array_equal(shown, waited)


def test_weights_are_saved_and_loaded(tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "hearing", HEARING)
    model, path = make(with_lookahead(HEARING, 40)), tmp_path / "hearing.safetensors"
    loading.save_model(model, path)
    read = loading.load_model("hearing", path)
    assert read.audio.lookahead_frames == 2
    sound = speech(8)
    torch.testing.assert_close(read.audio(sound), model.audio(sound), atol=0.05, rtol=0.05)


def test_windows_hold_whole_blocks():
    stream = replace(STREAM, block_frames=3)
    with pytest.raises(ConfigError, match="blocks of 3"):
        AvatarModel(replace(HEARING, audio=replace(AUDIO, stream=stream)))


def test_it_is_not_trained_on_log_mel():
    with pytest.raises(ConfigError, match="preset 'hearing' uses wav2vec 2.0"):
        mel_encoder(make())


def test_the_presets_have_the_published_shape():
    preset = get_preset("b-wav2vec2")
    with torch.device("meta"):
        encoder = Wav2VecEncoder(preset.audio)
    assert (preset.denoiser.audio_tokens, preset.denoiser.audio_width) == (32, 768)
    assert sum(p.numel() for p in encoder.projector.parameters()) == 36_465_152
    assert encoder.lookahead_frames == 4
