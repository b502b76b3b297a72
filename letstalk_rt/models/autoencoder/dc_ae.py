"""The paper's autoencoder: DC-AE f32c32 of SANA, through `diffusers.AutoencoderDC`.

One 512x512 frame becomes a latent of `(32, 16, 16)`. Requires the extra `paper`. Nothing is
downloaded on import; `load` takes a local folder or the id of a public checkpoint, and `random`
creates untrained weights of the same shape, which take the same time to run.

Source: DC-AE, arXiv:2410.10733; SANA, arXiv:2410.10629; LetsTalk, arXiv:2411.16748.
"""

import json
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
"""Scales the latents of SANA's DC-AE to unit variance; checkpoints have it in their config."""

_STAGES = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
_SCALES = ((),) * 3 + ((5,),) * 3
WIDTHS = (128, 256, 512, 512, 1024, 1024)
ENCODER_LAYERS, DECODER_LAYERS = (2, 2, 2, 3, 3, 3), (3, 3, 3, 3, 3, 3)


@dataclass
class DCPortraitFeatures:
    """The portrait features of DC-AE; its decoder does not use them.

    Attributes:
        image: `(B, 3, H, W)` in [-1, 1].
        latent: `(B, 32, h, w)`.
    """

    image: Tensor
    latent: Tensor

    def repeat(self, times: int) -> Self:
        """Return self: the decoder does not use the portrait."""
        return self


class DCAutoencoder(nn.Module):
    """DC-AE: square frames to latents of unit variance, and back; the weights are frozen.

    Create it by `load` or `random`.

    Args:
        inner: a `diffusers.AutoencoderDC`.
        image_size: height and width of the frames, in pixels; a multiple of 32.
        scaling_factor: factor from the latents of `inner` to those of this class.

    Raises:
        ConfigError: `image_size` is not a multiple of 32.
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
        """None: these latents do not encode landmarks."""
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
        """Load a checkpoint in the format of diffusers.

        Args:
            source: a folder with `config.json` and weights, or a hub id such as
                `mit-han-lab/dc-ae-f32c32-sana-1.0-diffusers`.
            image_size: height and width of the frames, in pixels.
            subfolder: subfolder of a source that holds several models (`vae` for SANA).
            dtype: number format of the weights.

        Raises:
            DependencyError: diffusers is not installed.
            WeightsError: there is no readable checkpoint, or it is another model.
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
                f"first {faults[0]!r}; download the checkpoint again"
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
        """Create untrained weights, for benchmarks and tests; by default of the published shape.

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

    @property
    def identity(self) -> str:
        """Layout and scaling factor as JSON: what its weights alone do not tell."""
        inner: Any = self.inner
        layout = {key: value for key, value in inner.config.items() if not key.startswith("_")}
        return json.dumps({"layout": layout, "scaling_factor": self.scaling_factor})

    @classmethod
    def of_identity(cls, identity: str, image_size: int = 512) -> Self:
        """Create untrained weights of the layout, and with the scaling factor, of an `identity`.

        Raises:
            DependencyError: diffusers is not installed.
            WeightsError: it is not the identity of a DC-AE f32c32.
        """
        kind = _autoencoder_dc()
        try:
            stored = json.loads(identity)
            layout, scaling_factor = dict(stored["layout"]), float(stored["scaling_factor"])
            _check_config("the weights file", {"_class_name": kind.__name__, **layout})
            inner = kind(**layout)
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise WeightsError(
                f"the autoencoder that the weights describe cannot be made: {identity[:200]!r}; "
                "expected layout and scaling factor of a DC-AE f32c32, as `save_model` writes them"
            ) from error
        if not 0 < scaling_factor < float("inf"):
            raise WeightsError(
                f"the autoencoder's scaling factor is {scaling_factor}, not positive"
            )
        return cls(inner, image_size, scaling_factor)

    def encode(self, x: Tensor, portrait: DCPortraitFeatures | None = None) -> Tensor:
        """Encode `(B, T, 3, H, W)` in [-1, 1] to `(B, T, 32, h, w)`, unit variance.

        `portrait` is not used.

        Raises:
            InputError: `x` has the wrong shape or type, or holds NaN or values far out of range.
        """
        size = self.image_size
        check_tensor("frames", x, ("B", "T", 3, size, size), finite=True)
        if float(x.abs().amax()) > 2:
            raise InputError("frames must be in [-1, 1]; map bytes with x / 127.5 - 1")
        inner: Any = self.inner
        latents = inner.encode(x.flatten(0, 1).to(inner.dtype)).latent * self.scaling_factor
        encoded: Tensor = latents.float().unflatten(0, x.shape[:2])
        return encoded

    def encode_portrait(self, image: Tensor) -> DCPortraitFeatures:
        """Encode portraits `(B, 3, H, W)` in [-1, 1]; raises as `encode` does."""
        check_tensor("image", image, ("B", 3, self.image_size, self.image_size))
        return DCPortraitFeatures(image, self.encode(image[:, None])[:, 0])

    def decode(self, latents: Tensor, portrait: DCPortraitFeatures | None = None) -> Tensor:
        """Decode `(B, T, 32, h, w)` to `(B, T, 3, H, W)` in [-1, 1]; `portrait` is not used.

        Raises:
            InputError: `latents` has the wrong shape or type.
        """
        check_tensor("latents", latents, ("B", "T", *self.latent_shape))
        inner: Any = self.inner
        plain = (latents.flatten(0, 1) / self.scaling_factor).to(inner.dtype)
        frames: Tensor = inner.decode(plain).sample.float().clamp(-1, 1)
        decoded: Tensor = frames.unflatten(0, latents.shape[:2])
        return decoded

    def decode_layers(self, latents: Tensor, portrait: DCPortraitFeatures) -> Tensor:
        """Decode as `decode` does: these frames have one layer."""
        return self.decode(latents, portrait)

    def prepare_decoder(self, latents: Tensor, portrait: DCPortraitFeatures) -> Tensor:
        """Return latents `(B, 32, h, w)` unchanged: this decoder needs no preparation."""
        return latents

    def run_decoder(self, inputs: Tensor, portrait: DCPortraitFeatures) -> Tensor:
        """Decode `(B, 32, h, w)` to `(B, 3, H, W)` in [-1, 1]."""
        return self.decode(inputs[None], portrait)[0]

    def without_background_flow(self, latents: Tensor) -> Tensor:
        """Return latents unchanged: they have no separate background flow."""
        return latents

    def set_decoder_dtype(self, dtype: torch.dtype) -> None:
        """Set the number format of encoder and decoder."""
        self.to(dtype)

    def quantizable_parts(self) -> Sequence[nn.Module]:
        """Return nothing: this decoder is not run in 8-bit integers."""
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
            f"no DC-AE checkpoint at {source}: pass a folder with config.json and weights, or a "
            "hub id with a network connection"
        ) from error
    return config


def _check_config(source: str, config: dict[str, Any]) -> None:
    """Check that a config is that of DC-AE f32c32."""
    name = config.get("_class_name")
    if name != "AutoencoderDC":
        raise WeightsError(f"{source} holds {name or 'an unknown model'}, expected AutoencoderDC")
    channels = config.get("latent_channels", CHANNELS)
    compression = 2 ** (len(config.get("encoder_block_out_channels", WIDTHS)) - 1)
    if (channels, compression) != (CHANNELS, COMPRESSION):
        raise WeightsError(
            f"{source} is DC-AE f{compression}c{channels}, expected f{COMPRESSION}c{CHANNELS}"
        )
