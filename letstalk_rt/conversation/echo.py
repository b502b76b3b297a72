"""Telling the user's words from the avatar's own, which a microphone may hear."""

import re
from difflib import SequenceMatcher

_WORD = re.compile(r"\w+")
_SHARE = 0.6
_MIN_CHARS = 4
_SLACK = 2
"""Words by which a misheard repetition may be longer or shorter."""


def repeats(heard: str, said: str) -> bool:
    """Return whether what was heard repeats what the avatar says.

    Recognisers mishear a loudspeaker, so three words of five that come in the same order, two of
    them side by side, are enough. They must lie together: the little words of a language are in
    every long answer. A short word is no repetition: people answer "yes" to "yes or no?".
    """
    words, own = _words(heard), _words(said)
    if len("".join(words)) < _MIN_CHARS:
        return False
    longest = SequenceMatcher(None, words, own, autojunk=False).find_longest_match()
    if longest.size < min(2, len(words)):
        return False
    first = longest.b - longest.a
    near = own[max(0, first - _SLACK) : first + len(words) + _SLACK]
    blocks = SequenceMatcher(None, words, near, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks) >= _SHARE * len(words)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
