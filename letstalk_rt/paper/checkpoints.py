"""Checkpoints of the model as published: denoiser and audio projector in one safetensors file.

The header says which preset they are of and, if given, which autoencoder and speech model they were
trained with: a frame can be decoded only by the autoencoder whose latents were learnt.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from letstalk_rt.errors import WeightsError
from letstalk_rt.models.autoencoder.published import PublishedAutoencoder
from letstalk_rt.models.layers.network import fingerprint
from letstalk_rt.paper.denoiser import PaperModel
from letstalk_rt.paper.presets import PaperPreset
from letstalk_rt.paper.wav2vec_whole import WholeWav2Vec2

_FORMAT = "letstalk_rt faithful 1"


def save_paper_model(
    model: PaperModel,
    path: Path,
    autoencoder: PublishedAutoencoder | None = None,
    speech: WholeWav2Vec2 | None = None,
    drop_speech: float = 0.0,
) -> None:
    """Write all weights, each in its own number format.

    Args:
        model: denoiser and projector.
        path: path of the file.
        autoencoder: the autoencoder that it was trained with; None leaves it out of the header.
        speech: the speech model, likewise.
        drop_speech: the share of items that were trained without speech.
    """
    tensors = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    header = {"format": _FORMAT, "preset": model.preset.name, "drop_speech": str(drop_speech)}
    if autoencoder is not None:
        header["autoencoder"] = json.dumps(_autoencoder_facts(autoencoder))
    if speech is not None:
        header["speech"] = speech.identity
    save_file(tensors, path, header)


def check_companions(path: Path, autoencoder: PublishedAutoencoder, speech: WholeWav2Vec2) -> None:
    """Check that a file was trained with this autoencoder and this speech model.

    Raises:
        WeightsError: the file is missing or damaged, does not say what it was trained with, or was
            trained with others.
    """
    header = _read_header(path)
    if "autoencoder" not in header or "speech" not in header:
        raise WeightsError(
            f"{path.name} does not say which autoencoder and speech model it was trained with; "
            "save it again with `save_paper_model(model, path, autoencoder, speech)`"
        )
    stored, given = json.loads(header["autoencoder"]), _autoencoder_facts(autoencoder)
    for key, name in {"kind": "kind", "scaling_factor": "scaling factor"}.items():
        if stored.get(key) != given[key]:
            raise WeightsError(
                f"{path.name} was trained with an autoencoder of another {name}: "
                f"{stored.get(key)}, got {given[key]}; pass that autoencoder"
            )
    if stored.get("weights") != given["weights"]:
        raise WeightsError(
            f"{path.name} was trained with other weights of {given['kind']}; pass those"
        )
    if header["speech"] != speech.identity:
        raise WeightsError(f"{path.name} was trained with another wav2vec 2.0; pass that one")


def trained_without_speech(path: Path) -> float:
    """Return the share of items that a file's model was trained on without speech; 0 if unknown.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    return float(_read_header(path).get("drop_speech", 0.0))


def _autoencoder_facts(autoencoder: PublishedAutoencoder) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(autoencoder.identity)
    return facts | {"kind": autoencoder.title, "weights": fingerprint(autoencoder.inner)}


def _read_header(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path.name} is not a safetensors file") from error


def load_paper_model(preset: PaperPreset, path: Path) -> PaperModel:
    """Load a model, ready for inference on the CPU.

    Args:
        preset: the preset, from `get_paper_preset`.
        path: path of the file.

    Raises:
        WeightsError: the file is missing or damaged, or holds another model.
    """
    if not path.is_file():
        raise WeightsError(
            f"no weights at {path.name}: none were ever published; "
            "`letstalk train faithful` trains them"
        )
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            stored = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path.name} is not a safetensors file") from error
    if header.get("format") != _FORMAT or header.get("preset") != preset.name:
        holds = f"{header.get('format', 'an unknown format')}, {header.get('preset', 'no preset')}"
        raise WeightsError(f"{path.name} holds {holds}; expected {_FORMAT}, {preset.name}")
    model = PaperModel(preset).to(next(iter(stored.values()), torch.empty(0)).dtype)
    expected = model.state_dict()
    if faults := sorted(expected.keys() ^ stored.keys()):
        raise WeightsError(
            f"{path.name} does not fit preset {preset.name!r}: {len(faults)} tensors differ, "
            f"first {faults[0]!r}"
        )
    for name, value in expected.items():
        if stored[name].shape != value.shape:
            raise WeightsError(
                f"{path.name}: {name} has shape {tuple(stored[name].shape)}, "
                f"preset {preset.name!r} expects {tuple(value.shape)}"
            )
    model.load_state_dict(stored)
    return model.eval().requires_grad_(False)
