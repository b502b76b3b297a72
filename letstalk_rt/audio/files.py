"""Reading speech from files."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer

from letstalk_rt.errors import AudioFormatError

# Playlists and image lists stay out: reading one file must not open others.
_CONTAINERS = "wav,w64,aiff,flac,mp3,aac,ogg,mov,matroska,avi"
_MISSING_SHARE = 0.02
_MISSING_S = 0.25
_UNKNOWN_BYTES = 0x7FFF_0000
"""Writers to pipes put this or more where they do not know the length of the data."""


def read_audio(path: str | Path) -> tuple[np.ndarray, int]:
    """Read the first audio track of a sound or video file, at its own rate.

    Wav, aiff, flac, mp3, aac, m4a, ogg, opus, mp4, mov, mkv, webm and avi are read. Samples of
    float files are clipped to [-1, 1].

    Returns:
        float32 samples, `(n,)` or `(n, channels)`, and the rate in Hz.

    Raises:
        AudioFormatError: there is no such file, it is no sound file, has no audio track, is empty,
            cut short or damaged, or holds NaN.
    """
    try:
        file = Path(path).open("rb")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        message = f"Cannot read the audio file {path}: {reason}. Check the path."
        raise AudioFormatError(message) from error
    with file:
        try:
            return _read(file, path)
        except OSError as error:
            raise AudioFormatError(f"Cannot read {path}: {error.strerror or error}.") from error


def _read(file: BinaryIO, path: str | Path) -> tuple[np.ndarray, int]:
    missing = _missing_wav_bytes(file)
    if missing:
        raise _cut_short(path, f"{missing} bytes of its data are missing")
    try:
        with av.open(file, "r", options={"format_whitelist": _CONTAINERS}) as container:
            return _decode(container, path)
    except AudioFormatError:
        raise
    except (av.FFmpegError, ValueError, EOFError) as error:
        raise _unusable(
            path,
            "it is no sound or video file, or it is damaged; expected wav, flac, mp3, m4a, ogg or "
            "mp4. Play it to check, or convert it to wav.",
        ) from error


def _decode(container: InputContainer, path: str | Path) -> tuple[np.ndarray, int]:
    if not container.streams.audio:
        raise _unusable(path, "it has no audio track. Use a file with sound.")
    stream = container.streams.audio[0]
    parts = list(_planes(container, stream))
    samples = np.concatenate(parts, axis=1) if parts else np.zeros((1, 0), np.float32)
    if samples.shape[1] == 0:
        raise _unusable(path, "its audio track is empty. Use a file with sound.")
    rate = stream.rate
    heard_s = samples.shape[1] / rate
    promised_s = _promised_s(container, stream)
    if promised_s - heard_s > max(_MISSING_S, _MISSING_SHARE * promised_s):
        raise _cut_short(path, f"it says {promised_s:.1f} s and holds {heard_s:.1f} s")
    if not np.isfinite(samples).all():
        first = int(np.argmin(np.isfinite(samples).all(0)))
        raise _unusable(
            path, f"sample {first} is NaN or infinite. Export the sound again with finite values."
        )
    return _outside_layout(samples), rate


def _planes(container: InputContainer, stream: AudioStream) -> Iterator[np.ndarray]:
    """Give the track in pieces of `(channels, n)` float32."""
    codec = stream.codec_context
    to_float = av.AudioResampler(format="fltp", layout=codec.layout, rate=codec.sample_rate)
    for frame in container.decode(stream):
        for converted in to_float.resample(frame):
            yield converted.to_ndarray()
    for converted in to_float.resample(None):
        yield converted.to_ndarray()


def _promised_s(container: InputContainer, stream: AudioStream) -> float:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return 0.0 if container.streams.video else (container.duration or 0) / 1e6


def _missing_wav_bytes(file: BinaryIO) -> int:
    """Compare a wav's header with its size: FFmpeg silently believes the size."""
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(12)
    missing = 0
    while head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        chunk = file.read(8)
        length = int.from_bytes(chunk[4:8], "little")
        if len(chunk) < 8 or length >= _UNKNOWN_BYTES:
            break
        if chunk[:4] == b"data":
            missing = max(file.tell() + length - size, 0)
            break
        file.seek(length + length % 2, 1)
    file.seek(0)
    return missing


def _cut_short(path: str | Path, how: str) -> AudioFormatError:
    return _unusable(path, f"it is cut short: {how}. Copy or download it again.")


def _unusable(path: str | Path, why: str) -> AudioFormatError:
    return AudioFormatError(f"Cannot use {path}: {why}")


def _outside_layout(planes: np.ndarray) -> np.ndarray:
    samples = np.clip(planes, -1, 1)
    return samples[0] if len(samples) == 1 else np.ascontiguousarray(samples.T)
