"""`letstalk train export`: joins the results of the training stages into one weights file."""

import argparse
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch

from letstalk_rt.errors import InputError
from letstalk_rt.models.autoencoder.mouth_painter import SMALL_PAINTER
from letstalk_rt.models.avatar_model import AvatarModel, with_part
from letstalk_rt.models.loading import packaged_weights, read_weights, save_model, stored_preset
from letstalk_rt.models.parts import MOUTH_PAINTER, PARTS, with_parts
from letstalk_rt.models.presets import DCAutoencoderConfig, Preset, get_preset, with_lookahead
from letstalk_rt.paper import commands as paper

_STAGES = {
    "mouth_painter": "painter",
    "lip_refiner": "refiner",
    "eye_painter": "eyes",
    "pose_reader": "pose",
    "motion": "motion",
    "denoiser.landmarks": "landmarks",
}
"""Parts that export adds at its end, and the folders of the stages that train them. Weights files
need not have them."""

_SMALL_PAINTER = "small-painter"
"""The folder of `letstalk train painter --distill`, whose result comes before a usual painter."""

_DECODER = ("autoencoder.decoder.", "autoencoder.reference.heads.")


def export(args: argparse.Namespace) -> None:
    """Join the newest weights of all stages into one file.

    The parts of `--weights` stand in for stages that have not run.
    """
    runs: Path = args.runs
    if paper.is_faithful(args.preset):
        _export_faithful(args)
        return
    given = given_weights(args)
    model = base_model(args, given)
    if (face := model.face) is not None:
        if not given or _has_run(runs / "detector"):
            face.detector.load_state_dict(averaged(runs / "detector"))
        if _has_run(runs / "decoder") or (given and not _has_decoder(model, given)):
            face.autoencoder.load_state_dict(averaged(runs / "decoder"))
    model = with_added_parts(model, args, given)
    output = args.output or packaged_weights(args.preset)
    save_model(model, output)
    print(f"{output.name}: {output.stat().st_size / 1e6:.1f} MB")


def with_added_parts(
    model: AvatarModel,
    args: argparse.Namespace,
    given: dict[str, torch.Tensor],
    names: Collection[str] | None = None,
) -> AvatarModel:
    """Return the model with the parts of its preset that are trained or given.

    Args:
        model: a model of `base_model`.
        args: options of `letstalk train`.
        given: tensors of `--weights`.
        names: the parts to add; all when None.
    """
    preset = with_chosen_lookahead(args, get_preset(args.preset))
    stages = dict(_STAGES)
    if (args.runs / _SMALL_PAINTER / "model.pt").exists():
        stages[MOUTH_PAINTER.name] = _SMALL_PAINTER
        bank = preset.mouth_painter.bank
        preset = replace(preset, mouth_painter=replace(SMALL_PAINTER, bank=bank))
    elif given and not (args.runs / stages[MOUTH_PAINTER.name] / "model.pt").exists():
        stored = stored_preset(args.weights, args.preset)
        preset = replace(preset, mouth_painter=stored.mouth_painter)
    wanted = set(_STAGES if names is None else names) & set(preset.parts)
    for part in PARTS:
        if part.name not in wanted:
            continue
        if weights := _trained_part(args.runs / stages[part.name], given, part.name):
            module = part.build(preset)
            module.load_state_dict(weights)
            model = with_part(model, part, module)
    return model


def _trained_part(
    folder: Path, given: dict[str, torch.Tensor], part: str
) -> dict[str, torch.Tensor]:
    """Return the weights of a part from the folder of its stage, else the given; maybe none."""
    if not (trained := folder / "model.pt").exists():
        return part_of(given, part)
    weights: dict[str, torch.Tensor] = torch.load(trained, map_location="cpu", weights_only=True)
    return weights


def _export_faithful(args: argparse.Namespace) -> None:
    """Copy the result of the stage `faithful`, which is whole, to its place."""
    if args.output is None:
        raise InputError(f"preset {args.preset!r} has no place in the package: name a file with -o")
    shutil.copyfile(existing(paper.trained_weights(args.runs)), args.output)
    print(f"{args.output.name}: {args.output.stat().st_size / 1e6:.1f} MB")


