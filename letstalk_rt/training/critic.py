"""A small patch discriminator for mouth and eyes, against the blur of a pixel loss.

An L1 loss alone paints the mean of all teeth and eyelids that fit the input. The critic learns to
recognise such means. It is applied to crops of mouth and eyes only: elsewhere the warp preserves
the portrait's own sharpness.

Source: hinge loss, arXiv:1705.02894; feature matching, arXiv:1711.11585; spectral normalisation,
arXiv:1802.05957.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from letstalk_rt.models.geometry.landmarks import EYES, LIPS
from letstalk_rt.training.distributed import average_gradients, broadcast_weights

REGION_SIZE = 64
_MARGIN = 1.5
"""Side of a region, in widths of the mouth or of both eyes."""


def face_regions(frames: Tensor, points: Tensor) -> Tensor:
    """Crop the mouth and the pair of eyes from each frame.

    Args:
        frames: `(B, 3, H, W)`.
        points: landmarks `(B, L, 2)` in [-1, 1].

    Returns:
        `(2 B, 3, 64, 64)`: mouths, then eyes.
    """
    return torch.cat([_region(frames, points[:, group]) for group in (LIPS, EYES)])


def _region(frames: Tensor, points: Tensor) -> Tensor:
    low, high = points.amin(1), points.amax(1)
    half = _MARGIN / 2 * (high - low)[:, 0]
    centre = (low + high) / 2
    theta = torch.zeros(len(frames), 2, 3, device=frames.device)
    theta[:, 0, 0], theta[:, 1, 1] = half, half
    theta[:, :, 2] = centre
    size = [len(frames), 3, REGION_SIZE, REGION_SIZE]
    grid = F.affine_grid(theta, size, align_corners=False)
    return F.grid_sample(frames, grid, padding_mode="reflection", align_corners=False)


class PatchCritic(nn.Module):
    """A discriminator that scores patches of about a third of a region; higher is more real.

    Args:
        width: channels of the first layer.
        channels: channels of the regions: colours, and maps of what they shall show, if any.
    """

    def __init__(self, width: int = 48, channels: int = 3) -> None:
        super().__init__()
        sizes = [channels, width, 2 * width, 4 * width]
        self.layers = nn.ModuleList(
            spectral_norm(nn.Conv2d(a, b, 4, stride=2, padding=1))
            for a, b in zip(sizes[:-1], sizes[1:], strict=True)
        )
        self.head = spectral_norm(nn.Conv2d(sizes[-1], 1, 3, padding=1))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the scores `(B, 1, 8, 8)` of `(B, 3, 64, 64)`, and the features of all layers."""
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.head(x), features


class Critic:
    """A patch critic with its optimiser; its state is stored in the run's checkpoint.

    Args:
        device: The device on which it is trained.
        learning_rate: The learning rate of the critic alone.
        width: Channels of its first layer.
        channels: Channels of the regions, see `PatchCritic`.
    """

    def __init__(
        self,
        device: torch.device,
        learning_rate: float = 2e-4,
        *,
        width: int = 48,
        channels: int = 3,
    ) -> None:
        self.model = PatchCritic(width, channels).to(device)
        broadcast_weights(self.model)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=learning_rate, betas=(0.5, 0.99), weight_decay=0.0
        )

    def learn(self, generated: Tensor, true: Tensor) -> float:
        """Train for one step on generated and true regions; return the hinge loss."""
        self.model.requires_grad_(True)
        (real, fake), _ = self._both(true, generated.detach())
        loss = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(list(self.model.parameters()))
        self.optimizer.step()
        return float(loss.detach())

    def judge(self, generated: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
        """Return the adversarial loss of `generated` and its feature distance to `true`."""
        self.model.requires_grad_(False)
        (_, fake), features = self._both(true, generated)
        half = len(generated)
        distance = sum((f[half:] - f[:half].detach()).abs().mean() for f in features)
        assert isinstance(distance, Tensor)
        return -fake.mean(), distance

    def _both(self, true: Tensor, generated: Tensor) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
        scores, features = self.model(torch.cat([true, generated]))
        real, fake = scores.chunk(2)
        return (real, fake), features

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
