"""Trains denoiser and audio encoder together by rectified flow on the latents of clips.

The autoencoder is frozen; the latents of the clips and of their mirror images are computed once.
The loss compares velocities, and the landmarks of the predicted latents: their read-out is linear,
so lips can be weighted without decoding a frame.

Source: rectified flow, arXiv:2209.03003; logit-normal times, arXiv:2403.03206; noise-regularised
memory, LetsTalk, arXiv:2411.16748.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.training.data.dataset import Clip
from letstalk_rt.training.data.prefetch import Prefetch
from letstalk_rt.training.data.sound_inputs import sound_input, trained_part
from letstalk_rt.training.data.tracks import Track
from letstalk_rt.training.data.windows import Batch, FlowLossConfig, WindowSource
from letstalk_rt.training.evaluation.decoded import DecodedLips
from letstalk_rt.training.evaluation.rollout import (
    evaluate_flow,
    flow_sampling,
    save_sample,
    score,
)
from letstalk_rt.training.loop import LoopConfig, Run
from letstalk_rt.training.stages.flow_loss import FlowTrainer


def train_flow(
    model: AvatarModel,
    tracks: list[Track],
    validation: list[Track],
    folder: Path,
    config: LoopConfig,
    *,
    batch_size: int = 48,
    samples: list[Clip] | None = None,
    initial_weights: dict[str, Tensor] | None = None,
    start: Path | None = None,
    freeze_faces: bool = False,
) -> AvatarModel:
    """Train denoiser and audio encoder and return the model that was best on `validation`.

    Args:
        model: The model, with trained autoencoder, scales set and pretrained audio encoder.
        tracks: Training tracks.
        validation: Tracks of other people in the train split, which select the best weights.
        folder: The run's folder.
        config: Schedule.
        batch_size: Windows per step.
        samples: Clips whose sample videos are written at each evaluation.
        initial_weights: Weights of a trained denoiser to continue from.
        start: Folder of a run of the same shapes to continue from with its average and optimiser.
        freeze_faces: Train only the background flow in the denoiser's last layer, so that what
            `initial_weights` generate of faces stays the same, and return the last model.
    """
    assert initial_weights is not None or not freeze_faces
    torch.manual_seed(1)
    trainer = FlowTrainer(model, FlowLossConfig())
    if freeze_faces:
        trainer.freeze_faces()
        config = replace(config, weight_decay=0.0)
    shape = model.denoiser.config
    sound = sound_input(model.audio)
    source = WindowSource(tracks, shape.window, shape.history, trainer.weights, sound)
    if initial_weights is not None:
        model.denoiser.load_state_dict(initial_weights)
    model.to(config.device)
    run = Run(folder, trainer, config)
    if start is not None:
        run.start_from(start)
    sampling = flow_sampling(model.preset)
    lips = DecodedLips(run.device) if model.autoencoder.landmarks is None else None

    def draw(generator: torch.Generator) -> Batch:
        batch = source.draw(batch_size, generator)
        return replace(batch, features=sound.augment(batch.features, generator))

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        return trainer.loss(model, batches(step).to(run.device), run.noise)

    def evaluate(averaged: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(averaged, FlowTrainer)
        candidate = with_parts(model, averaged)
        figures = evaluate_flow(candidate, validation, sampling, lips)
        for clip in samples or []:
            place = folder / f"sample-{clip.name}-{step:06d}.mp4"
            save_sample(candidate, clip, place, sampling)
        run.keep_if_best(score(figures))
        return figures

    with Prefetch(draw, config.steps) as batches:
        last = run.train(loss, evaluate, batches).state_dict()
    best = last if freeze_faces else torch.load(run.best, map_location="cpu", weights_only=True)
    trainer.load_state_dict(best)
    return with_parts(model, trainer)


def with_parts(model: AvatarModel, trainer: FlowTrainer) -> AvatarModel:
    """Return a copy of `model` whose denoiser and audio encoder are the trainer's."""
    out = AvatarModel(model.preset)
    out.load_state_dict(model.state_dict())
    out.denoiser.load_state_dict(trainer.denoiser.state_dict())
    trained_part(out.audio).load_state_dict(trainer.audio.state_dict())
    return out.to(model.motion_scale.device).eval()
