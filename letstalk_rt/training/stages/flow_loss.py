"""The loss of the flow: velocities, and the landmarks read off the data that they lead to."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from letstalk_rt.models.autoencoder.latents import FACE_SHAPE
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.geometry.landmarks import LIPS
from letstalk_rt.models.memory import regularize_memory
from letstalk_rt.training.data.audio_features import NUM_MOUTH_TARGETS, mel_encoder
from letstalk_rt.training.data.windows import Batch, FlowLoss
from letstalk_rt.training.stages.autoencoder_loss import mouth_spans

UNIT = 1000.0
"""Squares of distances in half pictures are small: lips that are wrong by 4 px are wrong by 1."""


class FlowTrainer(nn.Module):
    """What is trained: denoiser, audio encoder, and a helper head that reads the mouth.

    Where the audio encoder has a bottleneck, its reading of the sound stays as it is; only how
    the mouth's values are shown to the denoiser is learned.

    Args:
        model: its autoencoder stays as it is.
        loss: weights of the parts.
    """

    def __init__(self, model: AvatarModel, loss: FlowLoss) -> None:
        super().__init__()
        self.denoiser, self.audio = model.denoiser, mel_encoder(model)
        token_width = self.audio.config.token_width
        apart = self.audio.mouth is not None
        self.mouth = None if apart else nn.Linear(4 * token_width, NUM_MOUTH_TARGETS)
        self.weights = loss

    def fix_faces(self) -> None:
        """Let nothing learn but what the denoiser's last layer says of surroundings."""
        self.requires_grad_(False)
        for parameter in self.denoiser.head.parameters():
            parameter.requires_grad_(True).register_hook(_around_only)

    def loss(
        self, model: AvatarModel, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Give the loss of a batch and its parts; batch and generator are where the model is."""
        data = model.to_motion(batch.window, batch.portrait)
        count, frames = data.shape[:2]
        rand, randn = _chance(generator)
        with torch.autocast(data.device.type, torch.bfloat16):
            heard, mouth = self._hear(batch, frames, generator)
            dropped = rand(count, 1, 1, 1) < self.weights.no_audio
            heard = torch.where(dropped, self.denoiser.no_audio.to(heard.dtype), heard)
            t = torch.sigmoid(randn(count, 1)).expand(count, frames)
            alone = rand(count, 1) < 0.3
            t = torch.where(alone, torch.ones_like(t), t)  # one-step use starts from noise alone
            noise = model.without_background_noise(randn(*data.shape))
            time = t[..., None, None, None]
            noisy = (1 - time) * data + time * noise
            memory, filled = self._memory(model, batch, generator)
            portrait = self.denoiser.portrait_state(model.normalized_portrait(batch.portrait))
            velocity = self.denoiser(noisy, t, heard, portrait, memory, filled).float()
        trust = batch.weight / batch.weight.mean()
        if self.mouth is None:  # true mouths are shown: no clip's sound can be wrong
            trust = torch.ones_like(trust)
        made = noisy - time * velocity
        parts = {
            "velocity": _weighted((velocity - (noise - data)) ** 2, trust),
            "mouth": _weighted(mouth, trust),
            **self._geometry(model, batch, made, trust),
        }
        total = parts["velocity"] + sum(
            getattr(self.weights, name) * parts[name] for name in ("mouth", "lips", "change")
        )
        return total, {name: float(value.detach()) for name, value in parts.items()}

    def _hear(self, batch: Batch, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Give the audio tokens of the window, and the errors of the mouths read off the sound.

        A bottleneck is shown true mouths, a little wrong as readings are, and at times readings.
        """
        if self.audio.mouth is None:
            tokens = self.audio.encode_mel(batch.mel)[:, self.audio.lookahead_frames :]
            assert self.mouth is not None
            mouth = self.mouth(tokens.flatten(2)).float()
            return tokens[:, -frames:], (mouth - batch.targets)[:, 12:].abs()
        with torch.no_grad():
            read = self.audio.read_mouth(batch.mel)[:, -frames:].float()
        true, count = batch.targets[:, -frames:], len(batch.targets)
        rand, randn = _chance(generator)
        amount = self.weights.mouth_noise * rand(count, 1, 1) * batch.targets.std((0, 1))
        noise = 0.7 * (randn(count, 1, true.shape[2]) + randn(*true.shape))
        shown = torch.where(
            rand(count, 1, 1) < self.weights.mouth_read, read, true + amount * noise
        )
        return self.audio.mouth.tokens(shown), torch.zeros_like(true)

    def _memory(
        self, model: AvatarModel, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Corrupt memory: as published, at times heavily, and by an offset that all frames share.

        The offset is what errors of many windows add up to; a model that never met it takes its
        own drift for the truth.
        """
        count = len(batch.memory)
        rand, randn = _chance(generator)
        motion = model.to_motion(batch.memory, batch.portrait)
        amount = self.weights.drift * rand(count, 1, 1, 1, 1)
        motion = motion + amount * randn(*motion[:, :1].shape)
        heavy = rand(count, 1, 1, 1, 1) < self.weights.heavy_noise
        noisy = regularize_memory(motion, generator, max_noise=0.8)
        motion = torch.where(heavy, noisy, regularize_memory(motion, generator))
        motion = motion * batch.filled[..., None, None, None]
        anchor = torch.zeros_like(motion[:, :1])  # the portrait's own motion is none
        filled = torch.cat([torch.ones_like(batch.filled[:, :1]), batch.filled], 1)
        return torch.cat([anchor, motion], 1), filled

    def _geometry(
        self, model: AvatarModel, batch: Batch, made: Tensor, trust: Tensor
    ) -> dict[str, Tensor]:
        """Compare lips, and their change from frame to frame, through the linear read-out.

        Squares, because one step gives the mean of what may be: an absolute error would ask for
        the median, and mouths are shut more often than open.
        """
        landmarks = model.autoencoder.landmarks
        if landmarks is None:
            return {"lips": made.new_zeros(()), "change": made.new_zeros(())}
        points = landmarks.decode_landmarks(model.to_latents(made, batch.portrait))
        true = landmarks.decode_landmarks(batch.window)
        lips = points[:, :, LIPS] - points[:, :, LIPS].mean(2, keepdim=True)
        true_lips = true[:, :, LIPS] - true[:, :, LIPS].mean(2, keepdim=True)
        shape = _weighted((lips - true_lips) ** 2, trust)
        opening = _weighted((mouth_spans(points) - mouth_spans(true)) ** 2, trust)
        change = _weighted((lips.diff(dim=1) - true_lips.diff(dim=1)) ** 2, trust)
        return {"lips": UNIT * (shape + opening), "change": UNIT * change}


def _around_only(gradient: Tensor) -> Tensor:
    """Keep the part of a gradient that is the surroundings', by rows."""
    kept = gradient.clone()
    kept[: FACE_SHAPE[0]] = 0
    return kept


def _chance(
    generator: torch.Generator,
) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Give `torch.rand` and `torch.randn` that draw from a generator, where it is."""
    where = {"generator": generator, "device": generator.device}
    return partial(torch.rand, **where), partial(torch.randn, **where)


def _weighted(values: Tensor, weight: Tensor) -> Tensor:
    return (values.flatten(1).mean(1) * weight).mean()
