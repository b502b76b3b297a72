"""The loss of the flow: velocities, and the landmarks of the data that they predict."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from letstalk_rt.models.audio_encoder.causal import CausalAudioEncoder
from letstalk_rt.models.autoencoder.latents import FACE_SHAPE
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.geometry.landmarks import LIPS
from letstalk_rt.models.memory import regularize_memory
from letstalk_rt.training.data.audio_features import NUM_MOUTH_TARGETS
from letstalk_rt.training.data.sound_inputs import audio_tokens, trained_part, warm_up_frames
from letstalk_rt.training.data.windows import Batch, FlowLossConfig
from letstalk_rt.training.stages.autoencoder_loss import mouth_spans

LANDMARK_SCALE = 1000.0
"""Scale of squared distances in half sides of the frame: an error of 4 px becomes about 1."""


class FlowTrainer(nn.Module):
    """The trained modules: denoiser, audio encoder, and a helper head that predicts the mouth.

    If the audio encoder has a bottleneck, its prediction of the mouth values is frozen; only their
    projection to audio tokens is trained. Of wav2vec 2.0 only the projector is trained.

    Args:
        model: The model; its autoencoder is frozen.
        loss: Weights of the parts.
    """

    def __init__(self, model: AvatarModel, loss: FlowLossConfig) -> None:
        super().__init__()
        self.denoiser, self.audio = model.denoiser, trained_part(model.audio)
        shape = model.denoiser.config
        width = shape.audio_tokens * shape.audio_width
        has_bottleneck = isinstance(self.audio, CausalAudioEncoder) and self.audio.mouth is not None
        self.mouth = None if has_bottleneck else nn.Linear(width, NUM_MOUTH_TARGETS)
        self.weights = loss

    def freeze_faces(self) -> None:
        """Freeze all but the background flow's part of the denoiser's last layer."""
        self.requires_grad_(False)
        for parameter in self.denoiser.head.parameters():
            parameter.requires_grad_(True).register_hook(_keep_background_rows)

    def loss(
        self, model: AvatarModel, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a batch and its parts; all are on the model's device."""
        data = model.to_motion(batch.window, batch.portrait)
        count, frames = data.shape[:2]
        rand, randn = _random_functions(generator)
        with torch.autocast(data.device.type, torch.bfloat16):
            tokens, mouth = self._audio_tokens(batch, frames, generator)
            dropped = rand(count, 1, 1, 1) < self.weights.no_audio
            tokens = torch.where(dropped, self.denoiser.no_audio.to(tokens.dtype), tokens)
            t = torch.sigmoid(randn(count, 1)).expand(count, frames)
            pure_noise = rand(count, 1) < 0.3  # as the first sampling step starts
            t = torch.where(pure_noise, torch.ones_like(t), t)
            noise = model.without_background_noise(randn(*data.shape))
            time = t[..., None, None, None]
            noisy = (1 - time) * data + time * noise
            memory, filled = noised_memory(model, batch, self.weights, generator)
            portrait = self.denoiser.portrait_state(model.normalized_portrait(batch.portrait))
            velocity = self.denoiser(noisy, t, tokens, portrait, memory, filled).float()
        trust = batch.weight / batch.weight.mean()
        if self.mouth is None:  # conditioned on true mouth values: audio errors do not matter
            trust = torch.ones_like(trust)
        generated = noisy - time * velocity
        parts = {
            "velocity": _weighted((velocity - (noise - data)) ** 2, trust),
            "mouth": _weighted(mouth, trust),
            **self._geometry(model, batch, generated, trust),
        }
        total = parts["velocity"] + sum(
            getattr(self.weights, name) * parts[name] for name in ("mouth", "lips", "change")
        )
        return total, {name: float(value.detach()) for name, value in parts.items()}

    def _audio_tokens(
        self, batch: Batch, frames: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the audio tokens of the window, and the errors of predicted mouth values.

        With a bottleneck, the tokens come from true mouth values with noise like that of
        predictions, and for some items from predictions.
        """
        if self.mouth is not None:
            tokens = audio_tokens(self.audio, batch.features)
            mouth = self.mouth(tokens.flatten(2)).float()
            errors = (mouth - batch.targets[:, -mouth.shape[1] :]).abs()
            return tokens[:, -frames:], errors[:, warm_up_frames(self.audio) :]
        assert isinstance(self.audio, CausalAudioEncoder) and self.audio.mouth is not None
        with torch.no_grad():
            predicted = self.audio.read_mouth(batch.features)[:, -frames:].float()
        true, count = batch.targets[:, -frames:], len(batch.targets)
        rand, randn = _random_functions(generator)
        amount = self.weights.mouth_noise * rand(count, 1, 1) * batch.targets.std((0, 1))
        noise = 0.7 * (randn(count, 1, true.shape[2]) + randn(*true.shape))
        noisy = true + amount * noise
        values = torch.where(rand(count, 1, 1) < self.weights.mouth_read, predicted, noisy)
        return self.audio.mouth.tokens(values), torch.zeros_like(true)

    def _geometry(
        self, model: AvatarModel, batch: Batch, generated: Tensor, trust: Tensor
    ) -> dict[str, Tensor]:
        """Return the losses of lips and of their change from frame to frame, by landmarks.

        Errors are squared, because one sampling step yields the mean of what is possible. An
        absolute error would yield the median, and mouths are closed more often than open.
        """
        landmarks = model.autoencoder.landmarks
        if landmarks is None:
            return {"lips": generated.new_zeros(()), "change": generated.new_zeros(())}
        points = landmarks.decode_landmarks(model.to_latents(generated, batch.portrait))
        true = landmarks.decode_landmarks(batch.window)
        lips = points[:, :, LIPS] - points[:, :, LIPS].mean(2, keepdim=True)
        true_lips = true[:, :, LIPS] - true[:, :, LIPS].mean(2, keepdim=True)
        shape = _weighted((lips - true_lips) ** 2, trust)
        opening = _weighted((mouth_spans(points) - mouth_spans(true)) ** 2, trust)
        change = _weighted((lips.diff(dim=1) - true_lips.diff(dim=1)) ** 2, trust)
        return {"lips": LANDMARK_SCALE * (shape + opening), "change": LANDMARK_SCALE * change}


def noised_memory(
    model: AvatarModel, batch: Batch, weights: FlowLossConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the memory bank with noise as published, heavier noise, and a shared offset.

    All frames share the offset. It stands for the accumulated errors of many windows; without
    it, a model takes its own drift for the truth.
    """
    count = len(batch.memory)
    rand, randn = _random_functions(generator)
    motion = model.to_motion(batch.memory, batch.portrait)
    amount = weights.drift * rand(count, 1, 1, 1, 1)
    motion = motion + amount * randn(*motion[:, :1].shape)
    heavy = rand(count, 1, 1, 1, 1) < weights.heavy_noise
    noisy = regularize_memory(motion, generator, max_noise=0.8)
    motion = torch.where(heavy, noisy, regularize_memory(motion, generator))
    motion = motion * batch.filled[..., None, None, None]
    anchor = torch.zeros_like(motion[:, :1])  # the portrait has zero motion
    filled = torch.cat([torch.ones_like(batch.filled[:, :1]), batch.filled], 1)
    return torch.cat([anchor, motion], 1), filled


def _keep_background_rows(gradient: Tensor) -> Tensor:
    """Zero the rows of a gradient that belong to the face."""
    kept = gradient.clone()
    kept[: FACE_SHAPE[0]] = 0
    return kept


def _random_functions(
    generator: torch.Generator,
) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Return `torch.rand` and `torch.randn` bound to a generator and its device."""
    bound = {"generator": generator, "device": generator.device}
    return partial(torch.rand, **bound), partial(torch.randn, **bound)


def _weighted(values: Tensor, weight: Tensor) -> Tensor:
    return (values.flatten(1).mean(1) * weight).mean()
