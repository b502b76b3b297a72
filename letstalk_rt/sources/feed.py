"""Feeds a session from a source."""

from collections.abc import AsyncIterable
from typing import Any, Protocol

import numpy as np

from letstalk_rt.errors import ConfigError
from letstalk_rt.metrics import Metrics


class AudioReceiver(Protocol):
    """A receiver of speech, such as `AvatarSession`."""

    metrics: Metrics

    async def push_audio(self, pcm: np.ndarray, sample_rate: int) -> None:
        """Push a chunk of speech."""
        ...

    async def end_segment(self) -> None:
        """Mark the end of the utterance."""
        ...


async def feed(
    session: AudioReceiver,
    source: AsyncIterable[np.ndarray],
    sample_rate: int | None = None,
    *,
    end_segment: bool = True,
) -> float:
    """Push all audio of a source until it ends. Run it in a task beside the one that reads frames.

    The session sets the pace: a non-live source waits, and a live one drops what it cannot buffer
    and counts it in `Metrics.overflows`.

    Args:
        session: an open session.
        source: an async iterator of arrays as `push_audio` accepts them: a `Microphone`, a
            `FileSource`, or any other.
        sample_rate: sample rate of the source in Hz; None reads `source.sample_rate`.
        end_segment: end the segment when the source ends.

    Returns:
        Seconds of audio that were pushed.

    Raises:
        ConfigError: the sample rate is not known.
        AudioFormatError: the source yielded something that is not audio.
        SessionClosed: the session ended; close the source.
    """
    rate = getattr(source, "sample_rate", None) if sample_rate is None else sample_rate
    if rate is None:
        raise ConfigError(
            "the source has no sample_rate; pass it: feed(session, source, sample_rate)"
        )
    pushed_s = 0.0
    async for pcm in source:
        _copy_overflows(session.metrics, source)
        await session.push_audio(pcm, rate)
        pushed_s += len(pcm) / rate
    if end_segment:
        await session.end_segment()
    return pushed_s


def _copy_overflows(metrics: Metrics, source: Any) -> None:
    metrics.overflows = getattr(source, "overflows", 0)
