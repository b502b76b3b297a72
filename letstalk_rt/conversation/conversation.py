"""A conversation with an avatar, which listens, thinks, speaks and can be interrupted.

    async with Conversation(session, recogniser, chat, voice) as conversation:
        await conversation.listen(microphone)     # one task; another one plays the session

Utterances come from `TurnDetector`. Each is transcribed while it is spoken; when it ends, the chat
model answers, and each sentence of the answer is spoken as soon as it is complete. As soon as the
user speaks, the avatar falls silent. If nothing was understood then, or only the avatar's own
words, it goes on where it was; otherwise its answer is dropped.

If the avatar can be directed, the chat model is told which moods and gestures there are, and shows
them by tags in its answers or by calls of tools.
"""

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Mapping,
)
from contextlib import aclosing
from typing import Any, Self, cast

import numpy as np

from letstalk_rt.audio.pitch import PitchTracker
from letstalk_rt.audio.resample import Resampler, check_pcm
from letstalk_rt.conversation import directing
from letstalk_rt.conversation.answer import Answer
from letstalk_rt.conversation.echo import repeats
from letstalk_rt.conversation.interface import (
    Caption,
    Chat,
    ConversationEvent,
    ConversationListener,
    ConversingAvatar,
    Failure,
    Message,
    Recogniser,
    State,
    StateChange,
    ToolChat,
    Voice,
)
from letstalk_rt.conversation.turns import TurnAudio, TurnBegins, TurnDetector, TurnEnds
from letstalk_rt.errors import ConfigError, LetsTalkError
from letstalk_rt.session.events import Event
from letstalk_rt.types import SAMPLE_RATE

DEFAULT_PROMPT = (
    "You are a friendly person in a video call. Answer in one or two short spoken sentences, "
    "without lists, markup or emoji."
)
MAX_MESSAGES = 40
"""Messages that the chat model is given beside the prompt; older ones are forgotten."""

_ECHO_S = 0.5
"""Time after the avatar's last word in which it may still be heard."""

_FALSE_ALARMS = 2
"""Sounds without words that silenced the avatar; from then on only words do."""

_FULL_SCALE = 32_767


async def hear_all(
    hear: Callable[[np.ndarray, int], None],
    source: AsyncIterable[np.ndarray],
    sample_rate: int | None,
) -> None:
    """Hear a source until it ends; see `Conversation.listen`."""
    async for pcm in source:
        rate = getattr(source, "sample_rate", None) if sample_rate is None else sample_rate
        if rate is None:
            raise ConfigError("the source has no sample_rate; pass it: listen(source, 16_000)")
        hear(pcm, rate)


class Utterance(AsyncIterator[np.ndarray]):
    """The audio of one utterance while it is spoken.

    Args:
        may_be_echo: whether the avatar spoke when it began.
    """

    def __init__(self, may_be_echo: bool) -> None:
        self.may_be_echo = may_be_echo
        self._chunks: asyncio.Queue[np.ndarray | None] = asyncio.Queue()  # bounded by TurnOptions

    def push(self, pcm: np.ndarray) -> None:
        """Add `(n,)` float32."""
        self._chunks.put_nowait((pcm * _FULL_SCALE).astype(np.int16))

    def end(self) -> None:
        """Mark the end."""
        self._chunks.put_nowait(None)

    async def __anext__(self) -> np.ndarray:
        chunk = await self._chunks.get()
        if chunk is None:
            self.end()  # for whoever asks again
            raise StopAsyncIteration
        return chunk


