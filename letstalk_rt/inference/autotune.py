"""Which number format is fastest on this processor: measured once, then remembered.

Processors differ: with AMX, bfloat16 is three times as fast as float32; with VNNI only, 8-bit
integers are; an old one is best off with float32. Nothing is guessed from a name: each way of
decoding a window is run a few times. The answer is kept in a file for this processor, this torch
and this number of threads.

torch.compile is measured only when asked for, since it takes a minute: `thorough`.
"""

import copy
import functools
import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from letstalk_rt import __version__
from letstalk_rt.errors import ConfigError, DependencyError
from letstalk_rt.inference.cuda_graphs import CompiledFunction
from letstalk_rt.inference.devices import DTYPES
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.layers import int8
from letstalk_rt.models.layers.attention import MemoryAttention, attend

RUNS = 7

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DecoderVariant:
    """A way to run the decoder.

    Attributes:
        kind: `float32`, `bfloat16`, `float16` or `int8`.
        compiled: by torch.compile.
    """

    kind: str = "float32"
    compiled: bool = False

    def __str__(self) -> str:
        return self.kind + " compiled" * self.compiled

    @classmethod
    def parse(cls, text: str) -> "DecoderVariant":
        """Undo `str`.

        Raises:
            ConfigError: there is no such variant.
        """
        kind, _, rest = text.partition(" ")
        if kind not in (*DTYPES, "int8") or rest not in ("", "compiled"):
            raise ConfigError(
                f"unknown variant {text!r}; known: {', '.join(DTYPES)} and int8, each may be "
                "followed by ' compiled'"
            )
        return cls(kind, bool(rest))


def variant_candidates(thorough: bool = False) -> list[DecoderVariant]:
    """Give what is worth measuring on this processor."""
    kinds = ["float32", "bfloat16"] + ["int8"] * int8.is_supported()
    plain = [DecoderVariant(kind) for kind in kinds]
    return plain + [DecoderVariant(kind, True) for kind in kinds[:2]] if thorough else plain


def apply_variant(model: AvatarModel, variant: DecoderVariant) -> None:
    """Bring the costly part of a model, its decoder, to a variant's number format.

    Raises:
        ConfigError: the decoder or this processor has it not.
    """
    if variant.kind != "int8":
        model.autoencoder.set_decoder_dtype(DTYPES[variant.kind])
        return
    parts = model.autoencoder.quantizable_parts()
    if not parts or not int8.is_supported():
        raise ConfigError("int8 is for the embedded model's decoder on a CPU with oneDNN")
    model.autoencoder.set_decoder_dtype(torch.float32)
    for part in parts:
        int8.quantize(part)


def fastest_variant(
    model: AvatarModel, *, thorough: bool = False, remembered: Path | None = None
) -> DecoderVariant:
    """Give the fastest variant of a model's decoder, from the file or by measuring it now.

    Args:
        model: on the CPU, not changed.
        thorough: also try torch.compile, and measure anew whatever the file says.
        remembered: the file; the user's own when None.
    """
    path = remembered or cache_folder() / "tuning.json"
    key = machine_key(model)
    known = _read(path)
    if key in known and not thorough:
        try:
            return DecoderVariant.parse(known[key]["variant"])
        except (ConfigError, KeyError, TypeError):
            pass  # damaged: measure
    taken_ms = measure(model, variant_candidates(thorough))
    best = min(taken_ms, key=lambda variant: taken_ms[variant])
    shown = {str(variant): round(ms, 2) for variant, ms in taken_ms.items()}
    _log.info("fastest decoder on this processor: %s (%s ms a window)", best, shown)
    _write(path, known | {key: {"variant": str(best), "window_ms": shown}})
    return best


def decoder_as(model: AvatarModel, variant: DecoderVariant) -> Callable[..., Any]:
    """Give a model's decoder brought to a variant; the model is not changed.

    Raises:
        ConfigError: the decoder or this processor has it not.
    """
    changed = copy.copy(model)  # shares all weights but the autoencoder's
    changed._modules = dict(model._modules)
    changed.autoencoder = copy.deepcopy(model.autoencoder)
    apply_variant(changed, variant)
    return CompiledFunction(changed.autoencoder.decode, compiled=variant.compiled, name="decoder")


