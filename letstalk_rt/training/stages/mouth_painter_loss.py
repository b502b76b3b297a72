"""Losses of the mouth painter: differences inside the opening, and a patch critic.

Frames of video are compared at their own size, stills at twice that, see `MouthBatch.comparable`.

Source: hinge loss, arXiv:1705.02894; feature matching, arXiv:1711.11585.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from letstalk_rt.models.autoencoder.mouth_painter import MouthPainter
from letstalk_rt.models.geometry.mouth_crop import FINE
from letstalk_rt.training.data.mouth_batches import MouthBatch
from letstalk_rt.training.distributed import average_gradients, broadcast_weights

TEETH_SHARE = 0.85
"""Share of mouths that are inpainted with teeth as an input."""

DIFFERENCE_WEIGHTS = {"l1": 1.0, "colour": 2.0, "gradient": 1.0, "detail": 0.5, "time": 1.0}
FEATURE_WEIGHT, CRITIC_WEIGHT = 1.0, 0.3


class MouthPatchCritic(nn.Module):
    """A discriminator that scores patches of a mouth in its surroundings; higher is more real."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Conv2d(64, 48, 3, padding=1),
                nn.Conv2d(48, 80, 4, stride=2, padding=1),
                nn.Conv2d(80, 112, 4, stride=2, padding=1),
                nn.Conv2d(112, 112, 3, padding=1),
            ]
        )
        self.head = nn.Conv2d(112, 1, 3, padding=1)

    def forward(self, crops: Tensor, opening: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the scores `(B, 1, 10, 14)` of `(B, 3, 160, 224)`, and features of all layers."""
        x = F.pixel_unshuffle(torch.cat([crops, opening], 1), 4)
        x = x.contiguous(memory_format=torch.channels_last)
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.head(x).float(), features


class MouthCritic:
    """A patch critic with its optimiser; its state is stored in the run's checkpoint.

    Args:
        device: the device on which it is trained.
        learning_rate: its learning rate, constant.
    """

    def __init__(self, device: torch.device, learning_rate: float = 5e-4) -> None:
        self.learning_rate = learning_rate
        self.model = MouthPatchCritic().to(device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        broadcast_weights(self.model)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=learning_rate, betas=(0.0, 0.99), weight_decay=1e-3
        )

    def learn(self, painted: Tensor, batch: MouthBatch) -> float:
        """Take one step at telling inpainted mouths from true ones; return the hinge loss."""
        self.model.requires_grad_(True)
        both = torch.cat([batch.comparable(batch.crops), batch.comparable(painted.detach())])
        scores, _ = self.model(both, batch.opening.repeat(2, 1, 1, 1))
        real, fake = scores.chunk(2)
        weight = _patch_weights(batch.opening, real)
        loss = ((F.relu(1 - real) + F.relu(1 + fake)) * weight).sum() / weight.sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(list(self.model.parameters()))
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return float(loss.detach())

    def losses(self, painted: Tensor, batch: MouthBatch) -> tuple[Tensor, Tensor]:
        """Return the adversarial loss, and the distance of features from those of true mouths."""
        self.model.requires_grad_(False)
        scores, features = self.model(batch.comparable(painted), batch.opening)
        with torch.no_grad():
            _, true_features = self.model(batch.comparable(batch.crops), batch.opening)
        weight = _patch_weights(batch.opening, scores)
        distance = scores.new_zeros(())
        for ours, theirs in zip(features, true_features, strict=True):
            share = _patch_weights(batch.opening, ours)
            error = (ours.float() - theirs.float()).abs().mean(1, keepdim=True)
            distance = distance + (error * share).sum() / share.sum()
        return -(scores * weight).sum() / weight.sum(), distance

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state, except for the learning rate."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate


def _patch_weights(opening: Tensor, like: Tensor) -> Tensor:
    """Return how much of each patch is open mouth; small mouths weigh as much as large ones."""
    share = F.adaptive_avg_pool2d(opening, (like.shape[-2], like.shape[-1]))
    return share / (share.sum((1, 2, 3), keepdim=True) + 0.02 * share[0].numel())


def inpaint(
    model: MouthPainter, batch: MouthBatch, teeth: Tensor, sound: Tensor | None = None
) -> Tensor:
    """Return the crops with their openings inpainted, `(B, 3, 160, 224)`."""
    crops, opening = (F.avg_pool2d(part, FINE) for part in (batch.crops, batch.opening))
    with torch.autocast(batch.crops.device.type, torch.bfloat16):
        heard = batch.sound if sound is None else sound
        inside = model(crops, opening, batch.points, model.encode_teeth(teeth), heard)
    return torch.lerp(batch.crops, inside, batch.opening)


def shown_teeth(batch: MouthBatch, generator: torch.Generator) -> Tensor:
    """Return the teeth of a batch, without those of some mouths; a pair has both or none."""
    shown = torch.rand(len(batch.teeth), generator=generator) < TEETH_SHARE
    if batch.pairs:
        shown[-batch.pairs :] = shown[: batch.pairs]
    return batch.teeth * shown.to(batch.teeth)[:, None, None, None]


def differences(painted: Tensor, batch: MouthBatch) -> dict[str, Tensor]:
    """Return the distances of inpainted mouths from true ones, by name of the loss."""
    inside = _inside(batch)
    error = batch.comparable(painted) - batch.comparable(batch.crops)
    blurred = _blurred(error, 7 * FINE - 1)
    across, down = (
        error[..., FINE:] - error[..., :-FINE],
        error[..., FINE:, :] - error[..., :-FINE, :],
    )
    losses = {
        "l1": (error.abs().mean(1, keepdim=True) * inside).sum(),
        "colour": (blurred.abs().mean(1, keepdim=True) * inside).sum(),
        "gradient": (across.abs().mean(1, keepdim=True) * inside[..., FINE:]).sum()
        + (down.abs().mean(1, keepdim=True) * inside[..., FINE:, :]).sum(),
        "detail": _detail(error, inside),
        "time": painted.new_zeros(()),
    }
    if batch.pairs:
        change = error[-batch.pairs :] - error[: batch.pairs]
        both = torch.minimum(inside[-batch.pairs :], inside[: batch.pairs])
        scale = len(painted) / batch.pairs
        losses["time"] = scale * (change.abs().mean(1, keepdim=True) * both).sum()
    return losses


def distance(painted: Tensor, batch: MouthBatch) -> Tensor:
    """Return the L1 distance of inpainted mouths from true ones, as in `differences`."""
    error = batch.comparable(painted) - batch.comparable(batch.crops)
    return (error.abs().mean(1, keepdim=True) * _inside(batch)).sum()


def _inside(batch: MouthBatch) -> Tensor:
    """Return the weights of pixels, `(B, 1, 160, 224)`: 0 outside of openings."""
    area = FINE**2 * 40
    return batch.opening / (batch.opening.sum((1, 2, 3), keepdim=True) + area) / len(batch.opening)


def _blurred(images: Tensor, size: int) -> Tensor:
    """Return the mean of the square of pixels around each one, of odd size, as far as it exists."""
    side = size // 2
    rows = F.avg_pool2d(images, (size, 1), 1, (side, 0), count_include_pad=False)
    return F.avg_pool2d(rows, (1, size), 1, (0, side), count_include_pad=False)


def _detail(error: Tensor, inside: Tensor) -> Tensor:
    """Return the error of the difference between neighbouring pixels; stills only have some."""
    across, down = error.diff(dim=-1), error.diff(dim=-2)
    return (across.abs().mean(1, keepdim=True) * inside[..., 1:]).sum() + (
        down.abs().mean(1, keepdim=True) * inside[..., 1:, :]
    ).sum()
