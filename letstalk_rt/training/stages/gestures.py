"""Trains the gestures: how head, brows, gaze and blinks move with speech.

The network is trained by maximum likelihood on splines of filmed and generated clips. What a
likelihood does not decide is calibrated afterwards on filmed clips, in motion that the network
generates freely from their audio: how far it moves, and how much livelier loud speech is.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from letstalk_rt.models.audio_encoder.lip_reader import VOICED_LEVEL
from letstalk_rt.models.autoencoder.interfaces import LandmarkAutoencoder
from letstalk_rt.models.autoencoder.latents import FACE_SIZE
from letstalk_rt.models.face.gestures import (
    BROWS,
    HEAD,
    NUM_GESTURES,
    NUM_NOISE,
    GestureConfig,
    Gestures,
)
from letstalk_rt.models.face.spline import COEFFICIENTS, SPAN
from letstalk_rt.training.data.audio_features import clip_mel
from letstalk_rt.training.data.dataset import Clip
from letstalk_rt.training.evaluation.faces import pose_range
from letstalk_rt.training.evaluation.generation import true_track
from letstalk_rt.training.evaluation.motion import pose_speech_correlation
from letstalk_rt.training.loop import LoopConfig, Run
from letstalk_rt.training.stages.gesture_tracks import (
    GestureItem,
    GestureTrack,
    gesture_items,
)

LEAST_WINDOWS = 5
"""Clips of fewer windows are left out."""

LONGEST_WINDOWS = 60
"""Longest item in windows, ten seconds."""

SEEDS = 3
"""Free runs per clip in calibration."""

CALIBRATED_WINDOWS = 125
"""Windows at the beginning of a clip, 20 s, that calibration looks at."""

FRAME_STRIDE = 25
"""Every how many frames one is encoded to fit how the latent changes with the brows."""

GAINS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Candidates of the gain of loud speech."""

_PAST_NOISE = 0.05  # on the past that the network reads, against errors that accumulate
_LEVEL_NOISE = 0.15  # on the prosody of an item, in standard deviations
_BLINK_STEPS = 60  # of Newton's method, damped
_BLINK_RIDGE = 1.0
_BROW_RIDGE = 1e-3
_LEAST_RANGE = 1e-6
_LEAST_FRAMES_PER_BLINK = 25  # clips that blink more often are left out: their lids are misread


def initial_gestures(clips: Sequence[Clip], config: GestureConfig, seed: int) -> Gestures:
    """Return an untrained network that knows the usual voice."""
    torch.manual_seed(seed)
    gestures = Gestures(config)
    mel = torch.cat([clip_mel(clip.pcm) for clip in clips if clip.has_audio], 1)
    gestures.prosody.usual.copy_(mel[:, mel.mean(0) > VOICED_LEVEL].mean(1))
    return gestures


