"""Published autoencoders through diffusers: square frames to latents of unit variance, and back.

`DCAutoencoder` and `KLAutoencoder` are the two that LetsTalk uses. They require the extra `paper`.
Nothing is downloaded on import; `load` takes a local folder or the id of a public checkpoint.
"""

import importlib
import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from letstalk_rt.errors import ConfigError, DependencyError, InputError, WeightsError
from letstalk_rt.extras import pip_install
from letstalk_rt.models.layers.checks import check_tensor


@dataclass
class PlainPortraitFeatures:
    """The portrait features of an autoencoder whose decoder does not use them.

    Attributes:
        image: `(B, 3, H, W)` in [-1, 1].
        latent: `(B, C, h, w)`.
    """

    image: Tensor
    latent: Tensor

    def repeat(self, times: int) -> Self:
        """Return self: the decoder does not use the portrait."""
        return self


class PublishedAutoencoder(nn.Module):
    """A frozen autoencoder of diffusers, with the interface `Autoencoder`.

    Args:
        inner: the autoencoder, of the class `kind` of diffusers.
        image_size: height and width of the frames, in pixels; a multiple of `compression`.
        scaling_factor: factor from the latents of `inner` to those of this class.

    Attributes:
        kind: name of its class in diffusers.
        title: what messages call it.
        compression: pixels per latent position along each axis.
        channels: channels of a latent.
        published_factor: the scaling factor of checkpoints whose config has none.

    Raises:
        ConfigError: `image_size` is not a multiple of `compression`.
    """

    kind: ClassVar[str]
    title: ClassVar[str]
    compression: ClassVar[int]
    channels: ClassVar[int]
    published_factor: ClassVar[float]

    def __init__(self, inner: nn.Module, image_size: int, scaling_factor: float) -> None:
        super().__init__()
        if image_size < self.compression or image_size % self.compression:
            raise ConfigError(
                f"image_size must be a multiple of {self.compression}, got {image_size}"
            )
        self.inner = inner.eval().requires_grad_(False)
        self.image_size = image_size
        self.scaling_factor = scaling_factor
        side = image_size // self.compression
        self.latent_shape = (self.channels, side, side)

    @abstractmethod
    def _latents(self, frames: Tensor) -> Tensor:
        """Encode `(N, 3, H, W)` by `inner`, without the scaling factor."""

    @classmethod
    @abstractmethod
    def _layout_of(cls, config: dict[str, Any]) -> str:
        """Return the title of the layout that a config describes, such as `DC-AE f32c32`."""

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
        kind = cls._diffusers_class()
        place: dict[str, Any] = {} if subfolder is None else {"subfolder": subfolder}
        config = cls._read_config(kind, source, place)
        cls._check_config(str(source), config)
        try:
            inner, info = kind.from_pretrained(
                str(source), output_loading_info=True, torch_dtype=dtype, **place
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise WeightsError(
                f"the weights of {source} cannot be read as {cls.title}: {error}"
            ) from error
        if faults := [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]:
            raise WeightsError(
                f"the weights of {source} do not fit its config: {len(faults)} tensors differ, "
                f"first {faults[0]!r}; download the checkpoint again"
            )
        return cls(inner, image_size, float(config.get("scaling_factor", cls.published_factor)))

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
            WeightsError: it is not the identity of such an autoencoder.
        """
        kind = cls._diffusers_class()
        try:
            stored = json.loads(identity)
            layout, scaling_factor = dict(stored["layout"]), float(stored["scaling_factor"])
            cls._check_config("the weights file", {"_class_name": cls.kind, **layout})
            inner = kind(**layout)
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise WeightsError(
                f"the autoencoder that the weights describe cannot be made: {identity[:200]!r}; "
                f"expected layout and scaling factor of a {cls.title}, as `save_model` writes them"
            ) from error
        if not 0 < scaling_factor < float("inf"):
            raise WeightsError(
                f"the autoencoder's scaling factor is {scaling_factor}, not positive"
            )
        return cls(inner, image_size, scaling_factor)

    def encode(self, x: Tensor, portrait: PlainPortraitFeatures | None = None) -> Tensor:
        """Encode `(B, T, 3, H, W)` in [-1, 1] to `(B, T, C, h, w)`, unit variance.

        `portrait` is not used.

        Raises:
            InputError: `x` has the wrong shape or type, or holds NaN or values far out of range.
        """
        size = self.image_size
        check_tensor("frames", x, ("B", "T", 3, size, size), finite=True)
        if float(x.abs().amax()) > 2:
            raise InputError("frames must be in [-1, 1]; map bytes with x / 127.5 - 1")
        inner: Any = self.inner
        latents = self._latents(x.flatten(0, 1).to(inner.dtype)) * self.scaling_factor
        encoded: Tensor = latents.float().unflatten(0, x.shape[:2])
        return encoded

    def encode_portrait(self, image: Tensor) -> PlainPortraitFeatures:
        """Encode portraits `(B, 3, H, W)` in [-1, 1]; raises as `encode` does."""
        check_tensor("image", image, ("B", 3, self.image_size, self.image_size))
        return PlainPortraitFeatures(image, self.encode(image[:, None])[:, 0])

    def decode(self, latents: Tensor, portrait: PlainPortraitFeatures | None = None) -> Tensor:
        """Decode `(B, T, C, h, w)` to `(B, T, 3, H, W)` in [-1, 1]; `portrait` is not used.

        Raises:
            InputError: `latents` has the wrong shape or type.
        """
        check_tensor("latents", latents, ("B", "T", *self.latent_shape))
        inner: Any = self.inner
        plain = (latents.flatten(0, 1) / self.scaling_factor).to(inner.dtype)
        frames: Tensor = inner.decode(plain).sample.float().clamp(-1, 1)
        decoded: Tensor = frames.unflatten(0, latents.shape[:2])
        return decoded

    def decode_layers(self, latents: Tensor, portrait: PlainPortraitFeatures) -> Tensor:
        """Decode as `decode` does: these frames have one layer."""
        return self.decode(latents, portrait)

    def prepare_decoder(self, latents: Tensor, portrait: PlainPortraitFeatures) -> Tensor:
        """Return latents `(B, C, h, w)` unchanged: this decoder needs no preparation."""
        return latents

    def run_decoder(self, inputs: Tensor, portrait: PlainPortraitFeatures) -> Tensor:
        """Decode `(B, C, h, w)` to `(B, 3, H, W)` in [-1, 1]."""
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

    @classmethod
    def _diffusers_class(cls) -> Any:
        try:
            diffusers: Any = importlib.import_module("diffusers")
        except ImportError as error:
            raise DependencyError(
                f"{cls.title.split()[0]} needs diffusers; install it with: {pip_install('paper')}"
            ) from error
        return getattr(diffusers, cls.kind)

    @classmethod
    def _read_config(cls, kind: Any, source: str | Path, place: dict[str, Any]) -> dict[str, Any]:
        try:
            config: dict[str, Any] = kind.load_config(str(source), **place)
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"no {cls.title.split()[0]} checkpoint at {source}: pass a folder with "
                "config.json and weights, or a hub id with a network connection"
            ) from error
        return config

    @classmethod
    def _check_config(cls, source: str, config: dict[str, Any]) -> None:
        """Check that a config is that of this autoencoder."""
        name = config.get("_class_name")
        if name != cls.kind:
            raise WeightsError(f"{source} holds {name or 'an unknown model'}, expected {cls.kind}")
        if (found := cls._layout_of(config)) != cls.title:
            raise WeightsError(f"{source} is {found}, expected {cls.title.split()[-1]}")
