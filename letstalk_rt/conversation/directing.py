"""How a chat model directs the avatar: what it is told, and the tools that it may call."""

from collections.abc import Mapping
from typing import Any

from letstalk_rt.errors import ConfigError
from letstalk_rt.performance.gestures import GESTURES, MAX_AMOUNT, MIN_AMOUNT
from letstalk_rt.performance.moods import MOODS
from letstalk_rt.speech.tagged import Directed

PROMPT = (
    "Your face is seen. You may show a mood or a gesture by a tag in square brackets before the "
    "word at which it comes, such as [smiles] or [serious]; tags are not spoken. Use them "
    "sparingly, and no others than these. Moods, each of which lasts until the next: "
    f"{', '.join(MOODS)}. Gestures: {', '.join(GESTURES)}."
)
"""Follows the prompt of a conversation, if its avatar can be directed."""


def _tool(name: str, description: str, **properties: dict[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": [next(iter(properties))]}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


TOOLS = (
    _tool(
        "set_mood",
        "Change the mood that your face shows; it lasts until the next.",
        mood={"type": "string", "enum": list(MOODS)},
        strength={"type": "number", "minimum": 0, "maximum": 1},
    ),
    _tool(
        "gesture",
        "Make a small gesture now.",
        gesture={"type": "string", "enum": list(GESTURES)},
        amount={"type": "number", "minimum": MIN_AMOUNT, "maximum": MAX_AMOUNT},
    ),
)
"""The tools of the performance, as in OpenAI's interface."""


def direct(avatar: Directed, name: str, arguments: Mapping[str, Any]) -> str:
    """Run a tool; return its result for the chat model.

    Raises:
        ConfigError: there is no such tool, mood or gesture, or a number is out of range. Its
            message tells the chat model what there is.
    """
    if name == "set_mood":
        avatar.set_mood(arguments.get("mood", ""), arguments.get("strength", 1.0))
    elif name == "gesture":
        avatar.gesture(arguments.get("gesture", ""), arguments.get("amount", 1.0))
    else:
        raise ConfigError(f"there is no tool {name!r}; these are set_mood and gesture")
    return "done"
