"""Models that a process loads once: pipelines of the same model share its weights.

Modules hold weights only, so any number of pipelines, each in a thread of its own, may use a model
at the same time. It is released with the last of them.
"""

import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch

from letstalk_rt.inference.autotune import (
    DecoderVariant,
    apply_variant,
    choose_attention,
    fastest_variant,
)
from letstalk_rt.inference.devices import DTYPES, choose_dtype
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.loading import load_model, packaged_weights
from letstalk_rt.models.parts import MOUTH_PAINTER
from letstalk_rt.threads import thread_limit


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class ReadyModel:
    """A model on its device, in the number formats in which it runs. It must not be changed.

    Attributes:
        model: the model.
        variant: how its decoder runs.
    """

    model: AvatarModel
    variant: DecoderVariant


_shared: WeakValueDictionary[tuple[Any, ...], ReadyModel] = WeakValueDictionary()
_loading = threading.Lock()


def shared_model(
    preset: str, weights: Path | None, device: torch.device, dtype: str, compiled: bool | None
) -> ReadyModel:
    """Return a model that is ready to run, loaded if no pipeline of this process uses it.

    Weights that were written anew since then are another model. The arguments are those of
    `AvatarPipeline.load`, and so are the errors.
    """
    key = (preset, _version(weights or packaged_weights(preset)), device, dtype, compiled)
    with _loading:
        ready = _shared.get(key)
        if ready is None:
            with thread_limit(1):  # hundreds of small tensors: threads would wait for each other
                model = load_model(preset, weights).to(device)
            ready = _shared[key] = ready_model(model, dtype, compiled)
        return ready


def ready_model(
    model: AvatarModel, dtype: str = "auto", compiled: bool | None = None
) -> ReadyModel:
    """Convert a model, in place, to the number formats in which it runs on its device.

    Args:
        model: in eval mode, on its device.
        dtype: see `AvatarPipeline.load`.
        compiled: see `AvatarPipeline.load`.

    Raises:
        ConfigError: the format is unknown or not supported.
    """
    device = model.motion_scale.device
    model.autoencoder.to(memory_format=torch.channels_last)
    if (painter := model.get(MOUTH_PAINTER)) is not None:
        painter.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    variant = _choose_variant(model, dtype, compiled)
    apply_variant(model, variant)
    if device.type != "cpu" and model.preset.denoiser_follows:
        model.denoiser.to(DTYPES.get(variant.dtype, torch.float32))
    if device.type == "cuda":
        choose_attention(model)
    return ReadyModel(model, variant)


def _choose_variant(model: AvatarModel, dtype: str, compiled: bool | None) -> DecoderVariant:
    device = model.motion_scale.device
    if dtype == "auto" and device.type == "cpu":
        variant = fastest_variant(model)
    elif dtype == "int8":
        variant = DecoderVariant("int8")
    else:
        variant = DecoderVariant(str(choose_dtype(dtype, device)).removeprefix("torch."))
    return variant if compiled is None else replace(variant, compiled=compiled)


def _version(path: Path) -> tuple[Path, int, int]:
    """Return what changes when a file is written anew; zeros if there is none."""
    try:
        found = path.stat()
    except OSError:  # loading says what is wrong
        return path, 0, 0
    return path.resolve(), found.st_mtime_ns, found.st_size
