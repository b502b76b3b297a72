"""Trains denoiser and audio encoder together by rectified flow on the latents of clips.

The autoencoder is frozen; its latents are computed once, of the clips as they are and mirrored.
Beside the velocity, the landmarks read off the predicted data are compared: the read-out is
linear, so lips can be weighed without decoding a picture.

Source: rectified flow, arXiv:2209.03003; logit-normal times, arXiv:2403.03206; noise-regularised
memory, LetsTalk, arXiv:2411.16748.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.training.data.audio_features import augment_mel
from letstalk_rt.training.data.dataset import Clip
from letstalk_rt.training.data.tracks import Track
from letstalk_rt.training.data.windows import FlowLoss, WindowSource
from letstalk_rt.training.evaluation.rollout import evaluate_flow, save_sample, score
from letstalk_rt.training.loop import LoopConfig, Run
from letstalk_rt.training.stages.flow_loss import FlowTrainer


def train_flow(
    model: AvatarModel,
    tracks: list[Track],
    aside: list[Track],
    folder: Path,
    config: LoopConfig,
    *,
    batch_size: int = 48,
    shown: list[Clip] | None = None,
    started: dict[str, Tensor] | None = None,
    fixed_faces: bool = False,
) -> AvatarModel:
    """Train denoiser and audio encoder, or go on, and give the model that was best on `aside`.

    Args:
        model: with its autoencoder and scales set; the audio encoder pretrained.
        tracks: of the train split.
        aside: tracks of the train split that choose when to stop.
        folder: of the run.
        config: schedule.
        batch_size: windows a step.
        shown: clips whose sample videos are written at each evaluation.
        started: weights of a trained denoiser to go on from.
        fixed_faces: what `started` makes of faces must not change: only the surroundings are
            learned, from what it knows of the face, and the last model is given.
    """
    assert started is not None or not fixed_faces
    torch.manual_seed(1)
    trainer = FlowTrainer(model, FlowLoss())
    if fixed_faces:
        trainer.fix_faces()
        config = replace(config, weight_decay=0.0)
    shape = model.denoiser.config
    source = WindowSource(tracks, shape.window, shape.memory, trainer.weights)
    if started is not None:
        model.denoiser.load_state_dict(started)
    model.to(config.device)
    run = Run(folder, trainer, config)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        batch = source.draw(batch_size, run.generator)
        batch = replace(batch, mel=augment_mel(batch.mel, run.generator))
        return trainer.loss(model, batch.to(run.device), run.noise)

    def evaluate(averaged: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(averaged, FlowTrainer)
        judged = with_parts(model, averaged)
        preset = judged.preset
        figures = evaluate_flow(judged, aside, preset.steps, preset.guidance)
        for clip in shown or []:
            save_sample(judged, clip, folder / f"sample-{clip.name}-{step:06d}.mp4")
        run.keep_if_best(score(figures))
        return figures

    last = run.train(loss, evaluate).state_dict()
    best = last if fixed_faces else torch.load(run.best, map_location="cpu", weights_only=True)
    trainer.load_state_dict(best)
    return with_parts(model, trainer)


def with_parts(model: AvatarModel, trainer: FlowTrainer) -> AvatarModel:
    """Give a model like `model` whose denoiser and audio encoder are the trainer's."""
    out = AvatarModel(model.preset)
    out.load_state_dict(model.state_dict())
    out.denoiser.load_state_dict(trainer.denoiser.state_dict())
    out.audio.load_state_dict(trainer.audio.state_dict())
    return out.to(model.motion_scale.device).eval()
