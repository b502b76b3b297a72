"""Trains the conditions of a film for latents without landmarks, as the paper's.

A branch beside the frozen denoiser is told of each frame of a window: the frame with its lower face
masked, a reference frame of the same person with another mouth, and the landmarks that speech does
not move. The denoiser then generates frames whose rest is the film's. The target is the whole
frame: that the rest comes out as it was teaches the branch where the face is.

Source: DiffTalk, arXiv:2301.03786, whose denoiser has the same three beside the audio.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from letstalk_rt.models.avatar_model import AvatarModel, with_part
from letstalk_rt.models.geometry.lower_face import lower_face_mask
from letstalk_rt.models.landmark_condition import FilmBranch, rest_of_face
from letstalk_rt.models.memory import regularize_memory
from letstalk_rt.models.parts import LANDMARK_CONDITION
from letstalk_rt.training.data.film_items import FilmBatch, FilmSource, FilmTrack
from letstalk_rt.training.data.prefetch import Prefetch
from letstalk_rt.training.data.sound_inputs import audio_tokens, sound_input, trained_part
from letstalk_rt.training.loop import LoopConfig, Run

CONDITIONS = ("masked frame", "reference frame", "landmarks")

_LANDMARK_NOISE = 0.02
"""Deviation of the error of landmarks, in face sizes, as of the tracker that reads a film."""

_PURE_NOISE = 0.6  # share of items at the time at which the first sampling step begins
_WHOLE_STEP = 0.5  # share of items that are denoised in one step, if the denoiser can
_BATCHES, _BATCH = 6, 8  # for validation


@dataclass(frozen=True)
class Told:
    """What the branch is told, in the form that `Denoiser.predict` takes.

    Attributes:
        rest: landmarks of the rest of the face, `(B, N, R, 2)`.
        shown: latents of masked frame and reference, `(B, N, 2 C, h, w)`.
    """

    rest: Tensor
    shown: Tensor

    def only(self, conditions: tuple[str, ...]) -> "Told":
        """Return it with zeros for all but these conditions."""
        masked, reference = self.shown.chunk(2, 2)
        kept = [
            part if name in conditions else torch.zeros_like(part)
            for name, part in zip(CONDITIONS, (masked, reference, self.rest), strict=True)
        ]
        return Told(kept[2], torch.cat(kept[:2], 2))


def told(
    model: AvatarModel, masked: Tensor, points: Tensor, portrait: Tensor, reference: Tensor
) -> Told:
    """Return what a film shows of a window.

    Args:
        model: scales the latents.
        masked: latents of masked frames, `(B, N, C, h, w)`.
        points: landmarks of the frames, `(B, N, L, 2)`.
        portrait: latent of the reference frame, `(B, C, h, w)`.
        reference: its landmarks, `(B, L, 2)`.
    """
    scaled = (masked - model.latent_mean) / model.latent_scale
    same = model.normalized_portrait(portrait)[:, None].expand_as(scaled)
    return Told(rest_of_face(points, reference), torch.cat([scaled, same], 2))


class FilmTrainer(nn.Module):
    """Computes the loss of the branch of a model, whose other parts are frozen.

    Args:
        branch: the branch.
        conditions: what it is told; the others of `CONDITIONS` are zeros.
    """

    def __init__(self, branch: FilmBranch, conditions: tuple[str, ...] = CONDITIONS) -> None:
        super().__init__()
        self.branch, self.conditions = branch, conditions

    def loss(
        self, model: AvatarModel, batch: FilmBatch, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a batch and its parts; all are on the model's device."""
        errors = velocity_errors(model, batch, generator, self.conditions, _PURE_NOISE)
        trust = batch.weight / batch.weight.mean()
        loss = (errors.flatten(1).mean(1) * trust).mean()
        return loss, {"velocity": float(loss.detach())}


def velocity_errors(
    model: AvatarModel,
    batch: FilmBatch,
    generator: torch.Generator,
    conditions: tuple[str, ...],
    pure_noise: float,
) -> Tensor:
    """Return squared errors of the velocity, `(B, N, C, h, w)`; told nothing if no conditions."""
    denoiser, where = model.denoiser, generator.device
    data = model.to_motion(batch.window, batch.portrait)
    count, frames = data.shape[:2]

    def rand() -> Tensor:
        return torch.rand(count, 1, generator=generator, device=where)

    t = torch.sigmoid(torch.randn(count, 1, generator=generator, device=where))
    t = torch.where(rand() < pure_noise, 1.0, t).expand(count, frames)
    end = torch.where(rand() < _WHOLE_STEP, 0.0, t) if denoiser.config.second_time else None
    noise = torch.randn(data.shape, generator=generator, device=where)
    time = t[..., None, None, None]
    seen = told(model, batch.masked, batch.points, batch.portrait, batch.portrait_points)
    shaky = torch.randn(seen.rest.shape, generator=generator, device=where)
    seen = replace(seen, rest=seen.rest + _LANDMARK_NOISE * shaky).only(conditions)
    with torch.autocast(where.type, torch.bfloat16):
        with torch.no_grad():
            tokens = audio_tokens(trained_part(model.audio), batch.features)[:, -frames:]
            portrait = denoiser.portrait_state(model.normalized_portrait(batch.portrait))
            cache = denoiser.encode_memory(*_memory(model, batch, generator))
        velocity = denoiser.predict(
            (1 - time) * data + time * noise,
            t,
            tokens,
            portrait,
            cache,
            end=end,
            rest=seen.rest if conditions else None,
            shown=seen.shown,
        ).float()
    return (velocity - (noise - data)).square()


