"""Plays a session's sound on a loudspeaker, or into a virtual microphone."""

from typing import Any

import numpy as np
import soxr

from letstalk_rt.audio.audio_devices import find_device, load_sounddevice
from letstalk_rt.errors import ConfigError, DependencyError
from letstalk_rt.sinks.audio_buffer import AudioBuffer
from letstalk_rt.types import FPS, SAMPLE_RATE, AVFrame

MAX_DELAY_MS = 2000
BUFFER_S = 0.075
"""Held just after a frame's sound came in: the frame itself and 35 ms for a late one."""


class Speaker:
    """The sound of a session on an output device.

    The sound of a frame is that of its picture, so it comes as much later than the voice that was
    heard as the picture does: routed into a virtual microphone (`device="..."`) it stays in step
    with a virtual camera. Picture sinks beside it are held back by `latency_s`, see `play`.

    Args:
        device: number or part of the name of an output device; None is the default.
        delay_ms: play the sound so much later than the picture, from 0 to 2000, for programs that
            show the camera late.

    Raises:
        ConfigError: `delay_ms` is out of range.
    """

    def __init__(self, device: str | int | None = None, *, delay_ms: int = 0) -> None:
        if not 0 <= delay_ms <= MAX_DELAY_MS:
            raise ConfigError(f"The delay is {delay_ms} ms; expected 0 to {MAX_DELAY_MS}.")
        self._device = device
        self._delay_s = delay_ms / 1000
        self._stream: Any = None
        self._buffer: AudioBuffer | None = None
        self._epoch = 0

    @property
    def latency_s(self) -> float:
        """From `show` to the ear, the wanted delay left out."""
        device_s = 0.0 if self._stream is None else float(self._stream.latency)
        return BUFFER_S - 1 / FPS + device_s

    @property
    def underruns(self) -> int:
        """How often the sound broke off because none came."""
        return 0 if self._buffer is None else self._buffer.underruns

    def open(self, width: int, height: int) -> None:
        """Open the device.

        Raises:
            ConfigError: no such device.
            DependencyError: no device works, or PortAudio is missing.
        """
        sounddevice = load_sounddevice()
        device = find_device("output", self._device)
        rate = int(device["default_samplerate"])
        self._buffer = AudioBuffer(rate, BUFFER_S + self._delay_s)
        self._resampler = soxr.ResampleStream(SAMPLE_RATE, rate, 1, "float32", quality="MQ")
        channels = min(2, device["max_output_channels"])
        try:
            self._stream = sounddevice.OutputStream(
                samplerate=rate,
                channels=channels,
                dtype="float32",
                device=device["index"],
                latency="low",
                callback=self._fill,
            )
            self._stream.start()
        except sounddevice.PortAudioError as error:
            raise DependencyError(
                f"The sound output {device['name']!r} cannot be opened. Close the program that "
                "uses it, or name another device."
            ) from error

    def show(self, frame: AVFrame) -> None:
        """Queue the frame's sound; after an interrupt, drop what waits of before."""
        assert self._buffer is not None, "open first"
        if frame.epoch != self._epoch:
            self._epoch = frame.epoch
            self.flush()
        self._buffer.push(self._resampler.resample_chunk(frame.pcm))

    def repeat(self, frame: AVFrame) -> None:
        """Play nothing: a repeated picture has no sound."""

    def flush(self) -> None:
        """Fall silent at once; what the device itself holds is still heard."""
        if self._buffer is not None:
            self._buffer.clear()
            self._resampler.clear()

    def close(self) -> None:
        """Free the device. Safe to call twice."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _fill(self, out: np.ndarray, count: int, time: Any, status: Any) -> None:
        """Runs in PortAudio's thread."""
        assert self._buffer is not None
        out[:] = self._buffer.pull(count)[:, None]
