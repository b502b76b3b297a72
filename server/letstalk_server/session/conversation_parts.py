"""What the conversations of a server are made of: its chat model, recognisers and voices."""

import logging
from dataclasses import dataclass, field
from typing import Any

from letstalk_rt.conversation.conversation import DEFAULT_PROMPT
from letstalk_rt.conversation.interface import Chat, Recogniser, Voice
from letstalk_rt.conversation.parts import LAST_RESORT, open_chat, open_recogniser
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
        chat: the chat model, which all conversations share.
        voice: the server's speech engine.
        voices: names of the voices that clients may choose.
        notices: what the operator should know about the parts.
    """

    settings: Settings = field(repr=False)
    chat: Chat
    voice: Voice
    voices: tuple[str, ...]
    notices: tuple[str, ...]

    @classmethod
    def open(cls, settings: Settings, voice: Voice | None) -> "ConversationParts | None":
        """Return the parts that the settings name; None without a chat model.

        Args:
            settings: settings of the server.
            voice: the server's speech engine.

        Raises:
            ConfigError: a URL or a name is wrong.
            DependencyError: a package is missing, or nothing that can speak is installed.
        """
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

    def open_recogniser(self) -> Recogniser:
        """Return a recogniser for one conversation."""
        return _open_recogniser(self.settings)

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
