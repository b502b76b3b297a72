"""Text that a session speaks: a bounded queue of texts before the queue of speech."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from letstalk_rt.errors import DependencyError, LetsTalkError, TextError
from letstalk_rt.speech.engines import open_speech
from letstalk_rt.speech.interface import TextToSpeech, prepare_text
from letstalk_server.errors import (
    BadTextError,
    NoSpeechEngineError,
    ServerError,
    SpeechFailedError,
    SpeechOverflowError,
)
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
        return open_speech(
            settings.speech,
            settings.speech_voice,
            base_url=settings.speech_url,
            model=settings.speech_model,
        )
    except DependencyError:
        if settings.speech != "auto" or settings.speech_voice is not None:
            raise
        log.info("text cannot be spoken: no speech engine is installed")
        return None


@dataclass(frozen=True, slots=True)
class _Text:
    source: str
    text: str = field(repr=False)
    on_error: OnError


class TextSpeech:
    """Speaks the texts of one session, one after the other.

    Args:
        engine: the speech engine; None refuses all texts.
        speech: receives the audio.
        max_chars: longest text.
    """

    def __init__(self, engine: TextToSpeech | None, speech: SpeechQueue, max_chars: int) -> None:
        self._engine, self._speech, self._max_chars = engine, speech, max_chars
        self._waiting: deque[_Text] = deque()
        self._changed = asyncio.Event()
        self._speaking: asyncio.Task[None] | None = None

    def submit(self, source: str, text: str, on_error: OnError) -> None:
        """Queue a text.

        Args:
            source: who speaks, for floor control.
            text: the text.
            on_error: called if it cannot be spoken after all.

        Raises:
            NoSpeechEngineError: The server has no speech engine.
            BadTextError: The text is empty, too long, or has nothing that can be spoken.
            SpeechOverflowError: Too many texts wait.
        """
        if self._engine is None:
            raise NoSpeechEngineError(
                "This server cannot speak text. Its operator can install a voice, e.g. espeak-ng."
            )
        try:
            prepared = prepare_text(text, self._max_chars)
        except TextError as error:
            detail = str(error)
            raise BadTextError(f"{detail[:1].upper()}{detail[1:]}.") from None
        if len(self._waiting) >= MAX_WAITING:
            raise SpeechOverflowError(f"{MAX_WAITING} texts are waiting. Send it later.")
        self._waiting.append(_Text(source, prepared, on_error))
        self._changed.set()

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
        assert self._engine is not None
        stream = self._engine.stream(text.text)
        pushed = False
        try:
            async with aclosing(cast(AsyncGenerator[tuple[np.ndarray, int], None], stream)):
                async for pcm, sample_rate in stream:
                    await self._speech.wait_for_space(len(pcm) / sample_rate)
                    self._speech.push(text.source, pcm, sample_rate)
                    pushed = True
        except LetsTalkError:
            if pushed:  # what was synthesised is spoken to its end
                self._speech.end_segment(text.source)
            raise
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
