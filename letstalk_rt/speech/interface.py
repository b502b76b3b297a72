"""The interface of speech synthesis, and the check of texts."""

import unicodedata
from collections.abc import AsyncIterator
from typing import Protocol

import numpy as np

from letstalk_rt.errors import TextError

MAX_TEXT_CHARS = 10_000
"""Longest text of one call: about ten minutes of speech."""

Speech = AsyncIterator[tuple[np.ndarray, int]]
"""Chunks of `(n,)` int16 PCM, each with its sample rate in Hz."""

_ZERO_WIDTH_JOINERS = "\u200c\u200d"
_DROPPED = ("C", "So", "Sk", "Me")
"""Unicode categories that no voice can read: control characters, emoji, enclosing marks."""

_EMOJI_PRESENTATION = "\ufe0f"


class TextToSpeech(Protocol):
    """An engine that speaks text.

    Attributes:
        name: name of the engine, for messages and `letstalk doctor`.
    """

    @property
    def name(self) -> str:
        """Name of the engine."""
        ...

    def stream(self, text: str) -> Speech:
        """Speak a text; the first chunks come before the whole text is synthesised.

        Closing the iterator (`aclose`, or cancelling the task that iterates) stops the synthesis.

        Raises:
            TextError: the text is empty, too long, or has nothing that can be spoken.
            ConfigError: the engine does not know the voice.
            SynthesisError: the engine failed, cannot be reached or refused the request.
        """
        ...


def prepare_text(text: str, max_chars: int = MAX_TEXT_CHARS) -> str:
    """Return a text as it may be given to an engine.

    Control characters and emoji are left out, and white space is joined.

    Raises:
        TextError: it is no text, longer than `max_chars`, or has neither letters nor digits. The
            message never repeats the text.
    """
    if not isinstance(text, str):
        raise TextError(f"the text must be a string, got {type(text).__name__}")
    if len(text) > max_chars:
        raise TextError(
            f"the text has {len(text)} characters, at most {max_chars} can be spoken at once; "
            "split it"
        )
    kept: list[str] = []
    for char in unicodedata.normalize("NFC", text):
        if char in _ZERO_WIDTH_JOINERS and kept and kept[-1].isalpha():
            kept.append(char)
        elif char.isspace() or unicodedata.category(char) == "Cc":
            kept.append(" ")
        elif char != _EMOJI_PRESENTATION and not unicodedata.category(char).startswith(_DROPPED):
            kept.append(char)
    prepared = " ".join("".join(kept).split())
    if not any(char.isalnum() for char in prepared):
        raise TextError("the text has nothing that can be spoken; it needs letters or digits")
    return prepared
