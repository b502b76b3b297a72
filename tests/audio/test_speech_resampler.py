"""Speech at two rates stays aligned sample by sample."""

import numpy as np
import pytest
import soxr

from letstalk_rt.audio.speech_resampler import (
    OUTPUT_RATES_HZ,
    Speech,
    SpeechResampler,
    block_sizes,
    check_output_rate,
)
from letstalk_rt.errors import AudioFormatError, ConfigError

SOURCES_HZ = [8_000, 16_000, 22_050, 24_000, 44_101, 48_000]


def noise(count, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, count).astype(np.float32)


def hum(rate, seconds=1.0):
    """A tone that swells, so that a shift in time shows in its envelope too."""
    time_s = np.arange(int(rate * seconds)) / rate
    swell = 0.5 - 0.5 * np.cos(2 * np.pi * 3 * time_s)
    return (0.5 * swell * np.sin(2 * np.pi * 150 * time_s)).astype(np.float32)


def stream(resampler, chunks):
    parts = [*(resampler.push(chunk) for chunk in chunks), resampler.flush()]
    return [np.concatenate([getattr(p, name) for p in parts]) for name in ("pcm", "output")]


@pytest.mark.parametrize("output_rate", OUTPUT_RATES_HZ)
@pytest.mark.parametrize("rate", SOURCES_HZ)
def test_every_part_is_as_long_at_both_rates(rate, output_rate):
    resampler = SpeechResampler(rate, output_rate)
    model_block, output_block = block_sizes(output_rate)
    for size in [1, 7, rate // 100, 0, 3, rate // 10, 999]:
        speech = resampler.push(noise(size))
        assert speech.pcm.size % model_block == 0
        assert speech.output.size * model_block == speech.pcm.size * output_block
    tail = resampler.flush()
    assert tail.output.size * model_block == tail.pcm.size * output_block


@pytest.mark.parametrize("output_rate", OUTPUT_RATES_HZ)
@pytest.mark.parametrize("rate", SOURCES_HZ)
def test_both_rates_hold_the_same_sound_at_the_same_time(rate, output_rate):
    pcm, output = stream(SpeechResampler(rate, output_rate), np.array_split(hum(rate), 13))
    assert pcm.size == pytest.approx(16_000, abs=1)
    heard = soxr.resample(output, output_rate, 16_000)
    middle = slice(500, 15_500)
    two_samples = 2 * 0.5 * 2 * np.pi * 150 / 16_000  # the engine shifts by 0.1 ms
    np.testing.assert_allclose(pcm[middle], heard[middle], atol=two_samples)


@pytest.mark.parametrize("rate", [24_000, 48_000])
def test_sound_that_came_at_the_output_rate_is_not_changed(rate):
    sound = noise(rate)
    _, output = stream(SpeechResampler(rate, rate), np.array_split(sound, 9))
    np.testing.assert_array_equal(output, sound)


def test_stereo_is_averaged_once_for_both():
    stereo = np.stack([noise(4800), noise(4800, seed=1)], axis=1)
    _, output = stream(SpeechResampler(48_000, 48_000), [stereo])
    np.testing.assert_allclose(output, stereo.mean(axis=1), atol=1e-7)


@pytest.mark.parametrize("output_rate", OUTPUT_RATES_HZ)
@pytest.mark.parametrize("size", [1, 999])
def test_chunks_equal_whole(size, output_rate):
    x = noise(4411)
    chunks = np.split(x, range(size, x.size, size))
    for one, other in zip(
        stream(SpeechResampler(44_100, output_rate), chunks),
        stream(SpeechResampler(44_100, output_rate), [x]),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("end", [SpeechResampler.reset, SpeechResampler.flush])
def test_reset_equals_new(end):
    used = SpeechResampler(22_050, 24_000)
    used.push(noise(1001, seed=1))
    end(used)
    for one, other in zip(
        stream(used, [noise(500)]),
        stream(SpeechResampler(22_050, 24_000), [noise(500)]),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("output_rate", OUTPUT_RATES_HZ)
def test_blocks_are_removed_and_repeated_at_both_rates(output_rate):
    sizes = block_sizes(output_rate)
    pcm = np.repeat(np.arange(4, dtype=np.float32), sizes[0])
    output = pcm if output_rate == 16_000 else np.repeat(np.arange(4, dtype=np.float32), sizes[1])
    taken = Speech(pcm, output).take(np.array([0, 2, 2, 3]), sizes)
    np.testing.assert_array_equal(taken.pcm[:: sizes[0]], [0, 2, 2, 3])
    np.testing.assert_array_equal(taken.output[:: sizes[1]], [0, 2, 2, 3])
    assert taken.pcm.size == 4 * sizes[0] and taken.output.size == 4 * sizes[1]


def test_bad_audio_leaves_the_stream_as_it_was():
    x = noise(4800)
    resampler = SpeechResampler(48_000, 24_000)
    first = resampler.push(x[:1000])
    with pytest.raises(AudioFormatError, match="NaN"):
        resampler.push(np.array([np.nan], np.float32))
    pcm, output = stream(resampler, [x[1000:]])
    whole = stream(SpeechResampler(48_000, 24_000), [x])
    np.testing.assert_array_equal(np.concatenate([first.pcm, pcm]), whole[0])
    np.testing.assert_array_equal(np.concatenate([first.output, output]), whole[1])


@pytest.mark.parametrize("rate", [8_000, 44_100, 96_000, 24_000.0, True, "48000", None])
def test_other_output_rates_are_refused_with_the_known_ones(rate):
    with pytest.raises(ConfigError, match="16000, 24000, 48000"):
        check_output_rate(rate)
