"""Speech with phone times: the tracks fit the sound, and the encoder learns from them."""

import ctypes.util

import numpy as np
import pytest
import torch

from letstalk_rt.models.audio_encoder.causal import AudioEncoderConfig
from letstalk_rt.models.audio_encoder.mel import STEP
from letstalk_rt.training.loop import LoopConfig
from letstalk_rt.training.stages.phones import (
    SILENCE,
    MelPhoneTrack,
    english_words,
    natural_tracks,
    synthetic_tracks,
    train_phones,
)

needs_espeak = pytest.mark.skipif(
    ctypes.util.find_library("espeak-ng") is None, reason="needs espeak-ng"
)


@needs_espeak
def test_synthetic_speech_knows_when_it_is_silent():
    tracks = synthetic_tracks(["about", "people", "matters"], 3)
    assert len({track.phones.max() for track in tracks}) and len(tracks) == 3
    for track in tracks:
        assert track.pcm.dtype == np.float32 and len(track.pcm) == STEP * len(track.phones)
        level = np.sqrt((track.pcm.reshape(-1, STEP) ** 2).mean(1))
        spoken = track.phones != SILENCE
        assert spoken.mean() > 0.5
        assert level[spoken].mean() > 0.02


@needs_espeak
def test_one_phone_is_one_class_in_all_voices():
    first, second = (synthetic_tracks(["mama"], 1, seed=seed)[0] for seed in (0, 3))
    assert set(np.unique(first.phones)) & set(np.unique(second.phones)) - {SILENCE}


@needs_espeak
def test_natural_speech_is_labelled_where_it_is_loud():
    pytest.importorskip("pocketsphinx")
    sound = synthetic_tracks(["wonderful", "weather", "today"], 1)[0].pcm
    quiet = np.zeros(16_000, np.float32)
    track = natural_tracks(iter([np.concatenate([quiet, sound, quiet])]))[0]
    assert (track.phones[:80] == SILENCE).mean() > 0.9
    assert (track.phones[120:-120] != SILENCE).mean() > 0.6


def test_the_dictionary_has_words():
    pytest.importorskip("pocketsphinx")
    words = english_words()
    assert len(words) > 50_000 and all(word.isalpha() for word in words[:1000])


@pytest.mark.parametrize("lookahead_ms", [80, 0])
def test_the_encoder_learns_phones_of_two_alphabets(tmp_path, lookahead_ms):
    generator = torch.Generator().manual_seed(0)

    def track(alphabet):
        phones = torch.randint(2, (40,), generator=generator).repeat_interleave(10)
        mel = torch.full((64, 400), -0.5)
        mel[:32, :] += phones * 1.5
        return MelPhoneTrack(mel.half(), phones, alphabet)

    tracks = [track(name) for _ in range(6) for name in ("espeak", "sphinx")]
    config = LoopConfig(
        steps=40, learning_rate=3e-3, warm_up=2, ema=0.8, report_every=10, evaluate_every=40
    )
    encoder = AudioEncoderConfig(lookahead_ms=lookahead_ms)
    reader = train_phones(tracks, tmp_path, config, batch_size=4, steps=120, encoder=encoder)
    logits = reader(tracks[1].mel.float()[None], "sphinx")[0]
    delay = lookahead_ms // 10
    right = (logits.argmax(-1)[delay:] == tracks[1].phones[: 400 - delay]).float().mean()
    assert right > 0.8
