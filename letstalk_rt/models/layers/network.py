"""What of `nn.Module` is used through an interface."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, Self

from torch import nn


class Network(Protocol):
    """What of `nn.Module` is used through an interface: a protocol cannot inherit it."""

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move to a device, a number format or a memory format, in place."""
        ...

    def eval(self) -> Self:
        """Stop behaving as in training."""
        ...

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Say whether the parameters are trained."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return all parameters."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return all tensors by name."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> object:
        """Take the tensors of `state_dict`."""
        ...
