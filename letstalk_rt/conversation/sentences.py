"""Cutting an answer that is still being generated into sentences."""

import re

from letstalk_rt.speech.sentences import SENTENCE_END, is_sentence

_PAUSE = re.compile(r"[,;:](?=\s)|[，；：]|\s[–—-](?=\s)")
_MARKUP = re.compile(r"[*_#`~]+(?![^\[\]]*\])")  # not in a tag such as [raise_brows]
_THOUGHT = re.compile(r"<think>.*?(</think>|$)", re.DOTALL)

FIRST_CHARS = 24
"""The first piece may end at a comma from this length on, so that the answer begins early."""

MAX_CHARS = 300
"""A longer sentence is cut at a space."""


class SentenceCutter:
    """Cuts text that comes in pieces into sentences to speak."""

    def __init__(self) -> None:
        self._text = ""
        self._is_first = True

    def push(self, piece: str) -> list[str]:
        """Return the sentences that are complete now."""
        self._text += piece
        if self._text.rfind("<think>") > self._text.rfind("</think>"):
            return []  # what a model thinks aloud before its answer
        self._text = _THOUGHT.sub("", self._text)
        sentences = []
        while end := self._find_end():
            sentence = _spoken(self._text[:end])
            self._text = self._text[end:]
            if sentence:
                sentences.append(sentence)
                self._is_first = False
        return sentences

    def flush(self) -> list[str]:
        """Return what is left at the end of the answer."""
        sentence = _spoken(_THOUGHT.sub("", self._text))
        self._text = ""
        return [sentence] if sentence else []

    def _find_end(self) -> int:
        """Return where the first sentence ends; 0 if it is not complete."""
        for match in SENTENCE_END.finditer(self._text):
            if is_sentence(self._text[: match.end()]):
                return match.end()
        if self._is_first:
            for match in _PAUSE.finditer(self._text):
                if match.end() >= FIRST_CHARS:
                    return match.end()
        if len(self._text) > MAX_CHARS:
            return self._text.rfind(" ", 0, MAX_CHARS) + 1 or MAX_CHARS
        return 0


def _spoken(text: str) -> str:
    """Return a text without markup, which a voice would read aloud."""
    return " ".join(_MARKUP.sub("", text).split())
