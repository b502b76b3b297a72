"""Carries the sound of a source to a session."""

from collections.abc import AsyncIterable
from typing import Any, Protocol

import numpy as np

from letstalk_rt.errors import ConfigError
from letstalk_rt.metrics import Metrics


class AudioReceiver(Protocol):
    """What is spoken to; `AvatarSession` is one."""

    metrics: Metrics

    async def push_audio(self, pcm: np.ndarray, sample_rate: int) -> None:
        """Take a piece of speech."""
        ...

    async def end_segment(self) -> None:
        """The utterance is over."""
        ...


async def feed(
    session: AudioReceiver,
    source: AsyncIterable[np.ndarray],
    sample_rate: int | None = None,
    *,
    end_segment: bool = True,
) -> float:
    """Push all that a source gives, until it ends. Run it in a task beside the one that reads.

    The session sets the pace: a source in a hurry waits, and a live one drops what it cannot hold
    and counts it, see `Metrics.overflows`.

    Args:
        session: an open session.
        source: gives arrays as `push_audio` takes them: a `Microphone`, a `FileSource`, any async
            iterator of PCM.
        sample_rate: of the source, in Hz; the source's own `sample_rate` when None.
        end_segment: end the segment when the source ends.

    Returns:
        Seconds of sound that were pushed.

    Raises:
        ConfigError: the sample rate is not known.
        AudioFormatError: the source gave what is no sound.
        SessionClosed: the session ended; close the source.
    """
    rate = getattr(source, "sample_rate", None) if sample_rate is None else sample_rate
    if rate is None:
        raise ConfigError("the source does not say its sample rate; give feed(..., sample_rate)")
    pushed_s = 0.0
    async for pcm in source:
        _note_overflows(session.metrics, source)
        await session.push_audio(pcm, rate)
        pushed_s += len(pcm) / rate
    if end_segment:
        await session.end_segment()
    return pushed_s


def _note_overflows(metrics: Metrics, source: Any) -> None:
    metrics.overflows = getattr(source, "overflows", 0)
