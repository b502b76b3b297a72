"""The sync score: do these lips belong to this sound? A small two-tower network of our own.

One tower reads the outline of the lips, the other log-mel; both give one vector per frame, and
vectors of one moment are alike. A clip is scored as SyncNet scores it (Chung and Zisserman 2016),
with cosines: the likeness at the best offset less the median over offsets. The network is not
SyncNet: its figures compare with each other only, so the truth and a shuffled sound stand beside.
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
"""Offsets tried, in frames either way."""

TRAINING_FRAMES = 64
"""Frames of a training piece; its other moments are the wrong answers."""

_NEAR = 1
"""Frames around a moment that are no wrong answer to it."""


@dataclass(frozen=True)
class SyncScore:
    """How a clip's lips fit a sound.

    Attributes:
        confidence: likeness at the best offset less the median over offsets.
        offset: frames by which the lips are late, at best likeness.
        likeness: mean cosine at offset 0, less the median over offsets.
    """

    confidence: float
    offset: int
    likeness: float


class SyncTowers(nn.Module):
    """Two towers of convolutions over time; each sees about half a second.

    Args:
        width: channels.
        size: of the vectors.
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
        """Give unit vectors `(B, T, size)` of lips `(B, T, 2 P)` and mel `(B, 64, 4 T)`."""
        seen, heard = self.lips(lips.transpose(1, 2)), self.sound(mel)
        assert seen.shape == heard.shape, (seen.shape, heard.shape)
        return F.normalize(seen, dim=1).transpose(1, 2), F.normalize(heard, dim=1).transpose(1, 2)


def lip_features(points: np.ndarray) -> Tensor:
    """Give what the lips tower sees of mesh points `(T, 478, 2)`: `(T, 2 P)`.

    Relative to the clip's own mean, so that the shape of a person's lips says nothing.
    """
    shown = torch.from_numpy(aligned_mouth(points, LIP_POINTS)).flatten(1)
    return 20 * (shown - shown.mean(0))


@torch.no_grad()
def log_mel(pcm: np.ndarray) -> Tensor:
    """Give log-mel `(64, 4 T)` of a sound of whole frames."""
    mel: Tensor = StreamingMel()(torch.from_numpy(np.ascontiguousarray(pcm, np.float32))[None])[0]
    return mel


@torch.no_grad()
def sync_score(towers: SyncTowers, points: np.ndarray, pcm: np.ndarray) -> SyncScore:
    """Score lips `(T, 478, 2)` against a sound of `T` frames."""
    count = min(len(points), len(pcm) // SAMPLES_PER_FRAME)
    lips, mel = lip_features(points[:count]), log_mel(pcm[: count * SAMPLES_PER_FRAME])
    seen, heard = (x[0] for x in towers.eval()(lips[None], mel[None]))
    reach = min(REACH, count // 3)
    offsets = range(-reach, reach + 1)
    curve = [
        float((seen[max(o, 0) : count + min(o, 0)] * heard[max(-o, 0) : count - max(o, 0)])
              .sum(1).mean())
        for o in offsets
    ]  # fmt: skip
    best, usual = int(np.argmax(curve)), float(np.median(curve))
    return SyncScore(curve[best] - usual, offsets[best], curve[reach] - usual)


def sync_loss(seen: Tensor, heard: Tensor, sharpness: Tensor) -> Tensor:
    """Give the contrast of each moment against the other moments of its piece, both ways.

    Args:
        seen: `(B, T, D)` unit vectors.
        heard: as `seen`.
        sharpness: log of the factor on cosines.
    """
    alike = torch.exp(sharpness.clamp(max=4.0)) * seen @ heard.transpose(1, 2)
    place = torch.arange(alike.shape[1], device=alike.device)
    apart = (place[:, None] - place[None]).abs()
    alike = alike.masked_fill((apart > 0) & (apart <= _NEAR), -1e4)
    wanted = place.expand(alike.shape[0], -1)
    return (F.cross_entropy(alike, wanted) + F.cross_entropy(alike.transpose(1, 2), wanted)) / 2


def calibrate(towers: SyncTowers, clips: list[Clip], shift: int = 5) -> dict[str, float]:
    """Judge the score itself on true videos: with their sound, with it shifted, with another's.

    Returns:
        `sync_true` and `sync_true_shuffled`: mean confidence; `sync_found`: share of clips whose
        best offset is within a frame of the truth; `sync_found_shifted`: the same with the sound
        moved by `shift` frames.
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
    """Train the towers, keep the best by the clips set aside, and give them.

    Args:
        clips: of the train split.
        validation: of the train split too, but other people: they choose when to stop.
        folder: of the run; `best.pt` is written there.
        config: schedule.
        batch_size: pieces a step.
    """
    torch.manual_seed(0)
    heard = [clip for clip in clips if clip.has_audio and clip.num_frames >= TRAINING_FRAMES]
    if not heard:
        raise InputError(
            f"no clip to train on has sound and {TRAINING_FRAMES} frames; add longer clips"
        )
    validation_clips = [clip for clip in validation if clip.has_audio]
    lips, mels = [lip_features(c.landmarks) for c in heard], [log_mel(c.pcm) for c in heard]
    weights = torch.tensor([KIND_WEIGHT[c.kind] * c.num_frames for c in heard])
    towers = SyncTowers()
    run = Run(folder, towers, config)

    def draw() -> tuple[Tensor, Tensor]:
        pieces = []
        for index in torch.multinomial(weights, batch_size, True, generator=run.generator):
            start = int(
                torch.randint(len(lips[index]) - TRAINING_FRAMES + 1, (1,), generator=run.generator)
            )
            mel = mels[index][:, MEL_PER_FRAME * start : MEL_PER_FRAME * (start + TRAINING_FRAMES)]
            pieces.append((lips[index][start : start + TRAINING_FRAMES], mel))
        seen, sounds = zip(*pieces, strict=True)
        return torch.stack(seen), torch.stack(sounds)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        shown, mel = draw()
        size = 0.7 + 0.6 * torch.rand(batch_size, 1, 1, generator=run.generator)
        shown = size * shown + 0.1 * torch.randn(shown.shape, generator=run.generator)
        mel = augment_mel(mel, run.generator)
        seen, sound = towers(shown.to(run.device), mel.to(run.device))
        return sync_loss(seen, sound, towers.sharpness), {}

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
    """Read trained towers.

    Raises:
        WeightsError: the file holds something else.
    """
    towers = SyncTowers()
    try:
        towers.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, OSError, KeyError, EOFError, ValueError) as error:
        raise WeightsError(
            f"{path.name} holds no {NAME} network; make it with `letstalk train sync`"
        ) from error
    return towers.eval()
