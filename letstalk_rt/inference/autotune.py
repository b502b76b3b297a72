"""Autotuning: which number format is fastest on this processor, measured once and cached.

Processors differ: with AMX, bfloat16 is three times as fast as float32; with VNNI or AVX2 alone,
8-bit integers are fastest. Nothing is inferred from the name of a processor: each variant decodes a
window of a default avatar a few times, in one thread, whose processor time is measured: what other
programs take does not count. A variant whose frames differ visibly from those of float32 is
refused. The result is cached by processor, torch version and number of threads, and measured again
once a session was far slower than measured (`letstalk_rt.inference.step_times`).

torch.compile takes a minute, so it is measured only with `thorough`.
"""

import copy
import functools
import hashlib
import logging
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from letstalk_rt.avatars import list_avatars
from letstalk_rt.errors import ConfigError, DependencyError
from letstalk_rt.inference.cuda_graphs import CompiledFunction
from letstalk_rt.inference.devices import DTYPES
from letstalk_rt.inference.machine_cache import MachineCache
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.layers import int8
from letstalk_rt.models.layers.attention import MemoryAttention, attend
from letstalk_rt.models.parts import MOUTH_PAINTER, without_part
from letstalk_rt.threads import thread_limit
from letstalk_rt.version import __version__

RUNS = 7

LEAST_PSNR_DB = 45.0
"""PSNR to float32 in the worst block of a window from which no difference is visible."""

_MARGIN = 0.95
"""Share of float32's time that another format must stay below to be worth its rounding."""

_TOO_SLOW = 1.5
"""How much slower than the fastest a variant may be, and still be measured again."""

_AVATAR, _FACE_BOX = "mira", (0.165, 0.017, 0.67)  # left, top and side of its face crop
_BLOCK_PX = 16
_MOTION = 0.5  # deviation of the motion in the window that is decoded

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DecoderVariant:
    """A way to run the decoder.

    Attributes:
        dtype: `float32`, `bfloat16`, `float16` or `int8`.
        compiled: whether it is compiled by torch.compile.
    """

    dtype: str = "float32"
    compiled: bool = False

    def __str__(self) -> str:
        return self.dtype + " compiled" * self.compiled

    @classmethod
    def parse(cls, text: str) -> "DecoderVariant":
        """Parse the output of `str`.

        Raises:
            ConfigError: the variant is unknown.
        """
        dtype, _, rest = text.partition(" ")
        if dtype not in (*DTYPES, "int8") or rest not in ("", "compiled"):
            raise ConfigError(
                f"unknown variant {text!r}; known: {', '.join(DTYPES)} and int8, each may be "
                "followed by ' compiled'"
            )
        return cls(dtype, bool(rest))


def variant_candidates(thorough: bool = False) -> list[DecoderVariant]:
    """Return the variants that are worth measuring on this processor."""
    dtypes = ["float32", "bfloat16"] + ["int8"] * int8.is_supported()
    plain = [DecoderVariant(dtype) for dtype in dtypes]
    return plain + [DecoderVariant(dtype, True) for dtype in dtypes[:2]] if thorough else plain


def apply_variant(model: AvatarModel, variant: DecoderVariant) -> None:
    """Convert a model's decoder, its most expensive part, to the number format of a variant.

    The mouth painter follows it, except that it stays in float32 where the decoder is int8.

    Raises:
        ConfigError: the decoder or this processor does not support the format.
    """
    if variant.dtype != "int8":
        if (painter := model.get(MOUTH_PAINTER)) is not None:
            painter.to(DTYPES[variant.dtype])
        model.autoencoder.set_decoder_dtype(DTYPES[variant.dtype])
        return
    parts = model.autoencoder.quantizable_parts()
    if not parts or not int8.is_supported():
        raise ConfigError(
            "int8 needs the decoder of 'tiny' and a CPU with oneDNN; use another dtype"
        )
    model.autoencoder.set_decoder_dtype(torch.float32)
    for part in parts:
        int8.quantize(part)


