"""Clips as latents, computed once, and the scales that a model takes from them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from letstalk_rt.models.audio_encoder.causal import LOOKAHEAD_FRAMES
from letstalk_rt.models.autoencoder.interfaces import Autoencoder
from letstalk_rt.models.autoencoder.latents import FACE_SHAPE
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.geometry.landmarks import mouth_opening
from letstalk_rt.training.data.dataset import Clip
from letstalk_rt.training.data.spoken_clips import AudioClip, audio_clip
from letstalk_rt.training.distributed import main_process_first

_MIN_SCALE = 1e-3  # scale of a channel that never changes


@dataclass(frozen=True)
class Track:
    """A clip as latents.

    Attributes:
        audio_clip: Its audio and mouth targets.
        latents: `(V, T, C, h, w)`: V versions (plain, mirrored).
        quiet: Whether the mouth is near its rest position in a frame, `(T,)` bool.
    """

    audio_clip: AudioClip
    latents: Tensor
    quiet: Tensor


@main_process_first
@torch.no_grad()
def encode_clips(
    autoencoder: Autoencoder,
    clips: list[Clip],
    cache: Path | None = None,
    lookahead_frames: int = LOOKAHEAD_FRAMES,
) -> list[Track]:
    """Encode clips, plain and mirrored; the file `cache` stores this autoencoder's latents."""
    latents: dict[str, Tensor] = {}
    if cache is not None and cache.exists():
        latents = torch.load(cache, weights_only=True)
    if missing := [clip for clip in clips if clip.name not in latents]:
        latents |= {clip.name: _encode(autoencoder, clip) for clip in tqdm(missing, desc="latents")}
        if cache is not None:
            torch.save(latents, cache)
    tracks = []
    for clip in clips:
        opening = mouth_opening(clip.points)
        quiet = torch.from_numpy(opening <= np.percentile(opening, 25) + 0.01)
        tracks.append(Track(audio_clip(clip, lookahead_frames), latents[clip.name], quiet))
    return tracks


def _encode(autoencoder: Autoencoder, clip: Clip) -> Tensor:
    """Return the latents of a clip and of its mirror image; its first frame is the portrait."""
    parts, portrait, device = [], None, next(autoencoder.parameters()).device
    size = autoencoder.image_size
    for start in range(0, clip.num_frames, 16):
        rgb = torch.from_numpy(clip.frames[start : start + 16].copy())
        frames = rgb.permute(0, 3, 1, 2).float().to(device) / 127.5 - 1
        if frames.shape[-1] != size:
            frames = F.interpolate(frames, (size, size), mode="bicubic", antialias=True)
        both = torch.stack([frames, frames.flip(-1)]).clamp(-1, 1)
        with torch.autocast(device.type, torch.bfloat16):
            if portrait is None:
                portrait = autoencoder.encode_portrait(both[:, 0])
            parts.append(autoencoder.encode(both, portrait).float().cpu())
    return torch.cat(parts, 1)


def fit_scales(model: AvatarModel, tracks: list[Track]) -> None:
    """Set the model's scales so that portrait latents and motion have unit variance.

    If the latents hold landmarks, the head motion processes are fitted, too.
    """
    latents = torch.cat([t.latents.flatten(0, 1)[::5] for t in tracks])
    model.latent_mean.copy_(latents.mean((0, 2, 3))[:, None, None])
    model.latent_scale.copy_(latents.std((0, 2, 3)).clamp(min=_MIN_SCALE)[:, None, None])
    motion = torch.cat([(t.latents - t.latents[:, :1]).flatten(0, 1)[::5] for t in tracks])
    model.motion_scale.copy_(
        motion.pow(2).mean((0, 2, 3)).sqrt().clamp(min=_MIN_SCALE)[:, None, None]
    )
    if (face := model.face) is not None:
        plain = [track.latents[0] for track in tracks]
        background = [clip[:, FACE_SHAPE[0] :].flatten(1) for clip in plain]
        face.head.fit([face.autoencoder.decode_landmarks(clip) for clip in plain], background)
