"""The conversation of one session, while a client wants one."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import numpy as np

from letstalk_rt.conversation.conversation import Conversation
from letstalk_rt.conversation.interface import (
    Caption,
    ConversationEvent,
    Failure,
    Part,
    StateChange,
)
from letstalk_rt.conversation.realtime import RealtimeConversation
from letstalk_rt.errors import LetsTalkError, SynthesisError
from letstalk_rt.session.avatar import AvatarSession
from letstalk_rt.session.events import EventListener
from letstalk_rt.types import Interrupted
from letstalk_server.errors import BadMessageError, NoConversationError, ServerError
from letstalk_server.protocol import server_messages
from letstalk_server.protocol.client_messages import Converse
from letstalk_server.session.announcer import Announcer
from letstalk_server.session.conversation_parts import ConversationParts
from letstalk_server.session.performance import Performance
from letstalk_server.session.speech_queue import Cue, SpeechQueue

log = logging.getLogger(__name__)

SOURCE = "conversation"
"""Who speaks, for floor control."""

_FAILURES: dict[Part, str] = {
    "recogniser": "The server's recogniser failed; its log has the reason. Say it again.",
    "chat": "The server's chat model failed; its log has the reason. Say it again.",
    "voice": "The server's voice failed; its log has the reason. Say it again.",
}
"""What clients are told: the reason may hold addresses."""

Spawn = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None] | None]


class QueueAvatar:
    """The avatar of a session, as a conversation sees it: it speaks through the session's queue.

    Args:
        avatar: the engine session, whose events tell what is played.
        speech: the queue.
        performance: shows moods and gestures.
        drop_speech: drops all speech that was not played.
    """

    def __init__(
        self,
        avatar: AvatarSession,
        speech: SpeechQueue,
        performance: Performance,
        drop_speech: Callable[[], Interrupted],
    ) -> None:
        self.epoch = 0
        self._avatar, self._speech, self._drop_speech = avatar, speech, drop_speech
        self._performance = performance

    async def push_audio(self, pcm: np.ndarray, sample_rate: int) -> None:
        """Queue a chunk of speech, when there is space."""
        await self._speech.wait_for_space(len(pcm) / sample_rate)
        try:
            self._speech.push(SOURCE, pcm, sample_rate)
        except ServerError as error:
            raise SynthesisError(error.detail) from error

    async def end_segment(self) -> None:
        """Mark the end of a sentence."""
        self._speech.end_segment(SOURCE)

    def interrupt(self) -> Interrupted:
        """Drop all speech that was not played."""
        self.epoch += 1
        return self._drop_speech()

    @property
    def is_directable(self) -> bool:
        """Whether the model has moods and gestures."""
        return self._performance.is_directable

    def set_mood(self, mood: str, strength: float = 1.0, *, at: float | None = None) -> None:
        """Change the mood, after the speech that is queued; without a time, at once."""
        self._direct(at, partial(self._performance.set_mood, mood, strength, at=at))

    def gesture(self, name: str, amount: float = 1.0, *, at: float | None = None) -> None:
        """Make a gesture, after the speech that is queued; without a time, at once."""
        self._direct(at, partial(self._performance.gesture, name, amount, at=at))

    def _direct(self, at: float | None, cue: Cue) -> None:
        if at is None:
            cue()
        else:
            self._speech.add_cue(SOURCE, cue)

    def push_listened(self, speaking: bool, pitch_hz: float | None = None) -> None:
        """Tell the avatar whether the user speaks now, and with which pitch."""
        self._avatar.push_listened(speaking, pitch_hz)

    def on_event(self, listener: EventListener) -> Callable[[], None]:
        """Call `listener` with each event of the engine."""
        return self._avatar.on_event(listener)


class Talking:
    """The conversation of one session, which a client begins and ends.

    Args:
        parts: what it is made of; None if the server has no chat model.
        announcer: sends captions and states to the clients.
        speech: the session's queue of speech.
        performance: shows moods and gestures.
        opened: waits for the engine session.
        drop_speech: drops all speech that was not played.
        spawn: starts a task of the session.
        on_words: called when the user has said something.
    """

    def __init__(
        self,
        parts: ConversationParts | None,
        announcer: Announcer,
        speech: SpeechQueue,
        performance: Performance,
        opened: Callable[[], Awaitable[AvatarSession]],
        drop_speech: Callable[[], Interrupted],
        spawn: Spawn,
        on_words: Callable[[], None],
    ) -> None:
        self._parts, self._announcer, self._speech = parts, announcer, speech
        self._opened, self._drop_speech, self._spawn = opened, drop_speech, spawn
        self._performance, self._on_words = performance, on_words
        self._prompt: str | None = None
        self._voice = ""
        self._task: asyncio.Task[None] | None = None
        self._conversation: Conversation | RealtimeConversation | None = None

    @property
    def is_on(self) -> bool:
        """Whether microphones are heard by a conversation, instead of moving the lips."""
        return self._task is not None and not self._task.done()

    def configure(self, message: Converse) -> server_messages.ConversationConfigured:
        """Begin, change or end the conversation.

        Raises:
            NoConversationError: the server has no chat model.
            BadMessageError: there is no such voice, or the operator has fixed the prompt.
        """
        parts = self._parts
        if parts is None:
            raise NoConversationError(
                "This server has no chat model. Its operator can name one with --chat-url or "
                "--realtime-url."
            )
        if message.voice and message.voice not in parts.voices:
            raise BadMessageError("there is no such voice; /v1/config lists them")
        if message.prompt is not None and not parts.may_prompt:
            raise BadMessageError("the operator has fixed the prompt of this server")
        self._prompt = message.prompt if message.prompt is not None else self._prompt
        has_other_voice = message.voice not in (None, self._voice)
        self._voice = message.voice if message.voice is not None else self._voice
        if not message.on:
            self._end()
        elif not self.is_on:
            self._task = self._spawn(self._run(parts), "conversation")
        elif self._conversation is not None:
            self._conversation.prompt = self._prompt or parts.prompt
            if has_other_voice and isinstance(self._conversation, Conversation):
                self._spawn(self._change_voice(parts, self._conversation), "voice")
        return server_messages.ConversationConfigured(message.on, self._voice)

    def hear(self, pcm: np.ndarray, sample_rate: int) -> None:
        """Take the next audio of the microphone, `(n,)` float32."""
        if self._conversation is not None:
            self._conversation.hear(pcm, sample_rate)

    def say(self, text: str) -> None:
        """Take a text as if the user had said it.

        Raises:
            NoConversationError: no conversation is on.
        """
        if self._conversation is None:
            raise NoConversationError("Begin a conversation first: conversation.configure.")
        self._on_words()
        self._conversation.say(text)

    def interrupt(self) -> None:
        """Drop the answer that is being made or spoken."""
        if self._conversation is not None:
            self._conversation.interrupt()

    def _end(self) -> None:
        if self._task is not None:
            self._task.cancel()
        if self._conversation is not None:
            self._conversation.interrupt()
        self._task = self._conversation = None

    async def _run(self, parts: ConversationParts) -> None:
        """Converse until cancelled."""
        session = await self._opened()
        avatar = QueueAvatar(session, self._speech, self._performance, self._drop_speech)
        conversation = parts.converse(avatar, self._prompt or parts.prompt, self._announce)
        async with conversation:
            self._conversation = conversation
            if self._voice and isinstance(conversation, Conversation):
                await self._change_voice(parts, conversation)
            await asyncio.Future()

    async def _change_voice(self, parts: ConversationParts, conversation: Conversation) -> None:
        """Take the chosen voice from the next answer on."""
        try:
            conversation.voice = await asyncio.to_thread(parts.open_voice, self._voice)
        except LetsTalkError as error:
            self._announce(Failure("voice", str(error)))

    def _announce(self, event: ConversationEvent) -> None:
        match event:
            case Caption(speaker, text, final):
                if speaker == "user":
                    self._on_words()
                self._announcer.broadcast(server_messages.Captioned(speaker, text, final))
            case StateChange(state):
                self._announcer.broadcast(server_messages.ConversationState(state))
            case Failure(part, message):
                log.warning("conversation: %s", message)
                self._announcer.broadcast(server_messages.Warn(f"{part}-failed", _FAILURES[part]))
