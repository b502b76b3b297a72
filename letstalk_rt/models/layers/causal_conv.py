"""A causal convolution whose output is the same for a whole sequence and chunk by chunk."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class ConvState:
    """The last inputs of a causal convolution.

    It is allocated once and written in place: a CUDA graph requires a fixed address.

    Attributes:
        past: `(B, C_in, (K - 1) * dilation)`; zeros before the first input.
    """

    past: Tensor

    def reset(self) -> None:
        """Return to the state of a new session."""
        self.past.zero_()


class CausalConv1d(nn.Module):
    """A convolution over time without look-ahead.

    The module holds weights only; any number of sessions share them, each with its own state.

    Args:
        in_channels: `C_in`.
        out_channels: `C_out`.
        kernel_size: `K`, in time steps.
        dilation: distance of the taps, in time steps.
        groups: number of groups of channels that are convolved separately.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        dilation: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(
            in_channels, out_channels, kernel_size, dilation=dilation, groups=groups
        )
        self.reach = (kernel_size - 1) * dilation

    def init_state(self, batch_size: int) -> ConvState:
        """Return the state of new sessions, with the device and dtype of the weights."""
        weight = self.conv.weight
        return ConvState(weight.new_zeros(batch_size, self.conv.in_channels, self.reach))

    def forward(self, x: Tensor, state: ConvState | None = None) -> Tensor:
        """Convolve the next chunk of a stream, or a whole sequence when `state` is None.

        Args:
            x: `(B, C_in, T)`, any `T >= 1`.
            state: updated in place.

        Returns:
            `(B, C_out, T)`.
        """
        assert x.ndim == 3 and x.shape[-1] > 0, x.shape
        if state is None:
            state = self.init_state(x.shape[0])
        x = torch.cat([state.past.to(x.dtype), x], dim=-1)
        if self.reach:
            state.past.copy_(x[..., -self.reach :].detach())
        dense = self.conv.dilation[0] == 1 or self.conv.groups > 1
        if not dense and x.device.type == "cpu" and not torch.is_grad_enabled():
            return self._by_taps(x)
        out: Tensor = self.conv(x)
        return out

    def _by_taps(self, x: Tensor) -> Tensor:
        """Convolve as one matrix product: torch's dilated convolution is much slower on a CPU."""
        (dilation,), (taps,) = self.conv.dilation, self.conv.kernel_size
        count = x.shape[-1] - self.reach
        taps_in = torch.cat([x[..., i * dilation : i * dilation + count] for i in range(taps)], 1)
        weight = self.conv.weight.permute(0, 2, 1).flatten(1)
        return F.linear(taps_in.transpose(1, 2), weight, self.conv.bias).transpose(1, 2)
