"""Trains `ReferenceAutoencoder` on pairs of frames of one clip, and on still portraits.

One frame of a pair plays the portrait, the other is to be rebuilt from its latent. Stills give
pairs of one picture, moved in two ways: they bring two thousand more people.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call

from letstalk_rt.models.autoencoder import ReferenceAutoencoder
from letstalk_rt.models.autoencoder_networks import expected_points
from letstalk_rt.models.interfaces import Autoencoder
from letstalk_rt.models.landmark_warp import face_flow, nearness
from letstalk_rt.models.landmarks import (
    EYES,
    LIPS,
    LOWER_LIP,
    MOUTH_LEFT,
    MOUTH_RIGHT,
    NUM_POINTS,
    SUBSET,
    UPPER_LIP,
    mouth_opening,
)
from letstalk_rt.models.latents import Decoded
from letstalk_rt.training.critic import Critic, cuts
from letstalk_rt.training.data import (
    STILL_SIZE,
    Clip,
    Stills,
    affine_augment,
    color_augment,
    mirror_map,
    to_unit,
)
from letstalk_rt.training.loop import LoopConfig, Run
from letstalk_rt.training.samples import to_pixels, write_video

SAMPLE_CLIPS, SAMPLE_FRAMES = 4, 50
"""Clips and frames of a sample video."""


@dataclass(frozen=True)
class AutoencoderLoss:
    """Weights of the parts of the loss."""

    warp: float = 0.5
    gradient: float = 0.6
    points: float = 2.0
    heat: float = 0.05
    mask: float = 0.012
    flow: float = 0.02
    latent: float = 1e-5
    latent_noise: float = 0.02
    mouth: float = 14.0
    eyes: float = 6.0
    square: float = 2.0
    colour: float = 2.0
    seen: float = 5.0
    real: float = 0.004
    features: float = 0.2


class PairSource:
    """Draws pairs (portrait, target) with their landmarks.

    Args:
        clips: talking clips.
        stills: still portraits.
        batch_size: pairs a batch.
        still_share: share of pairs that come from stills.
    """

    def __init__(
        self, clips: list[Clip], stills: Stills, batch_size: int, still_share: float = 0.125
    ) -> None:
        self.clips, self.stills = clips, stills
        self.num_stills = round(batch_size * still_share)
        self.num_clips = batch_size - self.num_stills
        weights = torch.tensor([clip.num_frames**0.5 for clip in clips])
        self.weights = weights / weights.sum()
        first = np.concatenate([clip.landmarks[:1] for clip in clips])
        self.mirror = mirror_map(first)

    def mean_points(self) -> Tensor:
        """Give the mean landmarks of the clips, `(L, 2)`."""
        return torch.from_numpy(np.stack([clip.points.mean(0) for clip in self.clips]).mean(0))

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Give frames `(B, 2, 3, 256, 256)` in [-1, 1] and landmarks `(B, 2, L, 2)`."""
        frames, points = self._from_clips(generator)
        if self.num_stills:
            still_frames, still_points = self._from_stills(generator)
            frames = torch.cat([frames, still_frames])
            points = torch.cat([points, still_points])
        return color_augment(frames, generator), points

    def _from_clips(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        frames, points = [], []
        for index in torch.multinomial(self.weights, self.num_clips, True, generator=generator):
            clip = self.clips[int(index)]
            pair = self._pair(clip, generator)
            mirrored = bool(torch.rand((), generator=generator) < 0.5)
            pictures, marks = clip.frames[pair], clip.landmarks[pair]
            frame, point = self._orient(pictures, marks, mirrored, pictures.shape[2])
            frames.append(frame)
            points.append(point)
        return affine_augment(torch.stack(frames), torch.stack(points), generator)

    def _pair(self, clip: Clip, generator: torch.Generator) -> list[int]:
        """Draw two frames; half of the time such whose mouths differ."""
        drawn = torch.randint(clip.num_frames, (4,), generator=generator).tolist()
        if float(torch.rand((), generator=generator)) < 0.5:
            return drawn[:2]
        opening = mouth_opening(clip.points[drawn])
        return [drawn[0], drawn[1 + int(np.abs(opening[1:] - opening[0]).argmax())]]

    def _from_stills(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(self.stills.frames), (self.num_stills,), generator=generator)
        frames, points = [], []
        for index in chosen.tolist():
            mirrored = bool(torch.rand((), generator=generator) < 0.5)
            pictures = self.stills.frames[index][None].repeat(2, 0)
            marks = self.stills.landmarks[index][None].repeat(2, 0)
            frame, point = self._orient(pictures, marks, mirrored, STILL_SIZE)
            frames.append(frame)
            points.append(point)
        pictures_t, marks_t = torch.stack(frames), torch.stack(points)
        moved, placed = affine_augment(
            pictures_t.view(-1, 1, *pictures_t.shape[2:]),
            marks_t.view(-1, 1, *marks_t.shape[2:]),
            generator,
            zoom=256 / STILL_SIZE,
        )
        return moved.view(-1, 2, *moved.shape[2:]), placed.view(-1, 2, *placed.shape[2:])

    def _orient(
        self, pictures: np.ndarray, marks: np.ndarray, mirrored: bool, size: int
    ) -> tuple[Tensor, Tensor]:
        if mirrored:
            pictures = pictures[:, :, ::-1]
            marks = marks[:, self.mirror]
            marks = np.stack([size - marks[..., 0], marks[..., 1]], -1)
        frame = torch.from_numpy(pictures.copy()).permute(0, 3, 1, 2)
        return frame.float() / 127.5 - 1, torch.from_numpy(to_unit(marks[:, SUBSET], size))


def _enlarge(weights: Tensor) -> Tensor:
    return F.interpolate(weights, (256, 256), mode="bilinear", align_corners=False)


def gradient_loss(made: Tensor, true: Tensor, weight: Tensor) -> Tensor:
    """Give the L1 difference of picture gradients at three scales: what makes edges sharp."""
    total = made.new_zeros(())
    for scale in range(3):
        if scale:
            made, true, weight = (F.avg_pool2d(x, 2) for x in (made, true, weight))
        for axis in (2, 3):
            error = (made.diff(dim=axis) - true.diff(dim=axis)).abs().mean(1, keepdim=True)
            narrowed = weight.narrow(axis, 1, weight.shape[axis] - 1)
            total = total + (error * narrowed).mean()
    return total


def heat_loss(heat: Tensor, points: Tensor) -> Tensor:
    """Give the cross-entropy of heat maps, plus the L1 error of the place they name.

    The target of a point is spread over the four cells around it so that its mean is exact.

    Args:
        heat: logits `(B, L, s, s)`.
        points: true landmarks `(B, L, 2)` in [-1, 1].
    """
    size = heat.shape[-1]
    place = ((points + 1) / 2 * size - 0.5).clamp(0, size - 1.001)
    low = place.floor().long()
    x_share, y_share = (place - low).unbind(-1)
    logs = torch.log_softmax(heat.flatten(2), -1)
    total = heat.new_zeros(())
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        share = (x_share if dx else 1 - x_share) * (y_share if dy else 1 - y_share)
        index = (low[..., 1] + dy) * size + low[..., 0] + dx
        total = total - (share * logs.gather(2, index[..., None])[..., 0]).mean()
    return total + 20 * (expected_points(heat) - points).abs().mean()


def mouth_spans(points: Tensor) -> Tensor:
    """Give lip gap and mouth width, `(..., 4)`, of landmarks `(..., L, 2)`, in half pictures."""
    gap = points[..., LOWER_LIP, :] - points[..., UPPER_LIP, :]
    return torch.cat([gap, points[..., MOUTH_RIGHT, :] - points[..., MOUTH_LEFT, :]], -1)


def opening_error(made: Tensor, true: Tensor) -> Tensor:
    """Give the mean error of lip gap and mouth width between landmark sets, in half pictures."""
    return (mouth_spans(made) - mouth_spans(true)).abs().mean()


def autoencoder_loss(
    model: ReferenceAutoencoder,
    frames: Tensor,
    points: Tensor,
    weights: AutoencoderLoss,
    maturity: float,
    critic: Critic | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Rebuild the second frame of each pair from its latent and the first.

    Args:
        model: the autoencoder.
        frames: `(B, 2, 3, 256, 256)`.
        points: `(B, 2, L, 2)`.
        weights: of the parts.
        maturity: from 0 at the start of training to 1. A young model is given the flow of the
            true landmarks, for its own read-out knows nothing yet; latent noise and the price of
            painting come in as it grows (earlier, they silence the parts they are to tame).
        critic: judges mouths and eyes, and learns from this batch.

    Returns:
        The loss, and its parts by name.
    """
    source, target = frames.unbind(1)
    with torch.autocast(frames.device.type, torch.bfloat16):
        latents, heat = model.encode_parts(frames)
        portrait = model.describe_encoded(source, latents[:, 0])
        coarse = None
        if maturity < 1:
            read = face_flow(portrait.points.float(), model.points(latents[:, 1]))
            known = face_flow(points[:, 0], points[:, 1])
            lot = (torch.rand(len(read), 1, 1, 1, device=read.device) > maturity).to(read)
            coarse = lot * known + (1 - lot) * read
        latent = model.with_surroundings(latents[:, 1], target, portrait, coarse)
        noisy = latent + maturity * weights.latent_noise * torch.randn_like(latent)
        decoded = model.decode_parts(noisy, portrait, coarse)
        seen = points_seen(model, decoded.picture)
    parts = _picture_losses(decoded, target, points[:, 1], weights)
    parts["points"] = _points_loss(model.points(latents).flatten(0, 1), points.flatten(0, 1))
    parts["seen"] = maturity * _points_loss(seen, points[:, 1])
    if critic is not None:
        made, true = cuts(decoded.picture, points[:, 1]), cuts(target, points[:, 1])
        told_apart = critic.learn(made, true)
        parts["real"], parts["features"] = critic.judge(made, true)
    truth = points.flatten(0, 1)
    parts["heat"] = heat_loss(heat.flatten(0, 1), truth)
    parts["latent"] = (latent**2).mean()
    parts["mask"] = maturity * parts["mask"]
    total = parts["picture"] + sum(
        getattr(weights, name) * value for name, value in parts.items() if name != "picture"
    )
    seen_parts = {name: float(value.detach()) for name, value in parts.items()}
    return total, seen_parts | ({"critic": told_apart} if critic else {})


def points_seen(model: ReferenceAutoencoder, pictures: Tensor) -> Tensor:
    """Give the landmarks `(B, L, 2)` that the encoder finds in pictures that were made.

    The encoder's weights are taken as they are: only the pictures are to change. So a mouth that
    should be open must be painted open enough to be seen open.
    """
    fixed = {name: value.detach() for name, value in model.encoder.named_parameters()}
    flat = pictures.contiguous(memory_format=torch.channels_last)
    _, heat = functional_call(model.encoder, fixed, (flat, model.mean_points))
    return expected_points(heat)


def _points_loss(points: Tensor, truth: Tensor) -> Tensor:
    """Compare landmarks `(B, L, 2)`: lips and eyes count more, and the mouth's opening again."""
    weight = torch.ones(NUM_POINTS, device=points.device)
    weight[LIPS] = 3.0
    weight[EYES] = 2.0
    error = ((points - truth).abs().mean(-1) * weight).mean()
    return error + 3 * opening_error(points, truth)


def _picture_losses(
    decoded: Decoded, target: Tensor, points: Tensor, weights: AutoencoderLoss
) -> dict[str, Tensor]:
    mouth, eyes = nearness(points[:, LIPS], 64, 8.0), nearness(points[:, EYES], 64, 6.0)
    weight = _enlarge(1 + weights.mouth * mouth + weights.eyes * eyes)
    weight = weight / weight.mean((1, 2, 3), keepdim=True)
    free = _enlarge(torch.maximum(mouth, eyes))
    error = decoded.picture - target
    return {
        "picture": (error.abs() * weight).mean(),
        "square": (error**2 * weight).mean(),
        # A critic looks at texture and lets colours go astray: they are held where they are wide.
        "colour": (F.avg_pool2d(error, 8).abs() * F.avg_pool2d(weight, 8)).mean(),
        "warp": (decoded.warped - target).abs().mean(),
        "gradient": gradient_loss(decoded.picture, target, weight),
        "mask": (decoded.mask * (1 - free)).mean(),
        "flow": sum(
            (decoded.flow.diff(dim=a).abs().mean() for a in (2, 3)), decoded.flow.new_zeros(())
        ),
    }


def sharpness(frames: Tensor) -> Tensor:
    """Give the mean absolute Laplacian of the grey picture, `(B,)`, of `(B, 3, H, W)`."""
    kernel = frames.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    return F.conv2d(frames.mean(1, keepdim=True), kernel).abs().mean((1, 2, 3))


def psnr(made: Tensor, true: Tensor) -> Tensor:
    """Give PSNR in dB of pictures in [-1, 1], `(B,)`."""
    error = ((made - true) ** 2).flatten(1).mean(1)
    return 10 * torch.log10(4 / error.clamp(min=1e-8))


def mouth_box(points: np.ndarray) -> tuple[int, int, int, int]:
    """Give left, top, right, bottom (px of 256) of the lips of `(L, 2)` points, with a margin."""
    lips = (points[LIPS] + 1) * 128
    low, high = lips.min(0), lips.max(0)
    margin = 0.25 * (high[0] - low[0])
    left, top = np.clip(low - margin, 0, 240).astype(int)
    right, bottom = np.clip(high + margin, 16, 256).astype(int)
    return int(left), int(top), int(right), int(bottom)


def _cut(made: Tensor, true: Tensor, points: np.ndarray) -> tuple[Tensor, Tensor]:
    left, top, right, bottom = mouth_box(points)
    return made[:, top:bottom, left:right], true[:, top:bottom, left:right]


@torch.no_grad()
def reconstruct(
    model: Autoencoder, clip: Clip, indices: list[int], portrait_index: int = 0
) -> Tensor:
    """Rebuild frames of a clip from their latents and one frame: `(T, 3, 256, 256)`."""
    device = next(model.parameters()).device
    portrait = model.describe(frames_tensor(clip, [portrait_index]).to(device))
    pieces = []
    for chunk in torch.tensor(indices).split(8):
        with torch.autocast(device.type, torch.bfloat16):
            frames = frames_tensor(clip, chunk.tolist()).to(device)
            latents = model.encode(frames[None], portrait)
            pieces.append(model.decode(latents, portrait)[0].cpu())
    return torch.cat(pieces)


def frames_tensor(clip: Clip, indices: list[int]) -> Tensor:
    """Give frames of a clip as `(T, 3, 256, 256)` in [-1, 1]."""
    frames = torch.from_numpy(clip.frames[indices].copy())
    return frames.permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def evaluate_reconstruction(
    model: Autoencoder, clips: list[Clip], every: int = 12
) -> dict[str, float]:
    """Judge reconstruction through the latent, portrait = first frame, mean over clips.

    Sharpness is the mean absolute Laplacian of the face box against that of the true frames.
    """
    rows = [
        _judge(model, clip, list(range(every, clip.num_frames, every)), 0)
        for clip in clips
        if clip.num_frames > every
    ]
    whole, mouth, crisp = torch.tensor(rows).mean(0).tolist()
    return {"psnr": whole, "psnr_mouth": mouth, "sharpness_ratio": crisp}


@torch.no_grad()
def evaluate_pairs(model: Autoencoder, clips: list[Clip], pairs: int = 6) -> dict[str, float]:
    """As `evaluate_reconstruction`, for portraits and targets drawn at random from each clip.

    The protocol of the first figures for this decoder; portraits are nearer to their targets than
    a clip's first frame is to its end.
    """
    generator, rows = torch.Generator().manual_seed(0), []
    for clip in clips:
        for _ in range(pairs):
            source, target = torch.randint(clip.num_frames, (2,), generator=generator).tolist()
            if source != target:
                rows.append(_judge(model, clip, [target], source))
    whole, mouth, _ = torch.tensor(rows).mean(0).tolist()
    return {"psnr_pairs": whole, "psnr_mouth_pairs": mouth}


def _judge(
    model: Autoencoder, clip: Clip, indices: list[int], portrait_index: int
) -> tuple[float, float, float]:
    """Give PSNR, PSNR of the mouth, and sharpness ratio of the face."""
    made, true = reconstruct(model, clip, indices, portrait_index), frames_tensor(clip, indices)
    cut = [_cut(m, x, clip.points[i]) for m, x, i in zip(made, true, indices, strict=True)]
    mouth = torch.stack([psnr(m[None], x[None])[0] for m, x in cut]).mean()
    made_face, true_face = (frames[:, :, 70:226, 64:192] for frames in (made, true))
    crisp = (sharpness(made_face) / sharpness(true_face)).mean()
    return float(psnr(made, true).mean()), float(mouth), float(crisp)


@torch.no_grad()
def save_samples(model: ReferenceAutoencoder, clips: list[Clip], stem: Path) -> None:
    """Write a sheet and a video of some clips, rebuilt from their first frames.

    The sheet shows portrait, target, rebuilt frame, warp alone and mask; the video, above the true
    frames, the rebuilt ones.
    """
    rows: list[Tensor] = []
    columns: list[Tensor] = []
    device = model.mean_points.device
    for clip in clips:
        pair = frames_tensor(clip, [0, int(clip.num_frames * 0.6)]).to(device)
        portrait = model.describe(pair[:1])
        parts = model.decode_parts(model.encode(pair[None, 1:], portrait)[0], portrait)
        mask = parts.mask.expand(-1, 3, -1, -1) * 2 - 1
        rows.append(torch.cat([pair[:1], pair[1:], parts.picture, parts.warped, mask], 3))
        if clip.num_frames >= SAMPLE_FRAMES and len(columns) < SAMPLE_CLIPS:
            shown = list(range(SAMPLE_FRAMES))
            columns.append(
                torch.cat([frames_tensor(clip, shown), reconstruct(model, clip, shown)], 2)
            )
    Image.fromarray(to_pixels(torch.cat(rows, 2))[0]).save(stem.with_suffix(".png"))
    if columns:
        write_video(stem.with_suffix(".mp4"), to_pixels(torch.cat(columns, 3)))


def fit_landmarks(
    model: ReferenceAutoencoder,
    source: PairSource,
    folder: Path,
    steps: int = 500,
    device: str = "cpu",
) -> None:
    """Teach the encoder landmarks alone, fast, before there is a picture to make.

    With the whole loss from the start the landmarks stay at their mean for a thousand steps, and
    the warp with them.
    """
    parts = nn.ModuleDict({"encoder": model.encoder, "read": model.read_points})
    config = LoopConfig(steps=steps, learning_rate=1e-3, warm_up=40, ema=0.98, device=device)
    run = Run(folder, parts, config)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        frames, points = (part.to(run.device) for part in source.draw(run.generator))
        with torch.autocast(frames.device.type, torch.bfloat16):
            latents, heat = model.encode_parts(frames)
        read = model.points(latents + 0.1 * torch.randn_like(latents))
        error = (read - points).abs().mean()
        return heat_loss(heat.flatten(0, 1), points.flatten(0, 1)) + 20 * error, {
            "points": float(error.detach())
        }

    parts.load_state_dict(run.train(loss).state_dict())


def train_autoencoder(
    clips: list[Clip],
    stills: Stills,
    held_out: list[Clip],
    folder: Path,
    config: LoopConfig,
    *,
    batch_size: int = 8,
    weights: AutoencoderLoss | None = None,
    started: dict[str, Tensor] | None = None,
    fixed_latents: bool = False,
    critic: bool = False,
) -> nn.Module:
    """Train the autoencoder, or go on with it, and give the averaged model.

    Args:
        clips: of the train split.
        stills: of the train split.
        held_out: clips of other people, for the log and sample pictures; never trained on.
        folder: of the run.
        config: schedule.
        batch_size: pairs a step.
        weights: of the loss.
        started: weights of a trained autoencoder to go on from.
        fixed_latents: the latents of `started` must not change, as a denoiser lives on them: the
            encoder stays, reference encoder and decoder go on.
        critic: train a patch discriminator on mouth and eyes beside it.
    """
    assert started is not None or not fixed_latents
    torch.manual_seed(0)
    weights = weights or AutoencoderLoss()
    source = PairSource(clips, stills, batch_size)
    model = ReferenceAutoencoder()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if started is None:
        model.expect_points(source.mean_points())
        fit_landmarks(model, source, folder / "landmarks", device=config.device)
    else:
        model.load_state_dict(started)
        model.encoder.requires_grad_(not fixed_latents)
        model.read_points.requires_grad_(not fixed_latents)
    judge = Critic(torch.device(config.device)) if critic else None
    run = Run(folder, model, config, {"critic": judge} if judge else {})

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        frames, points = (part.to(run.device) for part in source.draw(run.generator))
        maturity = 1.0 if started else min(1.0, step / 1500)
        return autoencoder_loss(model, frames, points, weights, maturity, judge)

    def evaluate(averaged: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(averaged, ReferenceAutoencoder)
        save_samples(averaged, held_out[::4], folder / f"samples-{step:06d}")
        return evaluate_reconstruction(averaged, held_out, every=40)

    return run.train(loss, evaluate if held_out else None)
