"""What the autoencoder is trained by: pictures, landmarks, heat maps and masks compared."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from letstalk_rt.models.autoencoder.latents import DecodedLayers
from letstalk_rt.models.autoencoder.networks import soft_argmax
from letstalk_rt.models.autoencoder.reference import ReferenceAutoencoder
from letstalk_rt.models.geometry.landmark_warp import face_flow, proximity_map
from letstalk_rt.models.geometry.landmarks import (
    EYES,
    LIPS,
    LOWER_LIP,
    MOUTH_LEFT,
    MOUTH_RIGHT,
    NUM_LANDMARKS,
    UPPER_LIP,
)
from letstalk_rt.training.critic import Critic, cuts


@dataclass(frozen=True)
class AutoencoderLoss:
    """Weights of the parts of the loss."""

    warp: float = 0.5
    gradient: float = 0.6
    points: float = 2.0
    heat: float = 0.05
    mask: float = 0.012
    flow: float = 0.02
    latent: float = 1e-5
    latent_noise: float = 0.02
    mouth: float = 14.0
    eyes: float = 6.0
    square: float = 2.0
    colour: float = 2.0
    seen: float = 5.0
    real: float = 0.004
    features: float = 0.2


def _enlarge(weights: Tensor) -> Tensor:
    return F.interpolate(weights, (256, 256), mode="bilinear", align_corners=False)


def gradient_loss(made: Tensor, true: Tensor, weight: Tensor) -> Tensor:
    """Give the L1 difference of picture gradients at three scales: what makes edges sharp."""
    total = made.new_zeros(())
    for scale in range(3):
        if scale:
            made, true, weight = (F.avg_pool2d(x, 2) for x in (made, true, weight))
        for axis in (2, 3):
            error = (made.diff(dim=axis) - true.diff(dim=axis)).abs().mean(1, keepdim=True)
            narrowed = weight.narrow(axis, 1, weight.shape[axis] - 1)
            total = total + (error * narrowed).mean()
    return total


def heat_loss(heat: Tensor, points: Tensor) -> Tensor:
    """Give the cross-entropy of heat maps, plus the L1 error of the place they name.

    The target of a point is spread over the four cells around it so that its mean is exact.

    Args:
        heat: logits `(B, L, s, s)`.
        points: true landmarks `(B, L, 2)` in [-1, 1].
    """
    size = heat.shape[-1]
    place = ((points + 1) / 2 * size - 0.5).clamp(0, size - 1.001)
    low = place.floor().long()
    x_share, y_share = (place - low).unbind(-1)
    logs = torch.log_softmax(heat.flatten(2), -1)
    total = heat.new_zeros(())
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        share = (x_share if dx else 1 - x_share) * (y_share if dy else 1 - y_share)
        index = (low[..., 1] + dy) * size + low[..., 0] + dx
        total = total - (share * logs.gather(2, index[..., None])[..., 0]).mean()
    return total + 20 * (soft_argmax(heat) - points).abs().mean()


def mouth_spans(points: Tensor) -> Tensor:
    """Give lip gap and mouth width, `(..., 4)`, of landmarks `(..., L, 2)`, in half pictures."""
    gap = points[..., LOWER_LIP, :] - points[..., UPPER_LIP, :]
    return torch.cat([gap, points[..., MOUTH_RIGHT, :] - points[..., MOUTH_LEFT, :]], -1)


def opening_error(made: Tensor, true: Tensor) -> Tensor:
    """Give the mean error of lip gap and mouth width between landmark sets, in half pictures."""
    return (mouth_spans(made) - mouth_spans(true)).abs().mean()


def autoencoder_loss(
    model: ReferenceAutoencoder,
    frames: Tensor,
    points: Tensor,
    weights: AutoencoderLoss,
    maturity: float,
    critic: Critic | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Rebuild the second frame of each pair from its latent and the first.

    Args:
        model: the autoencoder.
        frames: `(B, 2, 3, 256, 256)`.
        points: `(B, 2, L, 2)`.
        weights: of the parts.
        maturity: from 0 at the start of training to 1. A young model is given the flow of the
            true landmarks, for its own read-out knows nothing yet; latent noise and the price of
            painting come in as it grows (earlier, they silence the parts they are to tame).
        critic: judges mouths and eyes, and learns from this batch.

    Returns:
        The loss, and its parts by name.
    """
    source, target = frames.unbind(1)
    with torch.autocast(frames.device.type, torch.bfloat16):
        latents, heat = model.encode_with_heatmaps(frames)
        portrait = model.portrait_features(source, latents[:, 0])
        coarse = None
        if maturity < 1:
            read = face_flow(portrait.points.float(), model.decode_landmarks(latents[:, 1]))
            known = face_flow(points[:, 0], points[:, 1])
            lot = (torch.rand(len(read), 1, 1, 1, device=read.device) > maturity).to(read)
            coarse = lot * known + (1 - lot) * read
        latent = model.with_background_flow(latents[:, 1], target, portrait, coarse)
        noisy = latent + maturity * weights.latent_noise * torch.randn_like(latent)
        decoded = model.decode_latents(noisy, portrait, coarse)
        seen = points_seen(model, decoded.frames)
    parts = _picture_losses(decoded, target, points[:, 1], weights)
    parts["points"] = _points_loss(
        model.decode_landmarks(latents).flatten(0, 1), points.flatten(0, 1)
    )
    parts["seen"] = maturity * _points_loss(seen, points[:, 1])
    if critic is not None:
        made, true = cuts(decoded.frames, points[:, 1]), cuts(target, points[:, 1])
        told_apart = critic.learn(made, true)
        parts["real"], parts["features"] = critic.judge(made, true)
    truth = points.flatten(0, 1)
    parts["heat"] = heat_loss(heat.flatten(0, 1), truth)
    parts["latent"] = (latent**2).mean()
    parts["mask"] = maturity * parts["mask"]
    total = parts["picture"] + sum(
        getattr(weights, name) * value for name, value in parts.items() if name != "picture"
    )
    seen_parts = {name: float(value.detach()) for name, value in parts.items()}
    return total, seen_parts | ({"critic": told_apart} if critic else {})


