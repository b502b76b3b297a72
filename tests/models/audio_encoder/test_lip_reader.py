"""The lip reader: several members in one network, and the tone of a voice."""

import math
from dataclasses import replace

import pytest
import torch
from support.small_model import LIP_READER, stir

from letstalk_rt.models.audio_encoder.lip_reader import LipReader, joined
from letstalk_rt.models.audio_encoder.mouth_sound import CONTEXT_FRAMES


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


def test_silence_sounds_like_a_pause_30_db_below_the_mean():
    reader = LipReader(LIP_READER)
    quiet = torch.full((1, LIP_READER.bands, 40), -9.0)
    floor = -4 / 3 * 30 / 10 * math.log(10) / 4
    torch.testing.assert_close(
        reader.normalize(quiet), torch.full((1, 10, 4 * LIP_READER.bands), floor), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("lookahead_ms", [0, 80, 160])
def test_the_sound_of_a_frame_is_that_of_its_neighbourhood(lookahead_ms):
    reader = LipReader(replace(LIP_READER, lookahead_ms=lookahead_ms)).eval()
    pcm, ahead = torch.zeros(1, 20 * 640), reader.lookahead_frames
    pcm[:, 10 * 640 : 11 * 640] = 0.1 * torch.randn(1, 640)
    sound = reader.hear(pcm)[0, ahead:, reader.config.values :].view(-1, CONTEXT_FRAMES, 20)
    loudest = sound.mean(2)[:, 1].argmax()
    assert int(loudest) in (10, 11)  # a window of mel reaches back 32 ms
    following = 2 if ahead else 1
    assert torch.equal(sound[9, following], sound[10, 1] if ahead else sound[9, 1])


def test_a_stream_in_parts_has_the_same_sound():
    torch.manual_seed(0)
    reader, pcm = LipReader(LIP_READER).eval(), 0.1 * torch.randn(2, 9600)
    state = reader.init_state(2)
    parts = torch.cat([reader.hear(part, state) for part in pcm.split([640, 5120, 3840], 1)], 1)
    torch.testing.assert_close(parts, reader.hear(pcm), atol=1e-4, rtol=1e-4)
    assert torch.equal(reader(pcm), reader.hear(pcm)[..., : reader.config.values])
