"""Audio files are read in the usual formats, and refused with a reason if they are unusable."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from letstalk_rt.audio.files import audio_chunks, audio_facts, read_audio
from letstalk_rt.errors import AudioFormatError

RATE = 48_000
CODECS = {
    "speech.wav": "pcm_s16le",
    "speech.flac": "flac",
    "speech.mp3": "libmp3lame",
    "speech.m4a": "aac",
    "speech.ogg": "libopus",
    "speech.mkv": "aac",
}


Reader = Callable[[Path], object]


def read_chunks(path: Path) -> list[np.ndarray]:
    return list(audio_chunks(path))


READERS = [read_audio, read_chunks]


def tone(seconds: float = 1.5) -> np.ndarray:
    return (0.4 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * RATE)) / RATE)).astype("f4")


def write(path: Path, planes: np.ndarray, codec: str, *, with_video: bool = False) -> Path:
    layout = "mono" if len(planes) == 1 else "stereo"
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        if with_video:
            video = container.add_stream("libx264", rate=25, width=64, height=64)
        stream = container.add_stream(codec, rate=RATE, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(planes), "fltp", layout)
        frame.sample_rate, frame.pts = RATE, 0
        if with_video:
            still = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")
            container.mux([*video.encode(still), *video.encode(None)])
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return path


@pytest.mark.parametrize("name", CODECS)
def test_a_tone_is_read_at_its_own_rate_and_in_stereo(tmp_path: Path, name: str) -> None:
    audio = tone()
    path = write(tmp_path / name, np.stack([audio, 0 * audio]), CODECS[name])
    samples, rate = read_audio(path)
    assert rate == RATE and samples.dtype == np.float32
    assert samples.shape[1] == 2 and abs(len(samples) - len(audio)) < 0.05 * RATE
    left, right = samples[RATE // 2 : RATE].T
    assert abs(np.sqrt(np.mean(left**2)) - 0.4 / np.sqrt(2)) < 0.02
    assert np.abs(right).max() < 0.05


def test_mono_has_one_axis_and_pcm_is_exact(tmp_path: Path) -> None:
    audio = tone()
    samples, _ = read_audio(write(tmp_path / "mono.wav", audio[None], "pcm_f32le"))
    assert np.array_equal(samples, audio)


def test_the_audio_of_a_video_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mp4", tone()[None], "aac", with_video=True)
    assert len(read_audio(path)[0]) > RATE


def test_float_samples_beyond_full_scale_are_clipped(tmp_path: Path) -> None:
    samples, _ = read_audio(write(tmp_path / "loud.wav", 5 * tone()[None], "pcm_f32le"))
    assert samples.max() == 1 and samples.min() == -1


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("name", ["speech.wav", "speech.flac", "speech.m4a"])
def test_a_truncated_file_is_refused(tmp_path: Path, name: str, read: Reader) -> None:
    path = write(tmp_path / name, tone()[None], CODECS[name])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioFormatError, match="truncated|damaged"):
        read(path)


def test_the_header_of_a_truncated_wav_tells_of_it(tmp_path: Path) -> None:
    path = write(tmp_path / "speech.wav", tone()[None], "pcm_s16le")
    assert audio_facts(path).seconds == 1.5
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(AudioFormatError, match="1000 bytes of data are missing"):
        audio_facts(path)


@pytest.mark.parametrize("name", CODECS)
def test_chunks_are_the_whole(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, np.stack([tone(), 0 * tone()]), CODECS[name])
    assert np.array_equal(np.concatenate(list(audio_chunks(path))), read_audio(path)[0])


def test_a_wav_from_a_pipe_with_unknown_length_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "pipe.wav", tone()[None], "pcm_s16le")
    data = bytearray(path.read_bytes())
    at = data.index(b"data")
    data[4:8] = data[at + 4 : at + 8] = b"\xff" * 4
    path.write_bytes(data)
    assert len(read_audio(path)[0]) == len(tone())


def test_the_position_of_nan_is_named(tmp_path: Path) -> None:
    audio = tone()
    audio[1234] = np.nan
    with pytest.raises(AudioFormatError, match="sample 1234 is NaN"):
        read_audio(write(tmp_path / "nan.wav", audio[None], "pcm_f32le"))


def test_a_video_without_audio_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "silent.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, width=64, height=64)
        still = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")
        container.mux([*video.encode(still), *video.encode(None)])
    with pytest.raises(AudioFormatError, match="no audio track"):
        read_audio(path)


def test_an_empty_track_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "empty.wav", tone(0.1)[None], "pcm_s16le")
    data = path.read_bytes()
    at = data.index(b"data") + 8
    path.write_bytes(data[: at - 4] + bytes(4))
    with pytest.raises(AudioFormatError, match="empty"):
        read_audio(path)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("content", [b"", b"hello, this is not audio" * 50, bytes(5000)])
def test_other_content_is_refused(tmp_path: Path, content: bytes, read: Reader) -> None:
    path = tmp_path / "speech.wav"
    path.write_bytes(content)
    with pytest.raises(AudioFormatError, match="not an audio or video file"):
        read(path)


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    write(tmp_path / "speech.wav", tone()[None], "pcm_s16le")
    playlist = tmp_path / "list.m3u8"
    playlist.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.5,\nspeech.wav\n")
    with pytest.raises(AudioFormatError):
        read_audio(playlist)


@pytest.mark.parametrize("read", READERS)
def test_a_missing_file_and_a_folder_are_named(tmp_path: Path, read: Reader) -> None:
    with pytest.raises(AudioFormatError, match="nowhere.wav: No such file"):
        read(tmp_path / "nowhere.wav")
    with pytest.raises(AudioFormatError, match="directory"):
        read(tmp_path)
