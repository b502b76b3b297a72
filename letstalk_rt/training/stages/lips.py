"""Trains the lip reader: which lip values, relative to the mouth at rest, belong to the audio.

Clips are first synchronised with their audio and weighted by how well the two agree. Targets are in
standard deviations of each clip, because people differ in how far they open their mouths; how large
the shown values are is fitted afterwards, on held-out clips.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from letstalk_rt.errors import InputError
from letstalk_rt.models.audio_encoder.lip_reader import (
    MEL_PER_FRAME,
    LipReader,
    LipReaderConfig,
    joined,
)
from letstalk_rt.models.autoencoder.interfaces import LandmarkAutoencoder
from letstalk_rt.models.face.lip_motion import LipMotion
from letstalk_rt.models.face.lip_values import GAPS, LIP_VALUES, NUM_LIP_VALUES, lip_values
from letstalk_rt.models.face.neutral_mouth import CLOSED_GAP, PARTED_GAP
from letstalk_rt.models.geometry.landmarks import mouth_opening
from letstalk_rt.training.data.audio_features import correlation, mean_voiced_mel
from letstalk_rt.training.data.dataset import MAX_SHIFT, Clip
from letstalk_rt.training.evaluation.motion import CLOSURE
from letstalk_rt.training.loop import LoopConfig, Run
from letstalk_rt.types import SAMPLES_PER_FRAME

MIN_SYNC = 0.25
MIN_OPENING_STD = 0.015
"""Clips whose lips agree less with their audio, or move less, are left out."""

DEFAULT_SYNC = 0.4
"""The agreement that is assumed for clips whose line does not state it."""

BLENDSHAPES = slice(25, 49)
"""Blendshapes of jaw, lips and cheeks: auxiliary targets, which are removed after training."""

_GAP = LIP_VALUES.index("gap")
OPENING, LOG_OPENING, CLOSED = range(NUM_LIP_VALUES, NUM_LIP_VALUES + 3)
"""Further auxiliary targets: the mouth opening, its logarithm, and whether the lips are closed."""

NUM_TARGETS = CLOSED + 1 + BLENDSHAPES.stop - BLENDSHAPES.start
REST_PERCENTILE = 10
"""Percentile of the mouth opening below which a clip's mouth counts as at rest."""

REST_GAP = 0.03
"""Lip gap at rest, in mouth widths, up to which a mouth counts as closed: the landmarks of closed
lips do not quite coincide."""

SILENCE_SAMPLES = 64_000
"""Silence after which the output of a lip reader is constant."""

NEUTRAL_FRAMES = 16
"""Parted mouths of a clip to which its mouth at rest is fitted."""

FRAME_STRIDE = 8
"""Every how many frames one is encoded to fit the components of lip motion."""

WARM_UP_FRAMES = 8
"""First frames of an item, which lack past audio and are left out of the loss."""

_COURSE_VALUES = [0, 1, 2, OPENING, LOG_OPENING, CLOSED]  # their correlation is part of the loss
_MASKED_SHARE = 0.156  # largest share of the bands that are masked
_VALUE_FLOOR, _SHAPE_FLOOR = 0.01, 0.02  # added to deviations, so that still mouths stay small
_LOG_MARGIN, _LOG_FLOOR = 0.02, 0.2  # added to openings before the logarithm; as above
_CLOSED_SCALE = 2.5  # closed or not: half of the unit deviation of the other targets or more


@dataclass(frozen=True)
class LipClip:
    """A clip as the lip reader is trained on it.

    Attributes:
        name: The clip's name.
        features: Normalised log-mel `(T + L, 4 M)`, with L frames of look-ahead at the end.
        targets: `(T, 35)`, in standard deviations of the clip from its mean.
        values: Lip values, `(T, 8)`.
        opening: Mouth opening, `(T,)`.
        weight: Weight in training; 0 leaves the clip out.
        is_real: Whether the clip was filmed by a camera.
        is_grid: Whether the clip belongs to the GRID corpus.
    """

    name: str
    features: Tensor
    targets: Tensor
    values: Tensor
    opening: np.ndarray
    weight: float
    is_real: bool
    is_grid: bool


def rest_points(clip: Clip) -> Tensor:
    """Return the landmarks of a clip at rest, `(L, 2)`: the mean of its most closed frames."""
    opening = mouth_opening(clip.points)
    threshold = np.percentile(opening, REST_PERCENTILE)
    return torch.from_numpy(clip.points[opening <= threshold].mean(0))


