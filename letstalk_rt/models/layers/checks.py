"""Checks of tensors from callers: shape, type and finite values."""

from collections.abc import Sequence

import torch
from torch import Tensor

from letstalk_rt.errors import InputError


def check_tensor(
    name: str, value: Tensor, shape: Sequence[int | str], *, finite: bool = False
) -> None:
    """Check that a tensor fits the input of a model.

    Args:
        name: name of the parameter, for the error message.
        value: the tensor.
        shape: expected sizes; a letter stands for any size of at least 1.
        finite: also check the values. On a GPU this waits for the device, so check once when data
            come in, not at every step.

    Raises:
        InputError: `value` has the wrong shape, is not floating point, or is not finite.
    """
    expected = "(" + ", ".join(map(str, shape)) + ")"
    if not isinstance(value, Tensor):
        raise InputError(f"{name} must be a tensor {expected}, got {type(value).__name__}")
    fits = value.ndim == len(shape) and all(
        have > 0 if isinstance(want, str) else have == want
        for have, want in zip(value.shape, shape, strict=True)
    )
    if not fits:
        raise InputError(f"{name} must have shape {expected}, got {tuple(value.shape)}")
    if not value.is_floating_point():
        raise InputError(
            f"{name} must be floating point, got {str(value.dtype).removeprefix('torch.')}; "
            "convert it with .float() and scale it as documented"
        )
    if finite and not bool(torch.isfinite(value).all()):
        raise InputError(f"{name} holds NaN or infinite values")
