"""The three networks of the reference-guided autoencoder.

The encoder encodes a frame, the reference encoder a portrait. The decoder samples the portrait's
features along the flow, and inpaints.
"""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from letstalk_rt.models.autoencoder.blocks import ChannelNorm, Down, NormBlock, ResBlock, Up
from letstalk_rt.models.autoencoder.latents import (
    FACE_SHAPE,
    FACE_SIZE,
    FLOW_SIZE,
    IMAGE_SIZE,
    WHOLE_FRAME,
    DecodedLayers,
    DecoderInputs,
    FramePart,
    PortraitFeatures,
    face_part,
)
from letstalk_rt.models.geometry.landmark_warp import (
    mouth_gap,
    proximity_maps,
    sample_at,
    sampling_grid,
    upsample,
)
from letstalk_rt.models.geometry.landmarks import (
    EYES,
    INNER_LOWER_LIP,
    INNER_UPPER_LIP,
    LIPS,
    NUM_LANDMARKS,
)

_MAPPED_GROUPS = (LIPS, INNER_UPPER_LIP, INNER_LOWER_LIP, EYES)
"""Groups of landmarks whose proximity maps are inputs of the decoder, to guide inpainting."""


@dataclass(frozen=True)
class AutoencoderConfig:
    """Widths of the autoencoder; `decoder` and `reference` at 16x16, 32x32 and 64x64."""

    encoder: tuple[int, int, int, int, int] = (64, 128, 256, 256, 256)
    reference: tuple[int, int, int] = (128, 96, 48)
    decoder: tuple[int, int, int] = (192, 128, 80)
    style: int = 256


class Encoder(nn.Module):
    """A frame to the face part of its latent, by heat maps of landmarks and a feature pyramid.

    The latent is the sum of a linear map of the landmarks, which `read_points` inverts, and a free
    part for what landmarks do not describe. Heat maps learn landmarks of unseen people far sooner
    than a fully connected read-out does (docs/log.md has the figures).

    Source: expected coordinates of a heat map: integral regression, arXiv:1711.08229.
    """

    def __init__(self, widths: tuple[int, int, int, int, int]) -> None:
        super().__init__()
        w64, w32, w16, w8, w4 = widths
        self.stem = nn.Conv2d(48, w64, 3, padding=1)
        self.at64 = NormBlock(w64)
        self.at32 = nn.Sequential(Down(w64, w32), NormBlock(w32))
        self.at16 = nn.Sequential(Down(w32, w16), NormBlock(w16))
        self.at8 = nn.Sequential(Down(w16, w8), NormBlock(w8), NormBlock(w8))
        self.at4 = nn.Sequential(Down(w8, w4), NormBlock(w4), ChannelNorm(w4))
        self.head = nn.Conv2d(w4, FACE_SHAPE[0], 3, padding=1)
        self.lateral8 = nn.Conv2d(w8, w32, 1)
        self.lateral16 = nn.Conv2d(w16, w32, 1)
        self.back16, self.back32 = NormBlock(w32), NormBlock(w32)
        self.heat = nn.Sequential(nn.GroupNorm(8, w32), nn.SiLU(), nn.Conv2d(w32, NUM_LANDMARKS, 1))
        self.heat_prior = nn.Parameter(torch.zeros(NUM_LANDMARKS, 32, 32))
        self.write_points = nn.Linear(2 * NUM_LANDMARKS, FACE_SIZE, bias=False)

    def forward(self, x: Tensor, mean_points: Tensor) -> tuple[Tensor, Tensor]:
        """Map `(B, 3, 256, 256)` in [-1, 1] to `(B, 16, 4, 4)` and heat maps `(B, L, 32, 32)`."""
        at32 = self.at32(self.at64(self.stem(F.pixel_unshuffle(x, 4))))
        at16 = self.at16(at32)
        at8 = self.at8(at16)
        up16 = self.back16(F.interpolate(self.lateral8(at8), scale_factor=2) + self.lateral16(at16))
        up32 = self.back32(F.interpolate(up16, scale_factor=2) + at32)
        heat = self.heat(up32).float() + self.heat_prior
        points = soft_argmax(heat)
        moved = F.linear((points - mean_points).flatten(1), self.write_points.weight.float())
        rest = self.head(self.at4(at8)).float()
        return rest + moved.view(-1, *FACE_SHAPE), heat


