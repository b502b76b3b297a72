"""The corpus: files of valid input, and of input that once broke something.

`corpus/TARGET/seed-*` are valid; `corpus/TARGET/found-*` were found by fuzzing, made as small as
Hypothesis could, and are kept so that they stay harmless.
"""

import hashlib
from pathlib import Path

FOLDER = Path(__file__).parent / "corpus"


def entries(target):
    """Return the corpus of a target: names and bytes, in a fixed order."""
    return [(path.name, path.read_bytes()) for path in sorted((FOLDER / target).iterdir())]


def keep(target, data, kind="found"):
    """Add an input to the corpus; return its path."""
    path = FOLDER / target / f"{kind}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