def lip_clip(clip: Clip, reader: LipReader) -> LipClip:
    """Prepare a clip for training, with its audio and lips synchronised."""
    mel = _clip_mel(clip.pcm, reader)
    features = reader.normalize(mel[None])[0]
    rest = rest_points(clip)
    values = lip_values(torch.from_numpy(clip.points), rest)
    values[:, GAPS] -= lip_values(rest[None], rest)[:, GAPS].clamp(max=REST_GAP)
    targets, opening = _standardized(values, clip), mouth_opening(clip.points)
    late = clip.lips_late if abs(clip.lips_late) <= MAX_SHIFT else 0
    if late > 0:
        features = features[:-late]
        targets, values, opening = targets[late:], values[late:], opening[late:]
    elif late < 0:
        features = features[-late:]
        targets, values, opening = targets[:late], values[:late], opening[:late]
    return LipClip(
        clip.name,
        features,
        targets,
        values,
        opening,
        _weight(clip, opening),
        clip.kind == "real",
        clip.is_grid,
    )


@torch.no_grad()
def _clip_mel(pcm: np.ndarray, reader: LipReader) -> Tensor:
    """Return log-mel `(M, 4 (T + L))` of a clip's audio, followed by L frames of silence."""
    tail = np.zeros(reader.lookahead_frames * SAMPLES_PER_FRAME, np.float32)
    mel: Tensor = reader.mel(torch.from_numpy(np.concatenate([pcm, tail]))[None])[0]
    return mel


def _standardized(values: Tensor, clip: Clip) -> Tensor:
    """Return all targets in standard deviations of the clip from its mean, `(T, 35)`."""
    opening = torch.from_numpy(mouth_opening(clip.points))[:, None].float()
    log_opening = (opening.clamp(min=0) + _LOG_MARGIN).log()
    closed = (opening < CLOSURE).float()
    shapes = torch.from_numpy(clip.blendshapes[:, BLENDSHAPES])
    parts = (
        (values, _VALUE_FLOOR),
        (opening, _SHAPE_FLOOR),
        (log_opening, _LOG_FLOOR),
        (closed, None),
        (shapes, _SHAPE_FLOOR),
    )
    scaled = [
        (x - x.mean(0)) * (_CLOSED_SCALE if floor is None else 1 / (x.std(0) + floor))
        for x, floor in parts
    ]
    return torch.cat(scaled, 1)


def _weight(clip: Clip, opening: np.ndarray) -> float:
    sync = DEFAULT_SYNC if np.isnan(clip.sync) else clip.sync
    if not clip.has_audio or opening.std() < MIN_OPENING_STD or sync < MIN_SYNC:
        return 0.0
    return (2.0 if clip.kind == "real" else 1.0) * max(0.2, sync)


def augment_features(features: Tensor, generator: torch.Generator) -> Tensor:
    """Augment features `(B, T, 4 M)`: spectral tilt, noise, a noise floor, masked bands."""
    batch, time = features.shape[:2]
    num_bands = features.shape[2] // MEL_PER_FRAME
    x = features.view(batch, -1, num_bands).clone()

    def uniform(*shape: int) -> Tensor:
        return torch.rand(batch, *shape, generator=generator)

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    x += 0.2 * normal(1, num_bands)
    x += 0.1 * uniform(1, 1) * normal(*x.shape[1:])
    floor = x.mean((1, 2), keepdim=True) + 0.5 * normal(1, 1) - 0.67
    noisy = torch.logaddexp(3 * x, 3 * floor) / 3
    x = torch.where(uniform(1, 1) < 0.3, noisy, x)
    bands, widest = torch.arange(num_bands), num_bands * _MASKED_SHARE
    first = (uniform(1, 1) * (num_bands - widest)).floor()
    masked = (bands >= first) & (bands < first + widest * uniform(1, 1)) & (uniform(1, 1) < 0.5)
    return torch.where(masked, 0.0, x).view(batch, time, -1)


def lip_loss(predicted: Tensor, true: Tensor) -> dict[str, Tensor]:
    """Return the losses of predicted targets `(B, T, 35)`: gap, value and correlation."""
    error = (predicted - true).pow(2)
    a, b = (x[..., _COURSE_VALUES] for x in (predicted, true))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    r = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-2)
    return {
        "gap": 2 * error[..., 0].mean(),
        "value": error.mean(),
        "correlation": 1 - r.mean(),
    }


