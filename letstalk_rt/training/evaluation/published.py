"""Published metrics, with networks of the user: FID, FVD, E-FID, LPIPS, Sync-C and Sync-D.

The networks are TorchScript files; none is part of this package or downloaded.

- Inception for FID: `(N, 3, H, W)` to `(N, F)`, such as `inception-2015-12-05.pt` of StyleGAN.
- I3D for FVD: `(N, 3, 16, H, W)` to `(N, F)`, such as `i3d_torchscript.pt` of StyleGAN-V.
- Expressions for E-FID: `(N, 3, H, W)` to `(N, F)`, such as the 64 coefficients of Deep3DFaceRecon.
- LPIPS: two `(N, 3, H, W)` in [-1, 1] to N distances.
- SyncNet: the methods `forward_lip`, of `(N, 3, 5, 224, 224)` BGR in 0 to 255, and `forward_aud`,
  of `(N, 1, 13, 20)` MFCCs, both to `(N, F)`, as the published SyncNet names them.

Networks whose forward has the arguments `resize`, `rescale` or `return_features` do these things by
themselves and get values of 0 to 255; others get resized images in [-1, 1].

Source: FID, arXiv:1706.08500; FVD, arXiv:1812.01717; SyncNet: Chung and Zisserman 2016; the scores
LSE-C and LSE-D: arXiv:2008.10010; E-FID: arXiv:2402.17485; LPIPS: arXiv:1801.03924.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.errors import InputError, WeightsError
from letstalk_rt.types import SAMPLE_RATE

Features = Callable[[np.ndarray], np.ndarray]
"""Maps images `(N, H, W, 3)` or clips `(N, T, H, W, 3)` to features `(N, F)`."""

FVD_FRAMES = 16
FID_EVERY = 4
"""Every how many frames one is taken for FID: neighbours are nearly the same."""

SYNC_REACH = 15
SYNC_FRAMES = 5
_SYNC_MFCC, _MFCC_PER_FRAME = 20, 4
_BATCH = 16
_SIZES = {"inception": 299, "i3d": 224, "expression": 224}


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Frechet distance of normal distributions fitted to features `(N, F)`.

    Raises:
        InputError: one of them has fewer than two rows, or they differ in width.
    """
    if min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
        raise InputError(
            f"features must be two (N, F) with N of at least 2, got {a.shape}, {b.shape}"
        )
    a, b = a.astype(np.float64), b.astype(np.float64)
    covariance_a, covariance_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    root = _square_root(covariance_a)
    middle = np.linalg.eigvalsh(root @ covariance_b @ root)
    cross = np.sqrt(middle.clip(min=0)).sum()
    difference = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return float(difference + np.trace(covariance_a) + np.trace(covariance_b) - 2 * cross)


def _square_root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    root: np.ndarray = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return root


def load_script(path: Path, what: str, methods: Sequence[str] = ("forward",)) -> Any:
    """Load a TorchScript network.

    Raises:
        WeightsError: the file is missing, is not TorchScript, or lacks a method.
    """
    if not path.is_file():
        raise WeightsError(f"no {what} at {path}; this metric needs its published network")
    try:
        with warnings.catch_warnings():  # torch prefers another format, these files have this one
            warnings.simplefilter("ignore", DeprecationWarning)
            network = torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise WeightsError(
            f"{path.name} is not TorchScript; export {what} with torch.jit.script"
        ) from error
    if lacking := [name for name in methods if not hasattr(network, name)]:
        raise WeightsError(f"{path.name} is not {what}: it has no method {lacking[0]!r}")
    return network


class ScriptFeatures:
    """Features of images or clips, by a network of the user.

    Args:
        path: TorchScript file.
        kind: `inception`, `i3d` or `expression`.

    Raises:
        WeightsError: see `load_script`.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self._path, self._size = path, _SIZES[kind]
        self._network = load_script(path, kind)
        schema = getattr(self._network.forward, "schema", None)
        known = [argument.name for argument in schema.arguments] if schema else []
        offered = ("resize", "rescale", "return_features")
        self._options = {name: True for name in offered if name in known}

    @torch.no_grad()
    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Return features `(N, F)` of images `(N, H, W, 3)` or clips `(N, T, H, W, 3)`, uint8.

        Raises:
            WeightsError: the network does not take them, or returns something else.
        """
        x = torch.from_numpy(np.ascontiguousarray(frames)).float().movedim(-1, 1)
        if not self._options:
            x = _resize(x, self._size) / 127.5 - 1
        try:
            made = [self._network(part, **self._options) for part in x.split(_BATCH)]
        except RuntimeError as error:
            raise WeightsError(f"{self._path.name} does not take {tuple(x.shape)}") from error
        if not all(isinstance(part, Tensor) and part.ndim == 2 for part in made):
            raise WeightsError(f"{self._path.name} must return features (N, F)")
        features: np.ndarray = torch.cat(made).double().numpy()
        return features


