"""Trains the landmark condition: a branch beside the frozen denoiser, by rectified flow.

Of each frame of a window the branch is told where the rest of the face is. The mouth is masked: the
landmarks of lips, jaw and chin are left out, and the others are read from latents to which random
motion of speech was added, because all landmarks of a latent come from the same few numbers. So the
branch cannot learn the lower face from traces of the mouth that it shall replace.

Source: landmarks without the mouth as a condition, DiffTalk, arXiv:2301.03786. Its masked frame is
not an input of this branch; the one for latents without landmarks, `film_branch`, has it.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from letstalk_rt.models.autoencoder.interfaces import LandmarkAutoencoder
from letstalk_rt.models.autoencoder.latents import FACE_SHAPE, FACE_SIZE, IMAGE_SIZE, LATENT_SIZE
from letstalk_rt.models.avatar_model import AvatarModel, with_part
from letstalk_rt.models.geometry.landmarks import LIPS, NUM_LANDMARKS, REST
from letstalk_rt.models.landmark_condition import LandmarkBranch, rest_of_face
from letstalk_rt.models.parts import LANDMARK_CONDITION, MOTION
from letstalk_rt.training.data.prefetch import Prefetch
from letstalk_rt.training.data.sound_inputs import audio_tokens, sound_input, trained_part
from letstalk_rt.training.data.tracks import Track
from letstalk_rt.training.data.windows import Batch, FlowLossConfig, WindowSource
from letstalk_rt.training.loop import LoopConfig, Run
from letstalk_rt.training.stages.flow_loss import LANDMARK_SCALE, noised_memory

_LOSS = FlowLossConfig(stale_memory=0.0)
"""The memory bank holds the windows before: what a film shows goes on from them."""

_PURE_NOISE = 0.6  # share of items at the time at which the first sampling step begins
_LANDMARK_NOISE = 0.02
"""Deviation of the error of landmarks, in face sizes: about 1 px."""

_SPEECH = 0.7  # deviation of the added motion of speech, in that of people who talk
_POINTS = 1.0  # weight of the landmarks
_JAW = [i for i in range(NUM_LANDMARKS) if i not in REST and i not in LIPS]
_BATCHES, _BATCH = 6, 32  # for validation


class LandmarkTrainer(nn.Module):
    """Computes the loss of the branch of a model, whose other parts are frozen.

    Args:
        branch: the branch.
    """

    def __init__(self, branch: LandmarkBranch) -> None:
        super().__init__()
        self.branch = branch

    def loss(
        self, model: AvatarModel, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a batch and its parts; all are on the model's device.

        Args:
            model: the model that the branch belongs to.
            batch: the batch.
            generator: random generator on that device.
        """
        predicted = predict(model, batch, generator, pure_noise=_PURE_NOISE)
        trust = batch.weight / batch.weight.mean()
        face = (predicted.data - predicted.true)[:, :, : FACE_SHAPE[0]] / predicted.time
        points = LANDMARK_SCALE * predicted.errors.square()
        parts = {
            "velocity": (face.square().flatten(1).mean(1) * trust).mean(),
            "points": (points.flatten(1).mean(1) * trust).mean(),
        }
        total = parts["velocity"] + _POINTS * parts["points"]
        return total, {name: float(value.detach()) for name, value in parts.items()}


@dataclass(frozen=True)
class Predicted:
    """The data that the denoiser predicts for a batch, and what is true.

    Attributes:
        data: predicted motion, `(B, N, C, h, w)`.
        true: motion of the clips, likewise.
        time: its time, `(B, N, 1, 1, 1)`; an error of the velocity is one of the data over it.
        errors: errors of the landmarks, `(B, N, L, 2)` in half sides of the frame.
    """

    data: Tensor
    true: Tensor
    time: Tensor
    errors: Tensor


def predict(
    model: AvatarModel,
    batch: Batch,
    generator: torch.Generator,
    *,
    pure_noise: float,
    has_condition: bool = True,
) -> Predicted:
    """Predict the windows of a batch from noise.

    Films have no background flow, so neither do windows and memory here.

    Args:
        model: a model with a landmark condition and a motion denoiser.
        batch: the batch.
        generator: random generator on the model's device.
        pure_noise: share of items that begin from noise alone.
        has_condition: whether the denoiser is told the landmarks of the rest of the face.
    """
    batch = replace(
        batch,
        window=model.autoencoder.without_background_flow(batch.window),
        memory=model.autoencoder.without_background_flow(batch.memory),
    )
    landmarks = model.autoencoder.landmarks
    assert landmarks is not None, "a landmark condition needs latents that hold landmarks"
    true, where = model.to_motion(batch.window, batch.portrait), generator.device
    count, frames = true.shape[:2]
    with torch.no_grad():
        rest = masked_rest(model, landmarks, batch, generator)
    with torch.autocast(where.type, torch.bfloat16):
        with torch.no_grad():
            tokens = audio_tokens(trained_part(model.audio), batch.features)[:, -frames:]
            portrait = model.denoiser.portrait_state(model.normalized_portrait(batch.portrait))
            memory = noised_memory(model, batch, _LOSS, generator)
            cache = model.denoiser.encode_memory(*memory)
        t = torch.sigmoid(torch.randn(count, 1, generator=generator, device=where))
        starts = torch.rand(count, 1, generator=generator, device=where) < pure_noise
        t = torch.where(starts, torch.ones_like(t), t).clamp(min=0.1).expand(count, frames)
        noise = torch.randn(true.shape, generator=generator, device=where)
        noise, time = model.without_background_noise(noise), t[..., None, None, None]
        noisy = (1 - time) * true + time * noise
        given = rest if has_condition else None
        velocity = model.denoiser.predict(noisy, t, tokens, portrait, cache, rest=given).float()
    data = noisy - time * velocity
    points = landmarks.decode_landmarks(model.to_latents(data, batch.portrait))
    errors = points - landmarks.decode_landmarks(batch.window)
    return Predicted(data, true, time, errors)


