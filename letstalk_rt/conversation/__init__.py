"""Talking with an avatar: a recogniser, a chat model and a voice, and whose turn it is."""

from letstalk_rt.conversation.conversation import DEFAULT_PROMPT, Conversation
from letstalk_rt.conversation.interface import (
    Caption,
    Chat,
    ConversationEvent,
    Failure,
    Recogniser,
    StateChange,
    Voice,
)
from letstalk_rt.conversation.parts import open_chat, open_recogniser
from letstalk_rt.conversation.realtime import RealtimeConversation
from letstalk_rt.conversation.turns import TurnDetector, TurnOptions
from letstalk_rt.speech.engines import open_speech

__all__ = [
    "DEFAULT_PROMPT",
    "Caption",
    "Chat",
    "Conversation",
    "ConversationEvent",
    "Failure",
    "RealtimeConversation",
    "Recogniser",
    "StateChange",
    "TurnDetector",
    "TurnOptions",
    "Voice",
    "open_chat",
    "open_recogniser",
    "open_speech",
]
