"""`letstalk train motion`: the denoiser of the motion of the whole face."""

import argparse
from pathlib import Path

import torch

from letstalk_rt.errors import InputError
from letstalk_rt.models.autoencoder.interfaces import LandmarkAutoencoder
from letstalk_rt.models.motion.denoiser import MotionDenoiser
from letstalk_rt.training.data.audio_features import mean_voiced_mel
from letstalk_rt.training.data.dataset import Clip
from letstalk_rt.training.distributed import is_main_process
from letstalk_rt.training.loop import LoopConfig
from letstalk_rt.training.stages.expression import fit_expression
from letstalk_rt.training.stages.motion import train_motion
from letstalk_rt.training.stages.motion_clips import motion_clip
from letstalk_rt.training.stages.talking_mouths import fit_talking_mouth


def motion_file(runs: Path) -> Path:
    """Return the file of a trained motion denoiser."""
    return runs / "motion" / "model.pt"


def train_motion_stage(
    args: argparse.Namespace,
    clips: list[Clip],
    held_out: list[Clip],
    config: LoopConfig,
    batch_size: int,
    autoencoder: LandmarkAutoencoder,
) -> None:
    """Train the motion denoiser and write `motion/model.pt`.

    Args:
        args: options of `letstalk train`.
        clips: training clips.
        held_out: clips of other people, for the log.
        config: schedule.
        batch_size: items per step.
        autoencoder: whose latents show an expression, and mouths that talk.

    Raises:
        InputError: no clip has audio, blendshapes and head poses.
    """
    kept, others = (
        [clip for clip in part if clip.has_audio and clip.pose is not None]
        for part in (clips, held_out)
    )
    if not kept:
        raise InputError(
            "the stage motion needs clips with audio, blendshapes and head poses (`pose` in the "
            ".npz files); see docs/training.md"
        )
    torch.manual_seed(args.seed)
    denoiser = MotionDenoiser()
    speech = denoiser.speech
    speech.usual.copy_(mean_voiced_mel((clip.pcm for clip in kept), speech))
    trained = train_motion(
        [motion_clip(clip, speech) for clip in kept],
        [motion_clip(clip, speech) for clip in others],
        args.runs / "motion",
        config,
        denoiser,
        batch_size=batch_size,
    )
    if is_main_process():
        filmed = [clip for clip in kept if clip.kind == "real" and not clip.is_grid]
        trained.expression.load_state_dict(fit_expression(autoencoder, filmed).state_dict())
        fit_talking_mouth(trained.expression.mouth, autoencoder, [*clips, *held_out])
        torch.save(trained.state_dict(), motion_file(args.runs))
