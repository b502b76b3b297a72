"""Counts the work of each stage of a step: operations, and bytes that operators read and write.

They are the same on every processor, whatever else it does. Bytes are those of all tensors that an
operator takes and returns, weights included, as if nothing stayed in a cache; views are free.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

Work = tuple[int, int]
"""Operations, multiplications and additions counted singly, and bytes."""


class WorkCounter:
    """A `StageTimer` that counts work in the place of time.

    Operations in other threads are not seen. Use it as a context manager.
    """

    def __init__(self) -> None:
        int8: Any = {}
        if hasattr(torch.ops.onednn, "qconv2d_pointwise"):
            int8 = {torch.ops.onednn.qconv2d_pointwise: _int8_flops}
        self._flops = FlopCounterMode(display=False, custom_mapping=int8)
        self._bytes = _BytesCounter()
        self._stages: dict[str, Work] = {}
        self._inner = [(0, 0)]  # work of the stages within each open one

    def __enter__(self) -> "WorkCounter":
        self._flops.__enter__()
        self._bytes.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bytes.__exit__(*error)
        self._flops.__exit__(*error)

    @property
    def total(self) -> Work:
        """All work so far."""
        return self._flops.get_total_flops(), self._bytes.moved

    @property
    def stages(self) -> Mapping[str, Work]:
        """The work of each stage, without that of the stages within it."""
        return self._stages

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the enclosed block as stage `name`."""
        before = self.total
        self._inner.append((0, 0))
        try:
            yield
        finally:
            whole = _less(self.total, before)
            own = _less(whole, self._inner.pop())
            self._inner[-1] = _more(self._inner[-1], whole)
            self._stages[name] = _more(self._stages.get(name, (0, 0)), own)


class _BytesCounter(TorchDispatchMode):
    """Counts the bytes of all tensors that operators take and return."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        with self:  # operators that consist of others count as those
            result = func.decompose(*args, **named)
        if result is not NotImplemented:
            return result
        result = func(*args, **named)
        if not func.is_view:
            self.moved += _nbytes((args, named)) + _nbytes(result)
        return result


def _nbytes(values: Any) -> int:
    return sum(_size(value) for value in tree_leaves(values) if isinstance(value, Tensor))


def _size(tensor: Tensor) -> int:
    if tensor.layout == torch._mkldnn:  # type: ignore[attr-defined]  # packed weights
        return tensor.numel() * tensor.element_size()
    return tensor.nbytes


def _int8_flops(
    x: Sequence[int],
    x_scale: float,
    x_zero: int,
    weight: Sequence[int],
    *rest: Any,
    out_shape: Sequence[int],
    **options: Any,
) -> int:
    """Return the operations of an 8-bit convolution, by the shapes of what it takes and gives."""
    return int(2 * np.prod(out_shape) * np.prod(weight[1:]))


def _less(one: Work, other: Work) -> Work:
    return one[0] - other[0], one[1] - other[1]


def _more(one: Work, other: Work) -> Work:
    return one[0] + other[0], one[1] + other[1]
