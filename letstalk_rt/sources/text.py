"""Lets a session speak text."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol, cast

import numpy as np

from letstalk_rt.speech.interface import TextToSpeech


class Speaker(Protocol):
    """A receiver of speech that can be interrupted, such as `AvatarSession`."""

    @property
    def epoch(self) -> int:
        """The number of interrupts so far."""
        ...

    async def push_audio(self, pcm: np.ndarray, sample_rate: int) -> None:
        """Push a chunk of speech."""
        ...

    async def end_segment(self) -> None:
        """Mark the end of the utterance."""
        ...


async def say(session: Speaker, speech: TextToSpeech, text: str) -> bool:
    """Speak a text as one segment; return when it was pushed.

    The session sets the pace: the synthesis waits when it is ahead. An interrupt of the session
    stops the synthesis, too.

    Args:
        session: an open session.
        speech: the engine, see `letstalk_rt.speech.open_speech`.
        text: see `TextToSpeech.stream`.

    Returns:
        Whether the whole text was pushed; False after an interrupt.

    Raises:
        TextError: the text cannot be spoken; nothing was pushed.
        SynthesisError: the engine failed; what was spoken before is a segment.
    """
    epoch = session.epoch
    stream = cast(AsyncGenerator[tuple[np.ndarray, int], None], speech.stream(text))
    pushed = False
    try:
        async with aclosing(stream):
            async for pcm, sample_rate in stream:
                if session.epoch != epoch:
                    return False
                pushed = True
                await session.push_audio(pcm, sample_rate)
    finally:
        if pushed and session.epoch == epoch:
            await session.end_segment()
    return session.epoch == epoch
