"""The reference-guided deep-compression autoencoder.

One frame becomes a latent of `(24, 4, 4)`. The decoder is given the portrait: the latent says
where the face landmarks are and how their surroundings moved, the portrait is warped there by a
fixed formula, and a small network corrects the flow and paints what no warp can know (the open
mouth, closed eyes, what the head uncovers). So the latent carries motion only. All portrait work is
done once per portrait.

Source: residual shortcuts of the down-sampling: DC-AE, arXiv:2410.10733, section 3.2.
Reference guidance: RefVAE, arXiv:2606.01620 (there by attention, here by a warp).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from letstalk_rt.models import surroundings
from letstalk_rt.models.landmark_warp import (
    face_flow,
    mouth_gap,
    nearness_of,
    read_at,
    sampling_grid,
    warp,
)
from letstalk_rt.models.landmarks import EYES, INNER_LOWER_LIP, INNER_UPPER_LIP, LIPS, NUM_POINTS

PICTURE_SIZE = 256
FACE_SHAPE = (16, 4, 4)
"""The first channels of a latent: the face, as the encoder sees it in the frame alone."""

FACE_SIZE = 16 * 4 * 4
LATENT_SHAPE = (16 + surroundings.CHANNELS, 4, 4)
LATENT_SIZE = LATENT_SHAPE[0] * 4 * 4
FLOW_SIZE = 128
"""Cells a side of the flow: two pixels each, for along the mouth it is torn."""

_SHOWN = (LIPS, INNER_UPPER_LIP, INNER_LOWER_LIP, EYES)
"""Groups of landmarks that the decoder is shown as maps, so that it knows where to paint."""

LANDMARK_GAIN = 4.0
"""Size at which landmarks begin in the latent: it gives their part about unit variance."""


@dataclass(frozen=True)
class AutoencoderConfig:
    """Widths of the autoencoder; `decoder` and `reference` at 16, 32 and 64 cells a side."""

    encoder: tuple[int, int, int, int, int] = (64, 128, 256, 256, 256)
    reference: tuple[int, int, int] = (128, 96, 48)
    decoder: tuple[int, int, int] = (192, 128, 80)
    style: int = 256


@dataclass
class PortraitFeatures:
    """What the decoder needs of a portrait; made once, then only read.

    Attributes:
        picture: `(B, 3, 256, 256)` in [-1, 1].
        latent: `(B, C, h, w)`.
        points: landmarks as read off the latent, `(B, L, 2)` in [-1, 1].
        features: three maps, at 16, 32 and 64 cells a side.
    """

    picture: Tensor
    latent: Tensor
    points: Tensor
    features: tuple[Tensor, ...]

    def repeat(self, times: int) -> "PortraitFeatures":
        """Repeat each item `times` times, for as many frames; a single one without a copy."""
        if times == 1:
            return self

        def repeated(part: Tensor) -> Tensor:
            return part[:, None].expand(-1, times, *part.shape[1:]).flatten(0, 1)

        return PortraitFeatures(
            repeated(self.picture),
            repeated(self.latent),
            repeated(self.points),
            tuple(repeated(f) for f in self.features),
        )


@dataclass
class Layout:
    """Where everything is to be in B frames, before anything is painted.

    It is many small sums, which cost the same for one frame as for a window of them.

    Attributes:
        points: landmarks read off the latents, `(B, L, 2)`.
        flow: along landmarks and surroundings, `(B, 2, 128, 128)`.
        grids: where to read the portrait's features, `(B, s, s, 2)` for s of 16, 32 and 64.
        start: what painting starts from, `(B, C, 16, 16)`.
        maps: flow, and nearness of landmarks, `(B, 6, 64, 64)`.
        gap: the open mouth, `(B, 4, 64, 64)`.
        styles: scale and shift in each block, `(B, 2 C)`.
    """

    points: Tensor
    flow: Tensor
    grids: tuple[Tensor, ...]
    start: Tensor
    maps: Tensor
    gap: Tensor
    styles: tuple[Tensor, ...]

    def __getitem__(self, frames: slice) -> "Layout":
        """Take some of the frames."""

        def part(value: Any) -> Any:
            return tuple(map(part, value)) if isinstance(value, tuple) else value[frames]

        return Layout(*(part(getattr(self, field.name)) for field in fields(self)))


@dataclass
class Decoded:
    """Decoded frames, in the layers they are made of; `...` is `B`, or `B, T`.

    The picture is `warped + residual`. Flow and residual make it at any other size as well, from
    the portrait at that size.

    Attributes:
        warped: the portrait after the warp alone, `(..., 3, 256, 256)`.
        mask: share of the painted part, `(..., 1, 256, 256)` in [0, 1].
        change: what painting would change everywhere, `(..., 3, 256, 256)`.
        flow: `(..., 2, 128, 128)`, see `landmark_warp.warp`.
        points: landmarks read off the latent, `(..., L, 2)`.
    """

    warped: Tensor
    mask: Tensor
    change: Tensor
    flow: Tensor
    points: Tensor

    @property
    def painted(self) -> Tensor:
        """What the network painted, `(..., 3, 256, 256)`."""
        return self.warped + self.change

    @property
    def residual(self) -> Tensor:
        """What the painting changes, `(..., 3, 256, 256)`."""
        return self.mask * self.change

    @property
    def picture(self) -> Tensor:
        """The whole, `(..., 3, 256, 256)`."""
        return self.warped + self.residual

    def __getitem__(self, index: Any) -> "Decoded":
        """Take some of the frames, or of the items."""
        return self.map(lambda layer: layer[index])

    def map(self, change: Callable[[Tensor], Tensor]) -> "Decoded":
        """Change each layer in the same way."""
        return Decoded(*(change(getattr(self, field.name)) for field in fields(self)))


def _face(latents: Tensor) -> Tensor:
    return latents[:, : FACE_SHAPE[0]]


def at_rest(latents: Tensor) -> Tensor:
    """Give latents `(..., 24, 4, 4)`, or faces alone, with surroundings at rest as a portrait's."""
    faces = latents[..., : FACE_SHAPE[0], :, :]
    return F.pad(faces, (0, 0, 0, 0, 0, surroundings.CHANNELS))


