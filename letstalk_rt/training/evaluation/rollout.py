"""Generates latents window by window, as in streaming, and evaluates a model by them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from letstalk_rt.errors import InputError
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.geometry.landmarks import mouth_opening
from letstalk_rt.models.memory import MemoryBank
from letstalk_rt.models.presets import Preset
from letstalk_rt.models.sampler import NoiseState, timesteps
from letstalk_rt.training.data.audio_features import best_lag, correlation
from letstalk_rt.training.data.dataset import Clip
from letstalk_rt.training.data.sound_inputs import audio_tokens, sound_input, trained_part
from letstalk_rt.training.data.tracks import Track
from letstalk_rt.training.data.video_samples import to_pixels, write_video
from letstalk_rt.training.evaluation.decoded import DecodedLips
from letstalk_rt.training.evaluation.reconstruction import frames_tensor
from letstalk_rt.types import SAMPLES_PER_FRAME

EVALUATION_FRAMES = 72
MAX_TRACKS = 48
FLOW_STEPS = 8
"""Steps by which a flow with a second time is integrated before it is distilled."""

_BATCH = 4
_STILL = 1e-4  # deviation of the mouth opening below which lips stand still

Generator = Callable[..., Tensor]


@torch.no_grad()
def generate(
    model: AvatarModel,
    features: Tensor,
    portrait: Tensor,
    *,
    steps: int,
    guidance: float = 1.0,
    seed: int = 0,
    plain: bool = False,
) -> Tensor:
    """Generate latents for whole utterances, window by window as in streaming.

    Args:
        model: The model in eval mode.
        features: Log-mel `(B, 64, 4 * (T + L))`, `T` a multiple of the window, L the look-ahead;
            or what else `SoundInput.whole` returns for `T` frames.
        portrait: Portrait latents `(B, C, h, w)`.
        steps: Sampling steps.
        guidance: Weight of the audio condition against none.
        seed: Seed of the noise.
        plain: Whether to integrate velocities; see `AvatarModel.sample_window`.

    Returns:
        `(B, T, C, h, w)`.
    """
    tokens = audio_tokens(trained_part(model.audio), features)
    sampling = Sampling(steps, guidance, plain)
    windows = rolled_out(
        model, tokens.split(model.denoiser.config.window, 1), portrait, sampling, seed
    )
    return torch.cat([model.to_latents(motion, portrait) for motion in windows], 1)


@torch.no_grad()
def rolled_out(
    model: AvatarModel,
    tokens: Iterable[Tensor],
    portrait: Tensor,
    sampling: "Sampling",
    seed: int = 0,
) -> Iterator[Tensor]:
    """Yield the motion of consecutive windows, `(B, N, C, h, w)`, in constant memory.

    Memory is kept as in a session: what has left the bank leaves the cache of keys and values, too.

    Args:
        model: The model in eval mode.
        tokens: Audio tokens of the windows, `(B, N, K, A)` each.
        portrait: Portrait latents `(B, C, h, w)`.
        sampling: How to sample.
        seed: Seed of the noise.
    """
    denoiser, preset, anchor = model.denoiser, model.preset, torch.zeros_like(portrait)
    chance = [
        NoiseState(seed + i, torch.zeros(1, *portrait.shape[1:])) for i in range(len(portrait))
    ]
    state = denoiser.portrait_state(model.normalized_portrait(portrait))
    bank = MemoryBank.anchored(anchor, denoiser.config.memory)
    kept, times = denoiser.init_cache(anchor), timesteps(sampling.steps)
    for window in tokens:
        count = window.shape[1]
        drawn = [c.draw(count, preset.noise_correlation, preset.temperature) for c in chance]
        motion = model.sample_window(
            torch.cat(drawn).to(portrait.device),
            window,
            state,
            denoiser.memory_of(bank, kept),
            times,
            sampling.guidance,
            plain=sampling.plain,
        )
        bank.write(motion)
        denoiser.update_cache(motion, kept)
        yield motion


@dataclass(frozen=True)
class Sampling:
    """How a model is sampled when it is judged.

    Attributes:
        steps: Sampling steps per window.
        guidance: Weight of the audio condition.
        plain: Whether velocities are integrated by Euler's method; see `AvatarModel.sample_window`.
    """

    steps: int
    guidance: float = 1.0
    plain: bool = False


def flow_sampling(preset: Preset) -> Sampling:
    """Return how a flow is sampled before it is distilled: as it was trained.

    A denoiser with a second time learns mean velocities and guidance only by distillation; until
    then it is a plain flow without guidance, which needs more steps.
    """
    if preset.denoiser.second_time or preset.denoiser.guidance_input:
        return Sampling(FLOW_STEPS, 1.0, plain=True)
    return Sampling(preset.steps, preset.guidance)


@torch.no_grad()
def evaluate_flow(
    model: AvatarModel,
    tracks: list[Track],
    sampling: Sampling,
    lips: DecodedLips | None = None,
    generator: Generator = generate,
) -> dict[str, float]:
    """Evaluate a model on the first three seconds of each clip, from its first frame and audio.

    Mouth openings are compared: by the landmarks of the latents, or where latents hold none, by
    landmarks of decoded frames. This serves to select weights; `letstalk eval` measures more.

    Args:
        model: The model.
        tracks: Clips; at most `MAX_TRACKS`, spaced evenly, are used, a few at a time.
        sampling: How to sample.
        lips: Reads decoded frames; needed where latents hold no landmarks.
        generator: Generates latents; `generate`, unless something else is to be judged.

    Raises:
        InputError: No clip is long enough.
    """
    tracks = [track for track in tracks if len(track.quiet) >= EVALUATION_FRAMES]
    if not tracks:
        raise InputError(f"no validation clip has {EVALUATION_FRAMES} frames; add longer clips")
    places = np.linspace(0, len(tracks) - 1, min(MAX_TRACKS, len(tracks))).round().astype(int)
    tracks = [tracks[place] for place in places]
    others = tracks[-(len(tracks) // 2) :] + tracks[: -(len(tracks) // 2)]
    true: list[np.ndarray] = []
    own: list[np.ndarray] = []
    wrong: list[np.ndarray] = []
    for start in range(0, len(tracks), _BATCH):
        part = tracks[start : start + _BATCH]
        truth = torch.stack([track.latents[0, :EVALUATION_FRAMES].float() for track in part])
        true.append(_true_openings(model, part, truth))
        for made, speakers in ((own, part), (wrong, others[start : start + _BATCH])):
            latents = generator(
                model,
                _features(model, speakers),
                truth[:, 0].to(model.motion_scale.device),
                steps=sampling.steps,
                guidance=sampling.guidance,
                plain=sampling.plain,
            )
            made.append(_openings(model, latents, truth[:, 0], lips))
    return _figures(tracks, np.concatenate(true), np.concatenate(own), np.concatenate(wrong))


def _figures(
    tracks: list[Track], true: np.ndarray, own: np.ndarray, wrong: np.ndarray
) -> dict[str, float]:
    """Compare mouth openings `(B, T)`; those of a face that was not found are NaN."""
    r = np.array([_correlation(a, b) for a, b in zip(own, true, strict=True)])
    real = np.array([track.audio_clip.is_real for track in tracks])
    lags = [best_lag(a, b)[0] for a, b in zip(own, true, strict=True) if np.isfinite(a).all()]
    figures = {
        "corr": float(r.mean()),
        "corr_real": float(r[real].mean()) if real.any() else float("nan"),
        "lag": float(np.median(lags)) if lags else float("nan"),
        "corr_shuffled": float(
            np.mean([_correlation(a, b) for a, b in zip(wrong, true, strict=True)])
        ),
        "range_ratio": float(np.nanmedian(np.nan_to_num(own.std(1)) / true.std(1).clip(1e-6))),
        "faces": float(np.isfinite(own).all(1).mean()),
    }
    heard = [track.heard for track in tracks]
    if all(gap is not None for gap in heard):
        pairs = zip(own, heard, strict=True)
        figures["sync"] = float(
            np.mean([_correlation(a, np.asarray(b)[: len(a)]) for a, b in pairs])
        )
    return figures


def _correlation(made: np.ndarray, true: np.ndarray) -> float:
    """Return Pearson's r; 0 for lips that do not move, or of a face that was not found."""
    if not np.isfinite(made).all() or made.std() < _STILL:
        return 0.0
    return correlation(made, true)


