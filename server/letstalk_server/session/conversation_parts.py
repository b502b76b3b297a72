"""What the conversations of a server are made of: its chat model, recognisers and voices."""

import logging
from dataclasses import dataclass, field
from typing import Any

from letstalk_rt.conversation.conversation import DEFAULT_PROMPT, Conversation
from letstalk_rt.conversation.interface import (
    Chat,
    ConversationListener,
    ConversingAvatar,
    Recogniser,
    Voice,
)
from letstalk_rt.conversation.parts import LAST_RESORT, open_chat, open_recogniser
from letstalk_rt.conversation.realtime import RealtimeConversation, check_address
from letstalk_rt.conversation.turns import LevelDetector, make_detector
from letstalk_rt.errors import DependencyError
from letstalk_rt.extras import pip_install
from letstalk_rt.speech.voices import list_voices
from letstalk_server.session.text_speech import open_voice
from letstalk_server.settings import Settings

log = logging.getLogger(__name__)

_LAST_RESORT = (
    "No recogniser is named, so pocketsphinx listens: it knows English only and mishears much. "
    "Name one with --stt-url, or a folder of faster-whisper with --stt-model."
)
_BY_LEVEL = f"Every loud sound counts as voice: {pip_install('vad')} tells them apart."


@dataclass(frozen=True, slots=True)
class ConversationParts:
    """What the conversations of a server are made of.

    Attributes:
        settings: URLs and names of the parts.
        chat: the chat model, which all conversations share; None with a Realtime server.
        voice: the server's speech engine, likewise.
        voices: names of the voices that clients may choose.
        notices: what the operator should know about the parts.
    """

    settings: Settings = field(repr=False)
    chat: Chat | None
    voice: Voice | None
    voices: tuple[str, ...]
    notices: tuple[str, ...]

    @classmethod
    def open(cls, settings: Settings, voice: Voice | None) -> "ConversationParts | None":
        """Return the parts that the settings name; None without a chat model or Realtime server.

        Args:
            settings: settings of the server.
            voice: the server's speech engine.

        Raises:
            ConfigError: a URL or a name is wrong.
            DependencyError: a package is missing, or nothing that can speak is installed.
        """
        if settings.realtime_url is not None:
            check_address(settings.realtime_url)
            return cls(settings, None, None, (), ())
        if settings.chat_url is None or settings.chat_model is None:
            return None
        if voice is None:
            raise DependencyError(
                "A conversation needs a voice: install espeak-ng, or name one with --tts-url."
            )
        chat = open_chat(settings.chat_url, settings.chat_model)
        recogniser = _open_recogniser(settings)  # fails here, not in the first conversation
        notices = [_LAST_RESORT] if recogniser.name == LAST_RESORT else []
        if isinstance(make_detector(), LevelDetector):
            notices.append(_BY_LEVEL)
        for notice in notices:
            log.warning("conversation: %s", notice)
        return cls(settings, chat, voice, tuple(list_voices(voice)), tuple(notices))

    def converse(
        self, avatar: ConversingAvatar, prompt: str, on_event: ConversationListener
    ) -> Conversation | RealtimeConversation:
        """Return a conversation, which is not open yet.

        Raises:
            ConfigError: an address or a name is wrong.
            DependencyError: a package is missing.
        """
        settings = self.settings
        if self.chat is not None and self.voice is not None:
            recogniser = _open_recogniser(settings)
            return Conversation(
                avatar, recogniser, self.chat, self.voice, prompt=prompt, on_event=on_event
            )
        assert settings.realtime_url is not None, "see `open`"
        return RealtimeConversation(
            avatar,
            settings.realtime_url,
            model=settings.realtime_model,
            voice=settings.realtime_voice,
            prompt=prompt,
            on_event=on_event,
        )

    def open_voice(self, name: str | None) -> Voice:
        """Return a voice; it may block for some milliseconds."""
        return open_voice(self.settings, name)

    @property
    def prompt(self) -> str:
        """What the chat model is told first."""
        return self.settings.chat_prompt or DEFAULT_PROMPT

    @property
    def may_prompt(self) -> bool:
        """Whether clients may set their own prompt."""
        return self.settings.chat_prompt is None

    def as_json(self) -> dict[str, Any]:
        """Return what a page needs to know. It has no addresses, no keys and no fixed prompt."""
        return {
            "available": True,
            "prompt": self.prompt if self.may_prompt else None,
            "voices": list(self.voices),
            "notices": list(self.notices),
        }


def _open_recogniser(settings: Settings) -> Recogniser:
    return open_recogniser(
        settings.stt, url=settings.stt_url, model=settings.stt_model, language=settings.language
    )
