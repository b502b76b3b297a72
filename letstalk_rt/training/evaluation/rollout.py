"""Generates latents window by window, as in streaming, and evaluates a model by them."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from letstalk_rt.errors import InputError
from letstalk_rt.inference.seam_easing import ease_seam
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.geometry.landmarks import mouth_opening
from letstalk_rt.models.memory import MemoryBank
from letstalk_rt.models.sampler import NoiseState, timesteps
from letstalk_rt.training.data.audio_features import (
    MEL_PER_FRAME,
    best_lag,
    clip_mel,
    correlation,
    mel_encoder,
)
from letstalk_rt.training.data.dataset import Clip
from letstalk_rt.training.data.tracks import Track
from letstalk_rt.training.data.video_samples import to_pixels, write_video
from letstalk_rt.training.evaluation.reconstruction import frames_tensor
from letstalk_rt.types import SAMPLES_PER_FRAME

EVALUATION_FRAMES = 72


@torch.no_grad()
def generate(
    model: AvatarModel,
    mel: Tensor,
    portrait: Tensor,
    *,
    steps: int,
    guidance: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """Generate latents for whole utterances, window by window as in streaming.

    Args:
        model: The model in eval mode.
        mel: Log-mel `(B, 64, 4 * (T + L))`, `T` a multiple of the window, L the look-ahead.
        portrait: Portrait latents `(B, C, h, w)`.
        steps: Sampling steps.
        guidance: Weight of the audio condition against none.
        seed: Seed of the noise.

    Returns:
        `(B, T, C, h, w)`.
    """
    config = model.denoiser.config
    preset = model.preset
    chance = [NoiseState(seed + i, torch.zeros(1, *portrait.shape[1:])) for i in range(len(mel))]
    tokens = mel_encoder(model).encode_mel(mel)[:, model.audio.lookahead_frames :]
    state = model.denoiser.portrait_state(model.normalized_portrait(portrait))
    bank = MemoryBank.anchored(torch.zeros_like(portrait), config.memory)
    times, generated = timesteps(steps), []
    for window in tokens.split(config.window, 1):
        noise = torch.cat(
            [c.draw(config.window, preset.noise_correlation, preset.temperature) for c in chance]
        )

        motion = model.sample_window(
            noise.to(portrait.device),
            window,
            state,
            model.denoiser.encode_memory(bank.latents, bank.filled),
            times,
            guidance,
        )
        motion = ease_seam(motion, bank, preset.seam)
        bank.write(motion)
        generated.append(model.to_latents(motion, portrait))
    return torch.cat(generated, 1)


@torch.no_grad()
def evaluate_flow(
    model: AvatarModel, tracks: list[Track], steps: int = 2, guidance: float = 1.0
) -> dict[str, float]:
    """Evaluate a model on the first three seconds of each clip, from its first frame and audio.

    Mouth openings are compared by the landmarks of the latents, which is fast and serves to select
    weights; `letstalk eval` measures frames. Latents without landmarks are compared directly.
    """
    tracks = [track for track in tracks if len(track.quiet) >= EVALUATION_FRAMES]
    if not tracks:
        raise InputError(f"no validation clip has {EVALUATION_FRAMES} frames; add longer clips")
    device = model.motion_scale.device
    ahead = model.audio.lookahead_frames
    mel = torch.stack([t.audio_clip.mel[:, : 4 * (EVALUATION_FRAMES + ahead)] for t in tracks])
    mel = mel.to(device)
    truth = torch.stack([track.latents[0, :EVALUATION_FRAMES] for track in tracks])
    truth = truth.to(device)
    landmarks = model.autoencoder.landmarks
    if landmarks is None:
        generated = generate(model, mel, truth[:, 0], steps=steps, guidance=guidance)
        error = (generated - truth) / model.motion_scale
        return {"error": float(error.pow(2).mean())}
    true = mouth_opening(landmarks.decode_landmarks(truth).cpu().numpy())

    def openings(audio: Tensor) -> np.ndarray:
        generated = generate(model, audio, truth[:, 0], steps=steps, guidance=guidance)
        return mouth_opening(landmarks.decode_landmarks(generated).cpu().numpy())

    own, wrong = openings(mel), openings(mel.roll(len(mel) // 2, 0))
    r = np.array([correlation(a, b) for a, b in zip(own, true, strict=True)])
    real = np.array([track.audio_clip.is_real for track in tracks])
    return {
        "corr": float(r.mean()),
        "corr_real": float(r[real].mean()) if real.any() else float("nan"),
        "lag": float(np.median([best_lag(a, b)[0] for a, b in zip(own, true, strict=True)])),
        "corr_shuffled": float(
            np.mean([correlation(a, b) for a, b in zip(wrong, true, strict=True)])
        ),
        "range_ratio": float(np.median(own.std(1) / true.std(1).clip(1e-6))),
    }


def score(figures: dict[str, float]) -> float:
    """Return the score that selects the best weights: mouth correlation, or the negative error."""
    if "error" in figures:
        return -figures["error"]
    return float(np.nanmean([figures["corr"], figures["corr_real"]]))


@torch.no_grad()
def save_sample(model: AvatarModel, clip: Clip, path: Path, frames: int = 100) -> None:
    """Write a video: true frames above those generated from the clip's first frame and audio."""
    count = min(frames, clip.num_frames) // model.denoiser.config.window
    count *= model.denoiser.config.window
    device = model.motion_scale.device
    true = frames_tensor(clip, list(range(count)))
    features = model.autoencoder.encode_portrait(true[:1].to(device))
    ahead = model.audio.lookahead_frames
    mel = clip_mel(clip.pcm, ahead)[None, :, : MEL_PER_FRAME * (count + ahead)].to(device)
    preset = model.preset
    latents = generate(model, mel, features.latent, steps=preset.steps, guidance=preset.guidance)
    generated = [
        model.autoencoder.decode(part, features)[0].cpu()
        for part in latents.split(model.denoiser.config.window, 1)
    ]
    both = torch.cat([true, torch.cat(generated).float()], 2)
    write_video(path, to_pixels(both), clip.pcm[: count * SAMPLES_PER_FRAME])
