"""The sync score: how well lips fit audio, by a small two-tower network of this project.

One tower encodes lip landmarks, the other log-mel; each yields one vector per frame, and vectors of
the same moment are trained to be similar. A clip is scored as SyncNet does (Chung and Zisserman
2016), with cosines: the similarity at the best offset minus the median over offsets. The network is
not SyncNet, and its figures compare with each other only: true videos and shuffled audio are scored
as references.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from letstalk_rt.errors import InputError, WeightsError
from letstalk_rt.models.audio_encoder.mel import NUM_BANDS, StreamingMel
from letstalk_rt.models.geometry.landmarks import LIPS_INNER, LIPS_OUTER
from letstalk_rt.training.data.audio_features import MEL_PER_FRAME, augment_mel
from letstalk_rt.training.data.dataset import Clip
from letstalk_rt.training.data.spoken_clips import KIND_WEIGHT
from letstalk_rt.training.evaluation.faces import aligned_mouth
from letstalk_rt.training.loop import LoopConfig, Run
from letstalk_rt.types import SAMPLES_PER_FRAME

NAME = "sync_two_tower"
CHIN = 152
LIP_POINTS = (*LIPS_OUTER, *LIPS_INNER, CHIN)
REACH = 15
"""Largest offset tried, in frames either way."""

TRAINING_FRAMES = 64
"""Frames of a training item; its other frames are the negatives."""

_NEAR = 1
"""Frames next to a positive that are not used as negatives."""


@dataclass(frozen=True)
class SyncScore:
    """How well lips fit audio.

    Attributes:
        confidence: Similarity at the best offset minus the median over offsets.
        offset: Frames by which the lips are late at the best offset.
        likeness: Similarity (mean cosine) at offset 0 minus the median over offsets.
    """

    confidence: float
    offset: int
    likeness: float


class SyncTowers(nn.Module):
    """Two towers of convolutions over time, with a receptive field of about half a second.

    Args:
        width: Number of channels.
        size: Size of the vectors.
    """

    def __init__(self, width: int = 96, size: int = 48) -> None:
        super().__init__()
        self.lips = nn.Sequential(
            nn.Conv1d(2 * len(LIP_POINTS), width, 5, padding=2),
            nn.SiLU(),
            nn.Dropout(0.2),
            nn.Conv1d(width, width, 5, padding=2),
            nn.SiLU(),
            nn.Conv1d(width, size, 3, padding=1),
        )
        self.sound = nn.Sequential(
            nn.Conv1d(NUM_BANDS, width, 5, padding=2),
            nn.SiLU(),
            nn.Dropout(0.2),
            nn.Conv1d(width, width, 2 * MEL_PER_FRAME, stride=MEL_PER_FRAME, padding=2),
            nn.SiLU(),
            nn.Conv1d(width, width, 5, padding=2),
            nn.SiLU(),
            nn.Conv1d(width, size, 3, padding=1),
        )
        self.sharpness = nn.Parameter(torch.tensor(2.0))

    def forward(self, lips: Tensor, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Return unit vectors `(B, T, size)` of lips `(B, T, 2 P)` and of mel `(B, 64, 4 T)`."""
        video, audio = self.lips(lips.transpose(1, 2)), self.sound(mel)
        assert video.shape == audio.shape, (video.shape, audio.shape)
        return F.normalize(video, dim=1).transpose(1, 2), F.normalize(audio, dim=1).transpose(1, 2)


def lip_features(points: np.ndarray) -> Tensor:
    """Return the input of the lips tower, `(T, 2 P)`, from mesh points `(T, 478, 2)`.

    Points are relative to the clip's mean, which removes the shape of a person's lips.
    """
    lips = torch.from_numpy(aligned_mouth(points, LIP_POINTS)).flatten(1)
    return 20 * (lips - lips.mean(0))


@torch.no_grad()
def log_mel(pcm: np.ndarray) -> Tensor:
    """Return log-mel `(64, 4 T)` of PCM of T whole frames."""
    mel: Tensor = StreamingMel()(torch.from_numpy(np.ascontiguousarray(pcm, np.float32))[None])[0]
    return mel


@torch.no_grad()
def sync_score(towers: SyncTowers, points: np.ndarray, pcm: np.ndarray) -> SyncScore:
    """Score lips `(T, 478, 2)` against PCM of `T` frames."""
    count = min(len(points), len(pcm) // SAMPLES_PER_FRAME)
    lips, mel = lip_features(points[:count]), log_mel(pcm[: count * SAMPLES_PER_FRAME])
    video, audio = (x[0] for x in towers.eval()(lips[None], mel[None]))
    reach = min(REACH, count // 3)
    offsets = range(-reach, reach + 1)
    curve = [
        float((video[max(o, 0) : count + min(o, 0)] * audio[max(-o, 0) : count - max(o, 0)])
              .sum(1).mean())
        for o in offsets
    ]  # fmt: skip
    best, usual = int(np.argmax(curve)), float(np.median(curve))
    return SyncScore(curve[best] - usual, offsets[best], curve[reach] - usual)


def sync_loss(video: Tensor, audio: Tensor, sharpness: Tensor) -> Tensor:
    """Return the contrastive loss of each frame against the others of its item, both ways.

    Args:
        video: `(B, T, D)` unit vectors of the lips.
        audio: `(B, T, D)` unit vectors of the audio.
        sharpness: Log of the factor on cosines.
    """
    logits = torch.exp(sharpness.clamp(max=4.0)) * video @ audio.transpose(1, 2)
    frame = torch.arange(logits.shape[1], device=logits.device)
    distance = (frame[:, None] - frame[None]).abs()
    logits = logits.masked_fill((distance > 0) & (distance <= _NEAR), -1e4)
    target = frame.expand(logits.shape[0], -1)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.transpose(1, 2), target)) / 2


