"""Means of a film's latents over neighbouring frames: less noise, and the expression that lasts."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

STEADY_FRAMES = 2
"""Latents of a still head are averaged over so many frames on either side: noise of landmarks would
flicker at the seam. The lips are set afterwards, so their motion does not become slower."""

MOOD_FRAMES = 25
"""The film's own expression, such as a smile, is the mean over so many frames on either side."""


@dataclass(frozen=True)
class PlacedLatent:
    """The latent of a frame's face.

    Attributes:
        place: equal for frames whose crops lie at the same place.
        latent: `(C, h, w)`.
    """

    place: Hashable
    latent: Tensor


def steady_latent(
    face: PlacedLatent,
    before: Iterable[PlacedLatent | None],
    after: Iterable[PlacedLatent | None],
) -> Tensor:
    """Return the latent of a face, with less noise if the head is still.

    The latents of a moving head belong to different crops, and are not mixed.

    Args:
        face: the face.
        before: the frames before it, the nearest first; None where there is no face.
        after: the frames after it, likewise.
    """
    latents = [face.latent]
    for side in (before, after):
        for near in islice(side, STEADY_FRAMES):
            if near is None or near.place != face.place:
                break
            latents.append(near.latent)
    return torch.stack(latents).mean(0)


def moods(faces: Sequence[PlacedLatent | None]) -> list[Tensor | None]:
    """Return the mean latent of the frames around each one; None where there is no face."""
    means: list[Tensor | None] = []
    for index, face in enumerate(faces):
        near = faces[max(0, index - MOOD_FRAMES) : index + MOOD_FRAMES + 1]
        seen = [one.latent for one in near if one is not None]
        means.append(None if face is None else torch.stack(seen).mean(0))
    return means
