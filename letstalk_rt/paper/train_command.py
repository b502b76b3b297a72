"""The stage `faithful` of `letstalk train`: LetsTalk as published, from clips to a weights file."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from letstalk_rt.errors import ConfigError, InputError
from letstalk_rt.inference.devices import choose_device
from letstalk_rt.models.autoencoder.published import PublishedAutoencoder
from letstalk_rt.paper import FAITHFUL
from letstalk_rt.paper.checkpoints import save_paper_model
from letstalk_rt.paper.denoiser import PaperModel
from letstalk_rt.paper.diffusion import Diffusion
from letstalk_rt.paper.items import PaperClip, PaperSource, stored_paper_clips
from letstalk_rt.paper.presets import PaperPreset, get_paper_preset
from letstalk_rt.paper.training import PaperBatch, train_paper_model
from letstalk_rt.paper.wav2vec_whole import WholeWav2Vec2
from letstalk_rt.training.data.dataset import decode_audio, source_of, spoken_rows, tags_with
from letstalk_rt.training.data.video_samples import to_pixels, write_video
from letstalk_rt.training.distributed import is_main_process
from letstalk_rt.training.loop import LoopConfig
from letstalk_rt.training.stages.audio_encoder import held_out_sources
from letstalk_rt.types import SAMPLES_PER_FRAME

SAMPLES, SAMPLE_CLIPS, SAMPLE_STEPS = 2, 4, 25
"""Sample videos of held-out people, clips of frames in each, and steps of DDIM."""

HELD_OUT_ITEMS = 64
"""Items of which the held-out loss is measured."""


@dataclass(frozen=True)
class FaithfulParts:
    """What training of the published model needs besides the model.

    Attributes:
        preset: The shapes.
        autoencoder: The autoencoder, on the device.
        speech: The speech model, on the device.
        sources: Who is seen in a clip, by the clip's name.
        clips: Latents and features of the clips with audio, by name.
    """

    preset: PaperPreset
    autoencoder: PublishedAutoencoder
    speech: WholeWav2Vec2
    sources: dict[str, str]
    clips: dict[str, PaperClip]


def run_faithful(args: argparse.Namespace, loop: LoopConfig, batch: int) -> None:
    """Encode clips, train denoiser and projector, and write `faithful/model.safetensors`."""
    parts = load_parts(args)
    preset, folder = parts.preset, args.runs / "faithful"
    kept, validation = split_clips(parts)
    source = PaperSource(list(kept.values()), preset.denoiser)
    torch.manual_seed(args.seed)
    model = PaperModel(preset)
    prepare_denoiser(args, model)
    shown = longest(validation, SAMPLES)

    def draw(generator: torch.Generator) -> PaperBatch:
        return PaperBatch(**source.draw(batch, generator))

    def evaluate(averaged: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(averaged, PaperModel)
        for name, clip in shown.items():
            pcm = decode_audio(args.data / "clips" / f"{name}.flac")
            path = folder / f"sample-{name}-{step:06d}.mp4"
            write_sample(averaged, parts.autoencoder, clip, pcm, path)
        return {}

    averaged = train_paper_model(
        model,
        draw,
        folder,
        loop,
        drop_speech=args.drop_speech,
        held_out=held_out_items(validation, preset, batch),
        evaluate=evaluate,
    )
    if is_main_process():
        _save(averaged, parts, args.drop_speech, folder)
        print(f"{folder / 'model.safetensors'}: render it with --preset {args.preset}")


def prepare_denoiser(args: argparse.Namespace, model: PaperModel) -> None:
    """Let blocks be computed as the options say, which changes speed and memory only."""
    model.denoiser.recompute = args.recompute  # `b` needs it at 512 px
    if args.compile:
        for block in model.denoiser.blocks:
            block.compile()


def _save(model: PaperModel, parts: FaithfulParts, drop_speech: float, folder: Path) -> None:
    """Write the averaged weights of the last step, and those with the lowest held-out loss."""
    companions = parts.autoencoder, parts.speech, drop_speech
    save_paper_model(model, folder / "model.safetensors", *companions)
    model.load_state_dict(torch.load(folder / "best.pt", map_location="cpu", weights_only=True))
    save_paper_model(model, folder / "best.safetensors", *companions)


def split_clips(parts: FaithfulParts) -> tuple[dict[str, PaperClip], dict[str, PaperClip]]:
    """Return the clips to train on and those of held-out people, by name.

    Raises:
        InputError: There are clips of one person only.
    """
    held_out = held_out_sources(set(parts.sources.values()))
    kept: dict[str, PaperClip] = {}
    validation: dict[str, PaperClip] = {}
    for name, clip in parts.clips.items():
        (validation if parts.sources[name] in held_out else kept)[name] = clip
    if not kept or not validation:
        raise InputError(
            f"{len(kept)} clips to train on and {len(validation)} to measure with are too few: "
            "clips of at least two people are needed"
        )
    return kept, validation


def held_out_items(
    clips: dict[str, PaperClip], preset: PaperPreset, batch: int
) -> list[PaperBatch]:
    """Draw the items of which the held-out loss is measured: the same ones in every run.

    Raises:
        InputError: No clip has the frames of an item.
    """
    source, generator = PaperSource(list(clips.values()), preset.denoiser), torch.Generator()
    generator.manual_seed(0)
    count = -(-HELD_OUT_ITEMS // batch)
    return [PaperBatch(**source.draw(batch, generator)) for _ in range(count)]


def longest(clips: dict[str, PaperClip], count: int) -> dict[str, PaperClip]:
    """Return the longest clips by name."""
    names = sorted(clips, key=lambda name: (-len(clips[name].features), name))
    return {name: clips[name] for name in names[:count]}


@torch.no_grad()
def write_sample(
    model: PaperModel,
    autoencoder: PublishedAutoencoder,
    clip: PaperClip,
    pcm: np.ndarray,
    path: Path,
) -> None:
    """Write a video of a clip's beginning: true frames through the autoencoder, beside generated.

    Args:
        model: The model in eval mode.
        autoencoder: Decodes both, on the same device.
        clip: The clip.
        pcm: Its audio, `(n,)` float32 at 16 kHz.
        path: The file.
    """
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
        torch.cat([autoencoder.decode(latents[:, i : i + 1])[0] for i in range(count)])
        for latents in (clip.latents[:1, :count].float().to(device), made)
    ]
    write_video(path, to_pixels(torch.cat(both, -1)), pcm[: count * SAMPLES_PER_FRAME])


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
    rows = spoken_rows(args.data, tags_with(args.lab))
    folder = args.runs / "faithful" / "latents"
    clips = stored_paper_clips(autoencoder, features, features.identity, args.data, rows, folder)
    sources = {str(row["name"]): source_of(row) for row in rows}
    return FaithfulParts(preset, autoencoder, features, sources, clips)


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
