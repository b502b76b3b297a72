"""Checkpoints: one safetensors file per model, with its preset in the header and a checksum file.

Weights are stored in half precision. Large matrices of the networks that run once per portrait and
of the audio encoder are stored as 8-bit integers with a scale per output channel, to keep the
package under 40 MB.
"""

import hashlib
import json
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from letstalk_rt.errors import WeightsError
from letstalk_rt.models.autoencoder.dc_ae import DCAutoencoder
from letstalk_rt.models.autoencoder.mouth_painter import MouthPainterConfig
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.face.detector import FaceFinder
from letstalk_rt.models.parts import MOUTH_PAINTER, PARTS, with_parts
from letstalk_rt.models.presets import (
    DCAutoencoderConfig,
    Preset,
    get_preset,
    with_lookahead,
)

_FORMAT = "letstalk_rt 2"
_OLD_FORMAT = "letstalk_rt 1"
_SCALE = ".scale8"
_AUDIO = ("audio.layers.",)
_IMAGES = (
    "autoencoder.encoder.",
    "autoencoder.reference.",
    "lip_refiner.",
    "eye_painter.",
)
_WORTH_PACKING = 30_000
_EXACT = (
    "latent_mean",
    "latent_scale",
    "motion_scale",
    "folded_guidance",
    "mean_points",
    "points.weight",
    "head.movements",
    "head.followed",
    "mouth.neutral.mean",
    "mouth.neutral.weight",
    "mouth.neutral.bias",
    "eye_painter.from_landmarks",
    "motion.lip_unit",
    "motion.levels",
    "motion.gain",
    "motion.change_scale",
    "motion.predict",
    "motion.whiten",
    "motion.unwhiten",
    "motion.lip_knots",
    "motion.lip_levels",
    "motion.speech.usual",
    "motion.expression.face",
    "motion.expression.lips",
)
"""Small or sensitive tensors that stay in float32."""

EMBEDDED = "tiny"
"""The preset whose weights are in the package."""

_log = logging.getLogger(__name__)


def packaged_weights(preset: str) -> Path:
    """Return the path of a preset's weights in the package."""
    return Path(__file__).parent.parent / "weights" / f"{preset}.safetensors"


def checksum_file(weights: Path) -> Path:
    """Return the path of the checksum of a weights file."""
    return weights.with_suffix(".sha256")


def save_model(model: AvatarModel, path: Path) -> None:
    """Write a model's weights and their checksum."""
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        tensors |= _pack(name, value.detach().cpu().contiguous())
    lookahead = str(model.audio.config.lookahead_ms)
    header = {"format": _FORMAT, "preset": model.preset.name, "lookahead_ms": lookahead}
    if isinstance(model.autoencoder, DCAutoencoder):
        header["autoencoder"] = model.autoencoder.identity
    header["parts"] = json.dumps({name: _shape(model.preset, name) for name in model.preset.parts})
    save_file(tensors, path, header)
    checksum_file(path).write_text(_digest(path) + "\n")


def load_model(preset: str, path: Path | None = None) -> AvatarModel:
    """Load a model in float32 on the CPU, ready for inference.

    Args:
        preset: name of the preset.
        path: path of the weights; those of the package when None.

    Raises:
        ConfigError: the preset is unknown.
        WeightsError: the file is missing or damaged, or holds another model.
    """
    shapes = get_preset(preset)
    path = path or packaged_weights(preset)
    header, tensors = _read(path, preset)
    model = AvatarModel(_stored_shapes(shapes, header))
    expected = model.state_dict()
    if missing := sorted(expected.keys() ^ tensors.keys()):
        raise WeightsError(
            f"{path.name} does not fit preset {preset!r}: {len(missing)} tensors differ, "
            f"first {missing[0]!r}; use the weights of this version"
        )
    for name, value in expected.items():
        found = tensors[name]
        if found.shape != value.shape or found.dtype != value.dtype:
            raise WeightsError(
                f"{path.name}: {name} has shape {tuple(found.shape)} and type {found.dtype}, "
                f"preset {preset!r} expects {tuple(value.shape)} and {value.dtype}"
            )
        if found.is_floating_point() and not torch.isfinite(found).all():
            raise WeightsError(
                f"{path.name}: {name} holds NaN or infinite values; its training diverged, use an "
                "earlier checkpoint"
            )
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False)


def load_face_finder(preset: str = EMBEDDED, *, crop_px: int | None = None) -> FaceFinder:
    """Load the face finder from the packaged weights of a preset.

    Args:
        preset: name of a preset with a face detector.
        crop_px: side of the crops to animate, in pixels; that model's own when None.

    Raises:
        ConfigError: the preset is unknown, or its model has no face detector.
        WeightsError: the weights are missing or damaged.
    """
    return load_model(preset).face_finder(crop_px)


def face_finder_for(model: AvatarModel) -> FaceFinder:
    """Return the face finder of a model; load the embedded model's if it has none.

    Raises:
        WeightsError: the embedded model's weights are missing or damaged.
    """
    if model.face is not None:
        return model.face_finder()
    finder = load_face_finder(EMBEDDED, crop_px=model.autoencoder.image_size)
    _log.info(
        "preset %s has no face detector; using that of preset %s",
        model.preset.name,
        finder.preset,
    )
    return finder


