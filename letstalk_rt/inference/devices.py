"""Where a model runs and in which number format."""

import torch

from letstalk_rt.errors import ConfigError

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def choose_device(name: str) -> torch.device:
    """Give the device of this name; `auto` is the first that is there of CUDA, MPS and the CPU.

    Raises:
        ConfigError: unknown, or not there.
    """
    if name == "auto":
        return torch.device(_best())
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device must be 'auto', 'cpu', 'cuda', 'cuda:N' or 'mps', got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda' was asked for, but torch sees no GPU; use 'cpu' or 'auto'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {name!r} was asked for, but torch sees {torch.cuda.device_count()} GPUs"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(
            "device 'mps' was asked for, but torch cannot use Metal here; use 'cpu' or 'auto'"
        )
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Give the number format of this name; `auto` is the short one that a GPU is fast in.

    On a CPU `auto` means float32 here: which format is fast there is measured, see
    `letstalk_rt.inference.autotune`.

    Raises:
        ConfigError: unknown, or the device has it not.
    """
    if name == "auto":
        return _short(device)
    if name not in DTYPES:
        raise ConfigError(f"dtype must be 'auto', {', '.join(map(repr, DTYPES))}, got {name!r}")
    if name == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError("this GPU has no bfloat16; use 'float16', 'float32' or 'auto'")
    return DTYPES[name]


def _best() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _short(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.float16 if device.type == "mps" else torch.float32