class ScriptDistance:
    """LPIPS, by a network of the user.

    Args:
        path: TorchScript file.

    Raises:
        WeightsError: see `load_script`.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._network = path, load_script(path, "LPIPS")

    @torch.no_grad()
    def __call__(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return the distances `(N,)` of images `(N, H, W, 3)` uint8, each from its counterpart.

        Raises:
            WeightsError: the network does not take them, or returns something else.
        """
        images = [
            torch.from_numpy(np.array(part)).permute(0, 3, 1, 2).float() / 127.5 - 1
            for part in (a, b)
        ]
        pairs = zip(*(part.split(_BATCH) for part in images), strict=True)
        try:
            made = torch.cat([self._network(x, y).flatten() for x, y in pairs])
        except RuntimeError as error:
            size = tuple(images[0].shape)
            raise WeightsError(f"{self._path.name} does not take two {size}") from error
        if made.shape != (len(a),):
            raise WeightsError(f"{self._path.name} must return one distance per pair of images")
        distances: np.ndarray = made.double().numpy()
        return distances


def identity_of(path: Path) -> str:
    """Return name and hash of a network's file, which say what a figure was measured with."""
    return f"{path.name} sha256:{sha256(path.read_bytes()).hexdigest()[:16]}"


def _resize(x: Tensor, size: int) -> Tensor:
    flat = x.movedim(2, 1).flatten(0, 1) if x.ndim == 5 else x
    flat = F.interpolate(flat, (size, size), mode="bilinear", antialias=True)
    return flat.unflatten(0, (len(x), -1)).movedim(1, 2) if x.ndim == 5 else flat