def _memory(
    model: AvatarModel, batch: FilmBatch, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the memory bank with noise as published: its anchor, then the frames before."""
    motion = model.to_motion(batch.memory, batch.portrait)
    motion = regularize_memory(motion, generator) * batch.filled[..., None, None, None]
    filled = torch.cat([torch.ones_like(batch.filled[:, :1]), batch.filled], 1)
    return torch.cat([torch.zeros_like(motion[:, :1]), motion], 1), filled


@torch.no_grad()
def validate(
    model: AvatarModel,
    source: FilmSource,
    device: torch.device,
    conditions: tuple[str, ...] = CONDITIONS,
) -> dict[str, float]:
    """Return errors on people who were not trained on, told of a film and not.

    Returns:
        `mouth` and `rest`: mean squared error of the velocity from pure noise, in squared
        deviations of motion, where the lower face is masked and elsewhere; with the suffix
        `_without` of a denoiser that is told nothing.
    """
    sums: dict[str, list[Tensor]] = {}
    for chosen, suffix in ((conditions, ""), ((), "_without")):
        for number in range(_BATCHES):
            drawn = torch.Generator().manual_seed(number)
            noise = torch.Generator(device).manual_seed(number)
            batch = source.draw(_BATCH, drawn).to(device)
            errors = velocity_errors(model, batch, noise, chosen, 1.0).mean(2)
            inside = lower_face_mask(batch.points, errors.shape[-1])
            sums.setdefault(f"mouth{suffix}", []).append(errors[inside].mean())
            sums.setdefault(f"rest{suffix}", []).append(errors[~inside].mean())
    return {name: float(torch.stack(values).mean()) for name, values in sums.items()}


def train_film_branch(
    model: AvatarModel,
    tracks: list[FilmTrack],
    validation: list[FilmTrack],
    folder: Path,
    config: LoopConfig,
    *,
    batch_size: int,
    conditions: tuple[str, ...] = CONDITIONS,
) -> FilmBranch:
    """Train the branch of a model and return the averaged one; no other part changes.

    Args:
        model: a model with such a branch, whose denoiser is trained.
        tracks: training clips.
        validation: clips of other people in the train split.
        folder: the run's folder.
        config: schedule.
        batch_size: windows per step.
        conditions: what the branch is told.
    """
    branch, shape = model.denoiser.landmarks, model.denoiser.config
    assert isinstance(branch, FilmBranch), "latents hold no landmarks"
    model.to(config.device).requires_grad_(False).eval()
    trainer = FilmTrainer(branch.requires_grad_(True), conditions)
    sound = sound_input(model.audio)
    source, held_out = (
        FilmSource(part, shape.window, shape.history, sound) for part in (tracks, validation)
    )
    run = Run(folder, trainer, config)

    def draw(generator: torch.Generator) -> FilmBatch:
        batch = source.draw(batch_size, generator)
        return replace(batch, features=sound.augment(batch.features, generator))

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        return trainer.loss(model, batches(step).to(run.device), run.noise)

    def evaluate(averaged: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(averaged, FilmTrainer)
        candidate = with_part(model, LANDMARK_CONDITION, averaged.branch).to(run.device)
        return validate(candidate, held_out, run.device, conditions)

    with Prefetch(draw, config.steps) as batches:
        trained = run.train(loss, evaluate, batches)
    assert isinstance(trained, FilmTrainer)
    return trained.branch


def ablate_conditions(
    model: AvatarModel,
    tracks: list[FilmTrack],
    validation: list[FilmTrack],
    folder: Path,
    config: LoopConfig,
    *,
    batch_size: int,
) -> list[dict[str, float | str]]:
    """Train with all conditions, then without each of them; write `table.json`, and return it.

    Every variant has the same initial weights, batches and noise.
    """
    initial = {k: v.clone() for k, v in model.denoiser.landmarks.state_dict().items()}  # type: ignore[union-attr]
    rows: list[dict[str, float | str]] = []
    for left_out in (None, *CONDITIONS):
        kept = tuple(name for name in CONDITIONS if name != left_out)
        name = "all conditions" if left_out is None else f"without {left_out}"
        model.denoiser.landmarks.load_state_dict(initial)  # type: ignore[union-attr]
        run = folder / name.replace(" ", "-")
        branch = train_film_branch(
            model, tracks, validation, run, config, batch_size=batch_size, conditions=kept
        )
        trained = with_part(model, LANDMARK_CONDITION, branch).to(config.device)
        shape = model.denoiser.config
        source = FilmSource(validation, shape.window, shape.history, sound_input(model.audio))
        figures = validate(trained, source, torch.device(config.device), kept)
        rows.append({"variant": name, **figures})
    (folder / "table.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return rows
