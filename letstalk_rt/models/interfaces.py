"""What rooms may ask of a model part without knowing which one it is."""

from typing import Any, Protocol

from torch import Tensor


class Autoencoder(Protocol):
    """Frames to latents and back, perhaps guided by a portrait.

    `ReferenceAutoencoder` and `DCAutoencoder` are two of them. What `describe` gives is made once
    per portrait and only handed to `decode`; it has a field `latent`, `(B, C, h, w)`.

    Attributes:
        latent_shape: `(C, h, w)` of one frame.
        picture_size: side of the square frames, in pixels.
    """

    latent_shape: tuple[int, int, int]
    picture_size: int

    def encode(self, x: Tensor, portrait: Any = None) -> Tensor:
        """Encode `(B, T, 3, H, W)` in [-1, 1] to `(B, T, C, h, w)`.

        `portrait` is what `describe` gave of one portrait per item, where there is one to compare
        the frames with.
        """
        ...

    def describe(self, picture: Tensor) -> Any:
        """Do the work that is done once per portrait, `(B, 3, H, W)` in [-1, 1]."""
        ...

    def decode(self, latents: Tensor, portrait: Any) -> Tensor:
        """Decode `(B, T, C, h, w)` to `(B, T, 3, H, W)` in [-1, 1], one portrait per item."""
        ...
