"""JSON of clients: an object whose texts can be sent on."""

import json
from typing import Any, NoReturn


def load_object(text: str | bytes) -> dict[str, Any]:
    r"""Return a JSON object.

    Half of a surrogate pair (`"\ud800"`) is refused, as no text can be sent that has one, and so
    are `NaN` and `Infinity`, which are not JSON, and numbers that would become them, as `1e999`.

    Raises:
        ValueError: It is not a JSON object. The message does not repeat it.
    """
    try:
        fields = json.loads(text, parse_constant=_no_number)
        json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
    return fields


def _no_number(name: str) -> NoReturn:
    raise ValueError(name)
