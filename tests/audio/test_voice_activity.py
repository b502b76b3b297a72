"""Voice activity detection by level and by the Silero network."""

import subprocess
import sys

import numpy as np
import pytest
from support.packages import needs

from letstalk_rt.audio.resample import Resampler
from letstalk_rt.audio.silero import SileroNetwork
from letstalk_rt.audio.voice_activity import AlwaysActive, EnergyVad, SileroVad, make_vad
from letstalk_rt.errors import ConfigError

RATE = 16_000
HOP = 2560


def noise(seconds, db, seed=0):
    rng = np.random.default_rng(seed)
    return (10 ** (db / 20) * rng.standard_normal(int(seconds * RATE))).astype(np.float32)


def resample(pcm, rate):
    resampler = Resampler(rate)
    return np.concatenate([resampler.push(pcm), resampler.flush()])


def flags(vad, pcm):
    pcm = pcm[: len(pcm) // HOP * HOP]
    return np.array([flag for hop in pcm.reshape(-1, HOP) for flag in vad.detect(hop)])


def test_voice_above_background_noise_is_detected_at_once():
    audio = noise(6, -62)
    audio[3 * RATE : 4 * RATE] += noise(1, -25, seed=1)
    voiced = flags(EnergyVad(), audio)
    assert not voiced[:75].any()
    assert voiced[76:100].all()
    assert not voiced[110:].any(), "the flag stays set for 320 ms"
    assert voiced[100:107].all()


def test_steady_noise_raises_the_noise_floor():
    voiced = flags(EnergyVad(), noise(20, -45))
    assert not voiced[-50:].any()


def test_loud_steady_audio_stays_voice():
    assert flags(EnergyVad(), noise(20, -20))[-100:].all()


def test_digital_silence_is_silence():
    for vad in (EnergyVad(), AlwaysActive()):
        assert not flags(vad, np.zeros(2 * RATE, np.float32)).any()
    assert flags(AlwaysActive(), noise(1, -80)).all()


def test_a_reset_clears_the_hold():
    vad = EnergyVad()
    flags(vad, noise(1, -20))
    vad.reset()
    assert not flags(vad, np.zeros(RATE, np.float32)).any()


def test_an_unknown_detector_is_refused():
    with pytest.raises(ConfigError, match="voice_activity"):
        make_vad("ears")


def test_silero_rejects_noise_and_loads_no_torch():
    pytest.importorskip("silero_vad")
    vad = SileroVad()
    assert not flags(vad, noise(2, -25)).any()
    vad.reset()
    assert len(vad.detect(np.zeros(HOP, np.float32))) == 4
    code = "from letstalk_rt.audio.voice_activity import SileroVad; SileroVad(); import sys; "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@needs("espeak-ng")
def test_silero_hears_speech_alike_in_pieces_and_at_once():
    pytest.importorskip("silero_vad")
    words = ["espeak-ng", "--stdout", "What is the weather like today?"]
    done = subprocess.run(words, capture_output=True, check=True)
    pcm = np.frombuffer(done.stdout[44:], np.int16).astype(np.float32) / 32_768
    pcm = resample(pcm, 22_050)
    at_once, pieces, network = SileroNetwork().push(pcm), [], SileroNetwork()
    for start in range(0, len(pcm), 333):
        pieces += network.push(pcm[start : start + 333])
    assert pieces == at_once
    assert np.mean(np.array(at_once) > 0.5) > 0.7
