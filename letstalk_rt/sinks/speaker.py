"""Plays the audio of a session on a loudspeaker, or into a virtual microphone."""

from typing import Any

import numpy as np
import soxr

from letstalk_rt.audio.audio_devices import find_device, load_sounddevice
from letstalk_rt.errors import ConfigError, DependencyError
from letstalk_rt.recording.threaded_sink import check_sample_rate
from letstalk_rt.sinks.audio_buffer import AudioBuffer
from letstalk_rt.types import FPS, SAMPLE_RATE, AVFrame

MAX_DELAY_MS = 2000
BUFFER_S = 0.075
"""Buffer level just after a frame: the frame itself and 35 ms in case the next one is late."""


class Speaker:
    """An output device that plays the audio of a session.

    The audio is that of the frames, delayed as they are: routed into a virtual microphone
    (`device="..."`), it is in sync with a virtual camera. Video sinks beside it are delayed by
    `latency_s`, see `play`.

    Args:
        device: number or part of the name of an output device; None for the default.
        delay_ms: additional delay of the audio, from 0 to 2000, for programs that show the camera
            late.
        sample_rate: `output_sample_rate` of the session, Hz.

    Raises:
        ConfigError: `delay_ms` is out of range.
    """

    def __init__(
        self,
        device: str | int | None = None,
        *,
        delay_ms: int = 0,
        sample_rate: int = SAMPLE_RATE,
    ) -> None:
        if not 0 <= delay_ms <= MAX_DELAY_MS:
            raise ConfigError(f"The delay is {delay_ms} ms; expected 0 to {MAX_DELAY_MS}.")
        self._device = device
        self._delay_s = delay_ms / 1000
        self._sample_rate = sample_rate
        self._stream: Any = None
        self._buffer: AudioBuffer | None = None
        self._epoch = 0

    @property
    def latency_s(self) -> float:
        """Seconds from `show` until the audio is audible, without `delay_ms`."""
        device_s = 0.0 if self._stream is None else float(self._stream.latency)
        return BUFFER_S - 1 / FPS + device_s

    @property
    def underruns(self) -> int:
        """How often the buffer ran dry during audio."""
        return 0 if self._buffer is None else self._buffer.underruns

    def open(self, width: int, height: int) -> None:
        """Open the device.

        Raises:
            ConfigError: no device matches.
            DependencyError: the device cannot be opened, or PortAudio is not installed.
        """
        sounddevice = load_sounddevice()
        device = find_device("output", self._device)
        rate = int(device["default_samplerate"])
        self._buffer = AudioBuffer(rate, BUFFER_S + self._delay_s)
        self._resampler = soxr.ResampleStream(self._sample_rate, rate, 1, "float32", quality="MQ")
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
                f"The audio output {device['name']!r} cannot be opened. Close the program that "
                "uses it, or choose another device."
            ) from error

    def show(self, frame: AVFrame) -> None:
        """Queue the audio of the frame; after an interrupt, drop queued audio first."""
        assert self._buffer is not None, "open first"
        check_sample_rate(frame, self._sample_rate)
        if frame.epoch != self._epoch:
            self._epoch = frame.epoch
            self.flush()
        self._buffer.push(self._resampler.resample_chunk(frame.pcm))

    def repeat(self, frame: AVFrame) -> None:
        """Do nothing: a repeated frame has no audio."""

    def flush(self) -> None:
        """Fall silent at once, except for what the device itself buffers."""
        if self._buffer is not None:
            self._buffer.clear()
            self._resampler.clear()

    def close(self) -> None:
        """Release the device. May be called twice."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _fill(self, out: np.ndarray, count: int, time: Any, status: Any) -> None:
        """Fill an output block. Called in PortAudio's thread."""
        assert self._buffer is not None
        out[:] = self._buffer.pull(count)[:, None]
