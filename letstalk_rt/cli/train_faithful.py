"""The stage `faithful` of `letstalk train`: LetsTalk as published, from clips to a weights file."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from letstalk_rt.cli.train_flow import spoken_rows
from letstalk_rt.errors import ConfigError, InputError
from letstalk_rt.inference.devices import choose_device
from letstalk_rt.models.audio_encoder.wav2vec_whole import WholeWav2Vec2
from letstalk_rt.models.autoencoder.published import PublishedAutoencoder
from letstalk_rt.models.paper.checkpoints import save_paper_model
from letstalk_rt.models.paper.denoiser import PaperModel
from letstalk_rt.models.paper.diffusion import Diffusion
from letstalk_rt.models.paper.presets import FAITHFUL, PaperPreset, get_paper_preset
from letstalk_rt.training.data.paper_items import PaperClip, PaperSource, stored_paper_clips
from letstalk_rt.training.data.video_samples import to_pixels, write_video
from letstalk_rt.training.distributed import is_main_process
from letstalk_rt.training.loop import LoopConfig
from letstalk_rt.training.stages.paper import PaperBatch, train_paper_model

SAMPLE_CLIPS, SAMPLE_STEPS = 4, 25
"""Clips of frames of a sample video, and steps of DDIM."""


@dataclass(frozen=True)
class FaithfulParts:
    """What training of the published model needs besides the model.

    Attributes:
        preset: The shapes.
        autoencoder: The autoencoder, on the device.
        speech: The speech model, on the device.
        rows: Lines of the clips with audio.
        clips: Their latents and features, in the same order.
    """

    preset: PaperPreset
    autoencoder: PublishedAutoencoder
    speech: WholeWav2Vec2
    rows: list[dict[str, object]]
    clips: list[PaperClip]


def run_faithful(args: argparse.Namespace, loop: LoopConfig, batch: int) -> None:
    """Encode clips, train denoiser and projector, and write `faithful/model.safetensors`."""
    parts = load_parts(args)
    preset, folder = parts.preset, args.runs / "faithful"
    source = PaperSource(parts.clips, preset.denoiser)
    torch.manual_seed(args.seed)
    model = PaperModel(preset)
    model.denoiser.recompute = True  # a clip of 16 frames at 512 px needs it from `b` on

    def draw(generator: torch.Generator) -> PaperBatch:
        return PaperBatch(**source.draw(batch, generator))

    def evaluate(averaged: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(averaged, PaperModel)
        write_sample(averaged, parts, folder / f"sample-{step:06d}.mp4")
        return {}

    averaged = train_paper_model(
        model, draw, folder, loop, drop_speech=args.drop_speech, evaluate=evaluate
    )
    if is_main_process():
        path = folder / "model.safetensors"
        save_paper_model(averaged, path, parts.autoencoder, parts.speech)
        print(f"{path}: render it with --preset {args.preset}")


@torch.no_grad()
def write_sample(model: PaperModel, parts: FaithfulParts, path: Path) -> None:
    """Write a video: true frames through the autoencoder, beside what the model generates.

    It is the beginning of the longest clip, by DDIM; its sound is in the data folder.
    """
    clip = max(parts.clips, key=lambda clip: len(clip.features))
    frames = model.preset.denoiser.frames
    count = min(len(clip.features) // frames, SAMPLE_CLIPS) * frames
    device = next(model.parameters()).device
    generated = model.generate(
        clip.features[None, :count].float().to(device),
        clip.latents[:1, 0].float().to(device),
        diffusion=Diffusion(SAMPLE_STEPS),
        deterministic=True,
        generator=torch.Generator(device).manual_seed(0),
    )
    made = torch.cat(list(generated), 1)
    both = [
        torch.cat([parts.autoencoder.decode(latents[:, i : i + 1])[0] for i in range(count)])
        for latents in (clip.latents[:1, :count].float().to(device), made)
    ]
    write_video(path, to_pixels(torch.cat(both, -1)))


def load_parts(args: argparse.Namespace) -> FaithfulParts:
    """Load the networks that the options name, and encode the clips into `faithful/latents`.

    Raises:
        ConfigError: The preset is not one of the published model, or does not fit the networks.
        InputError: An option is missing.
        WeightsError: A network cannot be read, or is not that of the preset.
    """
    if not args.preset.startswith(FAITHFUL):
        raise ConfigError(
            f"stage {args.stage!r} trains the published model: choose --preset {FAITHFUL}s, "
            f"{FAITHFUL}b, {FAITHFUL}l or {FAITHFUL}xl, or {FAITHFUL}v1-b-2 and the like, got "
            f"{args.preset!r}"
        )
    preset = get_paper_preset(args.preset.removeprefix(FAITHFUL))
    if args.wav2vec is None:
        raise InputError(
            f"preset {args.preset!r} needs wav2vec 2.0: set --wav2vec to a folder, or a hub id "
            "such as facebook/wav2vec2-base-960h"
        )
    device = choose_device(args.device)
    autoencoder = _autoencoder(args, preset).to(device)
    features = WholeWav2Vec2.load(args.wav2vec).to(device)
    check_features(preset, features)
    rows = spoken_rows(args)
    folder = args.runs / "faithful" / "latents"
    clips = stored_paper_clips(autoencoder, features, features.identity, args.data, rows, folder)
    return FaithfulParts(preset, autoencoder, features, rows, clips)


def _autoencoder(args: argparse.Namespace, preset: PaperPreset) -> PublishedAutoencoder:
    """Load the autoencoder that `--autoencoder` names.

    Raises:
        InputError: The option is missing.
        WeightsError: It is not the autoencoder of the preset.
    """
    if args.autoencoder is None:
        raise InputError(
            f"preset {args.preset!r} needs {preset.autoencoder.title}: set --autoencoder to a "
            "folder in the format of diffusers, or a hub id"
        )
    return preset.autoencoder.load(args.autoencoder, preset.image_size)


def check_features(preset: PaperPreset, features: WholeWav2Vec2) -> None:
    """Check that a speech model yields what a preset's projector reads.

    Raises:
        ConfigError: The shapes differ.
    """
    found = features.layers, features.width
    expected = preset.projector.layers, preset.projector.feature_width
    if found != expected:
        raise ConfigError(
            f"this wav2vec 2.0 has {found[0]} layers of {found[1]}, preset {preset.name!r} expects "
            f"{expected[0]} of {expected[1]}; use the base model"
        )
