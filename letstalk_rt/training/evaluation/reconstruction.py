"""Evaluates frames that an autoencoder reconstructs from their latents and a portrait frame."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from letstalk_rt.models.autoencoder.interfaces import Autoencoder
from letstalk_rt.models.autoencoder.latents import PortraitFeatures
from letstalk_rt.models.autoencoder.mouth_painter import MouthPainter
from letstalk_rt.models.autoencoder.reference import ReferenceAutoencoder
from letstalk_rt.models.geometry.landmarks import LIPS
from letstalk_rt.portrait.mouth_compositor import MouthCompositor
from letstalk_rt.training.data.dataset import Clip
from letstalk_rt.training.data.video_samples import to_pixels, write_video

SAMPLE_CLIPS, SAMPLE_FRAMES = 4, 50
"""Number of clips and of frames in a sample video."""


def sharpness(frames: Tensor) -> Tensor:
    """Return the mean absolute Laplacian of grey images, `(B,)`, from `(B, 3, H, W)`."""
    kernel = frames.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    return F.conv2d(frames.mean(1, keepdim=True), kernel).abs().mean((1, 2, 3))


def psnr(generated: Tensor, true: Tensor) -> Tensor:
    """Return PSNR in dB of images in [-1, 1], `(B,)`."""
    error = ((generated - true) ** 2).flatten(1).mean(1)
    return 10 * torch.log10(4 / error.clamp(min=1e-8))


def mouth_box(points: np.ndarray, size_px: int) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the lips of `(L, 2)` points, with a margin, in px."""
    lips, least = (points[LIPS] + 1) * (size_px / 2), size_px // 16
    low, high = lips.min(0), lips.max(0)
    margin = 0.25 * (high[0] - low[0])
    left, top = np.clip(low - margin, 0, size_px - least).astype(int)
    right, bottom = np.clip(high + margin, least, size_px).astype(int)
    return int(left), int(top), int(right), int(bottom)


