"""Clips as latents, computed once, and the scales that a model takes from them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from letstalk_rt.models.autoencoder.interfaces import Autoencoder
from letstalk_rt.models.autoencoder.latents import FACE_SHAPE
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.geometry.landmarks import mouth_opening
from letstalk_rt.models.layers.network import fingerprint
from letstalk_rt.training.data.audio_features import mouth_targets
from letstalk_rt.training.data.dataset import Clip, is_grid, read_clip
from letstalk_rt.training.data.sound_inputs import MelInput, SoundInput
from letstalk_rt.training.data.spoken_clips import AudioClip, clip_weight
from letstalk_rt.training.data.store import Store

_MIN_SCALE = 1e-3  # scale of a channel that never changes


@dataclass(frozen=True)
class Track:
    """A clip as latents.

    Attributes:
        audio_clip: Its audio and mouth targets.
        latents: `(V, T, C, h, w)`: V versions (plain, mirrored); in a store in bfloat16, mapped
            from disk.
        quiet: Whether the mouth is near its rest position in a frame, `(T,)` bool.
        moments: Sums from which scales follow; see `moments`.
        heard: The lip gap that can be heard in each frame, `(T,)`; None if it was not stored.
    """

    audio_clip: AudioClip
    latents: Tensor
    quiet: Tensor
    moments: Tensor
    heard: Tensor | None = None


@torch.no_grad()
def encode_clips(
    autoencoder: Autoencoder,
    clips: list[Clip],
    sound: SoundInput | None = None,
) -> list[Track]:
    """Encode clips, plain and mirrored, in memory; their sound as log-mel unless said otherwise."""
    sound = sound or MelInput()
    return [
        _track(clip.name, clip.kind, clip.is_grid, encode_clip(autoencoder, clip, sound), sound)
        for clip in clips
    ]


@torch.no_grad()
def encode_clip(
    autoencoder: Autoencoder,
    clip: Clip,
    sound: SoundInput | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    gap: Callable[[Clip], np.ndarray] | None = None,
) -> dict[str, Tensor]:
    """Return the arrays of a clip as a store holds them.

    Args:
        autoencoder: The autoencoder.
        clip: The clip, with frames of the autoencoder's size.
        sound: Computes the features of its audio; None for log-mel.
        dtype: Number format of the latents.
        gap: Returns the lip gap that can be heard, `(T,)`, if it is to be stored.
    """
    sound = sound or MelInput()
    latents = _encode(autoencoder, clip)
    opening = mouth_opening(clip.points)
    arrays = {
        "latents": latents.to(dtype),
        "moments": moments(latents),
        sound.name: sound.of_clip(clip.pcm),
        "targets": mouth_targets(clip),
        "quiet": torch.from_numpy(opening <= np.percentile(opening, 25) + 0.01),
        "weight": torch.tensor(clip_weight(clip), dtype=torch.float32),
    }
    if gap is not None:
        arrays["heard"] = torch.from_numpy(gap(clip).astype(np.float32))
    return arrays


@torch.no_grad()
def stored_tracks(
    autoencoder: Autoencoder,
    root: Path,
    rows: list[dict[str, object]],
    folder: Path,
    sound: SoundInput,
    lookahead_frames: int,
    *,
    gap: Callable[[Clip], np.ndarray] | None = None,
) -> list[Track]:
    """Encode clips that are not in a store yet, in all processes, and return them memory-mapped.

    Clips with a damaged file are left out.

    Args:
        autoencoder: The autoencoder, on its device.
        root: The data folder.
        rows: Lines of the clips.
        folder: Folder of the store.
        sound: Computes the features of their audio.
        lookahead_frames: Look-ahead of the audio encoder.
        gap: Returns the lip gap that can be heard, `(T,)`, if it is to be stored.

    Raises:
        InputError: The store was made by another autoencoder, or clips are too small.
    """
    # Landmarks are read from latents of the embedded model: 8 bits of mantissa are half a pixel.
    dtype = torch.bfloat16 if autoencoder.landmarks is None else torch.float32
    identity = {
        "autoencoder": fingerprint(autoencoder),
        "image_size": autoencoder.image_size,
        "lookahead_frames": lookahead_frames,
        "dtype": str(dtype).removeprefix("torch."),
        **sound.identity,
    }
    by_name = {str(row["name"]): row for row in rows}
    store = Store(folder, identity)

    def read(name: str) -> Clip:
        return read_clip(root, by_name[name], autoencoder.image_size)

    def encode(clip: Clip) -> dict[str, Tensor]:
        return encode_clip(autoencoder, clip, sound, dtype=dtype, gap=gap)

    store.encode(by_name, read, encode)
    arrays = store.arrays()
    return [
        _track(name, str(row["kind"]), is_grid(name), arrays[name], sound)
        for name, row in by_name.items()
        if name in arrays
    ]


def _track(name: str, kind: str, grid: bool, arrays: dict[str, Tensor], sound: SoundInput) -> Track:
    audio = AudioClip(
        name, arrays[sound.name], arrays["targets"], float(arrays["weight"]), grid, kind == "real"
    )
    return Track(audio, arrays["latents"], arrays["quiet"], arrays["moments"], arrays.get("heard"))


def moments(latents: Tensor) -> Tensor:
    """Return sums over every fifth frame of latents `(V, T, C, h, w)`, from which scales follow.

    Returns:
        `(4, C)` float64: numbers of values, sums and sums of squares of latents, and sums of
        squares of motion relative to the first frame.
    """
    plain = latents.flatten(0, 1)[::5].double()
    moved = (latents - latents[:, :1]).flatten(0, 1)[::5].double()
    count = plain.new_full((plain.shape[1],), plain[:, 0].numel())
    sums = [values.sum((0, 2, 3)) for values in (plain, plain**2, moved**2)]
    return torch.stack([count, *sums])


def _encode(autoencoder: Autoencoder, clip: Clip) -> Tensor:
    """Return the latents of a clip and of its mirror image; its first frame is the portrait."""
    parts, portrait, device = [], None, next(autoencoder.parameters()).device
    assert clip.size_px == autoencoder.image_size, (clip.size_px, autoencoder.image_size)
    for start in range(0, clip.num_frames, 16):
        rgb = torch.from_numpy(clip.frames[start : start + 16].copy())
        frames = rgb.permute(0, 3, 1, 2).float().to(device) / 127.5 - 1
        both = torch.stack([frames, frames.flip(-1)])
        with torch.autocast(device.type, torch.bfloat16):
            if portrait is None:
                portrait = autoencoder.encode_portrait(both[:, 0])
            parts.append(autoencoder.encode(both, portrait).float().cpu())
    return torch.cat(parts, 1)


def fit_scales(model: AvatarModel, tracks: list[Track]) -> None:
    """Set the model's scales so that portrait latents and motion have unit variance.

    If the latents hold landmarks, the head motion processes are fitted, too.
    """
    total = torch.stack([track.moments for track in tracks]).sum(0)
    count, first, second, moved = total
    variance = (second - first**2 / count) / (count - 1)
    model.latent_mean.copy_((first / count)[:, None, None])
    model.latent_scale.copy_(variance.clamp(min=0).sqrt().clamp(min=_MIN_SCALE)[:, None, None])
    model.motion_scale.copy_((moved / count).sqrt().clamp(min=_MIN_SCALE)[:, None, None])
    if (face := model.face) is not None:
        plain = [track.latents[0] for track in tracks]
        background = [clip[:, FACE_SHAPE[0] :].flatten(1) for clip in plain]
        face.head.fit([face.autoencoder.decode_landmarks(clip) for clip in plain], background)
