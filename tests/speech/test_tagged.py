"""Tags in texts: never spoken, and each at its word."""

import asyncio
import logging

import numpy as np
import pytest
from support.fakes import FakePipeline, InlineWorker, portrait
from support.packages import needs
from support.sessions import until_end

from letstalk_rt.errors import TextError
from letstalk_rt.performance import parse_tags
from letstalk_rt.session.session import AvatarSession
from letstalk_rt.sources import say
from letstalk_rt.speech.system import SystemSpeech
from letstalk_rt.speech.tagged import SpokenChunk, TimedCue, prepare_tagged, stream_tagged

RATE, CHAR_S = 8000, 0.1
"""The even voice speaks ten characters a second."""


class EvenVoice:
    """A voice in which each character takes equally long, between pauses of a quarter second."""

    name = "even"

    def __init__(self, pause_s=0.25):
        self.said, self._pause_s = [], pause_s

    async def stream(self, text):
        self.said.append(text)
        pause = np.zeros(round(self._pause_s * RATE), np.int16)
        yield pause, RATE
        for _ in text:
            yield np.full(round(CHAR_S * RATE), 9000, np.int16), RATE
        yield pause, RATE


async def parts_of(text, voice=None):
    voice = voice or EvenVoice()
    return [part async for part in stream_tagged(voice, prepare_tagged(text))]


async def cues_of(text, voice=None):
    parts = await parts_of(text, voice)
    return {part.name: part.at_s for part in parts if isinstance(part, TimedCue)}


async def test_a_tag_comes_at_its_word_and_is_not_spoken():
    voice = EvenVoice()
    cues = await cues_of("It is [nods] true. Or [winks] so I hear, [serious] now.", voice)
    assert "".join(voice.said).split() == "It is true. Or so I hear, now.".split()
    assert not any("[" in text for text in voice.said)
    first_s = 2 * 0.25 + len("It is true.") * CHAR_S
    assert cues["nod"] == pytest.approx(0.25 + 6 * CHAR_S, abs=0.02)
    assert cues["wink"] == pytest.approx(first_s + 0.25 + 4 * CHAR_S, abs=0.02)
    assert cues["serious"] == pytest.approx(first_s + 0.25 + 15 * CHAR_S, abs=0.02)


async def test_a_tag_before_a_sentence_comes_at_its_begin_and_nothing_waits_for_the_synthesis():
    parts = stream_tagged(EvenVoice(), prepare_tagged("[cheerful] Good morning to all of you."))
    first = await anext(parts)
    assert (first.name, first.is_mood, first.at_s) == ("cheerful", True, 0.0)
    assert isinstance(await anext(parts), SpokenChunk)
    await parts.aclose()


async def test_a_tag_at_the_end_comes_after_the_last_word():
    cues = await cues_of("Good night. [nods]")
    assert cues["nod"] == pytest.approx(2 * 0.25 + len("Good night.") * CHAR_S, abs=0.15)


async def test_a_cue_is_told_before_its_audio_and_no_more_than_a_second():
    spoken_s = 0.0
    for part in await parts_of("one two three four five six seven eight [nods] nine ten"):
        if isinstance(part, TimedCue):
            assert 0 < part.at_s - spoken_s <= 1.0 + CHAR_S, "with the chunk that comes next"
            break
        spoken_s += len(part.pcm) / part.sample_rate
    else:
        pytest.fail("the cue did not come")


async def test_a_text_without_tags_is_spoken_as_a_whole():
    voice = EvenVoice()
    assert await cues_of("One. Two. Three.", voice) == {}
    assert voice.said == ["One. Two. Three."]


@pytest.mark.parametrize("text", ["", "[nonsense]", "[nonsense] ...", "[]", "\U0001f600 [x]"])
def test_a_text_of_nothing_is_refused(text):
    with pytest.raises(TextError):
        prepare_tagged(text)


async def test_unknown_tags_are_counted_in_the_log_which_does_not_hold_them(caplog):
    with caplog.at_level(logging.WARNING, "letstalk_rt"):
        frames = await rendered(
            "[my secret] Hello [nods] there [another].", Directed(), EvenVoice()
        )
    assert sum(frame.spoken for frame in frames) > 16_000
    assert len(caplog.records) == 1 and caplog.records[0].tags == 2
    assert "secret" not in caplog.text


class Directed(FakePipeline):
    """A pipeline that keeps how it is directed, window by window."""

    is_directable = True

    def __init__(self):
        super().__init__()
        self.windows = []

    def direct(self, state, window):
        self.windows.append(window)


async def rendered(text, pipeline, voice):
    session = AvatarSession(InlineWorker(pipeline), portrait(), idle=False)
    async with session:
        reading = asyncio.create_task(until_end(session))
        assert await say(session, voice, text)
        return await reading


async def test_a_session_that_speaks_a_text_nods_at_its_word():
    pipeline = Directed()
    frames = await rendered("one two three four [nods] five six seven", pipeline, EvenVoice())
    spoken_s = sum(frame.spoken for frame in frames) / 16_000
    assert spoken_s == pytest.approx(
        0.5 + CHAR_S * len("one two three four five six seven"), abs=0.1
    )
    pitch = np.concatenate([window.added[:, 1] for window in pipeline.windows])
    assert pitch.max() > 0.1
    # The windows before the nod are not changed, so that none of them is counted.
    begin = 4 * (len(frames) // 4 + 1 - len(pipeline.windows))
    assert len(pipeline.windows) < len(frames) / 4 and begin > 0


async def test_a_session_that_cannot_be_directed_speaks_without_its_tags():
    voice = EvenVoice()
    frames = await rendered("[serious] Hello [nods] there.", FakePipeline(), voice)
    assert voice.said == ["Hello there."] and sum(frame.spoken for frame in frames) > 16_000


@needs("espeak-ng")
async def test_a_real_voice_reaches_the_words_when_the_cues_say_so():
    """The pause after a comma is found in the audio where the cue behind it is."""
    text = "This is the first half of it, [nods] and here is the second half of it."
    parts = await parts_of(text, SystemSpeech(platform="linux"))
    (cue,) = [part for part in parts if isinstance(part, TimedCue)]
    audio = [part for part in parts if isinstance(part, SpokenChunk)]
    pcm, rate = np.concatenate([part.pcm for part in audio]), audio[0].sample_rate
    frames = np.abs(pcm[: len(pcm) // 220 * 220].astype(float)).reshape(-1, 220).mean(1)
    inside = slice(len(frames) // 4, 3 * len(frames) // 4)
    quiet = frames < 0.05 * frames.max()
    middle_s = (np.flatnonzero(quiet[inside]).mean() + inside.start) * 220 / rate
    assert cue.at_s == pytest.approx(middle_s, abs=0.35)


def test_texts_may_be_parsed_before():
    tagged = parse_tags("[smiles] Hi")
    assert (tagged.text, tagged.cues[0].name) == ("Hi", "smile")