def read_weights(path: Path, preset: str) -> dict[str, Tensor]:
    """Return the tensors of a weights file by name, for training to start from.

    Raises:
        WeightsError: the file is missing or damaged, or holds another model.
    """
    return _read(path, preset)[1]


def stored_preset(path: Path, preset: str) -> Preset:
    """Return a preset with the shapes of a weights file.

    Raises:
        ConfigError: the preset is unknown.
        WeightsError: the file is missing or damaged, or holds another model.
    """
    return _stored_shapes(get_preset(preset), _read(path, preset)[0])


def _stored_shapes(preset: Preset, header: dict[str, str]) -> Preset:
    shapes = with_lookahead(preset, int(header["lookahead_ms"]))
    parts = _stored_parts(header)
    shapes = with_parts(shapes, parts)
    if shape := parts.get(MOUTH_PAINTER.name):
        shapes = replace(shapes, mouth_painter=_painter_shape(shape))
    if isinstance(shapes.autoencoder, DCAutoencoderConfig):
        if "autoencoder" not in header:
            raise WeightsError(
                "the weights do not say which autoencoder they hold: its layout and scaling factor "
                "are missing from the header; export them again with this version"
            )
        known = replace(shapes.autoencoder, identity=header["autoencoder"])
        shapes = replace(shapes, autoencoder=known)
    return shapes


def _shape(preset: Preset, part: str) -> dict[str, Any] | None:
    """Return the shape of a part whose shape differs between weights files."""
    return asdict(preset.mouth_painter) if part == MOUTH_PAINTER.name else None


def _stored_parts(header: dict[str, str]) -> dict[str, Any]:
    """Return the parts that weights hold, and the shapes that are stated."""
    try:
        parts = dict(json.loads(header["parts"]))
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            "the header of the weights does not say which parts they hold; export them again with "
            "this version"
        ) from error
    if unknown := sorted(set(parts) - {part.name for part in PARTS}):
        raise WeightsError(
            f"the weights hold a part that this version does not know: {unknown[0][:40]!r}; use "
            "the weights of this version"
        )
    return parts


def _painter_shape(shape: dict[str, Any]) -> MouthPainterConfig:
    try:
        stored = MouthPainterConfig(**shape)
        (fine, middle, coarse), (first, second, third) = stored.widths, stored.blocks
        return replace(stored, widths=(fine, middle, coarse), blocks=(first, second, third))
    except (TypeError, ValueError) as error:
        raise WeightsError(
            "the header of the weights describes a mouth painter that this version does not know: "
            f"{str(shape)[:200]}; use the weights of this version"
        ) from error


def _read(path: Path, preset: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not path.is_file():
        raise WeightsError(f"no weights at {path.name}; create them with `letstalk train`")
    expected = checksum_file(path)
    if expected.exists() and expected.read_text().strip() != _digest(path):
        raise WeightsError(f"{path.name} is damaged: its checksum differs; reinstall the package")
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            stored = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path.name} is not a safetensors file") from error
    if header.get("format") == _OLD_FORMAT:
        raise WeightsError(
            f"{path.name} is of an earlier version, whose lip network, gestures and eyelids have "
            "been replaced by the motion denoiser; use the weights of this version, or train anew"
        )
    if header.get("format") != _FORMAT or header.get("preset") != preset:
        raise WeightsError(
            f"{path.name} holds {header.get('preset', 'an unknown model')!r}, expected {preset!r}; "
            "choose the preset that the weights are of"
        )
    if "lookahead_ms" not in header:
        raise WeightsError(f"{path.name} lacks a look-ahead in its header; use `save_model`")
    return header, {
        name: _unpack(value, stored.get(name + _SCALE))
        for name, value in stored.items()
        if not name.endswith(_SCALE)
    }


def _pack(name: str, value: Tensor) -> dict[str, Tensor]:
    if not value.is_floating_point() or name.endswith(_EXACT):
        return {name: value}
    image_kernel = name.startswith(_IMAGES) and value.ndim == 4
    audio_matrix = name.startswith(_AUDIO) and value.ndim > 1
    if (image_kernel or audio_matrix) and value.numel() > _WORTH_PACKING:
        scale = value.flatten(1).abs().amax(1).clamp(min=1e-12) / 127
        levels = (value / _per_channel(scale, value)).round().to(torch.int8)
        return {name: levels, name + _SCALE: scale}
    return {name: value.half()}


def _unpack(value: Tensor, scale: Tensor | None) -> Tensor:
    if scale is not None and scale.shape == value.shape[:1]:
        return value.float() * _per_channel(scale, value)
    return value.float() if value.is_floating_point() else value


def _per_channel(scale: Tensor, value: Tensor) -> Tensor:
    """Return a scale per output channel in a shape that broadcasts with `value`."""
    return scale.view(-1, *[1] * (value.ndim - 1))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
