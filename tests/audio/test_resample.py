import numpy as np
import pytest
import soxr

from letstalk_rt.audio.resample import (
    Resampler,
    check_pcm,
    check_rate,
    has_constant_delay,
    to_mono,
)
from letstalk_rt.errors import AudioFormatError

RATES = [8_000, 16_000, 22_050, 44_101, 48_000, 192_000]
"""Doubled, unchanged, that of espeak-ng, one without whole samples per 10 ms, that of WebRTC, the
largest."""

PATHS = [16_000, 44_100]
"""One rate for each path through the resampler: without and with the engine."""

SOXR_1_0 = soxr.ResampleStream


class FixedRateStream:
    """The `ResampleStream` of soxr 1.0, which lacks the variable-rate engine."""

    def __init__(self, in_rate, out_rate, num_channels, dtype="float32", quality="HQ"):
        self._stream = SOXR_1_0(in_rate, out_rate, num_channels, dtype, quality)

    def resample_chunk(self, x, last=False):
        return self._stream.resample_chunk(x, last)

    def clear(self):
        self._stream.clear()


@pytest.fixture(autouse=True, params=["installed", "1.0"])
def soxr_version(request, monkeypatch):
    """Run each test with the soxr that is installed, and as with soxr 1.0."""
    if request.param == "1.0":
        monkeypatch.setattr(soxr, "ResampleStream", FixedRateStream)
        assert not has_constant_delay()
    return request.param