def fastest_variant(
    model: AvatarModel, *, thorough: bool = False, cache_file: Path | None = None
) -> DecoderVariant:
    """Return the fastest variant of a model's decoder, from the cache or by measuring it.

    Args:
        model: a model on the CPU; it is not changed.
        thorough: also measure torch.compile, and ignore what is cached.
        cache_file: where results are cached; None for the user's cache folder.
    """
    cached = MachineCache(cache_file).get(machine_key(model))
    if cached and not thorough:
        try:
            return DecoderVariant.parse(cached["variant"])
        except (ConfigError, KeyError, AttributeError):
            pass  # the entry is damaged: measure
    return renewed_variant(model, thorough=thorough, cache_file=cache_file)[0]


def renewed_variant(
    model: AvatarModel, *, thorough: bool = False, cache_file: Path | None = None
) -> "tuple[DecoderVariant, dict[DecoderVariant, Measurement]]":
    """Measure the variants, cache the result and return the fastest, and all measurements.

    Args:
        model: a model on the CPU; it is not changed.
        thorough: also measure torch.compile.
        cache_file: where results are cached; None for the user's cache folder.
    """
    measured = measure(model, variant_candidates(thorough))
    best = _best(measured)
    shown = {
        str(variant): {"window_ms": round(m.window_ms, 2), "psnr_db": round(m.psnr_db, 1)}
        for variant, m in measured.items()
    }
    _log.info("fastest decoder on this processor: %s (%s)", best, shown)
    MachineCache(cache_file).put(machine_key(model), {"variant": str(best), "measured": shown})
    return best, measured


@dataclass(frozen=True)
class Measurement:
    """How a variant decodes a window of whole frames; sessions decode less of each.

    Attributes:
        window_ms: processor time of one thread, in milliseconds.
        psnr_db: likeness to float32 in the worst block of the frames; infinity for the same.
    """

    window_ms: float
    psnr_db: float


def _best(measured: Mapping[DecoderVariant, Measurement]) -> DecoderVariant:
    """Return the fastest variant without visible error; float32 if none is clearly faster."""
    plain = DecoderVariant()
    faithful = {v: m.window_ms for v, m in measured.items() if m.psnr_db >= LEAST_PSNR_DB}
    best = min(faithful, key=lambda variant: faithful[variant])
    if plain in faithful and faithful[best] > _MARGIN * faithful[plain]:
        return plain
    return best


def make_decoder(model: AvatarModel, variant: DecoderVariant) -> Callable[..., Any]:
    """Return a copy of a model's decoder, converted to a variant.

    Raises:
        ConfigError: the decoder or this processor does not support the variant.
    """
    changed = copy.copy(model)  # shares all weights but the autoencoder's; no mouths are inpainted
    changed._modules = dict(model._modules)
    changed.autoencoder = copy.deepcopy(model.autoencoder)
    changed.preset = without_part(model.preset, MOUTH_PAINTER.name)
    apply_variant(changed, variant)
    return CompiledFunction(changed.autoencoder.decode, compiled=variant.compiled, name="decoder")


@torch.inference_mode()
def measure(
    model: AvatarModel,
    variants: Sequence[DecoderVariant],
    *,
    runs: int = RUNS,
    now_s: Callable[[], float] = time.thread_time,
    decoder: Callable[[AvatarModel, DecoderVariant], Callable[..., Any]] = make_decoder,
) -> dict[DecoderVariant, Measurement]:
    """Return how each variant decodes a window.

    The minimum of a few runs is used, not the mean: other programs can only slow runs down.

    Args:
        model: a model on the CPU; it is not changed.
        variants: the variants to measure; those not supported here are left out.
        runs: number of runs of each variant.
        now_s: returns the time in seconds.
        decoder: returns a model's decoder, converted to a variant.
    """
    latents, portrait = _typical_window(model)
    exact = model.autoencoder.decode(latents, portrait)
    decoders: dict[DecoderVariant, Callable[..., Any]] = {}
    likeness_db: dict[DecoderVariant, float] = {}
    with thread_limit(1):
        for variant in variants:
            try:
                decode = decoder(model, variant)
                frames = decode(latents, portrait)  # kernels are chosen, code is compiled
            except (ConfigError, DependencyError, RuntimeError) as error:
                _log.info("%s is not supported here: %s", variant, error)
                continue
            decoders[variant], likeness_db[variant] = decode, _psnr_db(frames, exact)
        times_ms = dict.fromkeys(decoders, float("inf"))
        for _ in range(runs):  # by turns, so that disturbances affect all variants
            fastest_ms = min(times_ms.values(), default=0.0)
            for variant, decode in decoders.items():
                if _TOO_SLOW * fastest_ms < times_ms[variant] < math.inf:
                    continue
                started_s = now_s()
                decode(latents, portrait)
                times_ms[variant] = min(times_ms[variant], (now_s() - started_s) * 1000)
    return {v: Measurement(ms, likeness_db[v]) for v, ms in times_ms.items()}


