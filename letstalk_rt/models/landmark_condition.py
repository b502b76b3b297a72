"""The landmark condition of the denoiser: where the rest of a filmed face is, without its mouth.

A film shows how a head is turned and what eyes, brows and nose do; only its lower face shall say
something else. So the denoiser is told the landmarks of the rest, as displacements from the
reference, and generates a lower face that belongs to them. A branch beside the frozen denoiser maps
them to what is added to the hidden states of each frame. Its last layers begin at zero; where the
condition is not given nothing is added.

Source: landmarks without the mouth as a condition: DiffTalk, arXiv:2301.03786; a branch with
zero-initialised projections beside a frozen network: ControlNet, arXiv:2302.05543.
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
