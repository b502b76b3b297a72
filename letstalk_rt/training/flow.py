"""Trains denoiser and audio encoder together by rectified flow on the latents of clips.

The autoencoder is frozen; its latents are computed once, of the clips as they are and mirrored.
Beside the velocity, the landmarks read off the predicted data are compared: the read-out is
linear, so lips can be weighed without decoding a picture.

Source: rectified flow, arXiv:2209.03003; logit-normal times, arXiv:2403.03206; noise-regularised
memory, LetsTalk, arXiv:2411.16748.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from letstalk_rt.audio.encoder import LOOKAHEAD_FRAMES
from letstalk_rt.errors import InputError
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.interfaces import Autoencoder
from letstalk_rt.models.landmarks import LIPS, mouth_opening
from letstalk_rt.models.latents import FACE_SHAPE
from letstalk_rt.models.memory import MemoryBank, regularize
from letstalk_rt.models.sampler import NoiseState, timesteps
from letstalk_rt.models.seams import ease_seam
from letstalk_rt.training.audio import SpokenClip, spoken
from letstalk_rt.training.autoencoder import frames_tensor, mouth_spans
from letstalk_rt.training.data import Clip
from letstalk_rt.training.distributed import first_alone
from letstalk_rt.training.loop import LoopConfig, Run
from letstalk_rt.training.samples import to_pixels, write_video
from letstalk_rt.training.speech import (
    MEL_PER_FRAME,
    NUM_MOUTH_TARGETS,
    augment_mel,
    best_lag,
    clip_mel,
    correlation,
    mel_encoder,
    silence_mel,
)
from letstalk_rt.types import SAMPLES_PER_FRAME

JUDGED_FRAMES = 72
UNIT = 1000.0
"""Squares of distances in half pictures are small: lips that are wrong by 4 px are wrong by 1."""

_LEAST = 1e-3  # unit of a channel that never changes

HEARD_FRAMES = 32
"""Frames of sound before the window that a training item hears: the encoder's reach."""


@dataclass(frozen=True)
class FlowLoss:
    """Weights of the parts of the loss, and shares of special items."""

    lips: float = 2.0
    change: float = 1.0
    mouth: float = 1.0
    no_audio: float = 0.1
    silent: float = 0.08
    no_memory: float = 0.15
    frozen_memory: float = 0.15
    stale_memory: float = 0.25
    drift: float = 0.8
    heavy_noise: float = 0.4
    mouth_noise: float = 0.2
    mouth_read: float = 0.25


@dataclass(frozen=True)
class Track:
    """A clip in latents.

    Attributes:
        spoken: its sound and mouth targets.
        latents: `(V, T, C, h, w)`: V versions (plain, mirrored).
        quiet: frames whose mouth is near its rest, `(T,)` bool.
    """

    spoken: SpokenClip
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
        tracks.append(Track(spoken(clip, lookahead_frames), latents[clip.name], quiet))
    return tracks


def _encode(autoencoder: Autoencoder, clip: Clip) -> Tensor:
    """Give the latents of a clip and of its mirror image; its first frame is the portrait."""
    pieces, portrait, device = [], None, next(autoencoder.parameters()).device
    size = autoencoder.picture_size
    for start in range(0, clip.num_frames, 16):
        frames = torch.from_numpy(clip.frames[start : start + 16].copy())
        pictures = frames.permute(0, 3, 1, 2).float().to(device) / 127.5 - 1
        if pictures.shape[-1] != size:
            pictures = F.interpolate(pictures, (size, size), mode="bicubic", antialias=True)
        both = torch.stack([pictures, pictures.flip(-1)]).clamp(-1, 1)
        with torch.autocast(device.type, torch.bfloat16):
            if portrait is None:
                portrait = autoencoder.describe(both[:, 0])
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
        face.head.fit([face.autoencoder.points(latents) for latents in plain], around)


