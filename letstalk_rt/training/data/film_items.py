"""Training items of the conditions of a film: windows, and what is seen of them without the mouth.

For models whose latents hold no landmarks. Source: DiffTalk, arXiv:2301.03786.
"""

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from letstalk_rt.models.autoencoder.interfaces import Autoencoder
from letstalk_rt.models.geometry.lower_face import masked_frames
from letstalk_rt.models.layers.network import fingerprint
from letstalk_rt.training.data.dataset import Clip, read_clip
from letstalk_rt.training.data.sound_inputs import SoundInput
from letstalk_rt.training.data.store import Store
from letstalk_rt.training.data.tracks import Track

_FRAMES = 16
"""Frames that are encoded at once."""

_NO_MEMORY = 0.15
"""Share of items whose memory bank is empty, as after a cut."""


@dataclass(frozen=True)
class FilmTrack:
    """A clip with what a film shows of it.

    Attributes:
        track: its latents and audio.
        masked: latents of its frames with a masked lower face, `(T, C, h, w)`.
        points: its landmarks, `(T, L, 2)` in [-1, 1].
    """

    track: Track
    masked: Tensor
    points: Tensor


@dataclass(frozen=True)
class FilmBatch:
    """A batch of training items.

    Attributes:
        portrait: latents of the reference frames, `(B, C, h, w)`.
        portrait_points: their landmarks, `(B, L, 2)`.
        window: latents of the window, `(B, N, C, h, w)`.
        masked: the same of frames with a masked lower face.
        points: landmarks of the window, `(B, N, L, 2)`.
        memory: latents of the frames before it, `(B, H, C, h, w)`.
        filled: which of them are valid, `(B, H)` bool.
        features: what the audio encoder is trained on; see `SoundInput.window`.
        weight: weights of the items, `(B,)`.
    """

    portrait: Tensor
    portrait_points: Tensor
    window: Tensor
    masked: Tensor
    points: Tensor
    memory: Tensor
    filled: Tensor
    features: Tensor
    weight: Tensor

    def to(self, device: torch.device) -> "FilmBatch":
        """Return the batch on a device."""
        return FilmBatch(*(getattr(self, part.name).to(device) for part in fields(self)))


@torch.no_grad()
def film_tracks(
    autoencoder: Autoencoder,
    root: Path,
    rows: list[dict[str, object]],
    folder: Path,
    tracks: list[Track],
) -> list[FilmTrack]:
    """Encode the masked frames of clips that are not in a store yet, in all processes.

    Args:
        autoencoder: the autoencoder, on its device.
        root: the data folder.
        rows: lines of the clips.
        folder: folder of the store.
        tracks: the clips as latents.

    Raises:
        InputError: the store was made by another autoencoder, or clips are too small.
    """
    identity = {"autoencoder": fingerprint(autoencoder), "image_size": autoencoder.image_size}
    store, by_name = Store(folder, identity), {str(row["name"]): row for row in rows}

    def read(name: str) -> Clip:
        return read_clip(root, by_name[name], autoencoder.image_size)

    def encode(clip: Clip) -> dict[str, Tensor]:
        points = torch.from_numpy(clip.points).float()
        return {"masked": _encode_masked(autoencoder, clip, points).bfloat16(), "points": points}

    store.encode([track.audio_clip.name for track in tracks], read, encode)
    arrays = store.arrays()
    return [
        FilmTrack(track, **arrays[track.audio_clip.name])
        for track in tracks
        if track.audio_clip.name in arrays
    ]


def _encode_masked(autoencoder: Autoencoder, clip: Clip, points: Tensor) -> Tensor:
    parts, device = [], next(autoencoder.parameters()).device
    for start in range(0, clip.num_frames, _FRAMES):
        rgb = torch.from_numpy(clip.frames[start : start + _FRAMES].copy())
        frames = rgb.permute(0, 3, 1, 2).float() / 127.5 - 1
        hidden = masked_frames(frames, points[start : start + _FRAMES])[None].to(device)
        with torch.autocast(device.type, torch.bfloat16):
            parts.append(autoencoder.encode(hidden, None).float().cpu()[0])
    return torch.cat(parts)


class FilmSource:
    """Draws windows with their references, masked frames and landmarks.

    Args:
        tracks: clips of at least a window each.
        window: frames per window.
        history: frames before it; see `DenoiserConfig.history`.
        sound: cuts the features of the tracks.
    """

    def __init__(
        self, tracks: list[FilmTrack], window: int, history: int, sound: SoundInput
    ) -> None:
        self._tracks = [t for t in tracks if len(t.points) >= window]
        assert self._tracks, "clips are longer than a window"
        self._window, self._history, self._sound = window, history, sound
        self._odds = torch.tensor([float(len(t.points)) for t in self._tracks])

    def draw(self, count: int, generator: torch.Generator) -> FilmBatch:
        """Draw a batch."""
        chosen = torch.multinomial(self._odds, count, True, generator=generator).tolist()
        items = [self._item(self._tracks[index], generator) for index in chosen]
        weights = [self._tracks[index].track.audio_clip.weight for index in chosen]
        columns = [torch.stack(column) for column in zip(*items, strict=True)]
        columns.append(torch.tensor(weights))
        return FilmBatch(*columns)

    def _item(self, film: FilmTrack, generator: torch.Generator) -> tuple[Tensor, ...]:
        def randint(limit: int) -> int:
            return int(torch.randint(limit, (1,), generator=generator))

        latents, audio = film.track.latents[0], film.track.audio_clip
        start, reference = randint(len(latents) - self._window + 1), randint(len(latents))
        shown = slice(start, start + self._window)
        empty = float(torch.rand((), generator=generator)) < _NO_MEMORY
        known = 0 if empty else min(self._history, start)
        memory = torch.zeros(self._history, *latents.shape[1:])
        memory[self._history - known :] = latents[start - known : start]
        return (
            latents[reference].float(),
            film.points[reference],
            latents[shown].float(),
            film.masked[shown].float(),
            film.points[shown],
            memory,
            torch.arange(self._history) >= self._history - known,
            self._sound.window(audio.features, start - audio.shift, self._window),
        )
