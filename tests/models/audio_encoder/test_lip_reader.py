"""The lip reader: several members in one network, and the tone of a voice."""

from dataclasses import replace

import pytest
import torch
from support.small_model import LIP_READER, stir

from letstalk_rt.models.audio_encoder.lip_reader import LipReader, joined


def members(count):
    made = [LipReader(replace(LIP_READER, members=1)).eval() for _ in range(count)]
    for reader in made:
        stir(reader)
    return made


@pytest.mark.parametrize("count", [1, 3])
def test_a_joined_reader_predicts_the_mean_of_its_members(count):
    torch.manual_seed(0)
    several, pcm = members(count), 0.1 * torch.randn(2, 12_800)
    whole = joined(several)
    assert whole.config.members == count
    mean = torch.stack([reader(pcm) for reader in several]).mean(0)
    torch.testing.assert_close(whole(pcm), mean, atol=1e-4, rtol=1e-4)


def test_the_running_mean_forgets_the_tone_of_a_voice():
    reader = LipReader(LIP_READER)
    mel = torch.randn(1, LIP_READER.bands, 4000)
    colour = torch.randn(1, LIP_READER.bands, 1)
    plain, coloured = (reader.normalize(x)[:, -250:] for x in (mel, mel + colour))
    assert (plain - coloured).abs().mean() < 0.1 * colour.abs().mean()


def test_digital_silence_does_not_enter_the_running_mean():
    reader = LipReader(LIP_READER)
    reader.usual.fill_(0.5)
    state = reader.init_state(1)
    reader(torch.zeros(1, 16_000), state)
    torch.testing.assert_close(state.mean.mean, torch.full((1, LIP_READER.bands), 0.5))
    reader(0.1 * torch.randn(1, 16_000), state)
    assert (state.mean.mean != 0.5).any()