def _typical_window(model: AvatarModel) -> tuple[Tensor, Any]:
    """Return latents `(1, N, C, h, w)` of a moving default avatar, and its portrait features."""
    autoencoder = model.autoencoder
    path = list_avatars()[_AVATAR]
    with Image.open(path) as picture:
        left, top, side = (round(share * picture.width) for share in _FACE_BOX)
        face = picture.convert("RGB").crop((left, top, left + side, top + side))
        square = face.resize((autoencoder.image_size,) * 2)
    image = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].float() / 127.5 - 1
    portrait = autoencoder.encode_portrait(image)
    drawn = torch.Generator().manual_seed(0)
    shape = (1, model.denoiser.config.window, *autoencoder.latent_shape)
    motion = _MOTION * torch.randn(shape, generator=drawn)
    return model.to_latents(motion, portrait.latent), portrait


def _psnr_db(frames: Tensor, exact: Tensor) -> float:
    """Return the PSNR of frames in [-1, 1] where they differ most: in the worst block."""
    squares = (frames.float() - exact.float()).pow(2).flatten(0, 1)
    error = float(F.avg_pool2d(squares.mean(1, keepdim=True), _BLOCK_PX).max())
    return 10 * math.log10(4 / error) if error else math.inf


@torch.inference_mode()
def choose_attention(model: AvatarModel, *, now_s: Callable[[], float] = time.perf_counter) -> str:
    """Measure which kernel is faster for temporal attention on a GPU, and select it.

    Args:
        model: a model on the GPU; its kernel is set.
        now_s: returns the time in seconds.

    Returns:
        `sdpa` or `xformers`; `sdpa` without measuring if xformers is not installed.
    """
    try:
        import xformers.ops  # noqa: F401
    except ImportError:
        return "sdpa"
    config = model.denoiser.config
    heads, frames = config.width // config.time_head_width, 1 + config.memory + config.window
    like = next(model.denoiser.parameters())
    shape = (config.side**2, heads, frames, config.time_head_width)
    keys = torch.randn(shape, device=like.device, dtype=like.dtype)
    query = keys[:, :, -config.window :]
    allowed = torch.ones(shape[0], 1, 1, frames, dtype=torch.bool, device=like.device)
    times_ms = {
        kernel: _best_ms(functools.partial(attend, query, keys, keys, allowed, kernel), now_s)
        for kernel in ("sdpa", "xformers")
    }
    best = min(times_ms, key=lambda kernel: times_ms[kernel])
    _log.info("temporal attention: %s (%s ms)", best, times_ms)
    for part in model.denoiser.modules():
        if isinstance(part, MemoryAttention):
            part.kernel = best
    return best


def _best_ms(call: Callable[[], object], now_s: Callable[[], float]) -> float:
    """Return the milliseconds of the fastest run of a call; infinity if it fails."""
    best_ms = float("inf")
    try:
        for _ in range(4 * RUNS):
            _synchronize()
            started_s = now_s()
            call()
            _synchronize()
            best_ms = min(best_ms, (now_s() - started_s) * 1000)
    except (RuntimeError, NotImplementedError) as error:
        _log.info("a kernel is not supported here: %s", error)
        return float("inf")
    return best_ms


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine_key(model: AvatarModel) -> str:
    """Return a hash of everything that the result depends on."""
    parts = [
        _processor(),
        torch.__version__,
        f"{torch.get_num_threads()} threads",
        f"letstalk_rt {__version__}",
        repr(model.preset.autoencoder),
        _device_name(model.motion_scale.device),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _processor() -> str:
    """Return the processor's name and instruction sets, which a virtual machine may restrict."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "Features")
    found = {line.partition(":")[0].strip(): line for line in lines if line.startswith(wanted)}
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    return "\n".join([*found.values(), limit]) or platform.machine()