class GestureItemSource:
    """Draws random parts of items.

    Args:
        items: The items of the training clips.
    """

    def __init__(self, items: Sequence[GestureItem]) -> None:
        self._items = [item for item in items if len(item.prosody) >= LEAST_WINDOWS]
        self._weights = torch.tensor([item.weight for item in self._items])

    def draw(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw coefficients `(B, W + 3, D)` and prosody `(B, W, 4, P)`."""
        chosen = torch.multinomial(self._weights, batch_size, True, generator=generator)
        items = [self._items[int(index)] for index in chosen]
        windows = min(LONGEST_WINDOWS, *(len(item.prosody) for item in items))
        coefficients, prosody = [], []
        for item in items:
            spare = len(item.prosody) - windows
            start = int(torch.randint(spare + 1, (1,), generator=generator))
            coefficients.append(item.coefficients[start : start + windows + COEFFICIENTS - 1])
            prosody.append(item.prosody[start : start + windows])
        return torch.stack(coefficients), torch.stack(prosody)


def negative_log_likelihood(model: Gestures, past: Tensor, true: Tensor, prosody: Tensor) -> Tensor:
    """Return the mean over windows, in nats, of what came next.

    Args:
        model: The network.
        past: Coefficients as the network reads them, `(B, W + 3, D)`.
        true: The same without noise.
        prosody: `(B, W, 4, P)`.
    """
    windows = prosody.shape[1]
    before = torch.stack([past[:, i : i + windows] for i in range(COEFFICIENTS - 1)], 2)
    mixture, _ = model.predict(prosody, before)
    return -mixture.log_likelihood(true[:, COEFFICIENTS - 1 :]).mean()


def train_gestures(
    model: Gestures,
    tracks: Sequence[GestureTrack],
    validation: Sequence[GestureTrack],
    sizes: Tensor,
    folder: Path,
    config: LoopConfig,
    *,
    batch_size: int,
) -> Gestures:
    """Train the network; return the weights that are best on the validation clips.

    If there are none, the last averaged weights are returned.
    """
    ahead = model.prosody.lookahead_frames
    items = [item for track in tracks for item in gesture_items(track, sizes, ahead)]
    held_out = [gesture_items(t, sizes, ahead)[0] for t in validation if t.is_real]
    heard = torch.cat([item.prosody.flatten(1) for item in items])
    model.prosody_mean.copy_(heard.mean(0))
    model.prosody_scale.copy_(heard.std(0) + 1e-3)
    source, run = GestureItemSource(items), Run(folder, model, config)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        true, prosody = source.draw(batch_size, run.generator)
        level = torch.randn(len(true), 1, 1, prosody.shape[-1], generator=run.generator)
        prosody = prosody + _LEVEL_NOISE * level * model.prosody_scale.cpu().view(SPAN, -1)
        noise = 0.3 * torch.randn(true.shape, generator=run.generator)
        noise = noise + torch.randn(len(true), 1, NUM_GESTURES, generator=run.generator)
        parts = (part.to(run.device) for part in (true + _PAST_NOISE * noise, true, prosody))
        value = negative_log_likelihood(model, *parts)
        return value, {"nll": float(value.detach())}

    def evaluate(averaged: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(averaged, Gestures)
        if not held_out:
            return {}
        value = _held_out_nll(averaged, held_out)
        run.keep_if_best(-value)
        return {"held_out_nll": value}

    weights = run.train(loss, evaluate).state_dict()
    if held_out:
        weights = torch.load(run.best, map_location="cpu", weights_only=True)
    model.load_state_dict(weights)
    return model.cpu().eval()


@torch.no_grad()
def _held_out_nll(model: Gestures, items: Sequence[GestureItem]) -> float:
    device, total = next(model.parameters()).device, 0.0
    for item in items:
        true, prosody = item.coefficients[None].to(device), item.prosody[None].to(device)
        total += len(item.prosody) * float(negative_log_likelihood(model, true, true, prosody))
    return total / sum(len(item.prosody) for item in items)


@torch.no_grad()
def free_run(model: Gestures, prosody: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Return the motion that the network generates for prosody `(T, P)` of each clip, `(T, D)`."""
    windows = [len(part) // SPAN for part in prosody]
    longest = max(windows)
    heard = torch.zeros(len(prosody), longest * SPAN, prosody[0].shape[1])
    for row, part in zip(heard, prosody, strict=True):
        row[: len(part) // SPAN * SPAN] = part[: len(part) // SPAN * SPAN]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(prosody), longest, NUM_NOISE, generator=generator)
    motion = model(heard, noise, model.init_state(len(prosody))).motion
    return [row[: count * SPAN] for row, count in zip(motion, windows, strict=True)]


@torch.no_grad()
def calibrate_gestures(
    model: Gestures,
    held_out: Sequence[GestureTrack],
    filmed: Sequence[GestureTrack],
    sizes: Tensor,
) -> dict[str, float]:
    """Set the amplitudes, the gain of loud speech and the blinks; return what was found.

    Args:
        model: The network, not trained on `held_out`.
        held_out: Filmed clips of other people; they only report.
        filmed: All filmed clips. People differ tenfold in how far they move, so that a few clips
            of held-out people say little of the usual range.
        sizes: From `usual_sizes`.
    """
    pose = pose_matrix(filmed)
    model.amplitude.copy_(sizes)
    frames = CALIBRATED_WINDOWS * SPAN
    true = [pose_speech_correlation(t.pose[:frames], t.pcm) for t in filmed]
    wanted = float(np.nanmean(true))
    found = {"head_speech_r_true": wanted}
    difference, best = float("inf"), 0.0
    for gain in GAINS:
        model.speech_gain.fill_(gain)
        r = _speech_correlation(model, filmed, pose)
        if abs(r - wanted) < difference:
            difference, best = abs(r - wanted), gain
            found |= {"speech_gain": gain, "head_speech_r": r}
    model.speech_gain.fill_(best)
    ratios, spreads = _size_ratios(model, filmed, pose)
    model.amplitude.div_(spreads)
    model.amplitude[HEAD] = sizes[HEAD] / max(float(np.median(ratios)), _LEAST_RANGE)
    found["range_before"] = float(np.median(ratios))
    if held_out:
        found["range_held_out"] = float(np.median(_size_ratios(model, held_out, pose)[0]))
    model.blink_weights.copy_(fit_blinks(filmed, model))
    return found


def _size_ratios(
    model: Gestures, tracks: Sequence[GestureTrack], pose: Tensor
) -> tuple[list[float], Tensor]:
    """Return generated over true head range of each run, and median deviation, `(D,)`."""
    ratios, spreads = [], []
    for seed in range(SEEDS):
        for track, course in zip(tracks, _runs(model, tracks, seed), strict=True):
            true, true_pose = track.course[: len(course)], track.pose[: len(course)]
            moved = (course[:, HEAD] @ pose).numpy()
            ratios.append(pose_range(moved) / max(pose_range(true_pose), _LEAST_RANGE))
            spreads.append(course.std(0) / true.std(0).clamp(min=1e-6))
    return ratios, torch.stack(spreads).median(0).values


def _runs(model: Gestures, tracks: Sequence[GestureTrack], seed: int) -> list[Tensor]:
    part = slice(model.prosody.lookahead_frames, None)
    heard = [t.prosody[part][: CALIBRATED_WINDOWS * SPAN] for t in tracks]
    return free_run(model, heard, seed)


def _speech_correlation(model: Gestures, tracks: Sequence[GestureTrack], pose: Tensor) -> float:
    found = []
    for seed in range(SEEDS):
        for track, course in zip(tracks, _runs(model, tracks, seed), strict=True):
            moved = (course[:, HEAD] @ pose).numpy()
            found.append(pose_speech_correlation(moved, track.pcm))
    return float(np.nanmean(found))


def pose_matrix(tracks: Sequence[GestureTrack]) -> Tensor:
    """Return the matrix from head gestures to the head pose, `(K, 4)`, by least squares."""
    scores = torch.cat([t.course[:, HEAD] for t in tracks])
    poses = torch.cat([torch.from_numpy(t.pose - t.pose.mean(0)).float() for t in tracks])
    matrix: Tensor = torch.linalg.lstsq(scores, poses).solution
    return matrix


@torch.no_grad()
def fit_blinks(tracks: Sequence[GestureTrack], model: Gestures) -> Tensor:
    """Fit how the rate of blinks depends on loudness: a Poisson regression, `(3,)`.

    The constant makes the mean rate in the clips that of a session that asks for it. Zeros, for
    blinks that do not depend on loudness, if no clip has blinks.
    """
    rows, counts = [], []
    for track in tracks:
        if len(track.blinks) * _LEAST_FRAMES_PER_BLINK > len(track.course):
            continue
        inputs, blinks = _blink_rows(track, model)
        rows.append(inputs)
        counts.append(blinks)
    if not any(blinks.any() for blinks in counts):
        return torch.zeros(3)
    x, y = torch.cat(rows).double(), torch.cat(counts).double()
    x = torch.cat([x, torch.ones(len(x), 1)], 1)
    weights = x.new_zeros(3)
    weights[2] = torch.log(y.mean())
    ridge = _BLINK_RIDGE * torch.diag(x.new_tensor([1.0, 1.0, 0.0]))
    for _ in range(_BLINK_STEPS):
        rate = (x @ weights).exp()
        slope = x.T @ (y - rate) - ridge @ weights
        curvature = x.T @ (rate[:, None] * x) + ridge
        weights = weights + 0.5 * torch.linalg.solve(curvature, slope)
    weights[2] = -torch.log((x[:, :2] @ weights[:2]).exp().mean())
    return weights.float()


@torch.no_grad()
def fit_brow_motion(
    model: Gestures,
    autoencoder: LandmarkAutoencoder,
    tracks: Sequence[GestureTrack],
    clips: Sequence[Clip],
    stride: int = FRAME_STRIDE,
) -> None:
    """Fit how the latent changes with the brows, in filmed clips.

    Head, mouth opening and eye opening take part in the regression, so that what they move is not
    taken for brows.
    """
    inputs, latents = [], []
    for track, clip in zip(tracks, clips, strict=True):
        frames = torch.from_numpy(np.array(clip.frames[::stride])).permute(0, 3, 1, 2)
        parts = [
            autoencoder.encode_with_heatmaps(part[None].float() / 127.5 - 1)[0][0]
            for part in frames.split(16)
        ]
        faces = torch.cat(parts).flatten(1)[:, :FACE_SIZE]
        seen = true_track(clip)
        others = np.stack([seen.opening, seen.eye_opening], 1).astype(np.float32)
        course = torch.cat([track.course, torch.from_numpy(others)], 1)[::stride]
        inputs.append(course - course.mean(0))
        latents.append(faces - faces.mean(0))
    x, y = torch.cat(inputs), torch.cat(latents)
    square = x.T @ x
    slack = _BROW_RIDGE * torch.diag(square.diagonal() + 1e-6)
    model.brow_motion.copy_(torch.linalg.solve(square + slack, x.T @ y)[BROWS][0])


def _blink_rows(track: GestureTrack, model: Gestures) -> tuple[Tensor, Tensor]:
    """Return loudness now and smoothed `(W, 2)`, and blinks in each window `(W,)`."""
    windows = len(track.course) // SPAN
    heard = track.prosody[model.prosody.lookahead_frames :][: windows * SPAN]
    inputs = model.blink_inputs(heard.unflatten(0, (-1, SPAN))[None])[0]
    counts = torch.zeros(windows)
    for frame in track.blinks:
        if frame // SPAN < windows:
            counts[frame // SPAN] += 1
    return inputs, counts
