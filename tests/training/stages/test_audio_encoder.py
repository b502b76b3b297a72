"""The mouth reader follows look-ahead and bottleneck, and is calibrated."""

from dataclasses import replace

import pytest
import torch
from support.small_model import PRESET, stir

from letstalk_rt.training.data.audio_features import (
    NUM_MOUTH_TARGETS,
    silence_mel,
)
from letstalk_rt.training.data.dataset import load_clips
from letstalk_rt.training.data.spoken_clips import audio_clip
from letstalk_rt.training.stages.audio_encoder import (
    MAX_GAIN,
    MouthReader,
    calibrate,
)


@torch.no_grad()
def read_all(reader, clip):
    return reader(clip.features[None])[0]


@pytest.mark.parametrize("lookahead_ms, ahead", [(0, 0), (40, 1), (160, 4)])
def test_training_follows_the_look_ahead(lookahead_ms, ahead, root, cache):
    clip = load_clips(root, cache, "train")[0]
    heard = audio_clip(clip, ahead)
    assert heard.lookahead_frames == ahead
    reader = MouthReader(replace(PRESET.audio, lookahead_ms=lookahead_ms))
    assert reader(heard.features[None]).shape[1] == clip.num_frames


def test_a_bottleneck_reads_the_mouth_itself(root, cache):
    clip = load_clips(root, cache, "train")[0]
    reader = MouthReader(replace(PRESET.audio, mouth_values=NUM_MOUTH_TARGETS)).eval()
    assert reader.head is None
    mel = audio_clip(clip).features[None]
    ahead = reader.audio.lookahead_frames
    assert torch.equal(reader(mel), reader.audio.read_mouth(mel)[:, ahead:])


class TestCalibration:
    def reader(self, **options):
        torch.manual_seed(5)
        reader = MouthReader(replace(PRESET.audio, **options)).eval()
        stir(reader)
        return reader

    def test_readings_become_as_large_as_mouths(self, clips):
        reader = self.reader(mouth_values=NUM_MOUTH_TARGETS)
        real = [audio_clip(clip) for clip in clips if clip.kind == "real"]
        judge = replace(real[0], targets=2 * read_all(reader, real[0]))
        before = read_all(reader, judge)
        calibrate(reader, [judge])
        after = read_all(reader, judge)
        torch.testing.assert_close(after.diff(dim=0), 2 * before.diff(dim=0), rtol=1e-3, atol=1e-4)
        calibrate(reader, [replace(judge, targets=100 * judge.targets)])
        most = MAX_GAIN * after.diff(dim=0)
        torch.testing.assert_close(read_all(reader, judge).diff(dim=0), most, rtol=1e-3, atol=1e-3)

    def test_silence_is_a_mouth_at_rest(self, clips):
        reader = self.reader(mouth_values=NUM_MOUTH_TARGETS)
        calibrate(reader, [audio_clip(clips[0])])
        quiet = silence_mel().expand(-1, 4 * 40)[None]
        with torch.no_grad():
            assert reader.audio.read_mouth(quiet)[0, -1].abs().max() < 1e-5

    def test_a_reader_that_ships_no_values_is_left_alone(self, clips):
        reader = self.reader()
        before = {name: value.clone() for name, value in reader.state_dict().items()}
        calibrate(reader, [audio_clip(clips[0])])
        assert all(torch.equal(before[name], value) for name, value in reader.state_dict().items())