def soft_argmax(heat: Tensor) -> Tensor:
    """Return the mean positions `(B, L, 2)`, in [-1, 1], of heat maps `(B, L, h, w)` of logits."""
    share = torch.softmax(heat.flatten(2), -1)
    exact = torch.promote_types(share.dtype, torch.float32)  # positions need at least 32 bits
    with torch.autocast(heat.device.type, enabled=False):
        centres = _cell_centres(heat.shape[-2], heat.shape[-1], heat.device)
        places: Tensor = share.to(exact) @ centres.to(exact)
    return places


@functools.cache
def _cell_centres(height: int, width: int, device: torch.device) -> Tensor:
    """Return x and y of the cells of a map, row by row, in [-1, 1]: `(height * width, 2)`."""
    with torch.inference_mode(False):
        x, y = ((torch.arange(n, device=device) + 0.5) / n * 2 - 1 for n in (width, height))
        return torch.stack([x.repeat(height), y.repeat_interleave(width)], -1)


class ReferenceEncoder(nn.Module):
    """A portrait to feature maps of 16x16, 32x32 and 64x64."""

    def __init__(self, widths: tuple[int, int, int]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(48, 64, 3, padding=1)
        self.fine = nn.Sequential(ResBlock(64), ResBlock(64))
        self.middle = nn.Sequential(Down(64, 128), ResBlock(128))
        self.coarse = nn.Sequential(Down(128, 256), ResBlock(256))
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, w, 1), ChannelNorm(w))
            for c, w in zip((256, 128, 64), widths, strict=True)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map `(B, 3, 256, 256)` to three feature maps, coarse to fine."""
        fine = self.fine(self.stem(F.pixel_unshuffle(x, 4)))
        middle = self.middle(fine)
        maps = (self.coarse(middle), middle, fine)
        return tuple(head(m) for head, m in zip(self.heads, maps, strict=True))


class Decoder(nn.Module):
    """Latents and warped portrait features to the layers of frames."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        w16, w32, w64 = config.decoder
        r16, r32, r64 = config.reference
        self.style = nn.Sequential(
            nn.Linear(2 * FACE_SIZE, config.style),
            nn.SiLU(),
            nn.Linear(config.style, config.style),
        )
        self.spread = nn.Conv2d(2 * FACE_SHAPE[0], w16, 3, padding=1)
        self.mix = nn.ModuleList(
            [
                nn.Conv2d(w16 + r16, w16, 1),
                nn.Conv2d(w32 + r32, w32, 1),
                nn.Conv2d(w64 + r64 + 2 + len(_MAPPED_GROUPS), w64, 1),
            ]
        )
        self.blocks = nn.ModuleList(
            nn.ModuleList(ResBlock(w, config.style) for _ in range(2)) for w in config.decoder
        )
        self.ups = nn.ModuleList([Up(w16, w32), Up(w32, w64)])
        self.flow_head = nn.Conv2d(w64, 2, 3, padding=1)
        self.paint = nn.Sequential(
            nn.Conv2d(w64 + 48 + 4, w64, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(w64, w64, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(w64, 64, 3, padding=1),
        )
        for parameter in self.flow_head.parameters():
            nn.init.zeros_(parameter)

    def prepare(
        self, latent: Tensor, points: Tensor, portrait_latent: Tensor, coarse: Tensor
    ) -> DecoderInputs:
        """Compute the inputs for latents `(B, C, h, w)` with these landmarks and coarse flow."""
        both = torch.cat([face_part(latent), face_part(portrait_latent)], 1).to(
            self.spread.weight.dtype
        )
        start = F.interpolate(self.spread(both), (16, 16), mode="bilinear", align_corners=False)
        style = self.style(both.flatten(1))
        flows = [F.avg_pool2d(coarse, FLOW_SIZE // size) for size in (16, 32, 64)]
        proximity = proximity_maps(_group_masks(points.device), points, 64, 4.0)
        gap = F.pixel_unshuffle(mouth_gap(points, FLOW_SIZE), 2)
        return DecoderInputs(
            points,
            coarse,
            tuple(sampling_grid(flow) for flow in flows),
            _channels_last(start, start.dtype),
            _channels_last(torch.cat([10 * flows[-1], proximity], 1), start.dtype),
            _channels_last(gap, start.dtype),
            tuple(  # the type of a ModuleList does not include that of its modules
                block.style(style)
                for level in self.blocks
                for block in level  # type: ignore[attr-defined]
            ),
        )

    def forward(
        self, inputs: DecoderInputs, portrait: PortraitFeatures, part: FramePart | None = None
    ) -> DecodedLayers:
        """Decode B frames, one portrait per frame.

        Near its edges a part differs slightly from the same part of a whole frame, because nothing
        beyond it is computed at the finest level.
        """
        part = part or WHOLE_FRAME
        x, styles = inputs.start, iter(inputs.styles)
        for level, grid in enumerate(inputs.grids):
            if level == 2:
                x, grid = part.of(x), grid[:, part.rows, part.columns]
            sampled = sample_at(portrait.features[level].float(), grid)
            parts = [x, _channels_last(sampled, x.dtype)]
            if level == 2:
                parts.append(part.of(inputs.maps))
            x = self.mix[level](torch.cat(parts, 1))
            for block in self.blocks[level]:  # type: ignore[attr-defined]  # as above
                x = block(x, next(styles))
            if level < 2:
                x = self.ups[level](x)
        flow = self._corrected(inputs.flow, x, part)
        grid = sampling_grid(_double(flow))
        warped = sample_at(portrait.image.float(), grid[(slice(None), *part.pixels)], "bicubic")
        warped_cells = _channels_last(F.pixel_unshuffle(warped, 4), x.dtype)
        out = self.paint(torch.cat([x, warped_cells, part.of(inputs.gap)], 1)).float()
        out = F.pixel_shuffle(out, 4)
        return DecodedLayers(warped, torch.sigmoid(out[:, :1]), out[:, 1:], flow, inputs.points)

    def _corrected(self, flow: Tensor, x: Tensor, part: FramePart) -> Tensor:
        """Return the flow of whole frames, corrected in a part of them."""
        change = 0.1 * self.flow_head(F.silu(x)).float()
        if part == WHOLE_FRAME:
            return flow + upsample(change, FLOW_SIZE)
        flow = flow.clone()
        part.of(flow).add_(F.interpolate(change, scale_factor=2.0, mode="bilinear"))
        return flow


def _double(flow: Tensor) -> Tensor:
    """Return a flow at the size of a frame, `(B, 2, 256, 256)`."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    return F.interpolate(flow, size, mode="bilinear", align_corners=False)


@functools.cache
def _group_masks(device: torch.device) -> Tensor:
    """Return the groups of landmarks as masks `(G, L)` of 0 and 1."""
    with torch.inference_mode(False):
        groups = torch.zeros(len(_MAPPED_GROUPS), NUM_LANDMARKS)
        for group, members in zip(groups, _MAPPED_GROUPS, strict=True):
            group[members] = 1
        return groups.to(device)


def _channels_last(maps: Tensor, dtype: torch.dtype) -> Tensor:
    """Return maps in the memory format that is fastest for convolutions on a CPU."""
    return maps.to(dtype, memory_format=torch.channels_last)
