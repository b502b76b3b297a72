"""Training items of the published model, from latents and speech features in a store."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from letstalk_rt.errors import InputError
from letstalk_rt.models.autoencoder.interfaces import Autoencoder
from letstalk_rt.models.layers.network import fingerprint
from letstalk_rt.paper.presets import PaperConfig
from letstalk_rt.training.data.dataset import Clip, read_clip
from letstalk_rt.training.data.store import Store

_FRAMES = 16
"""Frames that are encoded at once."""

Features = Callable[[Tensor], Tensor]
"""Maps audio `(B, n)` to speech features `(B, n / 640, layers, width)`."""


@dataclass(frozen=True)
class PaperClip:
    """A clip in the form that the published model is trained on, mapped from disk in bfloat16.

    Attributes:
        latents: `(V, T, C, h, w)`: V versions (plain, mirrored).
        noisy: The same of frames with noise: portraits and memory are taken from these.
        features: Speech features `(T, layers, width)`.
    """

    latents: Tensor
    noisy: Tensor
    features: Tensor


def stored_paper_clips(
    autoencoder: Autoencoder,
    features: Features,
    features_identity: str,
    root: Path,
    rows: list[dict[str, object]],
    folder: Path,
) -> dict[str, PaperClip]:
    """Encode clips that are not in a store yet, in all processes, and return them memory-mapped.

    The noise of portraits and memory is drawn once for each frame, from the clip's name. Clips with
    a damaged file are left out.

    Args:
        autoencoder: The autoencoder, on its device.
        features: Extracts speech features of whole clips.
        features_identity: Tells extractors apart.
        root: The data folder.
        rows: Lines of the clips.
        folder: Folder of the store.

    Raises:
        InputError: The store was made by other networks, or clips are too small.
    """
    identity = {
        "autoencoder": fingerprint(autoencoder),
        "image_size": autoencoder.image_size,
        "features": features_identity,
    }
    by_name = {str(row["name"]): row for row in rows}
    store = Store(folder, identity)

    def read(name: str) -> Clip:
        return read_clip(root, by_name[name], autoencoder.image_size)

    def encode(clip: Clip) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(int.from_bytes(clip.name.encode()[-7:]))
        device = next(autoencoder.parameters()).device
        heard = features(torch.from_numpy(clip.pcm)[None].to(device))[0]
        return {
            "latents": _encode(autoencoder, clip, None).bfloat16(),
            "noisy": _encode(autoencoder, clip, generator).bfloat16(),
            "features": heard.cpu().bfloat16(),
        }

    store.encode(by_name, read, encode)
    arrays = store.arrays()
    return {name: PaperClip(**arrays[name]) for name in by_name if name in arrays}


@torch.no_grad()
def _encode(autoencoder: Autoencoder, clip: Clip, generator: torch.Generator | None) -> Tensor:
    """Return the latents of a clip and its mirror image, `(2, T, C, h, w)`."""
    parts, device = [], next(autoencoder.parameters()).device
    for start in range(0, clip.num_frames, _FRAMES):
        rgb = torch.from_numpy(clip.frames[start : start + _FRAMES].copy())
        frames = rgb.permute(0, 3, 1, 2).float() / 127.5 - 1
        if generator is not None:
            frames = noisy_images(frames, generator).clamp(-1.9, 1.9)
        both = torch.stack([frames, frames.flip(-1)]).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            parts.append(autoencoder.encode(both, None).float().cpu())
    return torch.cat(parts, 1)


def noisy_images(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Add noise to portraits and memory frames `(B, ..., 3, H, W)` before they are encoded.

    The deviation is drawn per item: the exponential of a normal of mean -3 and deviation 0.5.

    Source: Stable Video Diffusion, arXiv:2311.15127.
    """
    log_sigma = torch.randn(len(images), generator=generator) * 0.5 - 3
    sigma = log_sigma.exp().to(images).view(-1, *[1] * (images.ndim - 1))
    return images + sigma * torch.randn(images.shape, generator=generator).to(images)


class PaperSource:
    """Draws clips of 16 frames with a portrait and the frames before them.

    Args:
        clips: Clips; those that are too short are left out.
        config: Shape of the denoiser.

    Raises:
        InputError: No clip is long enough.
    """

    def __init__(self, clips: list[PaperClip], config: PaperConfig) -> None:
        self._frames, self._memory = config.frames, config.memory
        self._clips = [c for c in clips if len(c.features) >= config.frames]
        if not self._clips:
            raise InputError(f"no clip has the {config.frames} frames of an item; add longer clips")
        self._odds = torch.tensor([float(len(c.features)) for c in self._clips])

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw the tensors of a `PaperBatch` by name."""
        chosen = torch.multinomial(self._odds, count, True, generator=generator).tolist()
        items = [self._item(self._clips[index], generator) for index in chosen]
        return {name: torch.stack([item[name] for item in items]) for name in items[0]}

    def _item(self, clip: PaperClip, generator: torch.Generator) -> dict[str, Tensor]:
        def randint(limit: int) -> int:
            return int(torch.randint(limit, (1,), generator=generator))

        version, length = randint(len(clip.latents)), len(clip.features)
        start = randint(length - self._frames + 1)
        stop = start + self._frames
        noisy = clip.noisy[version]
        portrait = noisy[randint(length)].float()
        if start < self._memory:  # as in a session: the memory of the first clip is the portrait
            memory = portrait[None].expand(self._memory, -1, -1, -1)
        else:
            memory = noisy[start - self._memory : start].float()
        return {
            "features": clip.features[start:stop].float(),
            "portrait": portrait,
            "clip": clip.latents[version, start:stop].float(),
            "memory": memory,
        }
