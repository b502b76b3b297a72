"""Checkpoints of the model as published: denoiser and audio projector in one safetensors file."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from letstalk_rt.errors import WeightsError
from letstalk_rt.models.paper.denoiser import PaperModel
from letstalk_rt.models.paper.presets import PaperPreset

_FORMAT = "letstalk_rt faithful 1"


def save_paper_model(model: PaperModel, path: Path) -> None:
    """Write all weights, each in its own number format."""
    tensors = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    save_file(tensors, path, {"format": _FORMAT, "preset": model.preset.name})


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
            "letstalk_rt.training.stages.paper trains them"
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
