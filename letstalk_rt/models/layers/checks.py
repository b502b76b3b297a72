"""Checks of tensors that callers give: shape, type and finite values, with an error that helps."""

from collections.abc import Sequence

import torch
from torch import Tensor

from letstalk_rt.errors import InputError


def check_tensor(
    name: str, value: Tensor, shape: Sequence[int | str], *, finite: bool = False
) -> None:
    """Check that a tensor is what a model takes.

    Args:
        name: what the caller calls it.
        value: the tensor.
        shape: sizes wanted; a letter stands for any size of at least 1.
        finite: also look at the values. On a GPU this waits for the device, so do it where data
            come in, not at every step.

    Raises:
        InputError: another shape, not floating point, or NaN or infinite values.
    """
    wanted = "(" + ", ".join(map(str, shape)) + ")"
    if not isinstance(value, Tensor):
        raise InputError(f"{name} must be a tensor {wanted}, got {type(value).__name__}")
    fits = value.ndim == len(shape) and all(
        have > 0 if isinstance(want, str) else have == want
        for have, want in zip(value.shape, shape, strict=True)
    )
    if not fits:
        raise InputError(f"{name} must have shape {wanted}, got {tuple(value.shape)}")
    if not value.is_floating_point():
        raise InputError(
            f"{name} must be floating point, got {str(value.dtype).removeprefix('torch.')}; "
            "convert it with .float() and scale it as the docstring says"
        )
    if finite and not bool(torch.isfinite(value).all()):
        raise InputError(f"{name} holds NaN or infinite values; check where it comes from")
