"""Speech with tags: what of a text is spoken, and when its moods and gestures come.

No engine of `letstalk_rt.speech` tells the times of words, so that each tag comes at its share of
the characters of its sentence, of what is heard of that sentence.
"""

import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np

from letstalk_rt.errors import TextError
from letstalk_rt.performance.tags import Cue, TaggedText, parse_tags
from letstalk_rt.speech.interface import MAX_TEXT_CHARS, TextToSpeech, prepare_text
from letstalk_rt.speech.sentences import split_sentences

logger = logging.getLogger(__name__)

_AUDIBLE = 0.02
"""Share of the loudest sample from which audio counts as heard."""

_FULL_SCALE = 32_768

_AHEAD_S = 1.0
"""A cue is told so long before the audio in which it falls."""


class Directed(Protocol):
    """Whose moods and gestures can be set, such as `AvatarSession`."""

    @property
    def is_directable(self) -> bool:
        """Whether the model has moods and gestures."""
        ...

    def set_mood(self, mood: str, strength: float = 1.0, *, at: float | None = None) -> None:
        """Change the mood at a time of the segment."""
        ...

    def gesture(self, name: str, amount: float = 1.0, *, at: float | None = None) -> None:
        """Make a gesture at a time of the segment."""
        ...


@dataclass(frozen=True, slots=True)
class TimedCue:
    """A mood or a gesture and its time.

    Attributes:
        name: of the mood or the gesture.
        is_mood: which of both.
        at_s: seconds of audio from the start of the segment.
    """

    name: str
    is_mood: bool
    at_s: float

    def perform(self, avatar: Directed) -> None:
        """Tell the avatar; one whose model has no moods and gestures ignores it."""
        if not avatar.is_directable:
            return
        if self.is_mood:
            avatar.set_mood(self.name, at=self.at_s)
        else:
            avatar.gesture(self.name, at=self.at_s)


@dataclass(frozen=True, slots=True)
class SpokenChunk:
    """Audio of a text: `pcm` is `(n,)` int16, `sample_rate` in Hz."""

    pcm: np.ndarray
    sample_rate: int


def prepare_tagged(text: str, max_chars: int = MAX_TEXT_CHARS) -> TaggedText:
    """Return a text as it may be given to an engine, without its tags.

    Whoever calls it tells the user of `unknown` tags, see `note_unknown`.

    Raises:
        TextError: see `prepare_text`; a text of tags alone is accepted, if one of them is known.
    """
    tagged = parse_tags(prepare_text(text, max_chars))
    if not has_words(tagged.text) and not tagged.cues:
        raise TextError("the text has only unknown tags, so nothing can be spoken; add words")
    return tagged


def note_unknown(tagged: TaggedText) -> None:
    """Log that tags were left out, and how many: the log never holds the text."""
    if tagged.unknown:
        logger.warning("tags that are unknown were left out", extra={"tags": len(tagged.unknown)})


def has_words(text: str) -> bool:
    """Return whether there is something to speak."""
    return any(char.isalnum() for char in text)


async def stream_tagged(
    speech: TextToSpeech, tagged: TaggedText
) -> AsyncIterator[SpokenChunk | TimedCue]:
    """Speak a text; each cue comes before the audio in which it falls.

    A text with tags is spoken sentence by sentence: one with a tag in its middle is synthesised
    before it is yielded, because its length tells the time of the tag.

    Raises:
        ConfigError: see `TextToSpeech.stream`.
        SynthesisError: see `TextToSpeech.stream`.
    """
    spoken_s = 0.0
    for text, cues in _sentences(tagged):
        if not has_words(text):
            for cue in cues:
                yield TimedCue(cue.name, cue.is_mood, spoken_s)
            continue
        async with aclosing(_stream_sentence(speech, text, cues, spoken_s)) as parts:
            async for part in parts:
                if isinstance(part, SpokenChunk):
                    spoken_s += len(part.pcm) / part.sample_rate
                yield part


async def _stream_sentence(
    speech: TextToSpeech, text: str, cues: tuple[Cue, ...], start_s: float
) -> AsyncGenerator[SpokenChunk | TimedCue, None]:
    """Speak one sentence, whose cues are placed in it and whose audio begins at a time."""
    stream = cast(AsyncGenerator[tuple[np.ndarray, int], None], speech.stream(text))
    async with aclosing(stream):
        if not any(has_words(text[: cue.position]) for cue in cues):
            for cue in cues:
                yield TimedCue(cue.name, cue.is_mood, start_s)
            async for each in stream:
                yield SpokenChunk(*each)
            return
        chunks = [SpokenChunk(*each) async for each in stream]
    for part in _in_order(chunks, _timed(text, cues, chunks, start_s), start_s):
        yield part


def _timed(
    text: str, cues: tuple[Cue, ...], chunks: list[SpokenChunk], start_s: float
) -> deque[TimedCue]:
    """Return cues with their times: their shares of what is heard of the sentence."""
    first_s, last_s = _heard_s(chunks)
    length_s = last_s - first_s
    return deque(
        TimedCue(cue.name, cue.is_mood, start_s + first_s + length_s * cue.position / len(text))
        for cue in cues
    )


def _in_order(
    chunks: list[SpokenChunk], cues: deque[TimedCue], start_s: float
) -> Iterator[SpokenChunk | TimedCue]:
    """Yield the audio, and each cue some time before its audio: gestures begin before theirs."""
    end_s = start_s
    for chunk in chunks:
        end_s += len(chunk.pcm) / chunk.sample_rate
        while cues and cues[0].at_s < end_s + _AHEAD_S:
            yield cues.popleft()
        yield chunk
    yield from cues


def _sentences(tagged: TaggedText) -> Iterator[tuple[str, tuple[Cue, ...]]]:
    """Yield each sentence with its cues, which are placed in it; one text if there are none."""
    start = 0
    sentences = split_sentences(tagged.text) if tagged.cues else [tagged.text]
    for text in sentences:
        end = start + len(text)
        found = [each for each in tagged.cues if start <= each.position < end]
        placed = tuple(Cue(each.name, each.is_mood, each.position - start) for each in found)
        yield text, placed
        start = end
    last = tuple(each for each in tagged.cues if each.position >= start)
    if last:
        yield "", last


def _heard_s(chunks: list[SpokenChunk]) -> tuple[float, float]:
    """Return when the first and the last sound of some audio are heard, in seconds."""
    if not chunks:
        return 0.0, 0.0
    rate = chunks[0].sample_rate
    levels = np.abs(np.concatenate([chunk.pcm for chunk in chunks]).astype(np.float32))
    (heard,) = np.nonzero(levels > max(_AUDIBLE * levels.max(initial=0), 1 / _FULL_SCALE))
    if not heard.size:
        return 0.0, len(levels) / rate
    return heard[0] / rate, (heard[-1] + 1) / rate