def tone(rate, seconds=1.0, hz=440.0):
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def noise(rate, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, rate // 2).astype(np.float32)


def stream(resampler, chunks):
    return np.concatenate([*(resampler.push(chunk) for chunk in chunks), resampler.flush()])


@pytest.mark.parametrize("rate", RATES)
def test_a_tone_keeps_its_pitch_position_and_level(rate):
    out = stream(Resampler(rate), [tone(rate)])
    assert out.dtype == np.float32
    assert out.size == 16_000
    middle = slice(1000, 15_000)
    two_samples = 2 * 0.5 * 2 * np.pi * 440 / 16_000  # the engine shifts by 0.1 ms
    np.testing.assert_allclose(out[middle], tone(16_000)[middle], atol=two_samples)
    assert np.sqrt((out[middle] ** 2).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=1e-3)


@pytest.mark.parametrize("rate", [24_000, 44_100])
def test_frequencies_above_8_khz_are_removed(rate):
    out = stream(Resampler(rate), [tone(rate, hz=10_000)])
    assert np.abs(out[1000:15_000]).max() < 1e-4


@pytest.mark.parametrize("rate", [8_000, *PATHS])
@pytest.mark.parametrize("size", [1, 999], ids=lambda size: f"by{size}")
def test_chunks_equal_whole(rate, size):
    x = noise(rate)[:8000]
    chunks = np.split(x, range(size, x.size, size))
    np.testing.assert_array_equal(stream(Resampler(rate), chunks), stream(Resampler(rate), [x]))


@pytest.mark.parametrize("rate", PATHS)
def test_the_future_does_not_change_the_past(rate):
    x, later = noise(rate), noise(rate)
    later[x.size // 2 :] = 0.25
    past = Resampler(rate).push(x[: x.size // 2]).size
    assert past > 0
    np.testing.assert_array_equal(
        Resampler(rate).push(later)[:past], Resampler(rate).push(x)[:past]
    )


@pytest.mark.parametrize("rate", PATHS)
@pytest.mark.parametrize("end", [Resampler.reset, Resampler.flush], ids=["reset", "flush"])
def test_reset_equals_new(rate, end):
    used = Resampler(rate)
    used.push(noise(rate, seed=1))
    end(used)
    np.testing.assert_array_equal(
        stream(used, [noise(rate)]), stream(Resampler(rate), [noise(rate)])
    )


@pytest.mark.parametrize("rate", PATHS)
def test_sessions_do_not_mix(rate):
    one, other, out = Resampler(rate), Resampler(rate), []
    for chunk in np.split(noise(rate), 5):
        out.append(one.push(chunk))
        other.push(chunk[::-1].copy())
    np.testing.assert_array_equal(
        np.concatenate([*out, one.flush()]), stream(Resampler(rate), [noise(rate)])
    )


@pytest.mark.parametrize("rate", RATES)
def test_the_delay_is_short(rate):
    resampler, produced = Resampler(rate), 0
    held_ms = []
    for chunk in np.array_split(tone(rate), 50):
        produced += resampler.push(chunk).size
        held_ms.append((len(held_ms) + 1) * 20 - produced / 16)
    if has_constant_delay() or rate == 16_000:
        assert max(held_ms[5:]) - min(held_ms[5:]) <= 0.2
        assert max(held_ms[5:]) <= 30.2
    else:
        assert max(held_ms[5:]) <= (120 if rate in (8_000, 192_000) else 40)


@pytest.mark.parametrize("rate", [22_050, 48_000])
def test_other_target_rates(rate):
    out = stream(Resampler(rate, 24_000), np.array_split(tone(rate), 7))
    assert out.size == 24_000
    middle = slice(1000, 23_000)
    two_samples = 2 * 0.5 * 2 * np.pi * 440 / 24_000
    np.testing.assert_allclose(out[middle], tone(24_000)[middle], atol=two_samples)


def test_no_sample_is_lost_or_added_in_a_long_call():
    resampler, produced = Resampler(44_100), 0
    for _ in range(600):
        produced += resampler.push(np.zeros(44_100, np.float32)).size
    assert produced + resampler.flush().size == 600 * 16_000


@pytest.mark.parametrize(
    "rate, count",
    [
        (8_000, 1),
        (8_000, 3_999),
        (16_000, 3),
        (32_000, 1),  # half a sample, which counts as one
        (32_000, 999),
        (44_100, 1),
        (44_100, 441),
        (44_100, 3_999),
        (192_000, 5),  # less than half a sample
    ],
)
def test_the_number_of_samples_is_exact(rate, count):
    out = stream(Resampler(rate), np.split(noise(rate)[:count], [count // 3]))
    assert out.size == int(count * 16_000 / rate + 0.5)


@pytest.mark.parametrize("rate", RATES)
def test_no_more_than_is_due_is_returned_before_the_end(rate):
    resampler, consumed, produced = Resampler(rate), 0, 0
    for size in [1, 1, 7, rate // 100, 3, rate // 50] * 3:
        produced += resampler.push(noise(rate)[:size]).size
        consumed += size
        assert produced <= consumed * 16_000 / rate + 0.5


@pytest.mark.parametrize("rate", PATHS)
def test_an_empty_chunk_changes_nothing(rate):
    x = noise(rate)
    empty = np.zeros(0, np.float32)
    resampler = Resampler(rate)
    assert resampler.push(empty).size == 0
    out = stream(resampler, [x[:1000], empty, np.zeros((0, 2), np.int16), x[1000:]])
    np.testing.assert_array_equal(out, stream(Resampler(rate), [x]))


def test_int16_fills_the_range():
    pcm = np.array([-32768, 0, 16384, 32767], np.int16)
    np.testing.assert_allclose(Resampler(16_000).push(pcm), [-1, 0, 0.5, 1], atol=1e-4)


@pytest.mark.parametrize("dtype, scale", [(np.float32, 1.0), (np.int16, 32768)])
def test_channels_are_averaged(dtype, scale):
    pcm = (np.array([[0.5, -0.25], [0.25, 0.25]]) * scale).astype(dtype)
    np.testing.assert_allclose(to_mono(pcm), [0.125, 0.25])
    np.testing.assert_allclose(to_mono(pcm[:, :1]), [0.5, 0.25])


@pytest.mark.parametrize("rate", PATHS)
def test_audio_beyond_full_scale_is_clipped(rate):
    loud = np.sign(tone(rate)) * np.float32(3)
    out = stream(Resampler(rate), [loud])
    assert np.abs(out).max() == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_and_leave_the_stream_as_it_was(bad):
    x = noise(48_000)
    resampler = Resampler(48_000)
    first = resampler.push(x[:1000])
    broken = np.zeros((480, 2), np.float32)
    broken[7, 1] = bad
    with pytest.raises(AudioFormatError, match="NaN or infinity"):
        resampler.push(broken)
    out = np.concatenate([first, stream(resampler, [x[1000:]])])
    np.testing.assert_array_equal(out, stream(Resampler(48_000), [x]))


def test_opposite_infinities_do_not_cancel():
    with pytest.raises(AudioFormatError, match="NaN or infinity"):
        check_pcm(np.array([np.inf, -np.inf], np.float32))


def test_large_finite_values_are_not_treated_as_infinity():
    check_pcm(np.full(10, 3e38, np.float32))


@pytest.mark.parametrize(
    "pcm, message",
    [
        (b"\0\0", "np.frombuffer"),
        (np.zeros(4), "float64"),
        (np.zeros((2, 480), np.float32), "transpose"),
        (np.zeros((480, 0), np.float32), r"\(480, 0\)"),
        (np.zeros((1, 480, 1), np.float32), "must be"),
        (np.zeros((), np.float32), "must be"),
    ],
)
def test_other_audio_is_refused_with_what_was_expected(pcm, message):
    with pytest.raises(AudioFormatError, match=message):
        check_pcm(pcm)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_101, 192_000, np.int64(48_000)])
def test_rates_of_live_audio_are_accepted(rate):
    check_rate(rate)


@pytest.mark.parametrize("rate", [7_999, 192_001, 16_000.0, True, "16000"])
def test_other_rates_are_refused_with_the_range(rate):
    with pytest.raises(AudioFormatError, match="8000 to 192000"):
        check_rate(rate)


@pytest.mark.parametrize("rate", [7_999, 192_001, 44_100.5])
def test_a_resampler_refuses_rates_out_of_range(rate):
    with pytest.raises(AudioFormatError, match="8000 to 192000"):
        Resampler(rate)
    with pytest.raises(AudioFormatError, match="8000 to 192000"):
        Resampler(16_000, rate)