def calibrate(towers: SyncTowers, clips: list[Clip], shift: int = 5) -> dict[str, float]:
    """Check the score itself on true videos: with their audio, shifted audio, and another clip's.

    Returns:
        `sync_true` and `sync_true_shuffled`: mean confidence; `sync_likeness_true`: mean
        likeness; `sync_found`: share of clips whose best offset is within a frame of the truth;
        `sync_found_shifted`: the same with the audio shifted by `shift` frames.
    """
    own, moved, other = [], [], []
    for index, clip in enumerate(clips):
        own.append(sync_score(towers, clip.landmarks, clip.pcm))
        late = np.roll(clip.pcm, shift * SAMPLES_PER_FRAME)
        moved.append(sync_score(towers, clip.landmarks, late))
        wrong = np.resize(clips[(index + len(clips) // 2) % len(clips)].pcm, clip.pcm.shape)
        other.append(sync_score(towers, clip.landmarks, wrong))
    return {
        "sync_true": float(np.mean([s.confidence for s in own])),
        "sync_true_shuffled": float(np.mean([s.confidence for s in other])),
        "sync_likeness_true": float(np.mean([s.likeness for s in own])),
        "sync_found": float(np.mean([abs(s.offset) <= 1 for s in own])),
        "sync_found_shifted": float(np.mean([abs(s.offset + shift) <= 1 for s in moved])),
    }


def train_sync(
    clips: list[Clip],
    validation: list[Clip],
    folder: Path,
    config: LoopConfig,
    *,
    batch_size: int = 24,
) -> nn.Module:
    """Train the towers and return those that are best on the validation clips.

    Args:
        clips: Training clips.
        validation: Clips of other people in the train split, which select the best weights.
        folder: The run's folder; `best.pt` is written there.
        config: Schedule.
        batch_size: Items per step.

    Raises:
        InputError: No training clip is long enough.
    """
    torch.manual_seed(0)
    long_enough = [clip for clip in clips if clip.has_audio and clip.num_frames >= TRAINING_FRAMES]
    if not long_enough:
        raise InputError(
            f"no training clip has audio and {TRAINING_FRAMES} frames; add longer clips"
        )
    validation_clips = [clip for clip in validation if clip.has_audio]
    lips, mels = (
        [lip_features(c.landmarks) for c in long_enough],
        [log_mel(c.pcm) for c in long_enough],
    )
    weights = torch.tensor([KIND_WEIGHT[c.kind] * c.num_frames for c in long_enough])
    towers = SyncTowers()
    run = Run(folder, towers, config)

    def draw() -> tuple[Tensor, Tensor]:
        items = []
        for index in torch.multinomial(weights, batch_size, True, generator=run.generator):
            start = int(
                torch.randint(len(lips[index]) - TRAINING_FRAMES + 1, (1,), generator=run.generator)
            )
            mel = mels[index][:, MEL_PER_FRAME * start : MEL_PER_FRAME * (start + TRAINING_FRAMES)]
            items.append((lips[index][start : start + TRAINING_FRAMES], mel))
        lips_batch, mel_batch = zip(*items, strict=True)
        return torch.stack(lips_batch), torch.stack(mel_batch)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        shapes, mel = draw()
        size = 0.7 + 0.6 * torch.rand(batch_size, 1, 1, generator=run.generator)
        shapes = size * shapes + 0.1 * torch.randn(shapes.shape, generator=run.generator)
        mel = augment_mel(mel, run.generator)
        video, audio = towers(shapes.to(run.device), mel.to(run.device))
        return sync_loss(video, audio, towers.sharpness), {}

    def evaluate(averaged: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(averaged, SyncTowers)
        figures = calibrate(averaged, validation_clips)
        run.keep_if_best(figures["sync_likeness_true"])
        return figures

    run.train(loss, evaluate if validation_clips else None)
    if run.best.exists():
        towers.load_state_dict(torch.load(run.best, weights_only=True))
    return towers


def load_towers(path: Path) -> SyncTowers:
    """Load trained towers.

    Raises:
        WeightsError: The file holds something else.
    """
    towers = SyncTowers()
    try:
        towers.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, OSError, KeyError, EOFError, ValueError) as error:
        raise WeightsError(
            f"{path.name} holds no {NAME} network; train it with `letstalk train sync`"
        ) from error
    return towers.eval()