class LipItemSource:
    """Draws random items of features with their targets.

    Args:
        clips: Clips longer than an item.
        frames: Length of an item in frames.
        lookahead_frames: Look-ahead of the reader.
    """

    def __init__(self, clips: list[LipClip], frames: int, lookahead_frames: int) -> None:
        self._clips, self._frames, self._ahead = clips, frames, lookahead_frames
        self._weights = torch.tensor([c.weight * len(c.targets) for c in clips])

    def draw(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw augmented features `(B, T + L, 4 M)` and targets `(B, T, 35)`."""
        frames, ahead = self._frames, self._ahead
        features, targets = [], []
        for index in torch.multinomial(self._weights, batch_size, True, generator=generator):
            clip = self._clips[int(index)]
            last = len(clip.targets) - frames
            start = int(torch.randint(last + 1, (1,), generator=generator))
            features.append(clip.features[start : start + frames + ahead])
            targets.append(clip.targets[start : start + frames])
        return augment_features(torch.stack(features), generator), torch.stack(targets)


@torch.no_grad()
def evaluate_lips(reader: LipReader, clips: Sequence[LipClip]) -> dict[str, float]:
    """Correlate predicted and true gap: GRID, other filmed and generated clips, and a control."""
    groups: dict[str, list[float]] = {
        "lips_grid": [],
        "lips_filmed": [],
        "lips_generated": [],
        "lips_shuffled": [],
    }
    predicted = [predict_values(reader, clip)[:, 0].numpy() for clip in clips]
    for index, (clip, gap) in enumerate(zip(clips, predicted, strict=True)):
        real = "lips_grid" if clip.is_grid else "lips_filmed"
        true = clip.opening[: len(gap)]
        groups[real if clip.is_real else "lips_generated"].append(correlation(gap, true))
        other = predicted[(index + len(clips) // 2) % len(clips)]
        groups["lips_shuffled"].append(correlation(np.resize(other, len(gap)), true))
    return {name: float(np.mean(r)) if r else float("nan") for name, r in groups.items()}


@torch.no_grad()
def predict_values(reader: LipReader, clip: LipClip) -> Tensor:
    """Return the values that the reader predicts for a clip, `(T, Q)`."""
    features = clip.features[None].to(next(reader.parameters()).device)
    return reader.eval().predict(features)[0, reader.lookahead_frames :].cpu()


def parts_by_source(clips: Sequence[Clip], count: int) -> list[list[Clip]]:
    """Divide clips into `count` parts; clips of one source stay together.

    Raises:
        InputError: All clips come from one source.
    """
    order = torch.randperm(
        len(sources := sorted({clip.source for clip in clips})),
        generator=torch.Generator().manual_seed(count),
    )
    if len(sources) < 2:
        raise InputError(
            "the clips with audio come from one source, and each member of the lip reader is "
            "trained without some sources; add clips of other sources"
        )
    part = {sources[place]: index % count for index, place in enumerate(order.tolist())}
    return [[clip for clip in clips if part[clip.source] == k] for k in range(count)]


def train_member(
    clips: Sequence[Clip],
    validation: Sequence[Clip],
    folder: Path,
    config: LoopConfig,
    *,
    batch_size: int = 48,
    frames: int = 50,
    shape: LipReaderConfig | None = None,
    seed: int = 0,
) -> LipReader:
    """Train one member of a lip reader; its auxiliary targets are values, too.

    Args:
        clips: Training clips.
        validation: Clips of other people in the train split, for the log.
        folder: The run's folder.
        config: Schedule.
        batch_size: Items per step.
        frames: Length of an item in frames.
        shape: Shape of the reader; None for the default.
        seed: Seed of the initial weights.
    """
    torch.manual_seed(seed)
    reader = LipReader(replace(shape or LipReaderConfig(), values=NUM_TARGETS, members=1))
    spoken = (clip.pcm for clip in (*clips, *validation) if clip.has_audio)
    reader.usual.copy_(mean_voiced_mel(spoken, reader))
    prepared = _weighted_clips(clips, reader)
    validation_clips = _weighted_clips(validation, reader)
    ahead = reader.lookahead_frames
    source = LipItemSource([c for c in prepared if len(c.targets) > frames], frames, ahead)
    run = Run(
        folder, reader, config, rate_factors={"linear.": 0.2}, decay_factors={"linear.": 10.0}
    )

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        x, true = (part.to(run.device) for part in source.draw(batch_size, run.generator))
        predicted = reader.predict(x)[:, ahead:]
        parts = lip_loss(*(part[:, WARM_UP_FRAMES:] for part in (predicted, true)))
        return sum(parts.values(), x.new_zeros(())), {
            k: float(v.detach()) for k, v in parts.items()
        }

    def evaluate(averaged: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(averaged, LipReader)
        if not validation_clips:
            return {}
        return evaluate_lips(averaged, validation_clips)

    reader.load_state_dict(run.train(loss, evaluate).state_dict())
    return reader.cpu().eval()


def _weighted_clips(clips: Sequence[Clip], reader: LipReader) -> list[LipClip]:
    prepared = (lip_clip(clip, reader) for clip in clips)
    return [clip for clip in prepared if clip.weight]


def without_auxiliary(reader: LipReader) -> LipReader:
    """Return a trained reader without the auxiliary targets, on the CPU in eval mode.

    Its gap is the mean of the predicted gap and mouth opening, which agrees better with the truth.
    """
    small = LipReader(replace(reader.config, values=NUM_LIP_VALUES))
    wanted = small.state_dict()
    weights: dict[str, Tensor] = {}
    for name, value in reader.state_dict().items():
        weights[name] = value[: len(wanted[name])].clone()
        if name.startswith(("linear.", "leave.")):
            weights[name][_GAP] = (value[_GAP] + value[OPENING]) / 2
    small.load_state_dict(weights)
    return small.eval()


@torch.no_grad()
def values_in_silence(reader: LipReader) -> Tensor:
    """Return what a reader predicts after long silence, `(Q,)`."""
    device = next(reader.parameters()).device
    values: Tensor = reader.eval()(torch.zeros(1, SILENCE_SAMPLES, device=device))[0, -1].cpu()
    return values


@torch.no_grad()
def fit_sizes(
    lip_motion: LipMotion, members: Sequence[LipReader], parts: Sequence[Sequence[Clip]]
) -> dict[str, float]:
    """Fit the size of shown lip values to filmed clips.

    How large predictions are is measured on clips that a member was not trained on.

    Args:
        lip_motion: Receives the map.
        members: The members of the lip reader, without auxiliary targets.
        parts: The clips that each member was not trained on.

    Returns:
        Pearson's r of each value with the measured one, of single members.

    Raises:
        InputError: No clip is filmed and has audio.
    """
    predicted, measured, agreement = [], [], []
    whole = joined(members)
    for member, part in zip(members, parts, strict=True):
        for clip in (c for c in _weighted_clips(part, member) if c.is_real):
            own, true = predict_values(member, clip), _values_from_rest(clip)
            predicted.append(
                own.mean(0) + _spread_ratio(whole, members, clip) * (own - own.mean(0))
            )
            measured.append(true)
            pairs = zip(own.T.numpy(), true.T.numpy(), strict=True)
            agreement.append([correlation(p, t) for p, t in pairs])
    if not predicted:
        raise InputError(
            "no clip of the train split is of kind 'real' and has audio, so the size of lip motion "
            "is unknown; add filmed clips with audio"
        )
    r = torch.tensor(agreement).mean(0)
    lip_motion.fit_sizes(predicted, measured, values_in_silence(whole), r)
    return {f"r_{name}": value for name, value in zip(LIP_VALUES, r.tolist(), strict=True)}


def _spread_ratio(whole: LipReader, members: Sequence[LipReader], clip: LipClip) -> Tensor:
    """Return how much less the mean of all members varies than one member, `(Q,)`."""
    single = torch.stack([predict_values(member, clip).std(0) for member in members]).mean(0)
    return predict_values(whole, clip).std(0) / single.clamp(min=1e-6)


def _values_from_rest(clip: LipClip) -> Tensor:
    """Return the lip values of a clip, `(T, 8)`, with gaps of 0 where its lips are closed."""
    values = clip.values.clone()
    values[:, GAPS] -= values[:, GAPS].quantile(REST_PERCENTILE / 200, 0).clamp(max=REST_GAP)
    return values


def fit_neutral(lip_motion: LipMotion, clips: Sequence[Clip]) -> None:
    """Fit how a parted mouth looks at rest, to the frames of clips whose lips also close."""
    frames, rests, weights = [], [], []
    for clip in clips:
        opening = mouth_opening(clip.points)
        parted = np.flatnonzero(opening > PARTED_GAP)
        if np.percentile(opening, REST_PERCENTILE) > CLOSED_GAP + REST_GAP / 2 or not len(parted):
            continue
        chosen = parted[np.linspace(0, len(parted) - 1, NEUTRAL_FRAMES).astype(int)]
        frames.append(torch.from_numpy(clip.points[np.unique(chosen)]))
        rests.append(rest_points(clip))
        weights.append(2.0 if clip.kind == "real" else 1.0)
    if frames:
        lip_motion.neutral.fit(frames, rests, torch.tensor(weights))


@torch.no_grad()
def fit_components(
    lip_motion: LipMotion, autoencoder: LandmarkAutoencoder, clips: Sequence[Clip]
) -> None:
    """Fit the components of lip motion to the latents of filmed clips."""
    latents, points = [], []
    for clip in tqdm([c for c in clips if c.kind == "real"], desc="lip motion"):
        frames = torch.from_numpy(np.array(clip.frames[::FRAME_STRIDE])).permute(0, 3, 1, 2)
        parts = [
            autoencoder.encode_with_heatmaps(part[None].float() / 127.5 - 1)[0][0]
            for part in frames.split(16)
        ]
        latents.append(torch.cat(parts))
        points.append(torch.from_numpy(clip.points.mean(0)))
    matrix = autoencoder.landmark_matrix.detach()
    lip_motion.fit_components(latents, matrix, torch.stack(points).mean(0))