def _around(latents: Tensor) -> Tensor:
    return latents[:, FACE_SHAPE[0] :]


class ResBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; the style scales and shifts between them."""

    def __init__(self, channels: int, style: int = 0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        assert self.conv2.bias is not None
        nn.init.zeros_(self.conv2.bias)
        self.style = nn.Linear(style, 2 * channels) if style else None

    def forward(self, x: Tensor, styled: Tensor | None = None) -> Tensor:
        """Map `(B, C, H, W)` to the same shape; `styled` is what `style` gave, `(B, 2 C)`."""
        h = self.conv1(F.silu(x))
        if styled is not None:
            scale, shift = styled[..., None, None].chunk(2, 1)
            h = torch.addcmul(shift, h, 1 + scale)
        return x + self.conv2(F.silu(h))


class Down(nn.Module):
    """Halve the picture; the shortcut moves space into channels and averages groups of them."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        assert 4 * in_channels % out_channels == 0, (in_channels, out_channels)
        self.conv = nn.Conv2d(4 * in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to `(B, C', H/2, W/2)`."""
        x = F.pixel_unshuffle(x, 2)
        out = self.conv.out_channels
        return self.conv(x) + rearrange(x, "b (o g) h w -> b o g h w", o=out).mean(2)


class Up(nn.Module):
    """Double the picture by a pixel shuffle."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4 * out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to `(B, C', 2H, 2W)`."""
        return F.pixel_shuffle(self.conv(x), 2)


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each cell."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `(B, C, H, W)`."""
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class NormBlock(nn.Module):
    """Two normalised 3x3 convolutions beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, channels), nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to the same shape."""
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class Encoder(nn.Module):
    """A picture to its latent: landmarks found on heat maps, and the rest from a pyramid.

    Both parts are added in the latent: a linear map of the landmarks, which `read_points` undoes,
    and a free part for what landmarks do not say. Heat maps find landmarks of unseen people far
    sooner than a fully connected read-out does (docs/log.md has the figures).

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
        self.heat = nn.Sequential(nn.GroupNorm(8, w32), nn.SiLU(), nn.Conv2d(w32, NUM_POINTS, 1))
        self.heat_prior = nn.Parameter(torch.zeros(NUM_POINTS, 32, 32))
        self.write_points = nn.Linear(2 * NUM_POINTS, FACE_SIZE, bias=False)

    def forward(self, x: Tensor, mean_points: Tensor) -> tuple[Tensor, Tensor]:
        """Map `(B, 3, 256, 256)` in [-1, 1] to faces `(B, 16, 4, 4)`, heat `(B, L, 32, 32)`."""
        at32 = self.at32(self.at64(self.stem(F.pixel_unshuffle(x, 4))))
        at16 = self.at16(at32)
        at8 = self.at8(at16)
        up16 = self.back16(F.interpolate(self.lateral8(at8), scale_factor=2) + self.lateral16(at16))
        up32 = self.back32(F.interpolate(up16, scale_factor=2) + at32)
        heat = self.heat(up32).float() + self.heat_prior
        points = expected_points(heat)
        moved = F.linear((points - mean_points).flatten(1), self.write_points.weight.float())
        rest = self.head(self.at4(at8)).float()
        return rest + moved.view(-1, *FACE_SHAPE), heat


def expected_points(heat: Tensor) -> Tensor:
    """Give the mean place of each heat map: `(B, L, h, w)` logits to `(B, L, 2)` in [-1, 1]."""
    share = torch.softmax(heat.flatten(2), -1).unflatten(-1, heat.shape[-2:])
    axis_x = (torch.arange(heat.shape[-1], device=heat.device) + 0.5) / heat.shape[-1] * 2 - 1
    axis_y = (torch.arange(heat.shape[-2], device=heat.device) + 0.5) / heat.shape[-2] * 2 - 1
    return torch.stack([(share.sum(2) * axis_x).sum(-1), (share.sum(3) * axis_y).sum(-1)], -1)


class ReferenceEncoder(nn.Module):
    """A portrait to feature maps at 16, 32 and 64 cells a side."""

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
        """Map `(B, 3, 256, 256)` to three maps, coarse to fine."""
        fine = self.fine(self.stem(F.pixel_unshuffle(x, 4)))
        middle = self.middle(fine)
        maps = (self.coarse(middle), middle, fine)
        return tuple(head(m) for head, m in zip(self.heads, maps, strict=True))


class Decoder(nn.Module):
    """A latent and warped portrait features to a frame."""

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
                nn.Conv2d(w64 + r64 + 2 + len(_SHOWN), w64, 1),
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

    def lay_out(
        self, latent: Tensor, points: Tensor, portrait_latent: Tensor, coarse: Tensor
    ) -> Layout:
        """Prepare to decode `(B, C, h, w)`, whose landmarks are `points`, along the coarse flow."""
        both = torch.cat([_face(latent), _face(portrait_latent)], 1).to(self.spread.weight.dtype)
        start = F.interpolate(self.spread(both), (16, 16), mode="bilinear", align_corners=False)
        style = self.style(both.flatten(1))
        flows = [F.avg_pool2d(coarse, FLOW_SIZE // size) for size in (16, 32, 64)]
        near = nearness_of(_shown(points.device), points, 64, 4.0)
        gap = F.pixel_unshuffle(mouth_gap(points, FLOW_SIZE), 2)
        return Layout(
            points,
            coarse,
            tuple(sampling_grid(flow) for flow in flows),
            _packed(start, start.dtype),
            _packed(torch.cat([10 * flows[-1], near], 1), start.dtype),
            _packed(gap, start.dtype),
            tuple(
                block.style(style)
                for level in self.blocks
                for block in level  # type: ignore[attr-defined]
            ),
        )

    def forward(self, layout: Layout, portrait: PortraitFeatures) -> Decoded:
        """Paint B frames; one portrait item for each."""
        x, styles = layout.start, iter(layout.styles)
        for level, grid in enumerate(layout.grids):
            seen = read_at(portrait.features[level].float(), grid)
            parts = [x, _packed(seen, x.dtype)]
            if level == 2:
                parts.append(layout.maps)
            x = self.mix[level](torch.cat(parts, 1))
            for block in self.blocks[level]:  # type: ignore[attr-defined]
                x = block(x, next(styles))
            if level < 2:
                x = self.ups[level](x)
        change = 0.1 * self.flow_head(F.silu(x)).float()
        flow = layout.flow + F.interpolate(change, scale_factor=2.0, mode="bilinear")
        warped = warp(portrait.picture.float(), flow, "bicubic")
        seen = _packed(F.pixel_unshuffle(warped, 4), x.dtype)
        out = self.paint(torch.cat([x, seen, layout.gap], 1)).float()
        out = F.pixel_shuffle(out, 4)
        return Decoded(warped, torch.sigmoid(out[:, :1]), out[:, 1:], flow, layout.points)


@functools.cache
def _shown(device: torch.device) -> Tensor:
    """Give the groups of landmarks that are shown, `(G, L)` of 0 and 1."""
    with torch.inference_mode(False):
        groups = torch.zeros(len(_SHOWN), NUM_POINTS)
        for group, members in zip(groups, _SHOWN, strict=True):
            group[members] = 1
        return groups.to(device)


def _packed(maps: Tensor, dtype: torch.dtype) -> Tensor:
    """Give maps in the order in memory that a CPU's convolutions want."""
    return maps.to(dtype, memory_format=torch.channels_last)


class ReferenceAutoencoder(nn.Module):
    """256x256 frames to latents of `(24, 4, 4)` and back, guided by a portrait.

    Args:
        config: widths.
    """

    latent_shape = LATENT_SHAPE
    picture_size = PICTURE_SIZE
    mean_points: Tensor

    def __init__(self, config: AutoencoderConfig | None = None) -> None:
        super().__init__()
        self.config = config or AutoencoderConfig()
        self.encoder = Encoder(self.config.encoder)
        self.reference = ReferenceEncoder(self.config.reference)
        self.decoder = Decoder(self.config)
        self.read_points = nn.Linear(FACE_SIZE, 2 * NUM_POINTS, bias=False)
        with torch.no_grad():  # the read-out begins as what undoes the writing
            write = nn.init.orthogonal_(self.encoder.write_points.weight).mul_(LANDMARK_GAIN)
            self.read_points.weight.copy_(write.T / LANDMARK_GAIN**2)
        self.register_buffer("mean_points", torch.zeros(NUM_POINTS, 2))

    @torch.no_grad()
    def expect_points(self, mean_points: Tensor, spread: float = 0.12) -> None:
        """Tell an untrained model where landmarks `(L, 2)` are on average, and how they vary."""
        self.mean_points.copy_(mean_points)
        axis = (torch.arange(32) + 0.5) / 16 - 1
        distance2 = (axis - mean_points[..., None]) ** 2 / (2 * spread**2)
        self.encoder.heat_prior.copy_(-distance2[:, 1, :, None] - distance2[:, 0, None, :])

    def encode(self, x: Tensor, portrait: PortraitFeatures | None = None) -> Tensor:
        """Encode `(B, T, 3, 256, 256)` in [-1, 1] to `(B, T, 24, 4, 4)`.

        Args:
            x: frames.
            portrait: one item for each of B, that the surroundings are compared with; without it
                they are taken to be at rest, as a portrait's own are.
        """
        latents = self.encode_parts(x)[0]
        if portrait is None:
            return latents
        flat = self.with_surroundings(
            latents.flatten(0, 1), x.flatten(0, 1), portrait.repeat(x.shape[1])
        )
        return flat.unflatten(0, x.shape[:2])

    def encode_parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `encode`, with the heat maps' logits `(B, T, L, 32, 32)` beside the latents."""
        assert x.ndim == 5 and x.shape[-2:] == (PICTURE_SIZE, PICTURE_SIZE), x.shape
        flat = x.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        faces, heat = self.encoder(flat, self.mean_points)
        latents = at_rest(faces)
        return latents.unflatten(0, x.shape[:2]), heat.unflatten(0, x.shape[:2])

    def with_surroundings(
        self,
        latents: Tensor,
        frames: Tensor,
        portrait: PortraitFeatures,
        coarse: Tensor | None = None,
    ) -> Tensor:
        """Add what only a comparison with the portrait shows to latents `(B, 24, 4, 4)`.

        Args:
            latents: of the frames; their surroundings are replaced.
            frames: `(B, 3, 256, 256)`.
            portrait: one item per frame.
            coarse: flow by landmarks, in place of that read off the latents.
        """
        points = self.points(latents.detach())
        with torch.autocast(frames.device.type, enabled=False):
            if coarse is None:
                coarse = face_flow(portrait.points.float(), points)
            moved = surroundings.measure_surroundings(
                frames, portrait.picture, points, coarse.detach()
            )
        here = moved + _around(portrait.latent)
        return torch.cat([_face(latents), here.to(latents.dtype)], 1)

    def points(self, latents: Tensor) -> Tensor:
        """Read the face landmarks off latents `(..., 24, 4, 4)`: `(..., L, 2)` in [-1, 1].

        The read-out is linear, so landmarks are a handle on the latent: see `training.flow`.
        """
        flat = latents[..., : FACE_SHAPE[0], :, :].flatten(-3)
        offset = F.linear(flat.float(), self.read_points.weight.float())
        return self.mean_points + offset.unflatten(-1, (NUM_POINTS, 2))

    @property
    def points_matrix(self) -> Tensor:
        """The read-out of landmarks from a whole flat latent, `(2 L, 384)`."""
        return F.pad(self.read_points.weight.float(), (0, LATENT_SIZE - FACE_SIZE))

    def describe(self, picture: Tensor) -> PortraitFeatures:
        """Do all the work that is done once per portrait, `(B, 3, 256, 256)` in [-1, 1]."""
        assert picture.ndim == 4 and picture.shape[1:] == (3, PICTURE_SIZE, PICTURE_SIZE), (
            picture.shape
        )
        return self.describe_encoded(picture, self.encode(picture[:, None])[:, 0])

    def describe_encoded(self, picture: Tensor, latent: Tensor) -> PortraitFeatures:
        """As `describe`, for a portrait whose latent `(B, C, h, w)` is known already."""
        features = self.reference(picture.contiguous(memory_format=torch.channels_last))
        return PortraitFeatures(picture, latent, self.points(latent), features)

    def lay_out(
        self, latents: Tensor, portrait: PortraitFeatures, coarse: Tensor | None = None
    ) -> Layout:
        """Prepare to decode `(B, C, h, w)`; one portrait item per latent.

        `coarse` overrides the landmarks' flow read off the latents (training does so at its start).
        """
        points = self.points(latents)
        moved = _around(latents) - _around(portrait.latent)
        with torch.autocast(latents.device.type, enabled=False):
            if coarse is None:
                coarse = face_flow(portrait.points.float(), points)
            coarse = coarse + surroundings.surrounding_flow(moved, points, FLOW_SIZE)
        return self.decoder.lay_out(latents, points, portrait.latent, coarse)

    def decode_parts(
        self, latents: Tensor, portrait: PortraitFeatures, coarse: Tensor | None = None
    ) -> Decoded:
        """Decode `(B, C, h, w)` and keep the parts; arguments as of `lay_out`."""
        return self.paint(self.lay_out(latents, portrait, coarse), portrait)

    def paint(self, layout: Layout, portrait: PortraitFeatures) -> Decoded:
        """Decode B frames that are laid out; one portrait item for each."""
        painted: Decoded = self.decoder(layout, portrait)
        return painted

    def decode_layers(self, latents: Tensor, portrait: PortraitFeatures) -> Decoded:
        """Decode `(B, T, 24, 4, 4)` to the layers of B times T frames, one portrait per item."""
        assert latents.ndim == 5 and latents.shape[2:] == LATENT_SHAPE, latents.shape
        count = latents.shape[1]
        decoded = self.decode_parts(latents.flatten(0, 1), portrait.repeat(count))
        return decoded.map(lambda layer: layer.unflatten(0, (-1, count)))

    def decode(self, latents: Tensor, portrait: PortraitFeatures) -> Tensor:
        """Decode `(B, T, 24, 4, 4)` to `(B, T, 3, 256, 256)` in [-1, 1], one portrait per item."""
        return self.decode_layers(latents, portrait).picture.clamp(-1, 1)
