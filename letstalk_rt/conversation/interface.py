"""The three parts of a conversation: what understands, what answers and what speaks."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from letstalk_rt.session.events import EventListener
from letstalk_rt.speech.interface import TextToSpeech
from letstalk_rt.speech.tagged import Directed
from letstalk_rt.types import Interrupted

Message = dict[str, Any]
"""A message of the chat, as in OpenAI's interface: `{"role": "user", "content": "Hello"}`."""

Part = Literal["recogniser", "chat", "voice"]
State = Literal["listening", "hearing", "thinking", "speaking"]


class Recogniser(Protocol):
    """Turns speech into words.

    Attributes:
        name: name for messages.
    """

    @property
    def name(self) -> str:
        """Name for messages."""
        ...

    async def start(self) -> None:
        """Load what it needs, so that the first utterance need not wait for it.

        Raises:
            RecognitionError: it cannot be used.
        """
        ...

    def transcribe(self, audio: AsyncIterator[np.ndarray]) -> AsyncIterator[str]:
        """Yield the words of one utterance as they are understood; each text replaces the last.

        Args:
            audio: chunks of the utterance while it is spoken, `(n,)` int16, 16 kHz mono. It ends
                with the utterance.

        Raises:
            RecognitionError: the recogniser failed or cannot be reached.
        """
        ...

    async def aclose(self) -> None:
        """Free what it holds; may be called twice."""
        ...


class Chat(Protocol):
    """A chat model. One that is a `ToolChat`, too, is given the tools of the performance.

    Attributes:
        name: name for messages.
    """

    @property
    def name(self) -> str:
        """Name for messages."""
        ...

    def answer(self, messages: list[Message]) -> AsyncIterator[str]:
        """Yield the answer piece by piece, as it is generated.

        Args:
            messages: the conversation so far. Calls of tools and their results are appended.

        Raises:
            ChatError: the model failed, cannot be reached or refused the request.
        """
        ...


ToolCallback = Callable[[str, dict[str, Any]], Awaitable[str]]
"""Runs the tool of this name with these arguments; returns its result for the model."""


@runtime_checkable
class ToolChat(Protocol):
    """A chat model that can call tools."""

    def with_tools(self, tools: Sequence[dict[str, Any]], on_tool_call: ToolCallback) -> Chat:
        """Return the same chat model with more tools, which it may leave unused.

        Args:
            tools: as in OpenAI's interface.
            on_tool_call: runs one of them. What it raises is told to the model.
        """
        ...


Voice = TextToSpeech
"""A voice is a speech engine; see `letstalk_rt.speech`."""


class ConversingAvatar(Directed, Protocol):
    """What a conversation needs of a session, such as `AvatarSession`."""

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

    def interrupt(self) -> Interrupted:
        """Drop all speech that was not played."""
        ...

    def push_listened(self, speaking: bool, pitch_hz: float | None = None) -> None:
        """Tell the avatar whether the user speaks now, and with which pitch."""
        ...

    def on_event(self, listener: EventListener) -> Callable[[], None]:
        """Call `listener` with each event; return a function that stops this."""
        ...


@dataclass(frozen=True, slots=True)
class Caption:
    """Words of one side.

    Attributes:
        speaker: who says them.
        text: the words. Those of the user replace the caption before until one is final; those of
            the avatar are one sentence, which it begins to speak now.
        final: whether they will not change any more.
    """

    speaker: Literal["user", "avatar"]
    text: str
    final: bool


@dataclass(frozen=True, slots=True)
class StateChange:
    """What the conversation does now.

    Attributes:
        state: `listening`, `hearing` (the user speaks), `thinking` or `speaking`.
    """

    state: State


@dataclass(frozen=True, slots=True)
class Failure:
    """A part has failed; the conversation goes on with the next utterance.

    Attributes:
        part: which one.
        message: what happened and what to do. It holds nothing that was said.
    """

    part: Part
    message: str


ConversationEvent = Caption | StateChange | Failure
ConversationListener = Callable[[ConversationEvent], None]
