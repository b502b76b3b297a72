"""Tags in text, such as "[smiles] Hello!": what is spoken, and what is performed at which word."""

import re
from dataclasses import dataclass

from letstalk_rt.performance.gestures import GESTURES
from letstalk_rt.performance.moods import MOODS

_TAG = re.compile(r"\[([^\[\]]{0,40})\]")

_FORMS = {
    "nods": "nod",
    "nodding": "nod",
    "shakes head": "shake",
    "shakes": "shake",
    "tilts head": "tilt",
    "tilts": "tilt",
    "raises brows": "raise_brows",
    "raises eyebrows": "raise_brows",
    "frowns": "frown",
    "winks": "wink",
    "smiles": "smile",
    "smiling": "smile",
    "laughs": "smile",
    "looks left": "look_left",
    "looks right": "look_right",
    "looks up": "look_up",
    "looks down": "look_down",
    "looks away": "look_away",
    "blinks": "blink",
    "happy": "cheerful",
    "sad": "concerned",
    "worried": "concerned",
    "excited": "lively",
    "sleepy": "tired",
    "friendly": "warm",
}
"""Other words for gestures and moods, as voices and chat models write them."""


@dataclass(frozen=True, slots=True)
class Cue:
    """A mood or a gesture at a place of a text.

    Attributes:
        name: of `MOODS` or of `GESTURES`.
        is_mood: which of both.
        position: the number of characters of the spoken text before it.
    """

    name: str
    is_mood: bool
    position: int


@dataclass(frozen=True, slots=True)
class TaggedText:
    """A text without its tags.

    Attributes:
        text: what is spoken.
        cues: what is performed, in order.
        unknown: tags that name neither a mood nor a gesture; they are not spoken either.
    """

    text: str
    cues: tuple[Cue, ...]
    unknown: tuple[str, ...]


def parse_tags(text: str) -> TaggedText:
    """Return a text without its tags, and what these ask for."""
    spoken, cues, unknown, end = "", [], [], 0
    for tag in _TAG.finditer(text):
        spoken = _joined(spoken, text[end : tag.start()])
        end = tag.end()
        name = meaning(tag[1])
        if name is None:
            unknown.append(tag[1].strip())
        else:
            cues.append(Cue(name, name in MOODS, len(spoken)))
    return TaggedText(_joined(spoken, text[end:]), tuple(cues), tuple(unknown))


def meaning(tag: str) -> str | None:
    """Return the mood or gesture that a tag names; None if it names none."""
    words = " ".join(tag.lower().replace("_", " ").replace("-", " ").split())
    name = _FORMS.get(words, words.replace(" ", "_"))
    return name if name in MOODS or name in GESTURES else None


def _joined(before: str, after: str) -> str:
    """Join what stands around a tag, without doubling the space between."""
    if not before or before[-1].isspace():
        after = after.lstrip()
    return before + after
