"""Reading audio files."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer

from letstalk_rt.errors import AudioFormatError

# Playlists and image lists are excluded: reading one file must not open others.
_CONTAINERS = "wav,w64,aiff,flac,mp3,aac,ogg,mov,matroska,avi"
_MAX_MISSING_SHARE = 0.02
_MAX_MISSING_S = 0.25
_UNKNOWN_LENGTH = 0x7FFF_0000
"""Programs that write to a pipe store this or more as the length of the data."""


@dataclass(frozen=True, slots=True)
class AudioFacts:
    """What the header of an audio file says.

    Attributes:
        rate: sample rate in Hz.
        channels: channels of what `audio_chunks` yields, 1 or 2.
        seconds: length; 0 if unknown.
    """

    rate: int
    channels: int
    seconds: float


def read_audio(path: str | Path) -> tuple[np.ndarray, int]:
    """Read the first audio track of an audio or video file, at its own sample rate.

    The formats are wav, aiff, flac, mp3, aac, m4a, ogg, opus, mp4, mov, mkv, webm and avi. Samples
    of float files are clipped to [-1, 1].

    Returns:
        float32 samples, `(n,)` or `(n, channels)`, and the sample rate in Hz.

    Raises:
        AudioFormatError: the file does not exist, is not an audio file, has no audio track, is
            empty, truncated or damaged, or contains NaN.
    """
    with _opened(path) as container:
        return _decode(container, path)


def audio_facts(path: str | Path) -> AudioFacts:
    """Return what the header of an audio file says.

    Raises:
        AudioFormatError: as for `read_audio`, as far as the header tells.
    """
    with _opened(path) as container:
        stream = _audio_stream(container, path)
        seconds = _stated_s(container, stream) or (container.duration or 0) / 1e6
        return AudioFacts(stream.rate, 2 if stream.channels == 2 else 1, seconds)


def audio_chunks(path: str | Path) -> Iterator[np.ndarray]:
    """Yield the first audio track of a file in chunks, so that files may be of any length.

    Returns:
        float32 samples in [-1, 1], `(n,)`, or `(n, 2)` of a file with two channels; more than two
        are mixed down to one.

    Raises:
        AudioFormatError: as for `read_audio`, when the data in question are reached.
    """
    with _opened(path) as container:
        stream = _audio_stream(container, path)
        decoded = 0
        try:
            for planes in _decode_chunks(container, stream):
                if not np.isfinite(planes).all():
                    raise _unusable(path, "a sample is NaN or infinite. Export the audio again.")
                decoded += planes.shape[1]
                yield _to_samples_first(planes if len(planes) < 3 else planes.mean(0)[None])
        except AudioFormatError:
            raise
        except (av.FFmpegError, ValueError, EOFError) as error:
            raise _unusable(path, f"it is damaged after {decoded / stream.rate:.1f} s.") from error
        _check_complete(container, stream, decoded, path)


@contextmanager
def _opened(path: str | Path) -> Iterator[InputContainer]:
    """Open a file for reading its audio; what FFmpeg raises becomes an `AudioFormatError`."""
    with _file(path) as file:
        missing = _missing_wav_bytes(file)
        if missing:
            raise _truncated(path, f"{missing} bytes of data are missing")
        try:
            with av.open(file, "r", options={"format_whitelist": _CONTAINERS}) as container:
                yield container
        except AudioFormatError:
            raise
        except (av.FFmpegError, ValueError, EOFError) as error:
            raise _unusable(
                path,
                "it is not an audio or video file, or it is damaged; expected wav, flac, mp3, m4a, "
                "ogg or mp4. Play the file to check it, or convert it to wav.",
            ) from error


@contextmanager
def _file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file; what the system raises, also while it is read, becomes an `AudioFormatError`."""
    try:
        file = Path(path).open("rb")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        message = f"Cannot read the audio file {path}: {reason}. Check the path."
        raise AudioFormatError(message) from error
    with file:
        try:
            yield file
        except OSError as error:
            raise AudioFormatError(f"Cannot read {path}: {error.strerror or error}.") from error


def _audio_stream(container: InputContainer, path: str | Path) -> AudioStream:
    if not container.streams.audio:
        raise _unusable(path, "it has no audio track. Use a file with audio.")
    return container.streams.audio[0]


def _decode(container: InputContainer, path: str | Path) -> tuple[np.ndarray, int]:
    stream = _audio_stream(container, path)
    parts = list(_decode_chunks(container, stream))
    samples = np.concatenate(parts, axis=1) if parts else np.zeros((1, 0), np.float32)
    _check_complete(container, stream, samples.shape[1], path)
    if not np.isfinite(samples).all():
        first = int(np.argmin(np.isfinite(samples).all(0)))
        raise _unusable(
            path, f"sample {first} is NaN or infinite. Export the audio again with finite values."
        )
    return _to_samples_first(samples), stream.rate


def _check_complete(
    container: InputContainer, stream: AudioStream, count: int, path: str | Path
) -> None:
    """Check that about as many samples were decoded as the header says, and at least one."""
    if not count:
        raise _unusable(path, "its audio track is empty. Use a file with audio.")
    decoded_s, stated_s = count / stream.rate, _stated_s(container, stream)
    if stated_s - decoded_s > max(_MAX_MISSING_S, _MAX_MISSING_SHARE * stated_s):
        raise _truncated(
            path, f"its header says {stated_s:.1f} s, its data ends at {decoded_s:.1f} s"
        )


def _decode_chunks(container: InputContainer, stream: AudioStream) -> Iterator[np.ndarray]:
    """Yield the track in chunks of `(channels, n)` float32."""
    codec = stream.codec_context
    to_float = av.AudioResampler(format="fltp", layout=codec.layout, rate=codec.sample_rate)
    for frame in container.decode(stream):
        for converted in to_float.resample(frame):
            yield converted.to_ndarray()
    for converted in to_float.resample(None):
        yield converted.to_ndarray()


def _stated_s(container: InputContainer, stream: AudioStream) -> float:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return 0.0 if container.streams.video else (container.duration or 0) / 1e6


def _missing_wav_bytes(file: BinaryIO) -> int:
    """Return how many bytes a wav file lacks by its header, which FFmpeg ignores."""
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(12)
    missing = 0
    while head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        header = file.read(8)
        length = int.from_bytes(header[4:8], "little")
        if len(header) < 8 or length >= _UNKNOWN_LENGTH:
            break
        if header[:4] == b"data":
            missing = max(file.tell() + length - size, 0)
            break
        file.seek(length + length % 2, 1)
    file.seek(0)
    return missing


def _truncated(path: str | Path, how: str) -> AudioFormatError:
    return _unusable(path, f"it is truncated: {how}. Copy or download the file again.")


def _unusable(path: str | Path, reason: str) -> AudioFormatError:
    return AudioFormatError(f"Cannot use {path}: {reason}")


def _to_samples_first(planes: np.ndarray) -> np.ndarray:
    samples = np.clip(planes, -1, 1)
    return samples[0] if len(samples) == 1 else np.ascontiguousarray(samples.T)
