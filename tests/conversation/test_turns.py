"""Utterances are found in the audio of a microphone."""

import shutil
import subprocess

import numpy as np
import pytest

from letstalk_rt.audio.resample import Resampler
from letstalk_rt.conversation.turns import (
    LevelDetector,
    SileroDetector,
    TurnAudio,
    TurnBegins,
    TurnDetector,
    TurnEnds,
    TurnOptions,
)
from letstalk_rt.errors import ConfigError

RATE = 16_000
BLOCK = 512
needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="no espeak-ng")


class Marked:
    """A detector that takes the largest sample of a block for its probability."""

    block, hold_ms = BLOCK, 0

    def probability(self, block):
        return float(block.max())


def blocks(*levels):
    """Return `(number, level)` pairs as audio, in which every sample is different."""
    parts = [np.full(count * BLOCK, level, np.float32) for count, level in levels]
    audio = np.concatenate(parts)
    return audio - np.arange(len(audio), dtype=np.float32) % BLOCK * 1e-5


def turns(detector, audio, size=BLOCK):
    return [t for start in range(0, len(audio), size) for t in detector.push(audio[start:][:size])]


def kinds(found):
    return [type(turn) for turn in found if not isinstance(turn, TurnAudio)]


def heard(found):
    return np.concatenate([turn.pcm for turn in found if isinstance(turn, TurnAudio)])


def test_an_utterance_has_its_beginning_its_pauses_and_half_a_second_before_it():
    audio = blocks((40, 0), (10, 1), (5, 0), (10, 1), (40, 0))
    found = turns(TurnDetector(Marked()), audio)
    assert kinds(found) == [TurnBegins, TurnEnds]
    assert isinstance(found[0], TurnBegins) and isinstance(found[-1], TurnEnds)
    first = (40 - 16) * BLOCK
    assert np.array_equal(heard(found), audio[first:][: (16 + 25 + 13) * BLOCK])


@pytest.mark.parametrize("size", [1, 320, 511, 100_000])
def test_chunks_of_any_size_give_the_same_turns(size):
    audio = blocks((20, 0), (10, 1), (30, 0), (5, 1), (30, 0))[: 95 * BLOCK - 7]
    found, whole = turns(TurnDetector(Marked()), audio, size), turns(TurnDetector(Marked()), audio)
    assert kinds(found) == kinds(whole) == [TurnBegins, TurnEnds] * 2
    assert np.array_equal(heard(found), heard(whole))


def test_a_click_is_no_utterance():
    audio = blocks((20, 0), (1, 1), (20, 0), (1, 1), (20, 0))
    assert turns(TurnDetector(Marked()), audio) == []


def test_speech_without_a_pause_is_divided():
    found = turns(TurnDetector(Marked(), TurnOptions(max_s=1)), blocks((100, 1)))
    assert kinds(found)[:4] == [TurnBegins, TurnEnds] * 2
    assert np.array_equal(heard(found), blocks((100, 1))[: len(heard(found))]), "nothing is lost"


@pytest.mark.parametrize("wrong", [{"hangover_ms": 5}, {"preroll_ms": -1}, {"max_s": 1e9}])
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TurnOptions(**wrong)


def speech(text):
    words = ["espeak-ng", "-v", "en-us", "--stdout", text]
    done = subprocess.run(words, capture_output=True, check=True)
    resampler = Resampler(22_050)
    pcm = np.frombuffer(done.stdout[44:], np.int16)
    return np.concatenate([resampler.push(pcm), resampler.flush()]) / 2


@needs_espeak
@pytest.mark.parametrize("detector", [SileroDetector, LevelDetector])
def test_spoken_sentences_are_found(detector):
    if detector is SileroDetector:
        pytest.importorskip("onnxruntime")
    pause = np.zeros(2 * RATE, np.float32)
    first, second = speech("What is the weather like today?"), speech("Tell me a story, please.")
    audio = np.concatenate([pause, first, pause, second, pause]).astype(np.float32)
    found = turns(TurnDetector(detector()), audio)
    assert kinds(found) == [TurnBegins, TurnEnds] * 2
    total = len(first) + len(second)
    # Half a second before each sentence and half a second after.
    assert total < len(heard(found)) < total + 2.4 * RATE


@needs_espeak
def test_noise_begins_no_turn():
    pytest.importorskip("onnxruntime")
    noise = np.random.default_rng(0).normal(0, 0.05, 5 * RATE).astype(np.float32)
    assert turns(TurnDetector(SileroDetector()), noise) == []
