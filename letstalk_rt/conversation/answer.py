"""One answer of the avatar: it is generated, cut into sentences and spoken, and can be paused."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, Self, cast

from letstalk_rt.conversation.interface import (
    ConversationEvent,
    ConversingAvatar,
    Failure,
    Part,
    Voice,
)
from letstalk_rt.conversation.sentences import SentenceCutter
from letstalk_rt.errors import LetsTalkError, SessionClosed, TextError
from letstalk_rt.performance.tags import parse_tags
from letstalk_rt.sources.text import say
from letstalk_rt.speech.tagged import has_words, note_unknown

Start = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]
"""Starts a task with a name; whoever passes it awaits the task."""


class Answer:
    """An answer, whose sentences are spoken as they are complete.

    Args:
        pieces: the text, piece by piece.

    Attributes:
        is_paused: whether it waits until it may go on.
        finished: set when it was played to its end, was dropped or has failed.
        on_end: called when all pieces have come.
    """

    def __init__(self, pieces: AsyncIterator[str]) -> None:
        self.is_paused = False
        self.finished = asyncio.Event()
        self.on_end: Callable[[], None] = lambda: None
        self._pieces = pieces
        self._sentences: list[str] = []  # with their tags
        self._is_complete = False
        self._changed = asyncio.Event()
        self._playing: deque[int] = deque()  # numbers of the sentences that were pushed
        self._next = self._heard = self._started = 0
        self._generating: asyncio.Task[None] | None = None
        self._speaking: asyncio.Task[None] | None = None

    @classmethod
    def of_text(cls, text: str) -> Self:
        """Return an answer that is known already."""

        async def pieces() -> AsyncIterator[str]:
            yield text

        return cls(pieces())

    def begin(
        self,
        avatar: ConversingAvatar,
        voice: Voice,
        start: Start,
        emit: Callable[[ConversationEvent], None],
        on_finished: Callable[["Answer"], None],
    ) -> None:
        """Begin to generate and to speak it.

        Args:
            avatar: speaks it.
            voice: makes the audio.
            start: starts its tasks.
            emit: called with failures.
            on_finished: called when it was played to its end or has failed.
        """
        self._avatar, self._voice, self._start = avatar, voice, start
        self._emit, self._on_finished = emit, on_finished
        self._generating = start(self._generate(), "chat")
        self.resume()

    def pause(self) -> None:
        """Stop speaking; what was not heard to its end is spoken again by `resume`."""
        self.is_paused = True
        if self._speaking is not None:
            self._speaking.cancel()
        self._playing.clear()

    def resume(self) -> None:
        """Speak from the first sentence that was not heard to its end."""
        self.is_paused = False
        self._next = self._started = self._heard
        self._speaking = self._start(self._speak(self._speaking), "speak")
        self._check_finished()

    def drop(self) -> None:
        """End it; `heard` says what of it the user knows."""
        for task in (self._generating, self._speaking):
            if task is not None:
                task.cancel()
        self.finished.set()

    @property
    def heard(self) -> str:
        """The sentences that were played, the last one maybe in part."""
        played = self._sentences[: max(self._heard, self._started)]
        is_cut = self._started > self._heard
        return " ".join(played) + (" ..." if is_cut else "")

    def note_started(self) -> str | None:
        """Note that the next sentence is played now; return it."""
        if not self._playing:
            return None  # other speech
        self._started = self._playing[0] + 1
        return parse_tags(self._sentences[self._playing[0]]).text

    def note_finished(self) -> None:
        """Note that a sentence was played to its end."""
        if self._playing:
            self._heard = self._playing.popleft() + 1
            self._check_finished()

    async def _generate(self) -> None:
        cutter = SentenceCutter()
        try:
            async with aclosing(cast(AsyncGenerator[str, None], self._pieces)) as pieces:
                async for piece in pieces:
                    self._add(cutter.push(piece))
            self.on_end()
        except LetsTalkError as error:
            self._emit(Failure("chat", str(error)))
        self._add(cutter.flush())
        self._is_complete = True
        self._changed.set()

    def _add(self, sentences: list[str]) -> None:
        self._sentences += sentences
        self._changed.set()

    async def _speak(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])  # a voice that was cancelled may still be closing
        while True:
            while self._next == len(self._sentences):
                if self._is_complete:
                    self._check_finished()
                    return
                self._changed.clear()
                await self._changed.wait()
            number, self._next = self._next, self._next + 1
            self._playing.append(number)
            if not await self._say(number):
                return

    async def _say(self, number: int) -> bool:
        """Speak one sentence; return whether the answer goes on."""
        tagged = parse_tags(self._sentences[number])
        note_unknown(tagged)
        if not has_words(tagged.text):
            self._playing.remove(number)  # it has neither letters nor digits, so no segment
        try:
            await say(self._avatar, self._voice, tagged)
        except TextError:  # such as one that is too long
            self._playing.remove(number)
        except SessionClosed:
            return False
        except LetsTalkError as error:
            self._playing.clear()
            self._fail("voice", error)
            return False
        return True

    def _fail(self, part: Part, error: LetsTalkError) -> None:
        self._emit(Failure(part, str(error)))
        self._finish()

    def _check_finished(self) -> None:
        if self._is_complete and self._next == len(self._sentences) and not self._playing:
            self._finish()

    def _finish(self) -> None:
        if not self.finished.is_set():
            self.finished.set()
            self._on_finished(self)
