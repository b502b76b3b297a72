"""The paper's autoencoder: DC-AE f32c32 of SANA, through `diffusers.AutoencoderDC`.

One 512x512 frame becomes a latent of `(32, 16, 16)`. Needs the extra `paper`. Nothing is
downloaded on import; `load` takes a local folder or the id of a public checkpoint, and `random`
makes untrained weights of the same shape, which cost the same time.

Source: DC-AE, arXiv:2410.10733; SANA, arXiv:2410.10629; LetsTalk, arXiv:2411.16748.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from letstalk_rt.errors import ConfigError, DependencyError, InputError, WeightsError
from letstalk_rt.models.layers.checks import check_tensor

COMPRESSION = 32
CHANNELS = 32
SCALING_FACTOR = 0.41407
"""Brings the latents of SANA's DC-AE to unit variance; checkpoints carry it in their config."""

_STAGES = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
_SCALES = ((),) * 3 + ((5,),) * 3
WIDTHS = (128, 256, 512, 512, 1024, 1024)
ENCODER_LAYERS, DECODER_LAYERS = (2, 2, 2, 3, 3, 3), (3, 3, 3, 3, 3, 3)


@dataclass
class DCPortraitFeatures:
    """A portrait as this autoencoder knows it; its decoder is not guided.

    Attributes:
        image: `(B, 3, H, W)` in [-1, 1].
        latent: `(B, 32, h, w)`.
    """

    image: Tensor
    latent: Tensor

    def repeat(self, times: int) -> Self:
        """Return the same for `times` frames of each portrait: the decoder does not look at it."""
        return self


