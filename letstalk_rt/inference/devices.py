"""Choice of the device and number format of a model."""

import torch

from letstalk_rt.errors import ConfigError

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def choose_device(name: str) -> torch.device:
    """Return the device of this name; `auto` is the first available of CUDA, MPS and CPU.

    Raises:
        ConfigError: the device is unknown or not available.
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
        raise ConfigError("device 'cuda' was requested, but torch finds no GPU; use 'cpu'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {name!r} was requested, but torch finds only {torch.cuda.device_count()} GPUs"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(
            "device 'mps' was requested, but torch cannot use Metal here; use 'cpu' or 'auto'"
        )
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the number format of this name; `auto` is the 16-bit format that is fast on a GPU.

    On a CPU `auto` is float32 here, because the fastest format is measured; see
    `letstalk_rt.inference.autotune`.

    Raises:
        ConfigError: the format is unknown, or the device does not support it.
    """
    if name == "auto":
        return _short(device)
    if name not in DTYPES:
        raise ConfigError(f"dtype must be 'auto', {', '.join(map(repr, DTYPES))}, got {name!r}")
    if name == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError("this GPU does not support bfloat16; use 'float16', 'float32' or 'auto'")
    return DTYPES[name]


def _best() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _short(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.float16 if device.type == "mps" else torch.float32
