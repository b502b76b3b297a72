"""Pretrains the audio encoder: what does the mouth do while this is heard?

Every frame of every clip is a target, so the encoder learns the sound before the denoiser is
there. Clips whose lips do not follow their sound are found by the encoder itself and weighed
down.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from letstalk_rt.models.audio_encoder.causal import (
    AudioEncoderConfig,
    CausalAudioEncoder,
)
from letstalk_rt.training.data.audio_features import (
    MEL_PER_FRAME,
    NUM_MOUTH_TARGETS,
    augment_mel,
    best_lag,
    correlation,
    silence_mel,
)
from letstalk_rt.training.data.dataset import Clip
from letstalk_rt.training.data.spoken_clips import AudioClip, audio_clip
from letstalk_rt.training.loop import LoopConfig, Run

MAX_SHIFT = 5
"""Frames by which a clip's sound and lips may be apart, less one."""

COURSE = 1.0
"""Weight of the course of the opening in the loss."""

MOST_GAIN = 5.0
"""What the sound hardly tells is not to be blown up from noise."""

QUIET_FRAMES = 50
"""Of silence, until the encoder has heard nothing else."""


class MouthReader(nn.Module):
    """The audio encoder with a head that reads the mouth off its tokens.

    Args:
        config: of the encoder; the default one when None.
    """

    def __init__(self, config: AudioEncoderConfig | None = None) -> None:
        super().__init__()
        assert config is None or config.mouth_values in (0, NUM_MOUTH_TARGETS), config
        self.audio = CausalAudioEncoder(config)
        config = self.audio.config
        own = config.mouth_values == 0  # else the encoder reads mouths itself
        self.head = nn.Linear(4 * config.token_width, NUM_MOUTH_TARGETS) if own else None

    def forward(self, mel: Tensor) -> Tensor:
        """Read `(B, 64, 4 * (T + L))` as mouth targets `(B, T, 11)`."""
        ahead = self.audio.lookahead_frames
        if self.head is None:
            return self.audio.read_mouth(mel)[:, ahead:]
        read: Tensor = self.head(self.audio.encode_mel(mel)[:, ahead:].flatten(2))
        return read


def split_people(clips: list[Clip], every: int = 6) -> tuple[list[Clip], list[Clip]]:
    """Set clips of the train split aside for choosing when to stop: every sixth source name.

    Clips of one source folder often show the same person; they stay together.
    """
    aside = set(sorted({clip.source for clip in clips})[::every])
    kept = [clip for clip in clips if clip.source not in aside]
    return kept, [clip for clip in clips if clip.source in aside]


def cleaned(reader: MouthReader, clip: AudioClip) -> AudioClip:
    """Bring a clip's sound under its lips, and weigh it by how well they then agree.

    A reader that has seen all clips a few times cannot know one clip's faults by heart. Where its
    reading fits the lips clearly better some frames earlier or later, the clip's sound is moved;
    where it fits nowhere, the clip has music, noise or other lips, and counts for little.
    """
    made, true = read_opening(reader, clip), clip.targets[:, 0].numpy()
    r = correlation(made, true)
    lag, moved_r = best_lag(made, true, reach=MAX_SHIFT)
    if abs(lag) == MAX_SHIFT or moved_r < r + 0.08 or moved_r < 0.35:
        lag, moved_r = 0, r
    weight = clip.weight * float(np.clip(moved_r / 0.45, 0.05, 1.0))
    return replace(clip, mel=_moved(clip.mel, -lag * MEL_PER_FRAME), weight=weight)


def _moved(mel: Tensor, steps: int) -> Tensor:
    """Move sound by mel steps, later where positive; its ends are continued with silence."""
    quiet = silence_mel().expand(-1, abs(steps))
    if steps > 0:
        return torch.cat([quiet, mel[:, :-steps]], 1)
    return torch.cat([mel[:, -steps:], quiet], 1) if steps else mel


@torch.no_grad()
def read_opening(reader: MouthReader, clip: AudioClip) -> np.ndarray:
    """Give the mouth opening that the reader hears, `(T,)`."""
    mel = clip.mel[None].to(next(reader.parameters()).device)
    opening: np.ndarray = reader.eval()(mel)[0, :, 0].cpu().numpy()
    return opening


def evaluate_reader(reader: MouthReader, clips: list[AudioClip]) -> dict[str, float]:
    """Correlate the opening heard with the true one: all, real and GRID clips, and shuffled."""
    heard = [read_opening(reader, clip) for clip in clips]
    true = [clip.targets[:, 0].numpy() for clip in clips]
    own = [correlation(a, b) for a, b in zip(heard, true, strict=True)]
    shuffled = []
    for index, b in enumerate(true):
        a = heard[(index + 1) % len(heard)]
        n = min(len(a), len(b))
        shuffled.append(correlation(a[:n], b[:n]))

    def mean(values: list[float], chosen: list[bool]) -> float:
        kept = [v for v, c in zip(values, chosen, strict=True) if c]
        return float(np.mean(kept)) if kept else float("nan")

    return {
        "mouth_all": mean(own, [True] * len(own)),
        "mouth_real": mean(own, [c.is_real for c in clips]),
        "mouth_grid": mean(own, [c.is_grid for c in clips]),
        "mouth_shuffled": float(np.mean(shuffled)),
    }


