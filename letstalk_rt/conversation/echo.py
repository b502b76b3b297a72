"""Telling the user's words from the avatar's own, which a microphone may hear."""

import re
from difflib import SequenceMatcher

_WORD = re.compile(r"\w+")
_SHARE = 0.6
_MIN_CHARS = 4


def repeats(heard: str, said: str) -> bool:
    """Return whether what was heard repeats what the avatar says.

    Recognisers mishear a loudspeaker, so three words of five that come in the same order are
    enough. A short word is no repetition: people answer "yes" to "yes or no?".
    """
    words, own = _words(heard), _words(said)
    if len("".join(words)) < _MIN_CHARS:
        return False
    blocks = SequenceMatcher(None, words, own, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks) >= _SHARE * len(words)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
