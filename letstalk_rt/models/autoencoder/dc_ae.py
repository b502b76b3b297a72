"""The paper's autoencoder: DC-AE f32c32 of SANA, through `diffusers.AutoencoderDC`.

One 512x512 frame becomes a latent of `(32, 16, 16)`. `load` takes a published checkpoint, and
`random` creates untrained weights of the same shape, which take the same time to run.

Source: DC-AE, arXiv:2410.10733; SANA, arXiv:2410.10629; LetsTalk, arXiv:2411.16748.
"""

from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor

from letstalk_rt.models.autoencoder.published import PublishedAutoencoder

COMPRESSION = 32
CHANNELS = 32
SCALING_FACTOR = 0.41407
"""Scales the latents of SANA's DC-AE to unit variance; checkpoints have it in their config."""

_STAGES = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
_SCALES = ((),) * 3 + ((5,),) * 3
WIDTHS = (128, 256, 512, 512, 1024, 1024)
ENCODER_LAYERS, DECODER_LAYERS = (2, 2, 2, 3, 3, 3), (3, 3, 3, 3, 3, 3)


class DCAutoencoder(PublishedAutoencoder):
    """DC-AE: square frames to latents of unit variance, and back; the weights are frozen.

    Create it by `load` or `random`; arguments are those of `PublishedAutoencoder`.
    """

    kind = "AutoencoderDC"
    title = "DC-AE f32c32"
    compression = COMPRESSION
    channels = CHANNELS
    published_factor = SCALING_FACTOR

    @classmethod
    def random(
        cls,
        image_size: int = 512,
        *,
        widths: Sequence[int] = WIDTHS,
        encoder_layers: Sequence[int] = ENCODER_LAYERS,
        decoder_layers: Sequence[int] = DECODER_LAYERS,
    ) -> Self:
        """Create untrained weights, for benchmarks and tests; by default of the published shape.

        Raises:
            DependencyError: diffusers is not installed.
        """
        inner = cls._diffusers_class()(
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

    def _latents(self, frames: Tensor) -> Tensor:
        inner: Any = self.inner
        latents: Tensor = inner.encode(frames).latent
        return latents

    @classmethod
    def _layout_of(cls, config: dict[str, Any]) -> str:
        channels = config.get("latent_channels", CHANNELS)
        compression = 2 ** (len(config.get("encoder_block_out_channels", WIDTHS)) - 1)
        return f"DC-AE f{compression}c{channels}"