def _features(model: AvatarModel, tracks: list[Track]) -> Tensor:
    sound, clips = sound_input(model.audio), [track.audio_clip for track in tracks]
    heard = [sound.whole(clip.features, -clip.shift, EVALUATION_FRAMES) for clip in clips]
    return torch.stack(heard).to(model.motion_scale.device)


def _true_openings(model: AvatarModel, tracks: list[Track], truth: Tensor) -> np.ndarray:
    """Return the true mouth openings `(B, T)`, up to scale and offset."""
    if (landmarks := model.autoencoder.landmarks) is not None:
        points = landmarks.decode_landmarks(truth.to(model.motion_scale.device))
        return mouth_opening(points.cpu().numpy())
    return np.stack([np.asarray(t.audio_clip.targets[:EVALUATION_FRAMES, 0]) / 3 for t in tracks])


def _openings(
    model: AvatarModel, latents: Tensor, portraits: Tensor, lips: DecodedLips | None
) -> np.ndarray:
    """Return the mouth openings `(B, T)` of generated latents."""
    if (landmarks := model.autoencoder.landmarks) is not None:
        return mouth_opening(landmarks.decode_landmarks(latents).cpu().numpy())
    assert lips is not None, "latents without landmarks are judged by decoded frames"
    return np.stack([lips(model.autoencoder, clip) for clip in latents])


def score(figures: dict[str, float]) -> float:
    """Return the score that selects the best weights: mouth correlation; 0 for a still picture."""
    return float(np.nanmean([figures["corr"], figures["corr_real"]]))


@torch.no_grad()
def save_sample(
    model: AvatarModel, clip: Clip, path: Path, sampling: Sampling, frames: int = 100
) -> None:
    """Write a video: true frames above those generated from the clip's first frame and audio."""
    count = min(frames, clip.num_frames) // model.denoiser.config.window
    count *= model.denoiser.config.window
    device = model.motion_scale.device
    true = frames_tensor(clip, list(range(count)))
    features = model.autoencoder.encode_portrait(true[:1].to(device))
    sound = sound_input(model.audio)
    heard = sound.whole(sound.of_clip(clip.pcm), 0, count)[None].to(device)
    latents = generate(
        model,
        heard,
        features.latent,
        steps=sampling.steps,
        guidance=sampling.guidance,
        plain=sampling.plain,
    )
    generated = [
        model.autoencoder.decode(part, features)[0].cpu()
        for part in latents.split(model.denoiser.config.window, 1)
    ]
    both = torch.cat([true, torch.cat(generated).float()], 2)
    write_video(path, to_pixels(both), clip.pcm[: count * SAMPLES_PER_FRAME])
