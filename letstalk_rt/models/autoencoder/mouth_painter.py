"""The mouth painter: inpaints teeth, tongue and the dark inside of open mouths.

The region between the lips is masked out and inpainted from its surroundings, the shape of the lips
and a picture of teeth: the portrait's own where it shows them, otherwise one from a bank that is
part of the weights. The same picture serves all frames of a session. The masked pixels are not an
input, so the colours of stretched lips cannot show through. The sound of speech says what lips do
not: whether the teeth are together, and where the tongue is.

The network works at half the size of a crop; teeth come in and colours go out at twice its size.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from letstalk_rt.models.audio_encoder.mouth_sound import MOUTH_SOUND
from letstalk_rt.models.autoencoder.blocks import ReluBlock
from letstalk_rt.models.autoencoder.teeth_light import LIGHT_VALUES, TeethLight, relit
from letstalk_rt.models.geometry.landmarks import LIPS, landmark_indices
from letstalk_rt.models.geometry.mouth_crop import (
    CROP_CENTRE,
    FINE,
    FINE_SIZE,
    lip_edges,
)

_SHAPE = LIPS + landmark_indices((152, 148, 377))
"""Landmarks that describe the shape of the mouth and how far the jaw is open."""

_DEPTH_PX = 16.0
_CONTEXT_CHANNELS = 3 + 1 + 3
"""Surroundings, mask of the opening, position in the mouth."""

_TEETH_CHANNELS = 3 + 1
_HALF, _FINE_HALF = 2, 2 * FINE
"""Pixels of the context, and of teeth and colours, along each side of a pixel of the network."""

_CONTEXT_INPUTS = _HALF**2 * _CONTEXT_CHANNELS


_INNER_ROWS, _INNER_COLUMNS = slice(8, 64), slice(8, 104)
"""The middle of a crop, which contains 24 of 25 open mouths; multiples of 8 px."""

_HALF_INNER_ROWS = slice(_INNER_ROWS.start // _HALF, _INNER_ROWS.stop // _HALF)
_HALF_INNER_COLUMNS = slice(_INNER_COLUMNS.start // _HALF, _INNER_COLUMNS.stop // _HALF)
_FINE_INNER_PADDING = (
    FINE * _INNER_COLUMNS.start,
    FINE_SIZE[1] - FINE * _INNER_COLUMNS.stop,
    FINE * _INNER_ROWS.start,
    FINE_SIZE[0] - FINE * _INNER_ROWS.stop,
)


@dataclass(frozen=True)
class MouthPainterConfig:
    """Shape of the mouth painter.

    Attributes:
        widths: channels at a half, a quarter and an eighth of the crop's size.
        bank: number of pictures of teeth in the bank, `K`.
        blocks: residual blocks at these sizes, 1 or 2 each. At the first two sizes a second block
            comes before the size is halved.
    """

    widths: tuple[int, int, int] = (48, 80, 96)
    bank: int = 8
    blocks: tuple[int, int, int] = (2, 2, 2)


SMALL_PAINTER = MouthPainterConfig(widths=(32, 64, 64), blocks=(1, 1, 1))
"""A third of the operations; it is distilled from a painter of the usual shape."""


def masked_teeth(crops: Tensor, opening: Tensor) -> Tensor:
    """Return the inside of openings of crops `(B, 3, H, W)`, and the mask: `(B, 4, H, W)`."""
    return torch.cat([crops * opening, opening], 1)


def is_inner(opening: Tensor) -> Tensor:
    """Return whether openings `(B, 1, 80, 112)` lie in the middle of their crops, `(B,)` bool."""
    outside = opening.clone()
    outside[..., _INNER_ROWS, _INNER_COLUMNS] = 0
    return ~outside.flatten(1).any(1)


class MouthPainter(nn.Module):
    """A small U-Net over the crop of a mouth, at half its size.

    Args:
        config: its shape.

    Attributes:
        bank: pictures of teeth for portraits that show none, `(K, 4, 160, 224)`, in 1/127; all
            zeros until `set_bank`.
        light: how the light on teeth depends on the light on the skin, `(3, 3)`: see `TeethLight`.
    """

    bank: Tensor
    light: Tensor

    def __init__(self, config: MouthPainterConfig) -> None:
        super().__init__()
        self.config = config
        fine, middle, coarse = config.widths
        assert all(count in (1, 2) for count in config.blocks), config.blocks
        two_fine, two_middle, two_coarse = (count == 2 for count in config.blocks)
        self.style = nn.Sequential(
            nn.Linear(2 * len(_SHAPE) + MOUTH_SOUND, 96),
            nn.SiLU(),
            nn.Linear(96, coarse + middle),
        )
        inputs = _CONTEXT_INPUTS + _FINE_HALF**2 * _TEETH_CHANNELS
        self.stem = nn.Conv2d(inputs, fine, 3, padding=1)
        self.fine_in = ReluBlock(fine) if two_fine else nn.Identity()
        self.down1 = nn.Conv2d(fine, middle, 3, stride=2, padding=1)
        self.middle_in = ReluBlock(middle) if two_middle else nn.Identity()
        self.down2 = nn.Conv2d(middle, coarse, 3, stride=2, padding=1)
        self.coarse = nn.Sequential(*(ReluBlock(coarse) for _ in range(1 + two_coarse)))
        self.up1 = nn.Conv2d(coarse, 4 * middle, 1)
        self.middle_out = ReluBlock(middle)
        self.up2 = nn.Conv2d(middle, 4 * fine, 1)
        self.fine_out = ReluBlock(fine)
        self.head = nn.Conv2d(fine, 3 * _FINE_HALF**2, 3, padding=1)
        self._widths = (coarse, middle)
        bank = torch.zeros(config.bank, _TEETH_CHANNELS, *FINE_SIZE, dtype=torch.int8)
        self.register_buffer("bank", bank)
        self.register_buffer("light", torch.zeros(3, LIGHT_VALUES))

    def set_bank(self, teeth: Tensor, light: TeethLight) -> None:
        """Set the bank.

        Args:
            teeth: the result of `masked_teeth`, `(K, 4, 160, 224)`, in the mean light.
            light: how to change them for another light.
        """
        assert teeth.shape == self.bank.shape, teeth.shape
        self.bank.copy_((teeth * 127).round().clamp(-127, 127))
        self.light.copy_(torch.stack([light.skin, light.teeth, light.slope]))

    def banked_teeth(self, seed: int, skin: Tensor) -> Tensor:
        """Return one picture of the bank in the light of a portrait, `(1, 4, 160, 224)`.

        Args:
            seed: determines which.
            skin: the light on the portrait's skin, `(1, 3)`, see `skin_light`.
        """
        teeth = self.bank[seed % len(self.bank)][None].float() / 127
        return relit(teeth, TeethLight(*self.light.float()).change(skin))

    def encode_teeth(self, teeth: Tensor) -> Tensor:
        """Encode pictures of teeth, once for all frames of a session.

        Args:
            teeth: the result of `masked_teeth` for a frame of the same person, aligned like the
                crops at twice their size, `(B, 4, 160, 224)`; zeros if there is none.

        Returns:
            Features, `(B, C, 40, 56)`.
        """
        parts = F.pixel_unshuffle(teeth, _FINE_HALF).to(self.stem.weight.dtype)
        weight = self.stem.weight[:, _CONTEXT_INPUTS:]
        return F.conv2d(parts.contiguous(memory_format=torch.channels_last), weight, padding=1)

    def forward(
        self,
        crops: Tensor,
        opening: Tensor,
        points: Tensor,
        teeth: Tensor,
        sound: Tensor | None = None,
        *,
        inner: bool = False,
    ) -> Tensor:
        """Inpaint the inside of mouths.

        Args:
            crops: `(B, 3, 80, 112)` in [-1, 1]; pixels inside the opening are ignored.
            opening: `(B, 1, 80, 112)` in [0, 1], see `mouth_crop.opening_mask`.
            points: landmarks `(B, L, 2)` in pixels of the crops.
            teeth: from `encode_teeth`, `(B, C, 40, 56)`.
            sound: the audio of the frames, `(B, S)`, see `mouth_sound`; None if unknown.
            inner: compute the middle of the crops only, in three fifths of the time; the openings
                must lie in it, see `is_inner`. The rest of the result is zero.

        Returns:
            The inside, `(B, 3, 160, 224)` float32 in [-1, 1]; valid inside the opening.
        """
        position = _position_in_mouth(points, opening)
        context = torch.cat([crops * (1 - opening), opening, position], 1)
        if inner:
            context = context[..., _INNER_ROWS, _INNER_COLUMNS]
            teeth = teeth[..., _HALF_INNER_ROWS, _HALF_INNER_COLUMNS]
        to_coarse, to_middle = self._condition(points, sound).split(self._widths, 1)
        fine = self.fine_in(self._encode_context(context) + teeth)
        middle = self.middle_in(self.down1(fine))
        coarse = self.coarse(self.down2(middle) + to_coarse)
        middle = self.middle_out(middle + to_middle + F.pixel_shuffle(self.up1(coarse), 2))
        fine = self.fine_out(fine + F.pixel_shuffle(self.up2(middle), 2))
        inside = torch.tanh(F.pixel_shuffle(self.head(F.relu(fine)), _FINE_HALF).float())
        return F.pad(inside, _FINE_INNER_PADDING) if inner else inside

    def _encode_context(self, context: Tensor) -> Tensor:
        parts = F.pixel_unshuffle(context, _HALF).to(self.stem.weight.dtype)
        weight = self.stem.weight[:, :_CONTEXT_INPUTS]
        parts = parts.contiguous(memory_format=torch.channels_last)
        return F.conv2d(parts, weight, self.stem.bias, padding=1)

    def _condition(self, points: Tensor, sound: Tensor | None) -> Tensor:
        """Return what lip shape and sound add to all pixels, `(B, coarse + middle, 1, 1)`."""
        shape = ((points[:, _SHAPE] - points.new_tensor(CROP_CENTRE)) / 32).flatten(1)
        if sound is None:
            sound = shape.new_zeros(len(shape), MOUTH_SOUND)
        condition: Tensor = self.style(torch.cat([shape, sound], 1).to(self.stem.weight.dtype))
        return condition[..., None, None]


def _position_in_mouth(points: Tensor, opening: Tensor) -> Tensor:
    """Return the position of each pixel, `(B, 3, H, W)`: across, from upper, from lower lip."""
    height, width = opening.shape[-2:]
    upper, lower, _ = lip_edges(points, width)
    y = torch.arange(height, device=points.device)[:, None] + 0.5
    across = (torch.arange(width, device=points.device) + 0.5 - CROP_CENTRE[0]) / 32
    across = across.expand_as(opening)
    below = (y - upper[:, None])[:, None] / _DEPTH_PX
    above = (lower[:, None] - y)[:, None] / _DEPTH_PX
    return torch.cat([across, below, above], 1).clamp(-2, 2) * opening
