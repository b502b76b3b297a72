"""The autoencoder of the paper's first version: Stable Diffusion's, `diffusers.AutoencoderKL`.

One 256x256 frame becomes a latent of `(4, 32, 32)`: f8c4. A frame is encoded to the mean of its
distribution, where the published code draws a sample; the deviation is small, and stored latents
stay the same whenever they are encoded.

Source: Rombach et al. 2022, arXiv:2112.10752; LetsTalk, arXiv:2411.16748v1.
"""

from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor

from letstalk_rt.errors import WeightsError
from letstalk_rt.models.autoencoder.published import PublishedAutoencoder

COMPRESSION = 8
CHANNELS = 4
SCALING_FACTOR = 0.18215
"""Scales the latents of Stable Diffusion's autoencoder to unit variance."""

WIDTHS = (128, 256, 512, 512)


class KLAutoencoder(PublishedAutoencoder):
    """SD-VAE: square frames to latents of unit variance, and back; the weights are frozen.

    Create it by `load` (such as `stabilityai/sd-vae-ft-ema`) or `random`; arguments are those of
    `PublishedAutoencoder`.
    """

    kind = "AutoencoderKL"
    title = "SD-VAE f8c4"
    compression = COMPRESSION
    channels = CHANNELS
    published_factor = SCALING_FACTOR

    @classmethod
    def random(
        cls,
        image_size: int = 256,
        *,
        widths: Sequence[int] = WIDTHS,
        layers: int = 2,
        norm_groups: int = 32,
    ) -> Self:
        """Create untrained weights, for benchmarks and tests; by default of the published shape.

        Raises:
            DependencyError: diffusers is not installed.
        """
        inner = cls._diffusers_class()(
            latent_channels=CHANNELS,
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            block_out_channels=tuple(widths),
            layers_per_block=layers,
            norm_num_groups=norm_groups,
            sample_size=image_size,
            scaling_factor=SCALING_FACTOR,
        )
        return cls(inner, image_size, SCALING_FACTOR)

    def _latents(self, frames: Tensor) -> Tensor:
        inner: Any = self.inner
        latents: Tensor = inner.encode(frames).latent_dist.mean
        return latents

    @classmethod
    def _layout_of(cls, config: dict[str, Any]) -> str:
        compression = 2 ** (len(config.get("block_out_channels", (64,))) - 1)
        return f"SD-VAE f{compression}c{config.get('latent_channels', CHANNELS)}"

    @classmethod
    def _check_config(cls, source: str, config: dict[str, Any]) -> None:
        super()._check_config(source, config)
        if config.get("shift_factor") or config.get("latents_mean"):
            raise WeightsError(
                f"{source} shifts its latents; expected the autoencoder of Stable Diffusion 1 or 2"
            )
