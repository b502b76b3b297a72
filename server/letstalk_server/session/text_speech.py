"""Text that a session speaks: a bounded queue of texts before the queue of speech."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from letstalk_rt.errors import DependencyError, LetsTalkError, TextError
from letstalk_rt.performance.tags import TaggedText
from letstalk_rt.speech.engines import open_speech
from letstalk_rt.speech.interface import TextToSpeech
from letstalk_rt.speech.tagged import SpokenChunk, TimedCue, prepare_tagged, stream_tagged
from letstalk_rt.speech.voices import list_voices
from letstalk_server.errors import (
    BadMessageError,
    BadTextError,
    NoSpeechEngineError,
    ServerError,
    SpeechFailedError,
    SpeechOverflowError,
)
from letstalk_server.session.performance import Performance
from letstalk_server.session.speech_queue import SpeechQueue
from letstalk_server.settings import Settings

log = logging.getLogger(__name__)

MAX_WAITING = 8
"""Texts of one session that may wait."""

OnError = Callable[[ServerError], None]


def open_engine(settings: Settings) -> TextToSpeech | None:
    """Return the speech engine of a server; None if it is off, or `auto` and none is installed.

    Raises:
        ConfigError: the engine or its voice is unknown.
        DependencyError: the engine that was named is not installed.
    """
    if settings.speech == "off":
        return None
    try:
        return open_voice(settings)
    except DependencyError:
        if settings.speech != "auto" or settings.speech_voice is not None:
            raise
        log.info("text cannot be spoken: no speech engine is installed")
        return None


def open_voice(settings: Settings, name: str | None = None) -> TextToSpeech:
    """Return the server's speech engine with a voice; it may block for some milliseconds.

    Args:
        settings: of the server, whose speech is not off.
        name: one of `list_voices`, not a name that a client made up: it may also be that of a
            file. `None` or empty takes the voice of the settings.

    Raises:
        ConfigError: the engine or its voice is unknown.
        DependencyError: nothing that can speak is installed.
    """
    assert settings.speech != "off"
    return open_speech(
        settings.speech,
        name or settings.speech_voice,
        base_url=settings.speech_url,
        model=settings.speech_model,
    )


@dataclass(frozen=True, slots=True)
class _Text:
    source: str
    text: TaggedText = field(repr=False)
    voice: str
    on_error: OnError


class TextSpeech:
    """Speaks the texts of one session, one after the other.

    Args:
        engine: the speech engine; None refuses all texts.
        speech: receives the audio, and the moods and gestures between.
        performance: shows these.
        settings: longest text, and how other voices of the engine are opened.
    """

    def __init__(
        self,
        engine: TextToSpeech | None,
        speech: SpeechQueue,
        performance: Performance,
        settings: Settings,
    ) -> None:
        self._engine, self._speech, self._settings = engine, speech, settings
        self._performance = performance
        self._waiting: deque[_Text] = deque()
        self._changed = asyncio.Event()
        self._speaking: asyncio.Task[None] | None = None

    def submit(self, source: str, text: str, voice: str, on_error: OnError) -> tuple[str, ...]:
        """Queue a text; return its tags that name neither a mood nor a gesture.

        Args:
            source: who speaks, for floor control.
            text: the text.
            voice: name of one of the engine's voices; empty for that of the settings.
            on_error: called if it cannot be spoken after all.

        Raises:
            NoSpeechEngineError: The server has no speech engine.
            BadMessageError: There is no such voice.
            BadTextError: The text is empty, too long, or has nothing that can be spoken.
            SpeechOverflowError: Too many texts wait.
        """
        if self._engine is None:
            raise NoSpeechEngineError(
                "This server cannot speak text. Its operator can install a voice, e.g. espeak-ng."
            )
        if voice and voice not in list_voices(self._engine):
            raise BadMessageError("there is no such voice; /v1/config lists them")
        try:
            prepared = prepare_tagged(text, self._settings.max_say_chars)
        except TextError as error:
            detail = str(error)
            raise BadTextError(f"{detail[:1].upper()}{detail[1:]}.") from None
        if len(self._waiting) >= MAX_WAITING:
            raise SpeechOverflowError(f"{MAX_WAITING} texts are waiting. Send it later.")
        self._waiting.append(_Text(source, prepared, voice, on_error))
        self._changed.set()
        return prepared.unknown

    def clear(self) -> None:
        """Drop all texts, also the one that is being synthesised."""
        self._waiting.clear()
        if self._speaking is not None:
            self._speaking.cancel()

    async def run(self) -> None:
        """Speak the queued texts until cancelled."""
        while True:
            while not self._waiting:
                self._changed.clear()
                await self._changed.wait()
            text = self._waiting.popleft()
            self._speaking = asyncio.create_task(self._speak(text), name="session-text")
            try:
                await asyncio.wait([self._speaking])
            finally:
                self._speaking.cancel()
                await asyncio.wait([self._speaking])
            self._report(self._speaking, text)

    async def _speak(self, text: _Text) -> None:
        engine = self._engine
        if text.voice:
            engine = await asyncio.to_thread(open_voice, self._settings, text.voice)
        assert engine is not None
        stream = stream_tagged(engine, text.text)
        pushed = False
        try:
            async with aclosing(cast(AsyncGenerator[SpokenChunk | TimedCue, None], stream)):
                async for part in stream:
                    if isinstance(part, TimedCue):
                        self._speech.add_cue(text.source, partial(part.perform, self._performance))
                        continue
                    await self._speech.wait_for_space(len(part.pcm) / part.sample_rate)
                    self._speech.push(text.source, part.pcm, part.sample_rate)
                    pushed = True
        except LetsTalkError:
            if pushed:  # what was synthesised is spoken to its end
                self._speech.end_segment(text.source)
            raise
        if pushed:
            self._speech.end_segment(text.source)

    def _report(self, task: asyncio.Task[None], text: _Text) -> None:
        """Pass the failure of a text on to its sender.

        Raises:
            Exception: it failed for another reason than the engine or the floor.
        """
        error = None if task.cancelled() else task.exception()
        if isinstance(error, ServerError):
            text.on_error(error)
        elif isinstance(error, LetsTalkError):
            # The messages of these errors never hold the text.
            log.warning("speech synthesis failed: %s", error)
            text.on_error(
                SpeechFailedError("The server's speech engine failed. Try again in a moment.")
            )
        elif error is not None:
            raise error
