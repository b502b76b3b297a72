"""Assigns people, not clips, to the splits."""

import hashlib
from typing import Any

import numpy as np

SAME_PERSON = 0.45
"""Cosine of two people's mean SFace embeddings from which on they count as one.

SFace's authors state 0.363 for two single images; means of several clips are closer."""


def assign_splits(rows: list[dict[str, Any]], eval_share: float) -> None:
    """Write `person` and `split` into the lines of clips, in place.

    People whose faces are alike become one. Who is in `eval` depends on the person's name alone, so
    that it stays so when more videos are prepared, except where that would leave `eval` empty: then
    it is the person who comes next.

    Args:
        rows: Lines of all clips; `face`, an embedding, is taken out.
        eval_share: Share of people in `eval`.
    """
    people = sorted({str(row["person"]) for row in rows})
    faces: dict[str, list[list[float]]] = {}
    for row in rows:
        if (vector := row.pop("face", None)) is not None:
            faces.setdefault(str(row["person"]), []).append(vector)
    alias = _merged(people, {name: np.mean(found, 0) for name, found in faces.items()})
    distinct = sorted(set(alias.values()), key=_chance)
    held_out = {name for name in distinct if _chance(name) < eval_share}
    if not held_out and eval_share > 0 and len(distinct) > 1:
        held_out = {distinct[0]}
    for row in rows:
        row["person"] = alias[str(row["person"])]
        row["split"] = "eval" if row["person"] in held_out else "train"


def _merged(people: list[str], faces: dict[str, np.ndarray]) -> dict[str, str]:
    """Return for each person the first in the alphabet of those with the same face."""
    alias = {name: name for name in people}

    def root(name: str) -> str:
        while alias[name] != name:
            name = alias[name]
        return name

    known = [name for name in people if name in faces]
    if known:
        vectors = np.stack([faces[name] / np.linalg.norm(faces[name]) for name in known])
        for index, name in enumerate(known):
            for other in np.flatnonzero(vectors[:index] @ vectors[index] > SAME_PERSON):
                first, second = sorted((root(name), root(known[int(other)])))
                alias[second] = first
    return {name: root(name) for name in people}


def _chance(name: str) -> float:
    """Return a number in [0, 1) that depends on the name alone."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:12], 16) / 16**12