class Conversation:
    """A conversation with one avatar; open it with `async with`.

    Args:
        avatar: speaks the answers, such as an open `AvatarSession`.
        recogniser: understands the user; closed with the conversation.
        chat: answers.
        voice: speaks.
        prompt: what the chat model is told first; moods and gestures are added.
        turns: finds utterances; None for the defaults of `TurnDetector`.
        on_event: called on the event loop with captions, states and failures.
        greeting: what the avatar says first; None for nothing.

    Attributes:
        messages: the conversation so far, without the prompt. Of an answer that was interrupted it
            holds the sentences that were heard.
        state: what it does now.
    """

    def __init__(
        self,
        avatar: ConversingAvatar,
        recogniser: Recogniser,
        chat: Chat,
        voice: Voice,
        *,
        prompt: str = DEFAULT_PROMPT,
        turns: TurnDetector | None = None,
        on_event: ConversationListener = lambda event: None,
        greeting: str | None = None,
    ) -> None:
        self.messages: list[Message] = []
        self.prompt, self.voice = prompt, voice
        self.state: State = "listening"
        self._avatar, self._recogniser = avatar, recogniser
        self._chat = self._directing(chat)
        self._turns = turns or TurnDetector()
        self._on_event, self._greeting = on_event, greeting
        self._resampler, self._pitch = Resampler(SAMPLE_RATE), PitchTracker()
        self._utterance: Utterance | None = None
        self._hearing: asyncio.Task[None] | None = None  # the newest one; it awaits the others
        self._answer: Answer | None = None
        self._said = ""
        self._spoke_s = -_ECHO_S
        self._false_alarms = 0
        self._group, self._tasks = asyncio.TaskGroup(), set[asyncio.Task[None]]()
        self._stop_events: Callable[[], None] = lambda: None

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._stop_events = self._avatar.on_event(self._follow)
        self._start(self._load(), "load")
        if self._greeting:
            self._begin_answer(Answer.of_text(self._greeting))
        return self

    async def __aexit__(self, *exc: Any) -> None:
        """End the conversation. What the avatar says is not interrupted."""
        self._stop_events()
        for task in self._tasks:
            task.cancel()
        try:
            await self._group.__aexit__(*exc)
        finally:
            await self._recogniser.aclose()

    async def listen(
        self, source: AsyncIterable[np.ndarray], sample_rate: int | None = None
    ) -> None:
        """Hear a microphone, or another live source, until it ends; then finish the last answer.

        Args:
            source: an async iterator of arrays as `hear` accepts them.
            sample_rate: in Hz; None reads `source.sample_rate`.

        Raises:
            ConfigError: the sample rate is not known.
            AudioFormatError: the source yielded something that is not audio.
        """
        await hear_all(self.hear, source, sample_rate)
        if self._utterance is not None:
            self._end_utterance()
        await self.finish()

    async def finish(self) -> None:
        """Wait until everything that was heard is answered, and the answer was played."""
        while self._hearing is not None and not self._hearing.done():
            await asyncio.wait([self._hearing])
        if self._answer is not None:
            await self._answer.finished.wait()

    def hear(self, pcm: np.ndarray, sample_rate: int) -> None:
        """Take the next audio of the microphone, without waiting.

        Args:
            pcm: int16 or float32, as for `AvatarSession.push_audio`.
            sample_rate: in Hz.

        Raises:
            AudioFormatError: it is no audio, or the rate is not supported.
        """
        check_pcm(pcm)
        if sample_rate != self._resampler.sample_rate:
            self._resampler = Resampler(sample_rate)
        audio = self._resampler.push(pcm)
        turns, pitch_hz = self._turns.push(audio), self._pitch.push(audio)
        self._avatar.push_listened(self._turns.is_voiced, pitch_hz)
        for turn in turns:
            match turn:
                case TurnBegins():
                    self._begin_utterance()
                case TurnAudio(audio) if self._utterance is not None:
                    self._utterance.push(audio)
                case TurnEnds():
                    self._end_utterance()

    def say(self, text: str) -> None:
        """Take a text as if the user had said it; the avatar stops and answers it."""
        if words := text.strip():
            self._drop_answer()
            self._emit(Caption("user", words, True))
            self._reply_to(words)

    def interrupt(self) -> None:
        """Stop the avatar; its answer is dropped."""
        self._drop_answer()
        if self._utterance is None:
            self._set_state("listening")

    # Hearing

    async def _load(self) -> None:
        try:
            await self._recogniser.start()
        except LetsTalkError as error:
            self._emit(Failure("recogniser", str(error)))

    def _begin_utterance(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if not self._needs_words:
            self._pause_answer()
        if not self._is_talking:
            self._set_state("hearing")
        may_be_echo = self._answer is not None or now_s - self._spoke_s < _ECHO_S
        self._utterance = Utterance(may_be_echo)
        self._hearing = self._start(self._understand(self._utterance, self._hearing), "hear")

    def _end_utterance(self) -> None:
        assert self._utterance is not None
        self._utterance.end()
        self._utterance = None
        if not self._is_talking:
            self._set_state("thinking")

    @property
    def _is_talking(self) -> bool:
        """Whether the avatar speaks, or is about to."""
        return self._answer is not None and not self._answer.is_paused

    @property
    def _needs_words(self) -> bool:
        """Whether only words silence the avatar, because the microphone hears it or noise."""
        return self._false_alarms >= _FALSE_ALARMS

    async def _understand(self, audio: Utterance, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])  # a recogniser hears one utterance at a time
        words = ""
        try:
            stream = cast(AsyncGenerator[str, None], self._recogniser.transcribe(audio))
            async with aclosing(stream):
                async for text in stream:
                    words = text.strip()
                    self._show_words(words, audio)
        except LetsTalkError as error:
            self._emit(Failure("recogniser", str(error)))
        self._take_words(words, audio)

    def _show_words(self, words: str, audio: Utterance) -> None:
        """Show what was understood so far, unless the avatar hears itself."""
        if not words or self._is_echo(words, audio):
            return
        self._emit(Caption("user", words, False))
        if self._needs_words:
            self._pause_answer()

    def _take_words(self, words: str, audio: Utterance) -> None:
        is_echo = self._is_echo(words, audio)
        if not words or is_echo:
            if is_echo:
                self._false_alarms = _FALSE_ALARMS
            elif self._answer is not None and self._answer.is_paused:
                self._false_alarms += 1
            if self._utterance is None:
                self._resume_answer()
            return
        self._drop_answer()
        self._emit(Caption("user", words, True))
        if self._utterance is None:
            self._reply_to(words)
        else:  # the user goes on: one answer to all of it
            self._add_user_message(words)

    def _is_echo(self, words: str, audio: Utterance) -> bool:
        return audio.may_be_echo and repeats(words, self._said)

    # Answering

    def _reply_to(self, words: str) -> None:
        self._add_user_message(words)
        system = {"role": "system", "content": self._system_prompt}
        messages: list[Message] = [system, *self.messages[-MAX_MESSAGES:]]
        known = len(messages)
        answer = Answer(self._chat.answer(messages))
        answer.on_end = lambda: self._keep_tool_messages(answer, messages[known:])
        self._begin_answer(answer)

    @property
    def _system_prompt(self) -> str:
        is_directable = self._avatar.is_directable
        return f"{self.prompt}\n\n{directing.PROMPT}" if is_directable else self.prompt

    def _directing(self, chat: Chat) -> Chat:
        """Return a chat model with the tools of the performance, if it can have them."""
        if not self._avatar.is_directable or not isinstance(chat, ToolChat):
            return chat
        return chat.with_tools(directing.TOOLS, self._direct)

    async def _direct(self, name: str, arguments: Mapping[str, Any]) -> str:
        return directing.direct(self._avatar, name, arguments)

    def _begin_answer(self, answer: Answer) -> None:
        self._answer = answer
        self._set_state("thinking")
        answer.begin(self._avatar, self.voice, self._start, self._emit, self._end_answer)

    def _keep_tool_messages(self, answer: Answer, messages: list[Message]) -> None:
        if answer is self._answer:
            self.messages += messages

    def _add_user_message(self, words: str) -> None:
        """Add what the user said to the conversation; unanswered words become one message."""
        if self.messages and self.messages[-1]["role"] == "user":
            words = f"{self.messages.pop()['content']} {words}"
        self.messages.append({"role": "user", "content": words})

    def _pause_answer(self) -> None:
        if self._answer is not None and not self._answer.is_paused:
            self._answer.pause()
            self._avatar.interrupt()

    def _resume_answer(self) -> None:
        if self._answer is None:
            self._set_state("listening")
        elif self._answer.is_paused:
            self._set_state("thinking")
            self._answer.resume()

    def _drop_answer(self) -> None:
        answer, self._answer = self._answer, None
        if answer is None:
            return
        answer.drop()
        self._avatar.interrupt()
        self._keep_answer(answer)

    def _end_answer(self, answer: Answer) -> None:
        """Note that an answer was played to its end, or has failed."""
        if answer is self._answer:
            self._answer = None
            self._spoke_s = asyncio.get_running_loop().time()
            self._keep_answer(answer)
            self._set_state("listening")

    def _keep_answer(self, answer: Answer) -> None:
        if heard := answer.heard:
            self.messages.append({"role": "assistant", "content": heard})

    def _follow(self, event: Event) -> None:
        """Follow what of the answer is played."""
        if self._answer is None:
            return
        if event.type == "segment.started":
            if sentence := self._answer.note_started():
                self._said = f"{self._said[-400:]} {sentence}"
                self._set_state("speaking")
                self._emit(Caption("avatar", sentence, True))
        elif event.type == "segment.finished":
            self._answer.note_finished()

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Start a task of the conversation, which awaits it at its end."""
        task = self._group.create_task(work, name=f"conversation-{name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _set_state(self, state: State) -> None:
        if state != self.state:
            self.state = state
            self._emit(StateChange(state))

    def _emit(self, event: ConversationEvent) -> None:
        self._on_event(event)