def masked_rest(
    model: AvatarModel, landmarks: LandmarkAutoencoder, batch: Batch, generator: torch.Generator
) -> Tensor:
    """Return the landmarks of the rest of the face without traces of the mouth, `(B, N, R, 2)`."""
    natural = model.part(MOTION).expression.mouth.natural.float()
    natural = F.pad(natural, (0, LATENT_SIZE - FACE_SIZE))
    where, (count, frames) = generator.device, batch.window.shape[:2]
    scores = torch.randn(2, count, frames, len(natural), generator=generator, device=where)
    scores = _SPEECH * (scores[0] + scores[1, :, :1])  # of a frame, and of the whole window
    spoken = batch.window + (scores @ natural).view(batch.window.shape)
    reference = landmarks.decode_landmarks(batch.portrait)
    rest = rest_of_face(landmarks.decode_landmarks(spoken), reference)
    return rest + _LANDMARK_NOISE * torch.randn(rest.shape, generator=generator, device=where)


@torch.no_grad()
def validate(model: AvatarModel, source: WindowSource, device: torch.device) -> dict[str, float]:
    """Return figures on clips that were not trained on, with and without the condition.

    Returns:
        `velocity`: mean squared error of the velocity of the face from pure noise, in squared
        deviations of motion; `rest_px`, `jaw_px` and `lips_px`: root mean square errors of these
        landmarks in pixels of the crop. The same without the condition have the suffix `_without`.
    """
    sums: dict[str, list[Tensor]] = {}
    for has_condition, suffix in ((True, ""), (False, "_without")):
        generator, noise = torch.Generator(), torch.Generator(device)
        for number in range(_BATCHES):
            generator.manual_seed(number)
            noise.manual_seed(number)
            batch = source.draw(_BATCH, generator).to(device)
            found = predict(model, batch, noise, pure_noise=1.0, has_condition=has_condition)
            face = (found.data - found.true)[:, :, : FACE_SHAPE[0]].square().mean()
            sums.setdefault(f"velocity{suffix}", []).append(face)
            parts = {"rest_px": REST, "jaw_px": _JAW, "lips_px": LIPS}
            for name, indices in parts.items():
                squared = found.errors[:, :, indices].square().sum(-1).mean()
                sums.setdefault(f"{name}{suffix}", []).append(squared)
    means = {name: float(torch.stack(values).mean()) for name, values in sums.items()}
    half = IMAGE_SIZE / 2
    return {k: half * v**0.5 if "_px" in k else v for k, v in means.items()}


def train_landmark_branch(
    model: AvatarModel,
    tracks: list[Track],
    validation: list[Track],
    folder: Path,
    config: LoopConfig,
    *,
    batch_size: int,
) -> LandmarkBranch:
    """Train the branch of a model and return the averaged one; no other part changes.

    Args:
        model: a model with a landmark condition and a motion denoiser.
        tracks: training tracks.
        validation: tracks of other people in the train split.
        folder: the run's folder.
        config: schedule.
        batch_size: windows per step.
    """
    branch, shape = model.denoiser.landmarks, model.denoiser.config
    assert isinstance(branch, LandmarkBranch), "latents hold landmarks"
    model.to(config.device).requires_grad_(False).eval()
    trainer = LandmarkTrainer(branch.requires_grad_(True))
    sound = sound_input(model.audio)
    source, held_out = (
        WindowSource(part, shape.window, shape.history, _LOSS, sound)
        for part in (tracks, validation)
    )
    run = Run(folder, trainer, config)

    def draw(generator: torch.Generator) -> Batch:
        batch = source.draw(batch_size, generator)
        return replace(batch, features=sound.augment(batch.features, generator))

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        return trainer.loss(model, batches(step).to(run.device), run.noise)

    def evaluate(averaged: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(averaged, LandmarkTrainer)
        candidate = with_part(model, LANDMARK_CONDITION, averaged.branch).to(run.device)
        return validate(candidate, held_out, run.device)

    with Prefetch(draw, config.steps) as batches:
        trained = run.train(loss, evaluate, batches)
    assert isinstance(trained, LandmarkTrainer)
    return trained.branch