class DCAutoencoder(nn.Module):
    """Frames of any size that 32 divides to latents of unit variance, and back; frozen.

    Make it with `load` or `random`.

    Args:
        inner: a `diffusers.AutoencoderDC`.
        picture_size: side of the frames, in pixels.
        scaling_factor: latents inside times this are latents outside.

    Raises:
        ConfigError: 32 does not divide `image_size`.
    """

    def __init__(self, inner: nn.Module, image_size: int, scaling_factor: float) -> None:
        super().__init__()
        if image_size < COMPRESSION or image_size % COMPRESSION:
            raise ConfigError(f"image_size must be a multiple of 32, got {image_size}")
        self.inner = inner.eval().requires_grad_(False)
        self.image_size = image_size
        self.scaling_factor = scaling_factor
        side = image_size // COMPRESSION
        self.latent_shape = (CHANNELS, side, side)

    @property
    def landmarks(self) -> None:
        """None: nothing in these latents says where landmarks are."""
        return None

    @classmethod
    def load(
        cls,
        source: str | Path,
        image_size: int = 512,
        *,
        subfolder: str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Load a checkpoint in diffusers' form.

        Args:
            source: a folder with `config.json` and weights, or a hub id such as
                `mit-han-lab/dc-ae-f32c32-sana-1.0-diffusers`.
            image_size: side of the frames, in pixels.
            subfolder: of the source, where it holds several models (SANA's: `vae`).
            dtype: of the weights.

        Raises:
            DependencyError: diffusers is not installed.
            WeightsError: nothing usable is there, or it is another model.
        """
        kind = _autoencoder_dc()
        place: dict[str, Any] = {} if subfolder is None else {"subfolder": subfolder}
        config = _read_config(kind, source, place)
        _check_config(str(source), config)
        try:
            inner, info = kind.from_pretrained(
                str(source), output_loading_info=True, torch_dtype=dtype, **place
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise WeightsError(
                f"the weights of {source} cannot be read as DC-AE f32c32: {error}"
            ) from error
        if faults := [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]:
            raise WeightsError(
                f"the weights of {source} do not fit its config: {len(faults)} tensors differ, "
                f"first {faults[0]!r}; download the checkpoint anew"
            )
        return cls(inner, image_size, float(config.get("scaling_factor", SCALING_FACTOR)))

    @classmethod
    def random(
        cls,
        image_size: int = 512,
        *,
        widths: Sequence[int] = WIDTHS,
        encoder_layers: Sequence[int] = ENCODER_LAYERS,
        decoder_layers: Sequence[int] = DECODER_LAYERS,
    ) -> Self:
        """Make untrained weights, for benchmarks and tests; by default of the published shape.

        Raises:
            DependencyError: diffusers is not installed.
        """
        inner = _autoencoder_dc()(
            latent_channels=CHANNELS,
            encoder_block_types=_STAGES,
            decoder_block_types=_STAGES,
            encoder_block_out_channels=tuple(widths),
            decoder_block_out_channels=tuple(widths),
            encoder_layers_per_block=tuple(encoder_layers),
            decoder_layers_per_block=tuple(decoder_layers),
            encoder_qkv_multiscales=_SCALES,
            decoder_qkv_multiscales=_SCALES,
            upsample_block_type="interpolate",
            downsample_block_type="Conv",
            scaling_factor=SCALING_FACTOR,
        )
        return cls(inner, image_size, SCALING_FACTOR)

    def encode(self, x: Tensor, portrait: DCPortraitFeatures | None = None) -> Tensor:
        """Encode `(B, T, 3, H, W)` in [-1, 1] to `(B, T, 32, h, w)`, unit variance.

        The portrait is not needed.

        Raises:
            InputError: another shape or type, NaN, or values far out of range.
        """
        size = self.image_size
        check_tensor("frames", x, ("B", "T", 3, size, size), finite=True)
        if float(x.abs().amax()) > 2:
            raise InputError("frames must be in [-1, 1]; map bytes with x / 127.5 - 1")
        inner: Any = self.inner
        latents = inner.encode(x.flatten(0, 1).to(inner.dtype)).latent * self.scaling_factor
        encoded: Tensor = latents.float().unflatten(0, x.shape[:2])
        return encoded

    def encode_portrait(self, picture: Tensor) -> DCPortraitFeatures:
        """Encode portraits `(B, 3, H, W)` in [-1, 1]; see `encode` for what it raises."""
        check_tensor("picture", picture, ("B", 3, self.image_size, self.image_size))
        return DCPortraitFeatures(picture, self.encode(picture[:, None])[:, 0])

    def decode(self, latents: Tensor, portrait: DCPortraitFeatures | None = None) -> Tensor:
        """Decode `(B, T, 32, h, w)` to `(B, T, 3, H, W)` in [-1, 1]; the portrait is not needed.

        Raises:
            InputError: another shape or type.
        """
        check_tensor("latents", latents, ("B", "T", *self.latent_shape))
        inner: Any = self.inner
        plain = (latents.flatten(0, 1) / self.scaling_factor).to(inner.dtype)
        frames: Tensor = inner.decode(plain).sample.float().clamp(-1, 1)
        decoded: Tensor = frames.unflatten(0, latents.shape[:2])
        return decoded

    def decode_layers(self, latents: Tensor, portrait: DCPortraitFeatures) -> Tensor:
        """As `decode`: these frames have one layer."""
        return self.decode(latents, portrait)

    def prepare_decoder(self, latents: Tensor, portrait: DCPortraitFeatures) -> Tensor:
        """Return latents `(B, 32, h, w)` as they are: this decoder needs no preparation."""
        return latents

    def run_decoder(self, layout: Tensor, portrait: DCPortraitFeatures) -> Tensor:
        """Decode `(B, 32, h, w)` to `(B, 3, H, W)` in [-1, 1]."""
        return self.decode(layout[None], portrait)[0]

    def without_background_flow(self, latents: Tensor) -> Tensor:
        """Return latents as they are: they do not tell the face from what is around it."""
        return latents

    def set_decoder_dtype(self, dtype: torch.dtype) -> None:
        """Let encoder and decoder compute in another number format."""
        self.to(dtype)

    def quantizable_parts(self) -> Sequence[nn.Module]:
        """Return none: this decoder is not run in 8-bit integers."""
        return ()


def _autoencoder_dc() -> Any:
    try:
        from diffusers import AutoencoderDC
    except ImportError as error:
        raise DependencyError(
            "DC-AE needs diffusers; install it with: pip install 'letstalk-rt[paper]'"
        ) from error
    return AutoencoderDC


def _read_config(kind: Any, source: str | Path, place: dict[str, Any]) -> dict[str, Any]:
    try:
        config: dict[str, Any] = kind.load_config(str(source), **place)
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"no DC-AE checkpoint at {source}: give a folder with config.json and weights, or a "
            "hub id and a network connection"
        ) from error
    return config


def _check_config(source: str, config: dict[str, Any]) -> None:
    """Refuse a config of another model, or of a DC-AE of another shape."""
    name = config.get("_class_name")
    if name != "AutoencoderDC":
        raise WeightsError(f"{source} holds {name or 'an unknown model'}, wanted AutoencoderDC")
    channels = config.get("latent_channels", CHANNELS)
    compression = 2 ** (len(config.get("encoder_block_out_channels", WIDTHS)) - 1)
    if (channels, compression) != (CHANNELS, COMPRESSION):
        raise WeightsError(
            f"{source} is DC-AE f{compression}c{channels}, wanted f{COMPRESSION}c{CHANNELS}"
        )
