"""Where sentences end in a text."""

import re

SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]|\n")

_ABBREVIATIONS = ("Mr.", "Mrs.", "Ms.", "Dr.", "Prof.", "St.", "e.g.", "i.e.", "etc.", "vs.", "No.")


def is_sentence(text: str) -> bool:
    """Return whether a text ends a sentence, not an abbreviation or the number of a list."""
    words = text.split()
    if not words:
        return True  # an empty line
    return any(char.isalpha() for char in text) and words[-1] not in _ABBREVIATIONS


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text, which joined are the text."""
    sentences, start = [], 0
    for match in SENTENCE_END.finditer(text):
        if is_sentence(text[start : match.end()]):
            sentences.append(text[start : match.end()])
            start = match.end()
    return [*sentences, text[start:]] if start < len(text) else sentences
