"""Clips in latents, computed once, and the units that a model takes from them."""

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
from letstalk_rt.training.distributed import first_alone

_LEAST = 1e-3  # unit of a channel that never changes


@dataclass(frozen=True)
class Track:
    """A clip in latents.

    Attributes:
        audio_clip: its audio and mouth targets.
        latents: `(V, T, C, h, w)`: V versions (plain, mirrored).
        quiet: frames whose mouth is near its rest, `(T,)` bool.
    """

    audio_clip: AudioClip
    latents: Tensor
    quiet: Tensor


@first_alone
@torch.no_grad()
def encode_clips(
    autoencoder: Autoencoder,
    clips: list[Clip],
    cache: Path | None = None,
    lookahead_frames: int = LOOKAHEAD_FRAMES,
) -> list[Track]:
    """Encode clips, plain and mirrored; `cache` is a file that keeps this autoencoder's latents."""
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
    """Give the latents of a clip and of its mirror image; its first frame is the portrait."""
    pieces, portrait, device = [], None, next(autoencoder.parameters()).device
    size = autoencoder.image_size
    for start in range(0, clip.num_frames, 16):
        frames = torch.from_numpy(clip.frames[start : start + 16].copy())
        pictures = frames.permute(0, 3, 1, 2).float().to(device) / 127.5 - 1
        if pictures.shape[-1] != size:
            pictures = F.interpolate(pictures, (size, size), mode="bicubic", antialias=True)
        both = torch.stack([pictures, pictures.flip(-1)]).clamp(-1, 1)
        with torch.autocast(device.type, torch.bfloat16):
            if portrait is None:
                portrait = autoencoder.encode_portrait(both[:, 0])
            pieces.append(autoencoder.encode(both, portrait).float().cpu())
    return torch.cat(pieces, 1)


def fit_scales(model: AvatarModel, tracks: list[Track]) -> None:
    """Set the model's units so that portrait latents and motion have unit variance.

    How heads move is learned along with it, where latents tell it.
    """
    everything = torch.cat([t.latents.flatten(0, 1)[::5] for t in tracks])
    model.latent_mean.copy_(everything.mean((0, 2, 3))[:, None, None])
    model.latent_scale.copy_(everything.std((0, 2, 3)).clamp(min=_LEAST)[:, None, None])
    motion = torch.cat([(t.latents - t.latents[:, :1]).flatten(0, 1)[::5] for t in tracks])
    model.motion_scale.copy_(motion.pow(2).mean((0, 2, 3)).sqrt().clamp(min=_LEAST)[:, None, None])
    if (face := model.face) is not None:
        plain = [track.latents[0] for track in tracks]
        around = [latents[:, FACE_SHAPE[0] :].flatten(1) for latents in plain]
        face.head.fit([face.autoencoder.decode_landmarks(latents) for latents in plain], around)
