"""The landmark condition of the denoiser: where the rest of a filmed face is, without its mouth.

A film shows how a head is turned and what eyes, brows and nose do; only its lower face shall say
something else. So the denoiser is told the landmarks of the rest, as displacements from the
reference, and generates a lower face that belongs to them. A branch beside the frozen denoiser maps
them to what is added to the hidden states of each frame. Its last layers begin at zero; where the
condition is not given nothing is added.

Latents that hold landmarks need no more. Others, as the paper's, have all three visual conditions
of DiffTalk: the frame with its lower face masked and a reference frame, both as latents, and the
landmarks.

Source: masked frame, reference frame and landmarks without the mouth as conditions: DiffTalk,
arXiv:2301.03786; a branch with zero-initialised projections beside a frozen network: ControlNet,
arXiv:2302.05543.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from letstalk_rt.models.face.head_motion import face_size
from letstalk_rt.models.geometry.landmarks import REST

_HIDDEN = 128
_UNIT = 0.1
"""A usual displacement in face sizes, which becomes 1."""


@dataclass(frozen=True)
class Hint:
    """What the branch adds for each frame.

    Attributes:
        tokens: to the hidden states, `(B, N, P, D)`.
        vector: to the vector that modulates all blocks, `(B, N, D)`.
    """

    tokens: Tensor
    vector: Tensor


class LandmarkBranch(nn.Module):
    """Maps displacements of landmarks to what is added to the hidden states.

    Args:
        width: width of the hidden states.
        side: height and width of a latent.
    """

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.places = side * side
        self.read = nn.Sequential(
            nn.Linear(2 * len(REST), _HIDDEN), nn.SiLU(), nn.Linear(_HIDDEN, _HIDDEN)
        )
        self.tokens = nn.Linear(_HIDDEN, self.places * width)
        self.vector = nn.Linear(_HIDDEN, width)
        for layer in (self.tokens, self.vector):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, rest: Tensor) -> Hint:
        """Return what is added, for displacements `(B, N, R, 2)` in face sizes."""
        hidden = self.read(rest.flatten(2).to(self.tokens.weight.dtype) / _UNIT)
        return Hint(self.tokens(hidden).unflatten(2, (self.places, -1)), self.vector(hidden))


class FilmBranch(nn.Module):
    """Maps masked frame, reference frame and landmarks to what is added to the hidden states.

    Args:
        width: width of the hidden states.
        channels: channels of a latent.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.look = nn.Sequential(
            nn.Conv2d(2 * channels, _HIDDEN, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(_HIDDEN, _HIDDEN, 3, padding=1),
            nn.SiLU(),
        )
        self.read = nn.Sequential(
            nn.Linear(2 * len(REST), _HIDDEN), nn.SiLU(), nn.Linear(_HIDDEN, _HIDDEN)
        )
        self.tokens, self.vector = nn.Linear(_HIDDEN, width), nn.Linear(_HIDDEN, width)
        for layer in (self.tokens, self.vector):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, rest: Tensor, shown: Tensor) -> Hint:
        """Return what is added.

        Args:
            rest: displacements `(B, N, R, 2)` in face sizes.
            shown: latents of masked frame and reference of each frame, `(B, N, 2 C, h, w)`.
        """
        dtype = self.tokens.weight.dtype
        seen = self.look(shown.flatten(0, 1).to(dtype)).unflatten(0, shown.shape[:2])
        hidden = self.read(rest.flatten(2).to(dtype) / _UNIT)
        return Hint(self.tokens(seen.flatten(3).transpose(2, 3)), self.vector(hidden))


def rest_of_face(points: Tensor, reference: Tensor) -> Tensor:
    """Return how landmarks without the mouth differ from a reference's, in its face sizes.

    Args:
        points: landmarks of frames, `(B, N, L, 2)`.
        reference: landmarks of the reference of each, `(B, L, 2)`.

    Returns:
        `(B, N, R, 2)`.
    """
    sizes = torch.stack([face_size(one) for one in reference.float()])
    moved = (points[:, :, REST] - reference[:, None, REST]).float()
    return moved / sizes[:, None, None, None]
