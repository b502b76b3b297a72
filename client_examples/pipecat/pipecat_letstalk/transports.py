"""What the avatar needs of the output transport, and the check that it has it."""

from collections.abc import Iterator
from typing import Any

from pipecat.processors.frame_processor import FrameProcessor
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import TransportParams

from letstalk_rt import Avatar, ConfigError
from letstalk_rt.audio.speech_resampler import OUTPUT_RATES_HZ

FRAMERATE = 30
"""The transport shows the newest image so often. It sleeps for a whole period after each image, so
at 25, the rate of the avatar, it would show fewer than 25."""

CHUNKS_OF_10_MS = 2
"""The audio that the transport sends at a time, which an interrupt cannot take back."""


def output_params(avatar: Avatar) -> dict[str, Any]:
    """Return the arguments of `TransportParams` that concern what this avatar sends.

    ::

        TransportParams(audio_in_enabled=True, **output_params(avatar))
    """
    height, width, _ = avatar.portrait.canvas.shape
    return {
        "audio_out_enabled": True,
        "audio_out_10ms_chunks": CHUNKS_OF_10_MS,
        "video_out_enabled": True,
        "video_out_is_live": False,
        "video_out_width": width,
        "video_out_height": height,
        "video_out_framerate": FRAMERATE,
    }


def check_transports(pipeline: FrameProcessor) -> None:
    """Check that the output transports of a pipeline show the avatar.

    A pipeline without an output transport is accepted: its frames may go elsewhere.

    Raises:
        ConfigError: they do not; the message says what to change.
    """
    for params in _output_params(pipeline):
        if not params.video_out_enabled:
            raise ConfigError(
                "the output transport sends no video; create it with "
                "TransportParams(..., **output_params(avatar))"
            )
        if params.video_out_is_live:
            raise ConfigError(
                "the output transport has video_out_is_live=True, which drops the images that "
                "belong to speech and leaves 5 frames per second; set video_out_is_live=False, or "
                "create it with TransportParams(..., **output_params(avatar))"
            )


def output_rate(pipeline: FrameProcessor, default_hz: int) -> int:
    """Return the sample rate at which the output transports of a pipeline send, in Hz.

    Args:
        pipeline: where the transports are.
        default_hz: the rate of a transport that has none of its own.

    Raises:
        ConfigError: the audio of an avatar cannot have this rate. A transport could convert it, but
            in pieces of irregular length, which halves the rate of the images between them.
    """
    rates = [params.audio_out_sample_rate or default_hz for params in _output_params(pipeline)]
    rate = rates[0] if rates else default_hz
    if rate not in OUTPUT_RATES_HZ:
        known = ", ".join(map(str, OUTPUT_RATES_HZ))
        raise ConfigError(
            f"the output transport sends audio at {rate} Hz; set audio_out_sample_rate of "
            f"TransportParams or PipelineParams to one of {known}"
        )
    return rate


def _output_params(processor: FrameProcessor) -> Iterator[TransportParams]:
    """Yield the parameters of the output transports in a processor, however deep."""
    if isinstance(processor, BaseOutputTransport):
        yield processor._params  # Pipecat has no public name for them
    for part in processor.processors:
        yield from _output_params(part)
