"""Lets a session speak text."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol, cast

import numpy as np

from letstalk_rt.performance.tags import TaggedText
from letstalk_rt.speech.interface import TextToSpeech
from letstalk_rt.speech.tagged import (
    Directed,
    SpokenChunk,
    TimedCue,
    note_unknown,
    prepare_tagged,
    stream_tagged,
)


class Speaker(Directed, Protocol):
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


async def say(session: Speaker, speech: TextToSpeech, text: str | TaggedText) -> bool:
    """Speak a text as one segment; return when it was pushed.

    Tags in square brackets, such as `[smiles]` or `[serious]`, are not spoken: the mood or gesture
    comes at the word that follows. Unknown tags are left out, and counted in the log.

    The session sets the pace: the synthesis waits when it is ahead. An interrupt of the session
    stops the synthesis, too.

    Args:
        session: an open session.
        speech: the engine, see `letstalk_rt.speech.open_speech`.
        text: see `TextToSpeech.stream`, or what `performance.parse_tags` has made of it.

    Returns:
        Whether the whole text was pushed; False after an interrupt.

    Raises:
        TextError: the text cannot be spoken; nothing was pushed.
        SynthesisError: the engine failed; what was spoken before is a segment.
    """
    if isinstance(text, str):
        text = prepare_tagged(text)
        note_unknown(text)
    epoch = session.epoch
    stream = cast(AsyncGenerator[SpokenChunk | TimedCue, None], stream_tagged(speech, text))
    pushed = False
    try:
        async with aclosing(stream):
            async for part in stream:
                if session.epoch != epoch:
                    return False
                if isinstance(part, TimedCue):
                    part.perform(session)
                else:
                    pushed = True
                    await session.push_audio(part.pcm, part.sample_rate)
    finally:
        if pushed and session.epoch == epoch:
            await session.end_segment()
    return session.epoch == epoch
