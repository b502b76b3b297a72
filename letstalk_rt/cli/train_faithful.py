"""The stage `faithful` of `letstalk train`: LetsTalk as published, from clips to a weights file."""

import argparse

import torch

from letstalk_rt.errors import ConfigError, InputError
from letstalk_rt.inference.devices import choose_device
from letstalk_rt.models.audio_encoder.wav2vec_whole import WholeWav2Vec2
from letstalk_rt.models.autoencoder.published import PublishedAutoencoder
from letstalk_rt.models.paper.checkpoints import save_paper_model
from letstalk_rt.models.paper.denoiser import PaperModel
from letstalk_rt.models.paper.presets import FAITHFUL, PaperPreset, get_paper_preset
from letstalk_rt.training.data.dataset import clip_rows, has_audio
from letstalk_rt.training.data.paper_items import PaperSource, stored_paper_clips
from letstalk_rt.training.distributed import is_main_process
from letstalk_rt.training.loop import LoopConfig
from letstalk_rt.training.stages.paper import PaperBatch, train_paper_model


def run_faithful(args: argparse.Namespace, loop: LoopConfig, batch: int) -> None:
    """Encode clips, train denoiser and projector, and write `faithful/model.safetensors`."""
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
    rows = [row for row in clip_rows(args.data, "train") if has_audio(args.data, row)]
    folder = args.runs / "faithful"
    clips = stored_paper_clips(
        autoencoder, features, features.identity, args.data, rows, folder / "latents"
    )
    source = PaperSource(clips, preset.denoiser)
    torch.manual_seed(args.seed)
    model = PaperModel(preset)
    model.denoiser.recompute = True  # a clip of 16 frames at 512 px needs it from `b` on

    def draw(generator: torch.Generator) -> PaperBatch:
        return PaperBatch(**source.draw(batch, generator))

    averaged = train_paper_model(model, draw, folder, loop, drop_speech=args.drop_speech)
    if is_main_process():
        save_paper_model(averaged, folder / "model.safetensors", autoencoder, features)
        print(f"{folder / 'model.safetensors'}: render it with --preset {args.preset}")


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
