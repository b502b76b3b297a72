"""The losses of the autoencoder: on frames, landmarks, heat maps, masks and flow."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from letstalk_rt.models.autoencoder.latents import IMAGE_SIZE, DecodedLayers
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
from letstalk_rt.models.geometry.mouth_crop import opening_mask
from letstalk_rt.training.critic import Critic, face_regions

_FREE_OF_ENERGY = 0.7
"""Share of the energy loss that lips are free of: where exactly their edges are matters more."""


@dataclass(frozen=True)
class AutoencoderLossConfig:
    """Weights of the parts of the autoencoder's loss.

    Attributes:
        warp: L1 of the warped portrait.
        gradient: L1 of image gradients.
        points: Landmarks read from the latent.
        heat: Heat maps of the landmarks.
        mask: Mean of the inpainting mask outside mouth and eyes.
        flow: Smoothness of the flow.
        latent: Mean square of the latent.
        latent_noise: Deviation of the noise on latents; no weight.
        mouth: Additional weight of pixels of the mouth.
        eyes: Additional weight of pixels of the eyes.
        inside: Weight of pixels between the lips, which the mouth painter inpaints.
        energy: Difference of the local energy of gradients, against the blur of the warp.
        square: Squared error of the frame.
        colour: L1 of the blurred frame.
        seen: Landmarks that the encoder finds in the decoded frame.
        real: Adversarial loss of the critic.
        features: Feature distance of the critic.
    """

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
    inside: float = 0.2
    energy: float = 0.15
    square: float = 2.0
    colour: float = 2.0
    seen: float = 5.0
    real: float = 0.004
    features: float = 0.2


def _enlarge(weights: Tensor) -> Tensor:
    return F.interpolate(weights, (256, 256), mode="bilinear", align_corners=False)


def gradient_loss(generated: Tensor, true: Tensor, weight: Tensor) -> Tensor:
    """Return the L1 difference of image gradients at three scales, which keeps edges sharp."""
    total = generated.new_zeros(())
    for scale in range(3):
        if scale:
            generated, true, weight = (F.avg_pool2d(x, 2) for x in (generated, true, weight))
        for axis in (2, 3):
            error = (generated.diff(dim=axis) - true.diff(dim=axis)).abs().mean(1, keepdim=True)
            narrowed = weight.narrow(axis, 1, weight.shape[axis] - 1)
            total = total + (error * narrowed).mean()
    return total


def energy_loss(generated: Tensor, true: Tensor, weight: Tensor) -> Tensor:
    """Return the difference of the local energies of gradients, in octaves of the amplitude.

    Every warp blurs, and a pixel loss does not mind: it prefers a blurred edge to a sharp one that
    is half a pixel off. The energy in cells of 16 px does not depend on where exactly an edge is.

    Args:
        generated: `(B, 3, 256, 256)`.
        true: same shape.
        weight: weight of pixels, `(B, 1, 256, 256)`.
    """
    octaves = []
    for frames in (generated, true):
        light = frames.mean(1, keepdim=True)
        across = light.diff(dim=3)[..., 1:, :].square() + light.diff(dim=2)[..., 1:].square()
        octaves.append(0.5 * torch.log2(F.avg_pool2d(across, 16, 8) + 1e-4))
    share = F.avg_pool2d(weight[..., 1:, 1:], 16, 8)
    return ((octaves[0] - octaves[1]).abs() * share).mean()


def _mouth_opening_mask(points: Tensor) -> Tensor:
    """Return the masks of open mouths `(B, 1, 256, 256)` of landmarks in [-1, 1]."""
    return opening_mask((points + 1) * (IMAGE_SIZE / 2), (IMAGE_SIZE, IMAGE_SIZE))


def heat_loss(heat: Tensor, points: Tensor) -> Tensor:
    """Return the cross-entropy of heat maps plus the L1 error of their expected points.

    The target of a point is spread over the four cells around it so that its mean is exact.

    Args:
        heat: Logits `(B, L, s, s)`.
        points: True landmarks `(B, L, 2)` in [-1, 1].
    """
    size = heat.shape[-1]
    position = ((points + 1) / 2 * size - 0.5).clamp(0, size - 1.001)
    low = position.floor().long()
    x_share, y_share = (position - low).unbind(-1)
    logs = torch.log_softmax(heat.flatten(2), -1)
    total = heat.new_zeros(())
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        share = (x_share if dx else 1 - x_share) * (y_share if dy else 1 - y_share)
        index = (low[..., 1] + dy) * size + low[..., 0] + dx
        total = total - (share * logs.gather(2, index[..., None])[..., 0]).mean()
    return total + 20 * (soft_argmax(heat) - points).abs().mean()


def mouth_spans(points: Tensor) -> Tensor:
    """Return lip gap and mouth width, `(..., 4)`, of landmarks `(..., L, 2)`, in half sides."""
    gap = points[..., LOWER_LIP, :] - points[..., UPPER_LIP, :]
    return torch.cat([gap, points[..., MOUTH_RIGHT, :] - points[..., MOUTH_LEFT, :]], -1)


def opening_error(generated: Tensor, true: Tensor) -> Tensor:
    """Return the mean error of lip gap and mouth width, in half sides of the frame."""
    return (mouth_spans(generated) - mouth_spans(true)).abs().mean()


def autoencoder_loss(
    model: ReferenceAutoencoder,
    frames: Tensor,
    points: Tensor,
    weights: AutoencoderLossConfig,
    maturity: float,
    critic: Critic | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Reconstruct the second frame of each pair from its latent and the first frame.

    Args:
        model: The autoencoder.
        frames: `(B, 2, 3, 256, 256)`.
        points: `(B, 2, L, 2)`.
        weights: Weights of the parts.
        maturity: Progress from 0 at the start of training to 1. Early in training, the model gets
            the flow of the true landmarks, because its own read-out is untrained. Latent noise and
            the penalty on inpainting grow with maturity: if they are strong from the start, the
            parts that they regularise are never used.
        critic: Scores mouths and eyes, and is trained on this batch.

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
            use_true = (torch.rand(len(read), 1, 1, 1, device=read.device) > maturity).to(read)
            coarse = use_true * known + (1 - use_true) * read
        latent = model.with_background_flow(latents[:, 1], target, portrait, coarse)
        noisy = latent + maturity * weights.latent_noise * torch.randn_like(latent)
        decoded = model.decode_latents(noisy, portrait, coarse)
        some = slice((len(target) + 1) // 2)  # a pass of the encoder costs as much as the decoder
        detected = detected_points(model, decoded.frames[some])
        shown = torch.lerp(decoded.frames, target, _mouth_opening_mask(points[:, 1]))
        figures, regions = {}, [face_regions(x, points[:, 1]) for x in (shown, target)]
        judged = None
        if critic is not None:
            figures["critic"] = critic.learn(*regions)
            judged = critic.judge(*regions)
    truth = points.flatten(0, 1)
    parts = _frame_losses(decoded, target, points[:, 1], weights)
    parts["mask"] = maturity * parts["mask"]
    parts["seen"] = maturity * _points_loss(detected, points[some, 1])
    if latents.requires_grad:
        parts["points"] = _points_loss(model.decode_landmarks(latents).flatten(0, 1), truth)
        parts["heat"] = heat_loss(heat.flatten(0, 1), truth)
        parts["latent"] = (latent**2).mean()
    if judged is not None:
        parts["real"], parts["features"] = judged
    total = parts["frame"] + sum(
        getattr(weights, name) * value for name, value in parts.items() if name != "frame"
    )
    return total, {name: float(value.detach()) for name, value in parts.items()} | figures


def detected_points(model: ReferenceAutoencoder, frames: Tensor) -> Tensor:
    """Return the landmarks `(B, L, 2)` that the encoder finds in decoded frames.

    Gradients reach the frames but not the encoder's weights: a mouth that should be open must be
    decoded open enough for the encoder to detect it.
    """
    fixed = {name: value.detach() for name, value in model.encoder.named_parameters()}
    flat = frames.contiguous(memory_format=torch.channels_last)
    _, heat = functional_call(model.encoder, fixed, (flat, model.mean_points))
    return soft_argmax(heat)


def _points_loss(points: Tensor, truth: Tensor) -> Tensor:
    """Return the error of landmarks `(B, L, 2)`, with more weight on lips, eyes and opening."""
    weight = torch.ones(NUM_LANDMARKS, device=points.device)
    weight[LIPS] = 3.0
    weight[EYES] = 2.0
    error = ((points - truth).abs().mean(-1) * weight).mean()
    return error + 3 * opening_error(points, truth)


def _frame_losses(
    decoded: DecodedLayers, target: Tensor, points: Tensor, weights: AutoencoderLossConfig
) -> dict[str, Tensor]:
    mouth, eyes = proximity_map(points[:, LIPS], 64, 8.0), proximity_map(points[:, EYES], 64, 6.0)
    weight = _enlarge(1 + weights.mouth * mouth + weights.eyes * eyes)
    weight = weight / weight.mean((1, 2, 3), keepdim=True)
    weight = weight * (1 - (1 - weights.inside) * _mouth_opening_mask(points))
    free = _enlarge(torch.maximum(mouth, eyes))
    error = decoded.frames - target
    return {
        "frame": (error.abs() * weight).mean(),
        "square": (error**2 * weight).mean(),
        # A critic constrains texture but not colour over larger areas: this does.
        "colour": (F.avg_pool2d(error, 8).abs() * F.avg_pool2d(weight, 8)).mean(),
        "warp": (decoded.warped - target).abs().mean(),
        "gradient": gradient_loss(decoded.frames, target, weight),
        "energy": energy_loss(decoded.frames, target, 1 - _FREE_OF_ENERGY * _enlarge(mouth)),
        "mask": (decoded.mask * (1 - free)).mean(),
        "flow": sum(
            (decoded.flow.diff(dim=a).abs().mean() for a in (2, 3)), decoded.flow.new_zeros(())
        ),
    }
