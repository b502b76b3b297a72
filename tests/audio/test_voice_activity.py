"""Voice told from noise, by level and by the Silero network."""

import numpy as np
import pytest

from letstalk_rt.audio.voice_activity import AlwaysActive, EnergyVad, SileroVad, make_vad
from letstalk_rt.errors import ConfigError

RATE = 16_000
HOP = 2560


def noise(seconds, db, seed=0):
    rng = np.random.default_rng(seed)
    return (10 ** (db / 20) * rng.standard_normal(int(seconds * RATE))).astype(np.float32)


def flags(gate, pcm):
    pcm = pcm[: len(pcm) // HOP * HOP]
    return np.array([flag for hop in pcm.reshape(-1, HOP) for flag in gate.detect(hop)])


def test_a_quiet_room_is_silence_and_a_voice_in_it_is_heard_at_once():
    sound = noise(6, -62)
    sound[3 * RATE : 4 * RATE] += noise(1, -25, seed=1)
    heard = flags(EnergyVad(), sound)
    assert not heard[:75].any()
    assert heard[76:100].all()
    assert not heard[110:].any(), "voice lasts a third of a second longer"
    assert heard[100:107].all()


def test_the_noise_of_a_fan_is_learnt():
    heard = flags(EnergyVad(), noise(20, -45))
    assert not heard[-50:].any()


def test_a_loud_steady_sound_stays_voice():
    assert flags(EnergyVad(), noise(20, -20))[-100:].all()


def test_digital_silence_is_silence():
    for gate in (EnergyVad(), AlwaysActive()):
        assert not flags(gate, np.zeros(2 * RATE, np.float32)).any()
    assert flags(AlwaysActive(), noise(1, -80)).all()


def test_after_a_reset_nothing_is_held():
    gate = EnergyVad()
    flags(gate, noise(1, -20))
    gate.reset()
    assert not flags(gate, np.zeros(RATE, np.float32)).any()


def test_an_unknown_gate_is_refused():
    with pytest.raises(ConfigError, match="voice_activity"):
        make_vad("ears")


def test_silero_does_not_take_noise_for_voice_and_leaves_the_threads_alone():
    pytest.importorskip("silero_vad")
    import torch

    threads = torch.get_num_threads()
    gate = SileroVad()
    assert torch.get_num_threads() == threads
    assert not flags(gate, noise(2, -25)).any()
    gate.reset()
    assert len(gate.detect(np.zeros(HOP, np.float32))) == 4