@torch.inference_mode()
def measure(
    model: AvatarModel,
    variants: Sequence[DecoderVariant],
    *,
    runs: int = RUNS,
    now_s: Callable[[], float] = time.perf_counter,
    decoder: Callable[[AvatarModel, DecoderVariant], Callable[..., Any]] = decoder_as,
) -> dict[DecoderVariant, float]:
    """Give the milliseconds that decoding one window takes, at its best, for each variant.

    The best of a few runs, not the mean: another program may disturb a run, none can help it.

    Args:
        model: on the CPU, not changed.
        variants: what to measure; those that are not to be had here are left out.
        runs: of each.
        now_s: the clock, seconds.
        decoder: gives a model's decoder as a variant.
    """
    autoencoder = model.autoencoder
    size, shape = autoencoder.image_size, autoencoder.latent_shape
    portrait = autoencoder.encode_portrait(torch.zeros(1, 3, size, size))
    latents = 0.1 * torch.randn(1, model.denoiser.config.window, *shape)
    decoders: dict[DecoderVariant, Callable[..., Any]] = {}
    for variant in variants:
        try:
            decode = decoder(model, variant)
            decode(latents, portrait)  # kernels are chosen, code is compiled
            decoders[variant] = decode
        except (ConfigError, DependencyError, RuntimeError) as error:
            _log.info("%s is not to be had here: %s", variant, error)
    taken_ms = dict.fromkeys(decoders, float("inf"))
    for _ in range(runs):  # in turns: what disturbs, disturbs all
        for variant, decode in decoders.items():
            started_s = now_s()
            decode(latents, portrait)
            taken_ms[variant] = min(taken_ms[variant], (now_s() - started_s) * 1000)
    return taken_ms


@torch.inference_mode()
def choose_attention(model: AvatarModel, *, now_s: Callable[[], float] = time.perf_counter) -> str:
    """Measure whose kernel is faster for the attention in time on a GPU, and set it.

    Args:
        model: on the GPU; its kernel is set.
        now_s: the clock, seconds.

    Returns:
        `sdpa` or `xformers`; `sdpa` without measuring where xformers is not installed.
    """
    try:
        import xformers.ops  # noqa: F401
    except ImportError:
        return "sdpa"
    config = model.denoiser.config
    heads, frames = config.width // config.time_head_width, 1 + config.memory + config.window
    like = next(model.denoiser.parameters())
    shape = (config.side**2, heads, frames, config.time_head_width)
    kept = torch.randn(shape, device=like.device, dtype=like.dtype)
    query = kept[:, :, -config.window :]
    allowed = torch.ones(shape[0], 1, 1, frames, dtype=torch.bool, device=like.device)
    taken_ms = {
        kernel: _best_ms(functools.partial(attend, query, kept, kept, allowed, kernel), now_s)
        for kernel in ("sdpa", "xformers")
    }
    best = min(taken_ms, key=lambda kernel: taken_ms[kernel])
    _log.info("attention in time: %s (%s ms)", best, taken_ms)
    for part in model.denoiser.modules():
        if isinstance(part, MemoryAttention):
            part.kernel = best
    return best


def _best_ms(call: Callable[[], object], now_s: Callable[[], float]) -> float:
    """Give the milliseconds of a call at its best; one that fails takes for ever."""
    best_ms = float("inf")
    try:
        for _ in range(4 * RUNS):
            _wait()
            started_s = now_s()
            call()
            _wait()
            best_ms = min(best_ms, (now_s() - started_s) * 1000)
    except (RuntimeError, NotImplementedError) as error:
        _log.info("a kernel is not to be had here: %s", error)
        return float("inf")
    return best_ms


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine_key(model: AvatarModel) -> str:
    """Name what the answer depends on."""
    what = [
        _processor(),
        torch.__version__,
        f"{torch.get_num_threads()} threads",
        f"letstalk_rt {__version__}",
        repr(model.preset.autoencoder),
    ]
    return hashlib.sha256("\n".join(what).encode()).hexdigest()[:16]


def cache_folder() -> Path:
    """Give where this user's programs keep what can be made anew."""
    own = os.environ.get("LETSTALK_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "letstalk_rt"


def _processor() -> str:
    """Give name and instruction sets; a virtual machine may hide some of its processor's."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "Features")
    found = {line.partition(":")[0].strip(): line for line in lines if line.startswith(wanted)}
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    return "\n".join([*found.values(), limit]) or platform.machine()


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, content: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(content, indent=1) + "\n")
        partial.replace(path)
    except OSError as error:
        _log.info("the measurement is not kept: %s", error)