def face_slices(size_px: int) -> tuple[slice, slice]:
    """Return rows and columns of the face in a clip's frame."""
    top, bottom, left, right = (size_px * place // 256 for place in (70, 226, 64, 192))
    return slice(top, bottom), slice(left, right)


def _cut(generated: Tensor, true: Tensor, points: np.ndarray) -> tuple[Tensor, Tensor]:
    left, top, right, bottom = mouth_box(points, true.shape[-1])
    return generated[:, top:bottom, left:right], true[:, top:bottom, left:right]


@torch.no_grad()
def reconstruct(
    model: Autoencoder,
    clip: Clip,
    indices: list[int],
    portrait_index: int = 0,
    painter: MouthPainter | None = None,
) -> Tensor:
    """Return frames reconstructed from their latents and a portrait frame, `(T, 3, S, S)`.

    A model of another size sees the frames resized, and its frames are resized back, so that
    figures of all models are of one size. With a mouth painter their mouths are inpainted, as in
    the frames of a session.
    """
    device, size = next(model.parameters()).device, model.image_size
    shown = resized(frames_tensor(clip, [portrait_index]), size)
    portrait = model.encode_portrait(shown.to(device))
    parts = []
    for batch in torch.tensor(indices).split(8):
        with torch.autocast(device.type, torch.bfloat16):
            frames = resized(frames_tensor(clip, batch.tolist()), size).to(device)
            latents = model.encode(frames[None], portrait)
            decoded = model.decode(latents, portrait)[0].float()
        if painter is not None:
            assert isinstance(model, ReferenceAutoencoder)
            assert isinstance(portrait, PortraitFeatures)
            points = model.decode_landmarks(latents[0])
            decoded = _with_inpainted_mouths(decoded, points, portrait, painter)
        parts.append(resized(decoded.cpu(), clip.size_px))
    return torch.cat(parts)


def _with_inpainted_mouths(
    frames: Tensor, points: Tensor, portrait: PortraitFeatures, painter: MouthPainter
) -> Tensor:
    """Return frames `(T, 3, 256, 256)` with landmarks `(T, L, 2)` after the mouth compositor."""
    canvas, *pixels = torch.from_numpy(to_pixels(torch.cat([portrait.image, frames]))).to(
        frames.device
    )
    shown = torch.stack(pixels)
    MouthCompositor(painter, canvas, _pixels_of(portrait.points), seed=0)(shown, _pixels_of(points))
    return shown.permute(0, 3, 1, 2).float() / 127.5 - 1


def _pixels_of(points: Tensor) -> Tensor:
    return (points.float() + 1) * 128


def frames_tensor(clip: Clip, indices: list[int]) -> Tensor:
    """Return frames of a clip as `(T, 3, S, S)` in [-1, 1]."""
    frames = torch.from_numpy(clip.frames[indices].copy())
    return frames.permute(0, 3, 1, 2).float() / 127.5 - 1


def resized(frames: Tensor, size: int) -> Tensor:
    """Return frames `(T, 3, H, W)` in [-1, 1] as `(T, 3, size, size)`, unchanged if they are."""
    if frames.shape[-1] == size:
        return frames
    smooth = F.interpolate(frames, (size, size), mode="bicubic", antialias=True)
    return smooth.clamp(-1, 1)


@torch.no_grad()
def evaluate_reconstruction(
    model: Autoencoder,
    clips: list[Clip],
    every: int = 12,
    *,
    painter: MouthPainter | None = None,
) -> dict[str, float]:
    """Return the figures of reconstruction, portrait = first frame, mean over clips.

    Sharpness is the mean absolute Laplacian of the face over that of the true frames.
    """
    rows = [
        _judge(model, clip, list(range(every, clip.num_frames, every)), 0, painter)
        for clip in clips
        if clip.num_frames > every
    ]
    whole, mouth, crisp = torch.tensor(rows).mean(0).tolist()
    return {"psnr": whole, "psnr_mouth": mouth, "sharpness_ratio": crisp}


@torch.no_grad()
def evaluate_pairs(
    model: Autoencoder,
    clips: list[Clip],
    pairs: int = 6,
    *,
    painter: MouthPainter | None = None,
) -> dict[str, float]:
    """Return the same figures for portraits and targets drawn at random from each clip.

    Random portraits are nearer to their targets than a clip's first frame is to its last.
    """
    generator, rows = torch.Generator().manual_seed(0), []
    for clip in clips:
        for _ in range(pairs):
            source, target = torch.randint(clip.num_frames, (2,), generator=generator).tolist()
            if source != target:
                rows.append(_judge(model, clip, [target], source, painter))
    whole, mouth, _ = torch.tensor(rows).mean(0).tolist()
    return {"psnr_pairs": whole, "psnr_mouth_pairs": mouth}


def _judge(
    model: Autoencoder,
    clip: Clip,
    indices: list[int],
    portrait_index: int,
    painter: MouthPainter | None,
) -> tuple[float, float, float]:
    """Return PSNR, PSNR of the mouth, and the sharpness ratio of the face."""
    generated, true = (
        reconstruct(model, clip, indices, portrait_index, painter),
        frames_tensor(clip, indices),
    )
    cut = [_cut(m, x, clip.points[i]) for m, x, i in zip(generated, true, indices, strict=True)]
    mouth = torch.stack([psnr(m[None], x[None])[0] for m, x in cut]).mean()
    face = face_slices(clip.size_px)
    made_face, true_face = (frames[:, :, *face] for frames in (generated, true))
    crisp = (sharpness(made_face) / sharpness(true_face)).mean()
    return float(psnr(generated, true).mean()), float(mouth), float(crisp)


@torch.no_grad()
def save_samples(model: ReferenceAutoencoder, clips: list[Clip], stem: Path) -> None:
    """Write a contact sheet and a video of clips reconstructed from their first frames.

    The sheet shows portrait, target, reconstruction, warp alone and mask; the video shows the true
    frames above the reconstructed ones.
    """
    rows: list[Tensor] = []
    columns: list[Tensor] = []
    device = model.mean_points.device
    for clip in clips:
        pair = frames_tensor(clip, [0, int(clip.num_frames * 0.6)]).to(device)
        portrait = model.encode_portrait(pair[:1])
        parts = model.decode_latents(model.encode(pair[None, 1:], portrait)[0], portrait)
        mask = parts.mask.expand(-1, 3, -1, -1) * 2 - 1
        rows.append(torch.cat([pair[:1], pair[1:], parts.frames, parts.warped, mask], 3))
        if clip.num_frames >= SAMPLE_FRAMES and len(columns) < SAMPLE_CLIPS:
            shown = list(range(SAMPLE_FRAMES))
            columns.append(
                torch.cat([frames_tensor(clip, shown), reconstruct(model, clip, shown)], 2)
            )
    Image.fromarray(to_pixels(torch.cat(rows, 2))[0]).save(stem.with_suffix(".png"))
    if columns:
        write_video(stem.with_suffix(".mp4"), to_pixels(torch.cat(columns, 3)))