def reading_loss(made: Tensor, true: Tensor) -> dict[str, Tensor]:
    """Compare readings `(B, T, 11)` of the mouth: their values, their change, their course.

    The course is one less Pearson's r of the opening over the piece, whatever its size: some mouths
    open wide and some hardly, and the sound does not say which. Pieces at rest hardly count.
    """
    a = made[..., 0] - made[..., 0].mean(1, keepdim=True)
    b = true[..., 0] - true[..., 0].mean(1, keepdim=True)
    moved = b.pow(2).mean(1).sqrt()
    r = (a * b).sum(1) / (a.pow(2).sum(1) * b.pow(2).sum(1) + 1e-4).sqrt()
    return {
        "value": 10 * (made - true).abs().mean(),
        "change": 5 * (made.diff(dim=1) - true.diff(dim=1)).abs().mean(),
        "course": COURSE * ((1 - r) * moved).sum() / (moved.sum() + 1e-3),
    }


def train_audio(
    clips: list[Clip],
    aside: list[Clip],
    folder: Path,
    config: LoopConfig,
    *,
    batch_size: int = 24,
    frames: int = 48,
    started: dict[str, Tensor] | None = None,
    encoder: AudioEncoderConfig | None = None,
) -> MouthReader:
    """Train the reader, keep the best by the clips set aside, and give it.

    Args:
        clips: of the train split.
        aside: of the train split too, but other people: they choose when to stop.
        folder: of the run; `best.pt` is written there.
        config: schedule.
        batch_size: pieces a step.
        frames: length of a piece.
        started: weights of an audio encoder that knows phones already.
        encoder: shape and look-ahead of the audio encoder; the default one when None.
    """
    torch.manual_seed(0)
    reader = MouthReader(encoder)
    ahead = reader.audio.lookahead_frames
    long = [clip for clip in clips if clip.has_sound and clip.num_frames > frames]
    spoken_clips = [audio_clip(clip, ahead) for clip in long]
    judges = [audio_clip(clip, ahead) for clip in aside if clip.has_sound]
    weights = torch.tensor([clip.weight * len(clip.targets) for clip in spoken_clips])
    quiet = silence_mel()
    if started is not None:
        reader.audio.load_state_dict(started)
    run = Run(folder, reader, config)
    doubted: list[bool] = []

    def draw() -> tuple[Tensor, Tensor]:
        mels, targets = [], []
        for index in torch.multinomial(weights, batch_size, True, generator=run.generator):
            clip = spoken_clips[int(index)]
            last = len(clip.targets) - frames
            start = int(torch.randint(last + 1, (1,), generator=run.generator))
            stop = start + frames
            mels.append(clip.mel[:, MEL_PER_FRAME * start : MEL_PER_FRAME * (stop + ahead)])
            targets.append(clip.targets[start:stop])
        return torch.stack(mels), torch.stack(targets)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        mel, true = draw()
        mel = augment_mel(mel, run.generator)
        silent = torch.rand(batch_size, 1, 1, generator=run.generator) < 0.05
        mel = torch.where(silent, quiet + 0.02 * torch.rand(mel.shape), mel)
        true = torch.where(silent, torch.zeros(()), true)
        made, true = reader(mel.to(run.device))[:, 12:], true.to(run.device)[:, 12:]
        # the first frames have not heard enough yet
        parts = reading_loss(made, true)
        return sum(parts.values(), made.new_zeros(())), {k: float(v) for k, v in parts.items()}

    def evaluate(averaged: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(averaged, MouthReader)
        figures = evaluate_reader(averaged, judges)
        run.keep_if_best(float(np.nanmean([figures["mouth_all"], figures["mouth_real"]])))
        if step >= config.evaluate_every * 2 and not doubted:
            doubted.append(True)
            spoken_clips[:] = [cleaned(averaged, clip) for clip in spoken_clips]
            weights.copy_(torch.tensor([c.weight * len(c.targets) for c in spoken_clips]))
        return figures

    run.train(loss, evaluate)
    reader.load_state_dict(torch.load(run.best, map_location="cpu", weights_only=True))
    return reader


@torch.no_grad()
def calibrate(reader: MouthReader, judges: Sequence[AudioClip]) -> None:
    """Make the mouth's values as large as true ones are, and none in silence.

    A reading is a mean of what may be, so it moves less than mouths do. Only where the encoder
    reads mouths itself; the clips must be unknown to the reader.
    """
    if reader.audio.mouth is None:
        return
    known = [clip for clip in judges if clip.is_real] or list(judges)
    device = next(reader.parameters()).device
    read = [reader.eval()(clip.mel[None].to(device))[0].cpu() for clip in known]
    made = torch.stack([r.std(0) for r in read]).mean(0)
    true = torch.stack([clip.targets.std(0) for clip in known]).mean(0)
    gain = (true / made.clamp(min=1e-4)).clamp(1.0, MOST_GAIN).to(device)
    quiet = silence_mel().expand(-1, QUIET_FRAMES * MEL_PER_FRAME)[None].to(device)
    reader.audio.mouth.read.bias.sub_(reader.audio.read_mouth(quiet)[0, -1])
    reader.audio.mouth.read.weight.mul_(gain[:, None])
    reader.audio.mouth.read.bias.mul_(gain)