@dataclass(frozen=True)
class Batch:
    """Items of training.

    Attributes:
        portrait: latents `(B, C, h, w)`.
        window: latents `(B, N, C, h, w)`.
        memory: latents `(B, M, C, h, w)`.
        filled: `(B, M)` bool.
        mel: sound `(B, 64, 4 * (HEARD + N + 2))`.
        targets: of the mouth for all frames heard, `(B, HEARD + N, 11)`.
        weight: `(B,)`.
    """

    portrait: Tensor
    window: Tensor
    memory: Tensor
    filled: Tensor
    mel: Tensor
    targets: Tensor
    weight: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Give the batch on another device."""
        return Batch(*(getattr(self, part.name).to(device) for part in fields(self)))


class WindowSource:
    """Draws windows with what came before them.

    Args:
        tracks: clips in latents.
        window: frames of a window.
        memory: frames before it.
        loss: shares of special items.
    """

    def __init__(self, tracks: list[Track], window: int, memory: int, loss: FlowLoss) -> None:
        self.tracks, self.window, self.memory, self.loss = tracks, window, memory, loss
        self.weights = torch.tensor([track.spoken.weight for track in tracks])
        self.chance = torch.tensor([len(t.quiet) ** 0.7 for t in tracks]) * self.weights.sqrt()
        self.quiet_mel = silence_mel()

    def draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw a batch."""
        chosen = torch.multinomial(self.chance, batch_size, True, generator=generator).tolist()
        items = [self._item(index, generator) for index in chosen]
        portrait, window, memory, filled, mel, targets = (
            torch.stack(column) for column in zip(*items, strict=True)
        )
        return Batch(portrait, window, memory, filled, mel, targets, self.weights[chosen])

    def _item(self, index: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        track = self.tracks[index]

        def chance() -> float:
            return float(torch.rand((), generator=generator))

        def below(limit: int) -> int:
            return int(torch.randint(limit, (1,), generator=generator))

        latents = track.latents[below(len(track.latents))]
        count = len(latents)
        silent = chance() < self.loss.silent
        start = below(count - self.window + 1)
        if silent:
            start = _quiet_start(track.quiet, self.window, start)
        portrait = latents[below(count) if chance() < 0.7 else 0]
        memory = latents.new_zeros(self.memory, *latents.shape[1:])
        filled = torch.zeros(self.memory, dtype=torch.bool)
        lot = chance()
        if lot < self.loss.frozen_memory:
            memory[:], filled[:] = portrait, True  # a session that was at rest
        elif lot >= self.loss.frozen_memory + self.loss.no_memory:
            # A stale memory is of another moment: mouths must follow the sound, not the past.
            end = below(count + 1) if chance() < self.loss.stale_memory else start
            known = min(self.memory, end)
            memory[self.memory - known :] = latents[end - known : end]
            filled[self.memory - known :] = True
        mel, targets = self._heard(track, start)
        if silent:
            mel = self.quiet_mel + 0.02 * torch.rand(mel.shape, generator=generator)
            targets = torch.zeros_like(targets)
        return portrait, latents[start : start + self.window], memory, filled, mel, targets

    def _heard(self, track: Track, start: int) -> tuple[Tensor, Tensor]:
        first, stop = start - HEARD_FRAMES, start + self.window
        mel = track.spoken.mel[
            :,
            MEL_PER_FRAME * max(first, 0) : MEL_PER_FRAME * (stop + track.spoken.lookahead_frames),
        ]
        targets = track.spoken.targets[max(first, 0) : stop]
        if first < 0:
            mel = torch.cat([self.quiet_mel.expand(-1, -MEL_PER_FRAME * first), mel], 1)
            targets = F.pad(targets, (0, 0, -first, 0))
        return mel, targets


def _quiet_start(quiet: Tensor, window: int, fallback: int) -> int:
    """Find a window at rest at or after `fallback`, or before it."""
    at_rest = quiet.unfold(0, window, 1).all(1).nonzero()[:, 0]
    if not len(at_rest):
        return fallback
    return int(at_rest[(at_rest - fallback).abs().argmin()])


class FlowTrainer(nn.Module):
    """What is trained: denoiser, audio encoder, and a helper head that reads the mouth.

    Where the audio encoder has a bottleneck, its reading of the sound stays as it is; only how
    the mouth's values are shown to the denoiser is learned.

    Args:
        model: its autoencoder stays as it is.
        loss: weights of the parts.
    """

    def __init__(self, model: AvatarModel, loss: FlowLoss) -> None:
        super().__init__()
        self.denoiser, self.audio = model.denoiser, mel_encoder(model)
        token_width = self.audio.config.token_width
        apart = self.audio.mouth is not None
        self.mouth = None if apart else nn.Linear(4 * token_width, NUM_MOUTH_TARGETS)
        self.weights = loss

    def fix_faces(self) -> None:
        """Let nothing learn but what the denoiser's last layer says of surroundings."""
        self.requires_grad_(False)
        for parameter in self.denoiser.head.parameters():
            parameter.requires_grad_(True).register_hook(_around_only)

    def loss(
        self, model: AvatarModel, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Give the loss of a batch and its parts; batch and generator are where the model is."""
        data = model.to_motion(batch.window, batch.portrait)
        count, frames = data.shape[:2]
        rand, randn = _chance(generator)
        with torch.autocast(data.device.type, torch.bfloat16):
            heard, mouth = self._hear(batch, frames, generator)
            dropped = rand(count, 1, 1, 1) < self.weights.no_audio
            heard = torch.where(dropped, self.denoiser.no_audio.to(heard.dtype), heard)
            t = torch.sigmoid(randn(count, 1)).expand(count, frames)
            alone = rand(count, 1) < 0.3
            t = torch.where(alone, torch.ones_like(t), t)  # one-step use starts from noise alone
            noise = model.of_faces(randn(*data.shape))
            time = t[..., None, None, None]
            noisy = (1 - time) * data + time * noise
            memory, filled = self._memory(model, batch, generator)
            portrait = self.denoiser.portrait_state(model.normalized_portrait(batch.portrait))
            velocity = self.denoiser(noisy, t, heard, portrait, memory, filled).float()
        trust = batch.weight / batch.weight.mean()
        if self.mouth is None:  # true mouths are shown: no clip's sound can be wrong
            trust = torch.ones_like(trust)
        made = noisy - time * velocity
        parts = {
            "velocity": _weighted((velocity - (noise - data)) ** 2, trust),
            "mouth": _weighted(mouth, trust),
            **self._geometry(model, batch, made, trust),
        }
        total = parts["velocity"] + sum(
            getattr(self.weights, name) * parts[name] for name in ("mouth", "lips", "change")
        )
        return total, {name: float(value.detach()) for name, value in parts.items()}

    def _hear(self, batch: Batch, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Give the audio tokens of the window, and the errors of the mouths read off the sound.

        A bottleneck is shown true mouths, a little wrong as readings are, and at times readings.
        """
        if self.audio.mouth is None:
            tokens = self.audio.encode_mel(batch.mel)[:, self.audio.lookahead_frames :]
            assert self.mouth is not None
            mouth = self.mouth(tokens.flatten(2)).float()
            return tokens[:, -frames:], (mouth - batch.targets)[:, 12:].abs()
        with torch.no_grad():
            read = self.audio.read_mouth(batch.mel)[:, -frames:].float()
        true, count = batch.targets[:, -frames:], len(batch.targets)
        rand, randn = _chance(generator)
        amount = self.weights.mouth_noise * rand(count, 1, 1) * batch.targets.std((0, 1))
        noise = 0.7 * (randn(count, 1, true.shape[2]) + randn(*true.shape))
        shown = torch.where(
            rand(count, 1, 1) < self.weights.mouth_read, read, true + amount * noise
        )
        return self.audio.mouth.tokens(shown), torch.zeros_like(true)

    def _memory(
        self, model: AvatarModel, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Corrupt memory: as published, at times heavily, and by an offset that all frames share.

        The offset is what errors of many windows add up to; a model that never met it takes its
        own drift for the truth.
        """
        count = len(batch.memory)
        rand, randn = _chance(generator)
        motion = model.to_motion(batch.memory, batch.portrait)
        amount = self.weights.drift * rand(count, 1, 1, 1, 1)
        motion = motion + amount * randn(*motion[:, :1].shape)
        heavy = rand(count, 1, 1, 1, 1) < self.weights.heavy_noise
        noisy = regularize(motion, generator, max_noise=0.8)
        motion = torch.where(heavy, noisy, regularize(motion, generator))
        motion = motion * batch.filled[..., None, None, None]
        anchor = torch.zeros_like(motion[:, :1])  # the portrait's own motion is none
        filled = torch.cat([torch.ones_like(batch.filled[:, :1]), batch.filled], 1)
        return torch.cat([anchor, motion], 1), filled

    def _geometry(
        self, model: AvatarModel, batch: Batch, made: Tensor, trust: Tensor
    ) -> dict[str, Tensor]:
        """Compare lips, and their change from frame to frame, through the linear read-out.

        Squares, because one step gives the mean of what may be: an absolute error would ask for
        the median, and mouths are shut more often than open.
        """
        landmarks = model.autoencoder.landmarks
        if landmarks is None:
            return {"lips": made.new_zeros(()), "change": made.new_zeros(())}
        points = landmarks.points(model.to_latents(made, batch.portrait))
        true = landmarks.points(batch.window)
        lips = points[:, :, LIPS] - points[:, :, LIPS].mean(2, keepdim=True)
        true_lips = true[:, :, LIPS] - true[:, :, LIPS].mean(2, keepdim=True)
        shape = _weighted((lips - true_lips) ** 2, trust)
        opening = _weighted((mouth_spans(points) - mouth_spans(true)) ** 2, trust)
        change = _weighted((lips.diff(dim=1) - true_lips.diff(dim=1)) ** 2, trust)
        return {"lips": UNIT * (shape + opening), "change": UNIT * change}


def _around_only(gradient: Tensor) -> Tensor:
    """Keep the part of a gradient that is the surroundings', by rows."""
    kept = gradient.clone()
    kept[: FACE_SHAPE[0]] = 0
    return kept


def _chance(
    generator: torch.Generator,
) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Give `torch.rand` and `torch.randn` that draw from a generator, where it is."""
    where = {"generator": generator, "device": generator.device}
    return partial(torch.rand, **where), partial(torch.randn, **where)


def _weighted(values: Tensor, weight: Tensor) -> Tensor:
    return (values.flatten(1).mean(1) * weight).mean()


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
    """Generate latents for whole sounds by the streaming recurrence.

    Args:
        model: in eval mode.
        mel: `(B, 64, 4 * (T + 2))`, `T` a multiple of the window.
        portrait: latents `(B, C, h, w)`.
        steps: sampler steps.
        guidance: weight of the sound against none.
        seed: of the noise.

    Returns:
        `(B, T, C, h, w)`.
    """
    config = model.denoiser.config
    preset = model.preset
    chance = [NoiseState(seed + i, torch.zeros(1, *portrait.shape[1:])) for i in range(len(mel))]
    tokens = mel_encoder(model).encode_mel(mel)[:, model.audio.lookahead_frames :]
    state = model.denoiser.portrait_state(model.normalized_portrait(portrait))
    bank = MemoryBank.anchored(torch.zeros_like(portrait), config.memory)
    times, made = timesteps(steps), []
    for window in tokens.split(config.window, 1):
        noise = torch.cat(
            [c.draw(config.window, preset.noise_correlation, preset.temperature) for c in chance]
        )

        motion = model.sample_window(
            noise.to(portrait.device),
            window,
            state,
            model.denoiser.recall(bank.latents, bank.filled),
            times,
            guidance,
        )
        motion = ease_seam(motion, bank, preset.seam)
        bank.write(motion)
        made.append(model.to_latents(motion, portrait))
    return torch.cat(made, 1)


@torch.no_grad()
def evaluate_flow(
    model: AvatarModel, tracks: list[Track], steps: int = 2, guidance: float = 1.0
) -> dict[str, float]:
    """Generate the first four seconds of each clip from its first frame and sound.

    Mouth openings are compared by the latent's own landmarks: quick, for choosing when to stop;
    `letstalk eval` looks at pictures. Latents without landmarks are compared themselves.
    """
    tracks = [track for track in tracks if len(track.quiet) >= JUDGED_FRAMES]
    if not tracks:
        raise InputError(f"no clip set aside has {JUDGED_FRAMES} frames; add longer clips")
    device = model.motion_scale.device
    ahead = model.audio.lookahead_frames
    mel = torch.stack([t.spoken.mel[:, : 4 * (JUDGED_FRAMES + ahead)] for t in tracks])
    mel = mel.to(device)
    truth = torch.stack([track.latents[0, :JUDGED_FRAMES] for track in tracks])
    truth = truth.to(device)
    landmarks = model.autoencoder.landmarks
    if landmarks is None:
        made = generate(model, mel, truth[:, 0], steps=steps, guidance=guidance)
        error = (made - truth) / model.motion_scale
        return {"error": float(error.pow(2).mean())}
    true = mouth_opening(landmarks.points(truth).cpu().numpy())

    def openings(sound: Tensor) -> np.ndarray:
        made = generate(model, sound, truth[:, 0], steps=steps, guidance=guidance)
        return mouth_opening(landmarks.points(made).cpu().numpy())

    own, wrong = openings(mel), openings(mel.roll(len(mel) // 2, 0))
    r = np.array([correlation(a, b) for a, b in zip(own, true, strict=True)])
    real = np.array([track.spoken.is_real for track in tracks])
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
    """Give what the best model is chosen by: lips that follow the sound, or a small error."""
    if "error" in figures:
        return -figures["error"]
    return float(np.nanmean([figures["corr"], figures["corr_real"]]))


@torch.no_grad()
def save_sample(model: AvatarModel, clip: Clip, path: Path, frames: int = 100) -> None:
    """Write a video: the clip's own frames above those made from its first frame and its sound."""
    count = min(frames, clip.num_frames) // model.denoiser.config.window
    count *= model.denoiser.config.window
    device = model.motion_scale.device
    true = frames_tensor(clip, list(range(count)))
    features = model.autoencoder.describe(true[:1].to(device))
    ahead = model.audio.lookahead_frames
    mel = clip_mel(clip.pcm, ahead)[None, :, : MEL_PER_FRAME * (count + ahead)].to(device)
    preset = model.preset
    latents = generate(model, mel, features.latent, steps=preset.steps, guidance=preset.guidance)
    made = [
        model.autoencoder.decode(part, features)[0].cpu()
        for part in latents.split(model.denoiser.config.window, 1)
    ]
    both = torch.cat([true, torch.cat(made).float()], 2)
    write_video(path, to_pixels(both), clip.pcm[: count * SAMPLES_PER_FRAME])


def train_flow(
    model: AvatarModel,
    tracks: list[Track],
    aside: list[Track],
    folder: Path,
    config: LoopConfig,
    *,
    batch_size: int = 48,
    shown: list[Clip] | None = None,
    started: dict[str, Tensor] | None = None,
    fixed_faces: bool = False,
) -> AvatarModel:
    """Train denoiser and audio encoder, or go on, and give the model that was best on `aside`.

    Args:
        model: with its autoencoder and scales set; the audio encoder pretrained.
        tracks: of the train split.
        aside: tracks of the train split that choose when to stop.
        folder: of the run.
        config: schedule.
        batch_size: windows a step.
        shown: clips whose sample videos are written at each evaluation.
        started: weights of a trained denoiser to go on from.
        fixed_faces: what `started` makes of faces must not change: only the surroundings are
            learned, from what it knows of the face, and the last model is given.
    """
    assert started is not None or not fixed_faces
    torch.manual_seed(1)
    trainer = FlowTrainer(model, FlowLoss())
    if fixed_faces:
        trainer.fix_faces()
        config = replace(config, weight_decay=0.0)
    shape = model.denoiser.config
    source = WindowSource(tracks, shape.window, shape.memory, trainer.weights)
    if started is not None:
        model.denoiser.load_state_dict(started)
    model.to(config.device)
    run = Run(folder, trainer, config)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        batch = source.draw(batch_size, run.generator)
        batch = replace(batch, mel=augment_mel(batch.mel, run.generator))
        return trainer.loss(model, batch.to(run.device), run.noise)

    def evaluate(averaged: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(averaged, FlowTrainer)
        judged = with_parts(model, averaged)
        preset = judged.preset
        figures = evaluate_flow(judged, aside, preset.steps, preset.guidance)
        for clip in shown or []:
            save_sample(judged, clip, folder / f"sample-{clip.name}-{step:06d}.mp4")
        run.keep_if_best(score(figures))
        return figures

    last = run.train(loss, evaluate).state_dict()
    best = last if fixed_faces else torch.load(run.best, map_location="cpu", weights_only=True)
    trainer.load_state_dict(best)
    return with_parts(model, trainer)


def with_parts(model: AvatarModel, trainer: FlowTrainer) -> AvatarModel:
    """Give a model like `model` whose denoiser and audio encoder are the trainer's."""
    out = AvatarModel(model.preset)
    out.load_state_dict(model.state_dict())
    out.denoiser.load_state_dict(trainer.denoiser.state_dict())
    out.audio.load_state_dict(trainer.audio.state_dict())
    return out.to(model.motion_scale.device).eval()
