"""The part of `nn.Module` that the interfaces of models have."""

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
