"""The stages `flow`, `distill` and `landmarks` of `letstalk train`: from latents to a denoiser."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from letstalk_rt.cli.export import (
    averaged,
    base_model,
    chosen_preset,
    existing,
    given_weights,
    identity_file,
    part_of,
    trained_preset,
    with_added_parts,
)
from letstalk_rt.errors import ConfigError, InputError
from letstalk_rt.inference.devices import choose_device
from letstalk_rt.models.audio_encoder.causal import AudioEncoderConfig
from letstalk_rt.models.audio_encoder.wav2vec_encoder import Wav2VecEncoder
from letstalk_rt.models.audio_encoder.wav2vec_stream import Wav2Vec2Stream
from letstalk_rt.models.autoencoder.dc_ae import DCAutoencoder
from letstalk_rt.models.avatar_model import AvatarModel, with_part
from letstalk_rt.models.parts import LANDMARK_CONDITION, MOTION
from letstalk_rt.models.presets import DCAutoencoderConfig, get_preset
from letstalk_rt.training.data.audio_features import mel_encoder
from letstalk_rt.training.data.dataset import (
    Clip,
    read_clip,
    source_of,
    spoken_rows,
    tags_with,
)
from letstalk_rt.training.data.film_items import film_tracks
from letstalk_rt.training.data.sound_inputs import sound_input
from letstalk_rt.training.data.tracks import Track, fit_scales, stored_tracks
from letstalk_rt.training.distributed import barrier, is_main_process
from letstalk_rt.training.evaluation.decoded import HeardGap
from letstalk_rt.training.loop import LoopConfig
from letstalk_rt.training.stages.audio_encoder import (
    MouthReader,
    calibrate,
    clean_clip,
    held_out_sources,
    listed_clip,
)
from letstalk_rt.training.stages.distill import distill
from letstalk_rt.training.stages.film_branch import ablate_conditions, train_film_branch
from letstalk_rt.training.stages.flow import train_flow
from letstalk_rt.training.stages.landmark_branch import train_landmark_branch

SCALES = ("latent_mean", "latent_scale", "motion_scale")

_SAMPLES = 4
"""Clips of which sample videos are written."""


def run_flow(args: argparse.Namespace, loop: LoopConfig, batch: int) -> None:
    """Train the denoiser."""
    if args.surroundings and not args.start:
        raise InputError(
            "--surroundings continues the training of a denoiser: name its run with --start"
        )
    torch.manual_seed(args.seed)
    model = AvatarModel(chosen_preset(args))
    if isinstance(model.preset.autoencoder, DCAutoencoderConfig):
        loaded = paper_autoencoder(args, model.autoencoder.image_size)
        model.autoencoder = loaded
        if is_main_process():
            identity_file(args.runs).parent.mkdir(parents=True, exist_ok=True)
            identity_file(args.runs).write_text(loaded.identity, encoding="utf-8")
    else:
        model.autoencoder.load_state_dict(averaged(args.runs / "autoencoder"))
    if isinstance(model.audio, Wav2VecEncoder):
        model.audio.stream = _speech_model(args, model.audio)
    reader = _reader(args, model)
    tracks, validation = _tracks(args, model, reader)
    if reader is not None:
        calibrate(reader, [track.audio_clip for track in validation])
        mel_encoder(model).load_state_dict(reader.audio.state_dict())
    whole = None  # a run of the same parts goes on with its average and optimiser
    mouth = mel_encoder(model).mouth if reader is not None else None
    if args.start and mouth is not None:  # the projection that its denoiser was trained with
        mouth.show.load_state_dict(part_of(averaged(args.start), "audio.mouth.show"))
    elif not args.surroundings:
        whole = args.start
    best = train_flow(
        model,
        tracks,
        validation,
        args.runs / "flow",
        loop,
        batch_size=batch,
        samples=_samples(args, model, validation),
        initial_weights=part_of(averaged(args.start), "denoiser") if args.start else None,
        start=whole,
        freeze_faces=args.surroundings,
    )
    _save(best, args.runs / "flow")


def run_distill(args: argparse.Namespace, loop: LoopConfig, batch: int) -> None:
    """Distil the trained flow."""
    model = AvatarModel(trained_preset(args))
    path = existing(args.runs / "flow" / "model.pt")
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    tracks, validation = _tracks(args, model, _reader(args, model))
    samples = _samples(args, model, validation)
    best = distill(
        model, tracks, validation, args.runs / "distill", loop, batch_size=batch, samples=samples
    )
    _save(best, args.runs / "distill")


def paper_autoencoder(args: argparse.Namespace, image_size: int) -> DCAutoencoder:
    """Load the autoencoder that `--autoencoder` names.

    Raises:
        InputError: The option is missing.
    """
    if args.autoencoder is None:
        raise InputError(
            f"preset {args.preset!r} needs the paper's autoencoder: set --autoencoder to a folder, "
            "or a hub id such as mit-han-lab/dc-ae-f32c32-sana-1.0-diffusers"
        )
    return DCAutoencoder.load(args.autoencoder, image_size)


def _speech_model(args: argparse.Namespace, encoder: Wav2VecEncoder) -> Wav2Vec2Stream:
    """Load the wav2vec 2.0 that `--wav2vec` names; it is part of the weights and not trained.

    Raises:
        InputError: The option is missing.
        ConfigError: The model has another shape than the preset's.
    """
    if args.wav2vec is None:
        raise InputError(
            f"preset {args.preset!r} needs wav2vec 2.0: set --wav2vec to a folder, or a hub id "
            "such as facebook/wav2vec2-base-960h"
        )
    shape = encoder.stream.config
    stream = Wav2Vec2Stream.load(args.wav2vec, shape)
    if stream.config != shape:
        raise ConfigError(
            f"this wav2vec 2.0 has {stream.config.layers} layers of {stream.config.width}, preset "
            f"{args.preset!r} expects {shape.layers} of {shape.width}; use the base model"
        )
    return stream


def run_landmarks(args: argparse.Namespace, loop: LoopConfig, batch: int) -> None:
    """Train the landmark condition of a trained denoiser, of which nothing else changes."""
    torch.manual_seed(args.seed)
    preset = get_preset(args.preset)
    if LANDMARK_CONDITION.name not in preset.parts:
        raise ConfigError(f"preset {args.preset!r} has no landmark condition; choose 'tiny'")
    given = given_weights(args)
    if isinstance(preset.autoencoder, DCAutoencoderConfig):
        _film_conditions(args, base_model(args, given), loop, batch)
        return
    moving = with_added_parts(base_model(args, given), args, given, (MOTION.name,))
    if moving.get(MOTION) is None:
        raise InputError(
            "the stage landmarks needs a trained motion denoiser: run the stage 'motion' first, or "
            "name a weights file that has one with --weights"
        )
    model = with_part(moving, LANDMARK_CONDITION, LANDMARK_CONDITION.build(preset))
    folder, rows = args.runs / "landmarks", spoken_rows(args.data, tags_with(args.lab))
    encoded = _encoded(args, model, rows, folder)
    tracks, validation = _divided(rows, encoded, None)
    best = train_landmark_branch(model, tracks, validation, folder, loop, batch_size=batch)
    if is_main_process():
        torch.save(best.state_dict(), folder / "model.pt")


def _film_conditions(
    args: argparse.Namespace, base: AvatarModel, loop: LoopConfig, batch: int
) -> None:
    """Train the conditions of films for latents that hold no landmarks."""
    model = with_part(base, LANDMARK_CONDITION, LANDMARK_CONDITION.build(base.preset))
    folder, rows = args.runs / "landmarks", spoken_rows(args.data, tags_with(args.lab))
    encoded = _encoded(args, model, rows, args.runs / "flow")
    tracks, validation = (
        film_tracks(model.autoencoder, args.data, rows, folder / "masked", part)
        for part in _divided(rows, encoded, None)
    )
    if args.ablate:
        place = args.runs / "ablate-landmarks"
        for row in ablate_conditions(model, tracks, validation, place, loop, batch_size=batch):
            print(json.dumps(row))
        return
    best = train_film_branch(model, tracks, validation, folder, loop, batch_size=batch)
    if is_main_process():
        torch.save(best.state_dict(), folder / "model.pt")


def _tracks(
    args: argparse.Namespace, model: AvatarModel, reader: MouthReader | None
) -> tuple[list[Track], list[Track]]:
    """Return encoded clips for training and for validation; set the scales of the model."""
    rows, folder = spoken_rows(args.data, tags_with(args.lab)), args.runs / "flow"
    everything = _encoded(args, model, rows, folder)
    _set_scales(model, everything, folder, args.start if args.stage == "flow" else None)
    return _divided(rows, everything, reader)


def _encoded(
    args: argparse.Namespace, model: AvatarModel, rows: list[dict[str, object]], folder: Path
) -> list[Track]:
    """Return the clips as latents, which are stored in the folder of a stage."""
    folder.mkdir(parents=True, exist_ok=True)
    autoencoder = model.autoencoder.requires_grad_(False).eval()
    autoencoder.to(choose_device(args.device))
    autoencoder.to(memory_format=torch.channels_last)
    model.audio.to(choose_device(args.device))
    return stored_tracks(
        autoencoder,
        args.data,
        rows,
        folder / "latents",
        sound_input(model.audio),
        model.audio.lookahead_frames,
        gap=HeardGap() if autoencoder.landmarks is None else None,
    )


def _divided(
    rows: list[dict[str, object]], everything: list[Track], reader: MouthReader | None
) -> tuple[list[Track], list[Track]]:
    """Return clips for training and for validation, aligned with their audio and weighted."""
    held_out = held_out_sources({source_of(row) for row in rows})
    tracks, validation = [], []
    by_name = {str(row["name"]): row for row in rows}
    for track in everything:
        row = by_name[track.audio_clip.name]
        if reader is not None:
            track = replace(track, audio_clip=clean_clip(reader, track.audio_clip))
        else:
            sync, lag = float(str(row.get("sync_s", "nan"))), int(str(row.get("sync_lag", 1)))
            track = replace(track, audio_clip=listed_clip(track.audio_clip, sync, lag - 1))
        if source_of(row) not in held_out:
            tracks.append(track)
        elif track.audio_clip.weight > 0.2:
            validation.append(track)
    if not tracks or not validation:
        raise InputError(
            f"{len(tracks)} clips to train on and {len(validation)} to validate with are too few: "
            "clips of at least two people are needed"
        )
    return tracks, validation


def _set_scales(model: AvatarModel, tracks: list[Track], folder: Path, start: Path | None) -> None:
    """Set the scales: those of this run, of the run to start from, or fitted to the clips.

    They are fitted once and kept, so that a run goes on with them when clips are added.
    """
    path = folder / "scales.pt"
    for place in (path, *([start / "scales.pt"] if start else [])):
        if place.exists():
            stored = torch.load(place, map_location="cpu", weights_only=True)
            model.load_state_dict(stored, strict=False)
            break
    else:
        fit_scales(model, tracks)
    barrier()
    if is_main_process() and not path.exists():
        state = model.state_dict()
        kept = {k: v for k, v in state.items() if k in SCALES or k.startswith("head.")}
        torch.save(kept, path)
    barrier()


def _samples(args: argparse.Namespace, model: AvatarModel, validation: list[Track]) -> list[Clip]:
    """Return some clips of the validation people with their frames."""
    rows = {str(row["name"]): row for row in spoken_rows(args.data, tags_with(args.lab))}
    names = [track.audio_clip.name for track in validation][:: max(1, len(validation) // _SAMPLES)]
    size = model.autoencoder.image_size
    return [read_clip(args.data, rows[name], size) for name in names[:_SAMPLES]]


def _reader(args: argparse.Namespace, model: AvatarModel) -> MouthReader | None:
    """Return the result of the stage `audio`.

    An encoder with a bottleneck needs it. Another one is trained with the denoiser and may begin
    from random weights: then the list of clips tells which audio fits its lips.
    """
    shape = model.preset.audio
    path = args.runs / "audio" / "best.pt"
    if not isinstance(shape, AudioEncoderConfig):
        return None
    if shape.mouth_values == 0 and not path.exists():
        return None
    reader = MouthReader(shape)
    state = torch.load(existing(path), map_location="cpu", weights_only=True)
    reader.load_state_dict(state)
    return reader


def _save(model: AvatarModel, folder: Path) -> None:
    if is_main_process():
        torch.save(model.state_dict(), folder / "model.pt")
