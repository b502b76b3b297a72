"""What an expression does to a face: how latent and lips change with brows, cheeks and a smile.

Landmarks in an image hardly show an expression, but latents do. A regression from the motion codes
of filmed people to the latents of the same frames tells how, apart from what head and lips do in
them; it is linear and the same for all faces.
"""

import torch
from torch import Tensor, nn

from letstalk_rt.models.autoencoder.latents import FACE_SIZE
from letstalk_rt.models.face.lip_values import NUM_LIP_VALUES
from letstalk_rt.models.face.talking_mouth import TalkingMouth
from letstalk_rt.models.geometry.brow_flow import BROW_MOTION
from letstalk_rt.models.motion.code import channel

EXPRESSION_NAMES = (
    "pucker",
    "brow_inner",
    "brow_outer",
    "brow_down",
    "squint",
    "smile",
    "frown",
)
"""The numbers of the code that an expression is made of."""

EXPRESSION = [channel(name) for name in EXPRESSION_NAMES]


class Expression(nn.Module):
    """Linear maps; before they are fitted, faces have no expression.

    Attributes:
        face: change of the face part of the latent per unit of each number, `(E, 256)`.
        lips: change of the lip values per unit of each number, `(E, Q)`.
        brows: motion of the brows per unit of each number, `(E, 3)`: see `BROW_MOTION`.
        lower_lid: how far the lower lids are lower per unit of each number, in widths of an eye,
            `(E,)`.
        mouth: how latents change while people talk, and how mouths look at rest.
    """

    face: Tensor
    lips: Tensor
    brows: Tensor
    lower_lid: Tensor

    def __init__(self) -> None:
        super().__init__()
        count = len(EXPRESSION_NAMES)
        self.register_buffer("face", torch.zeros(count, FACE_SIZE))
        self.register_buffer("lips", torch.zeros(count, NUM_LIP_VALUES))
        self.register_buffer("brows", torch.zeros(count, BROW_MOTION))
        self.register_buffer("lower_lid", torch.zeros(count))
        self.mouth = TalkingMouth()
