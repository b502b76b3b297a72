"""A small patch discriminator on mouth and eyes: what a mean of many mouths cannot fool.

An L1 loss paints the mean of all teeth and lids that fit; the critic sees that no camera made it.
It looks at cut-out mouths and eyes only: elsewhere the warp keeps the portrait's own sharpness.

Source: hinge loss, arXiv:1705.02894; feature matching, arXiv:1711.11585; spectral normalisation,
arXiv:1802.05957.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from letstalk_rt.models.geometry.landmarks import EYES, LIPS
from letstalk_rt.training.distributed import average_gradients, share_weights

CUT_SIZE = 64
_MARGIN = 1.5
"""Side of a cut, in widths of what it shows."""


def cuts(pictures: Tensor, points: Tensor) -> Tensor:
    """Cut mouths and pairs of eyes out of pictures.

    Args:
        pictures: `(B, 3, H, W)`.
        points: landmarks `(B, L, 2)` in [-1, 1].

    Returns:
        `(2 B, 3, 64, 64)`: mouths, then eyes.
    """
    parts = [_cut(pictures, points[:, group]) for group in (LIPS, EYES)]
    return torch.cat(parts)


def _cut(pictures: Tensor, points: Tensor) -> Tensor:
    low, high = points.amin(1), points.amax(1)
    half = _MARGIN / 2 * (high - low)[:, 0]
    centre = (low + high) / 2
    theta = torch.zeros(len(pictures), 2, 3, device=pictures.device)
    theta[:, 0, 0], theta[:, 1, 1] = half, half
    theta[:, :, 2] = centre
    size = [len(pictures), 3, CUT_SIZE, CUT_SIZE]
    grid = F.affine_grid(theta, size, align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)


class PatchCritic(nn.Module):
    """Judges patches of about a third of a cut; higher is more real.

    Args:
        width: channels of the first layer.
    """

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        sizes = [3, width, 2 * width, 4 * width]
        self.layers = nn.ModuleList(
            spectral_norm(nn.Conv2d(a, b, 4, stride=2, padding=1))
            for a, b in zip(sizes[:-1], sizes[1:], strict=True)
        )
        self.head = spectral_norm(nn.Conv2d(sizes[-1], 1, 3, padding=1))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Judge `(B, 3, 64, 64)`: `(B, 1, 8, 8)`, and the features of all layers."""
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.head(x), features


class Critic:
    """A patch critic with its optimiser; its state goes into the run's checkpoint.

    Args:
        device: where it is trained.
        learning_rate: of the critic alone.
    """

    def __init__(self, device: torch.device, learning_rate: float = 2e-4) -> None:
        self.model = PatchCritic().to(device)
        share_weights(self.model)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=learning_rate, betas=(0.5, 0.99), weight_decay=0.0
        )

    def learn(self, made: Tensor, true: Tensor) -> float:
        """Take one step at telling `made` from `true` cuts; gives the hinge loss."""
        self.model.requires_grad_(True)
        (real, fake), _ = self._both(true, made.detach())
        loss = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(list(self.model.parameters()))
        self.optimizer.step()
        return float(loss.detach())

    def judge(self, made: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
        """Give what makes `made` look real: the adversarial loss, and how far its features are."""
        self.model.requires_grad_(False)
        (_, fake), features = self._both(true, made)
        half = len(made)
        distance = sum((f[half:] - f[:half].detach()).abs().mean() for f in features)
        assert isinstance(distance, Tensor)
        return -fake.mean(), distance

    def _both(self, true: Tensor, made: Tensor) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
        scores, features = self.model(torch.cat([true, made]))
        real, fake = scores.chunk(2)
        return (real, fake), features

    def state_dict(self) -> dict[str, Any]:
        """Give all that a resumed run needs."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo `state_dict`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