def points_seen(model: ReferenceAutoencoder, pictures: Tensor) -> Tensor:
    """Give the landmarks `(B, L, 2)` that the encoder finds in pictures that were made.

    The encoder's weights are taken as they are: only the pictures are to change. So a mouth that
    should be open must be painted open enough to be seen open.
    """
    fixed = {name: value.detach() for name, value in model.encoder.named_parameters()}
    flat = pictures.contiguous(memory_format=torch.channels_last)
    _, heat = functional_call(model.encoder, fixed, (flat, model.mean_points))
    return soft_argmax(heat)


def _points_loss(points: Tensor, truth: Tensor) -> Tensor:
    """Compare landmarks `(B, L, 2)`: lips and eyes count more, and the mouth's opening again."""
    weight = torch.ones(NUM_LANDMARKS, device=points.device)
    weight[LIPS] = 3.0
    weight[EYES] = 2.0
    error = ((points - truth).abs().mean(-1) * weight).mean()
    return error + 3 * opening_error(points, truth)


def _picture_losses(
    decoded: DecodedLayers, target: Tensor, points: Tensor, weights: AutoencoderLoss
) -> dict[str, Tensor]:
    mouth, eyes = proximity_map(points[:, LIPS], 64, 8.0), proximity_map(points[:, EYES], 64, 6.0)
    weight = _enlarge(1 + weights.mouth * mouth + weights.eyes * eyes)
    weight = weight / weight.mean((1, 2, 3), keepdim=True)
    free = _enlarge(torch.maximum(mouth, eyes))
    error = decoded.frames - target
    return {
        "picture": (error.abs() * weight).mean(),
        "square": (error**2 * weight).mean(),
        # A critic looks at texture and lets colours go astray: they are held where they are wide.
        "colour": (F.avg_pool2d(error, 8).abs() * F.avg_pool2d(weight, 8)).mean(),
        "warp": (decoded.warped - target).abs().mean(),
        "gradient": gradient_loss(decoded.frames, target, weight),
        "mask": (decoded.mask * (1 - free)).mean(),
        "flow": sum(
            (decoded.flow.diff(dim=a).abs().mean() for a in (2, 3)), decoded.flow.new_zeros(())
        ),
    }
