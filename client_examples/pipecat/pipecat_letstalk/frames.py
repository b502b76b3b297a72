"""Conversion between frames of Pipecat and of an avatar session."""

import numpy as np
from pipecat.frames.frames import Frame, OutputImageRawFrame, TTSAudioRawFrame

from letstalk_rt import AudioFormatError, AVFrame

LEAD_IN_MS = 60
"""Silence before the first word. The transport sends audio in chunks, by its own clock: that much
audio waiting there bridges the jitter of a busy event loop, which would otherwise be heard. It is
shorter than the pause that a session leaves between segments, so it does not accumulate."""

_SYNC_FRAMES = 25
"""Images stay synchronised with audio for this long after the last speech. They may not overtake
the last images of speech, which still wait in the transport for their audio."""


def pcm_of(frame: TTSAudioRawFrame) -> np.ndarray:
    """Return the samples of a frame, `(n, channels)` int16.

    Raises:
        AudioFormatError: its bytes are not whole samples of so many channels.
    """
    channels, size = frame.num_channels, len(frame.audio)
    if channels < 1 or size % (2 * channels):
        raise AudioFormatError(
            f"a TTSAudioRawFrame must hold 16-bit PCM of one or two channels, got {size} bytes "
            f"with num_channels={channels}; check the TTS service"
        )
    return np.frombuffer(frame.audio, np.int16).reshape(-1, channels)


class SpokenVideo:
    """Converts the frames of one session, in order, to images and audio for an output transport.

    Idle frames become images, which the transport shows at once. Frames of speech become an image
    that waits for the audio before it (`sync_with_audio`), then their audio. Silence in which
    speech is late is sent as audio as well, for up to a second, so that time goes on in the
    transport.
    """

    def __init__(self) -> None:
        self._in_segment = False
        self._quiet = _SYNC_FRAMES  # frames since the last with speech

    def convert(self, frame: AVFrame) -> list[Frame]:
        """Return what the transport is given for the next frame, in this order."""
        self._quiet = 0 if frame.spoken else self._quiet + 1
        frames: list[Frame] = []
        if frame.spoken and not self._in_segment:
            self._in_segment = True
            lead_in = np.zeros(frame.sample_rate * LEAD_IN_MS // 1000, np.float32)
            frames.append(_audio(lead_in, frame.sample_rate))
        is_synchronised = self._quiet < _SYNC_FRAMES
        self._in_segment &= is_synchronised
        frames.append(_image(frame, is_synchronised))
        if self._in_segment:
            frames.append(_audio(frame.pcm, frame.sample_rate))
        return frames

    def end_segment(self) -> None:
        """Record the end of a segment: what follows has no audio until speech begins again."""
        self._in_segment = False

    def interrupt(self) -> None:
        """Record that the transport drops what waits there: images are shown at once again."""
        self._in_segment, self._quiet = False, _SYNC_FRAMES


def _audio(pcm: np.ndarray, sample_rate: int) -> TTSAudioRawFrame:
    samples = np.rint(pcm * 32768).clip(-32768, 32767).astype(np.int16)
    return TTSAudioRawFrame(samples.tobytes(), sample_rate, 1)


def _image(frame: AVFrame, is_synchronised: bool) -> OutputImageRawFrame:
    height, width, _ = frame.rgb.shape
    image = OutputImageRawFrame(frame.rgb.tobytes(), (width, height), "RGB")
    image.sync_with_audio = is_synchronised
    return image