def chosen_preset(args: argparse.Namespace) -> Preset:
    """Return the preset without the parts that export adds: see `_STAGES`."""
    preset = get_preset(args.preset)
    kept = set(preset.parts) - set(_STAGES)
    return with_chosen_lookahead(args, with_parts(preset, kept))


def trained_preset(args: argparse.Namespace) -> Preset:
    """Return `chosen_preset` with the autoencoder of the stage `flow`, if that was the paper's.

    Raises:
        InputError: that stage has not stored which autoencoder it used.
    """
    preset = chosen_preset(args)
    if not isinstance(preset.autoencoder, DCAutoencoderConfig):
        return preset
    identity = existing(identity_file(args.runs)).read_text(encoding="utf-8")
    return replace(preset, autoencoder=replace(preset.autoencoder, identity=identity))


def identity_file(runs: Path) -> Path:
    """Return the path of layout and scaling factor of the autoencoder of the stage `flow`."""
    return runs / "flow" / "autoencoder.json"


def with_chosen_lookahead(args: argparse.Namespace, preset: Preset) -> Preset:
    """Return the preset with the look-ahead of `--lookahead-ms`, or with its own."""
    if args.lookahead_ms is None:
        return preset
    return with_lookahead(preset, args.lookahead_ms)


def given_weights(args: argparse.Namespace) -> dict[str, torch.Tensor]:
    """Return the tensors of `--weights`; none without it."""
    return {} if args.weights is None else read_weights(args.weights, args.preset)


def base_model(args: argparse.Namespace, given: dict[str, torch.Tensor]) -> AvatarModel:
    """Return the model of the given weights, or of the newest stage if there are none.

    It has none of `_STAGES`. Its decoder is untrained if they hold none of the preset's shape.
    """
    shapes = chosen_preset(args) if given else trained_preset(args)
    if given:
        stored = stored_preset(args.weights, args.preset)
        shapes = replace(shapes, autoencoder=stored.autoencoder)
    replaced = tuple(f"{name}." for name in _STAGES)
    model = AvatarModel(shapes)
    weights = given or torch.load(_newest_model(args.runs), map_location="cpu", weights_only=True)
    weights = {k: v for k, v in weights.items() if not k.startswith(replaced)}
    if not _has_decoder(model, weights):
        weights = {k: v for k, v in weights.items() if not k.startswith(_DECODER)}
    initial = {k: v for k, v in model.state_dict().items() if k.startswith(_DECODER)}
    model.load_state_dict(initial | weights)
    return model.requires_grad_(False).eval()


def _has_decoder(model: AvatarModel, weights: dict[str, torch.Tensor]) -> bool:
    """Return whether weights hold a decoder of the model's shape."""
    own = {k: v.shape for k, v in model.state_dict().items() if k.startswith(_DECODER)}
    return all(name in weights and weights[name].shape == shape for name, shape in own.items())


def averaged(folder: Path) -> dict[str, torch.Tensor]:
    """Return the averaged weights of the last checkpoint of a run."""
    state = torch.load(existing(folder / "last.pt"), map_location="cpu", weights_only=True)
    return dict(state["averaged"])


def existing(path: Path) -> Path:
    if not path.exists():
        raise InputError(
            f"{path.name} of stage {path.parent.name!r} does not exist; run that stage first"
        )
    return path


def _newest_model(runs: Path) -> Path:
    """Return the distilled model, unless flow was trained again after it."""
    flow, distilled = existing(runs / "flow" / "model.pt"), runs / "distill" / "model.pt"
    newer = distilled.exists() and distilled.stat().st_mtime >= flow.stat().st_mtime
    return distilled if newer else flow


def _has_run(folder: Path) -> bool:
    return (folder / "last.pt").exists()


def part_of(weights: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """Return the weights of one submodule, without its prefix."""
    prefix = f"{name}."
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
