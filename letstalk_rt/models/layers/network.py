"""The part of `nn.Module` that the interfaces of models have."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, Self

from torch import nn


class Network(Protocol):
    """The part of `nn.Module` that the interfaces have, since a protocol cannot inherit from it."""

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move to a device, a number format or a memory format, in place."""
        ...

    def eval(self) -> Self:
        """Set evaluation mode."""
        ...

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Set whether the parameters are trained."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return all parameters."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return all tensors by name."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> object:
        """Copy tensors into the module by name."""
        ...


def fingerprint(module: Network | nn.Module) -> str:
    """Return a hash of a network, to recognise what latents or features were made by.

    It covers the weights and, where the network has one, the scaling factor of its latents.
    """
    digest = hashlib.sha256(str(vars(module).get("scaling_factor", "")).encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
