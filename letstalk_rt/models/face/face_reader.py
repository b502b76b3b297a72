"""The network of the face tracker: landmarks and expressions of a face in a small crop.

It is a tenth of the autoencoder's encoder, which reads landmarks too, so that a camera can be read
25 times a second beside everything else. It is trained on what cameras in rooms deliver: dim light,
noise, motion blur, glasses, hands before the face.

Source: expected coordinates of a heat map: integral regression, arXiv:1711.08229.
"""

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from letstalk_rt.models.face.face_tracker import Reading, read_heatmaps
from letstalk_rt.models.geometry.landmarks import (
    LEFT_LID,
    LIPS_OUTER,
    NUM_LANDMARKS,
    RIGHT_LID,
    landmark_indices,
)

CROP_PX = 128

EXPRESSIONS = ("shut_right", "shut_left", "brows", "smile")
"""Names of the expressions, sums of blendshapes: how far each eye is shut, from 0 to 1; brows
raised minus lowered; how far both corners of the mouth are raised."""

NUM_EXPRESSIONS = len(EXPRESSIONS)
SHUT, BROWS, SMILE = slice(0, 2), 2, 3

_LOOK = RIGHT_LID + LEFT_LID + landmark_indices((70, 300, 10, *LIPS_OUTER[::5], 468, 473))
"""Landmarks at which expressions are read: eyes, brows, forehead, mouth, irises."""

ReaderT = TypeVar("ReaderT", bound=nn.Module)

_PRIOR_WIDTH = 0.3  # deviation of landmarks in crops, over half their side


class Block(nn.Module):
    """A residual block of two 3x3 convolutions, whose norms cost nothing once it is trained."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = conv(channels, channels)
        self.conv2 = conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to the same shape."""
        out: Tensor = x + self.conv2(F.silu(self.conv1(x)))
        return out


def conv(in_channels: int, out_channels: int, size: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, size, padding=size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def halved(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 2, 2, bias=False), nn.BatchNorm2d(out_channels)
    )


class FaceReader(nn.Module):
    """Crops of 128 px to landmarks and expressions; knows nothing before it is trained.

    Attributes:
        mean_points: landmarks of an average face, `(L, 2)` in [-1, 1].
    """

    crop_px = CROP_PX
    mean_points: Tensor
    axis: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(48, 32), nn.SiLU(), Block(32))
        self.at16 = nn.Sequential(halved(32, 64), Block(64), Block(64))
        self.at8 = nn.Sequential(halved(64, 80), Block(80), Block(80))
        self.at4 = nn.Sequential(halved(80, 96), Block(96))
        self.back8, self.back16 = conv(96, 80, 1), conv(80, 64, 1)
        self.back32 = conv(64, 32, 1)
        self.fine8, self.fine16, self.fine32 = Block(80), Block(64), Block(32)
        self.heat = nn.Conv2d(32, NUM_LANDMARKS, 1)
        self.look = nn.Linear(len(_LOOK) * 32, 64)
        self.express = nn.Linear(64, NUM_EXPRESSIONS)
        self.register_buffer("mean_points", torch.zeros(NUM_LANDMARKS, 2))
        axis = (torch.arange(32) + 0.5) / 16 - 1
        self.register_buffer("axis", axis, persistent=False)

    def forward(self, crops: Tensor) -> Reading:
        """Read crops `(B, 3, 128, 128)` in [-1, 1]."""
        return self.read(*self.heatmaps(crops))

    def read(self, heat: Tensor, fine: Tensor) -> Reading:
        """Return what the results of `heatmaps` say."""
        points, certainty = read_heatmaps(heat)
        at = points[:, _LOOK].detach()[:, :, None]
        seen = F.grid_sample(fine.float(), at, align_corners=False)[..., 0]
        hidden = F.silu(self.look(seen.flatten(1).to(self.look.weight.dtype)))
        return Reading(points, certainty, self.express(hidden).float())

    def heatmaps(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Return heat maps `(B, L, 32, 32)` of logits and features `(B, 32, 32, 32)`."""
        crops = crops.contiguous(memory_format=torch.channels_last)
        at32 = self.stem(F.pixel_unshuffle(crops, 4))
        at16 = self.at16(at32)
        at8 = self.at8(at16)
        up8 = self.fine8(at8 + F.interpolate(self.back8(self.at4(at8)), scale_factor=2))
        up16 = self.fine16(at16 + F.interpolate(self.back16(up8), scale_factor=2))
        fine = self.fine32(at32 + F.interpolate(self.back32(up16), scale_factor=2))
        return self.heat(fine).float() + self._prior(), fine

    def _prior(self) -> Tensor:
        distance2 = (self.axis - self.mean_points[..., None]) ** 2 / (2 * _PRIOR_WIDTH**2)
        return -distance2[:, 1, :, None] - distance2[:, 0, None, :]


def without_norms(reader: ReaderT) -> ReaderT:
    """Return a trained network for inference whose norms are folded into its convolutions."""
    from copy import deepcopy

    from torch.nn.utils.fusion import fuse_conv_bn_eval

    folded = deepcopy(reader).eval().requires_grad_(False)
    for module in folded.modules():
        if isinstance(module, nn.Sequential) and len(module) == 2:
            conv, norm = module
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                module[0], module[1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    return folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