class PublishedSync:
    """Sync-C and Sync-D by a SyncNet of the user.

    Args:
        path: TorchScript file.

    Raises:
        WeightsError: see `load_script`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._network = load_script(path, "SyncNet", ("forward_lip", "forward_aud"))

    @torch.no_grad()
    def __call__(self, frames: np.ndarray, pcm: np.ndarray) -> tuple[float, float, int]:
        """Return confidence (Sync-C), distance (Sync-D) and offset in frames of a video.

        Args:
            frames: `(T, H, W, 3)` uint8 face crops at 25 fps.
            pcm: its sound, `(n,)` at 16 kHz.

        Raises:
            InputError: the video is shorter than a window.
            WeightsError: the network does not take the inputs.
        """
        cepstra = mfcc(pcm)
        count = min(len(frames) - SYNC_FRAMES, (len(cepstra) - _SYNC_MFCC) // _MFCC_PER_FRAME) + 1
        if count < 1:
            raise InputError(f"a video needs at least {SYNC_FRAMES} frames and 0.2 s of sound")
        images = torch.from_numpy(np.ascontiguousarray(frames)).float().movedim(-1, 1)
        images = _resize(images, 224).flip(1)  # the published network was trained on BGR
        sound = torch.from_numpy(cepstra).float().T
        starts = range(count)
        try:
            lips = torch.cat([
                self._network.forward_lip(images[i : i + SYNC_FRAMES].movedim(0, 1)[None])
                for i in starts
            ])  # fmt: skip
            heard = torch.cat([
                self._network.forward_aud(sound[None, None, :, 4 * i : 4 * i + _SYNC_MFCC])
                for i in starts
            ])  # fmt: skip
        except RuntimeError as error:
            raise WeightsError(f"{self._path.name} does not take SyncNet's inputs") from error
        if lips.ndim != 2 or lips.shape != heard.shape:
            raise WeightsError(f"{self._path.name} must return features (N, F) of both inputs")
        return sync_of_features(lips, heard)


def sync_of_features(lips: Tensor, heard: Tensor) -> tuple[float, float, int]:
    """Return confidence, distance and offset of features `(N, F)` of lips and sound.

    The distance is averaged over the video at each of 31 offsets; its minimum is Sync-D, the median
    minus it is Sync-C. The offset is positive if the sound is late. Beyond the ends of the video
    the sound's features are zeros, as published.
    """
    padded = F.pad(heard, (0, 0, SYNC_REACH, SYNC_REACH))
    offsets = range(2 * SYNC_REACH + 1)
    each = [(lips - padded[i : i + len(lips)] + 1e-6).norm(dim=1).mean() for i in offsets]
    means = torch.stack(each)
    # the median of an odd number of distances is one of them
    confidence = float(means.median() - means.min())
    return confidence, float(means.min()), int(means.argmin()) - SYNC_REACH


def mfcc(pcm: np.ndarray) -> np.ndarray:
    """Return 13 cepstra at 100 Hz, `(T, 13)`, in the form that SyncNet was trained on.

    Frames of 25 ms without a window, pre-emphasis 0.97, 26 mel filters, sine lifter 22; the first
    cepstrum is the logarithm of the energy. The scale is that of 16-bit samples.
    """
    signal = pcm.astype(np.float64) * 32768
    signal = np.append(signal[:1], signal[1:] - 0.97 * signal[:-1])
    length, step = SAMPLE_RATE // 40, SAMPLE_RATE // 100
    count = 1 + max(0, -(-(len(signal) - length) // step))
    signal = np.pad(signal, (0, max(0, (count - 1) * step + length - len(signal))))
    framed = signal[np.arange(count)[:, None] * step + np.arange(length)]
    power = np.abs(np.fft.rfft(framed, 512)) ** 2 / 512
    tiny = np.finfo(float).eps
    energy = np.maximum(power.sum(1), tiny)
    bands = np.log(np.maximum(power @ _mel_filters().T, tiny))
    order, band = np.arange(13)[:, None], np.arange(26)[None]
    cosines = np.cos(np.pi * order * (2 * band + 1) / 52) * np.sqrt(2 / 26)
    cosines[0] /= np.sqrt(2)
    cepstra: np.ndarray = bands @ cosines.T * (1 + 11 * np.sin(np.pi * np.arange(13) / 22))
    cepstra[:, 0] = np.log(energy)
    return cepstra


def _mel_filters() -> np.ndarray:
    """Return 26 triangles over the 257 bins of a spectrum."""
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    hertz = 700 * (10 ** (np.linspace(0, top, 28) / 2595) - 1)
    edges = np.floor(513 * hertz / SAMPLE_RATE)[:, None]
    bins = np.arange(257)[None]
    rising = (bins - edges[:-2]) / np.maximum(edges[1:-1] - edges[:-2], 1)
    falling = (edges[2:] - bins) / np.maximum(edges[2:] - edges[1:-1], 1)
    below = (bins >= edges[:-2]) & (bins < edges[1:-1])
    above = (bins >= edges[1:-1]) & (bins < edges[2:])
    filters: np.ndarray = np.where(below, rising, np.where(above, falling, 0.0))
    return filters


@dataclass
class PublishedMetrics:
    """Collects features of true and generated videos; a network that is None leaves its metric out.

    Attributes:
        inception: Features of frames, for FID.
        i3d: Features of clips of 16 frames, for FVD.
        sync: Sync-C and Sync-D.
        expression: Expressions in frames, for E-FID.
        lpips: Distances of frames.
        networks: What each metric was measured with, by its name.
    """

    inception: Features | None = None
    i3d: Features | None = None
    sync: PublishedSync | None = None
    expression: Features | None = None
    lpips: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    networks: dict[str, str] = field(default_factory=dict)
    _features: dict[str, list[np.ndarray]] = field(default_factory=dict)
    _scores: dict[str, list[tuple[float, float, int]]] = field(default_factory=dict)
    _distances: list[np.ndarray] = field(default_factory=list)

    def add(self, true: np.ndarray, generated: np.ndarray, pcm: np.ndarray) -> None:
        """Add a clip: frames `(T, H, W, 3)` uint8, true and generated, and its sound."""
        count = min(len(true), len(generated))
        true, generated = np.asarray(true[:count]), np.asarray(generated[:count])
        if self.lpips is not None:
            self._distances.append(self.lpips(generated[::FID_EVERY], true[::FID_EVERY]))
        for which, frames in (("true", true), ("generated", generated)):
            for name, network in (("fid", self.inception), ("e_fid", self.expression)):
                if network is not None:
                    self._keep(f"{name} {which}", network(frames[::FID_EVERY]))
            whole = count // FVD_FRAMES
            if self.i3d is not None and whole:
                clips = frames[: whole * FVD_FRAMES].reshape(whole, FVD_FRAMES, *frames.shape[1:])
                self._keep(f"fvd {which}", self.i3d(clips))
            if self.sync is not None and count >= SYNC_FRAMES + 1:
                self._scores.setdefault(which, []).append(self.sync(frames, pcm))

    def _keep(self, name: str, features: np.ndarray) -> None:
        self._features.setdefault(name, []).append(features)

    def figures(self) -> dict[str, float | int | str | None]:
        """Return `fid`, `fvd`, `e_fid`, `lpips`, `sync_c`, `sync_d`, and the networks' names.

        `sync_c` and `sync_d` are also those of the true videos. What has too few frames is None.
        """
        found: dict[str, float | int | str | None] = {
            f"{name}_network": identity for name, identity in self.networks.items()
        }
        if self.lpips is not None:
            found["lpips"] = float(np.concatenate(self._distances).mean())
        frechet = (("fid", self.inception), ("fvd", self.i3d), ("e_fid", self.expression))
        for name, network in frechet:
            if network is not None:
                parts = (self._features.get(f"{name} {w}", []) for w in ("true", "generated"))
                true, generated = (np.concatenate(p) if p else np.empty((0, 1)) for p in parts)
                enough = len(true) >= 2
                found[name] = frechet_distance(true, generated) if enough else None
                found[f"{name}_samples"] = len(true)
        if self.sync is not None:
            for which, ending in (("generated", ""), ("true", "_true")):
                scores = self._scores.get(which, [])
                for index, name in enumerate(("sync_c", "sync_d")):
                    mean = float(np.mean([s[index] for s in scores])) if scores else None
                    found[name + ending] = mean
        return found
