"""Pretrains the audio encoder to predict mouth targets from audio, before the denoiser exists.

Every frame of every clip is a target. Clips whose lips do not follow their audio are found by the
encoder itself and get less weight.
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
    WARM_UP_FRAMES,
    augment_mel,
    best_lag,
    correlation,
    silence_mel,
)
from letstalk_rt.training.data.dataset import Clip
from letstalk_rt.training.data.spoken_clips import AudioClip, audio_clip
from letstalk_rt.training.loop import LoopConfig, Run

MAX_SHIFT = 5
"""Bound of the corrected offset between a clip's audio and its lips, in frames, exclusive."""

CORRELATION_WEIGHT = 1.0
"""Weight of the correlation of the mouth opening in the loss."""

MAX_GAIN = 5.0
"""Bound of the calibration's gain: a value that audio hardly predicts is mostly noise."""

QUIET_FRAMES = 50
"""Frames of silence that fill the encoder's receptive field."""


class MouthReader(nn.Module):
    """The audio encoder with a head that predicts mouth targets from its tokens.

    Args:
        config: The encoder's configuration; None for the default.
    """

    def __init__(self, config: AudioEncoderConfig | None = None) -> None:
        super().__init__()
        assert config is None or config.mouth_values in (0, NUM_MOUTH_TARGETS), config
        self.audio = CausalAudioEncoder(config)
        config = self.audio.config
        needs_head = config.mouth_values == 0  # else the encoder predicts mouth values itself
        self.head = nn.Linear(4 * config.token_width, NUM_MOUTH_TARGETS) if needs_head else None

    def forward(self, mel: Tensor) -> Tensor:
        """Predict mouth targets `(B, T, 11)` from log-mel `(B, 64, 4 * (T + L))`."""
        ahead = self.audio.lookahead_frames
        if self.head is None:
            return self.audio.read_mouth(mel)[:, ahead:]
        predicted: Tensor = self.head(self.audio.encode_mel(mel)[:, ahead:].flatten(2))
        return predicted


def split_by_source(clips: list[Clip], every: int = 6) -> tuple[list[Clip], list[Clip]]:
    """Split clips into training and validation clips: every sixth source is for validation.

    Clips of one source often show the same person; they stay together.
    """
    sources = held_out_sources({clip.source for clip in clips}, every)
    training = [clip for clip in clips if clip.source not in sources]
    return training, [clip for clip in clips if clip.source in sources]


def held_out_sources(sources: set[str], every: int = 6) -> set[str]:
    """Return the sources that are for validation: every sixth, but about 20 of very many."""
    return set(sorted(sources)[:: max(every, len(sources) // 20)])


def clean_clip(reader: MouthReader, clip: AudioClip) -> AudioClip:
    """Align a clip's audio with its lips, and set its weight by how well they then correlate.

    A reader that has seen each clip only a few times has not memorised the errors of one clip. If
    its prediction fits the lips clearly better some frames earlier or later, the audio is shifted.
    If it fits nowhere, the clip has music, noise or unrelated lips, and gets little weight.
    """
    predicted, true = predict_opening(reader, clip), clip.targets[:, 0].numpy()
    r = correlation(predicted, true)
    lag, best_r = best_lag(predicted, true, reach=MAX_SHIFT)
    if abs(lag) == MAX_SHIFT or best_r < r + 0.08 or best_r < 0.35:
        lag, best_r = 0, r
    weight = clip.weight * float(np.clip(best_r / 0.45, 0.05, 1.0))
    return replace(clip, features=_shifted(clip.features, -lag * MEL_PER_FRAME), weight=weight)


def listed_clip(clip: AudioClip, sync: float, lips_late: int) -> AudioClip:
    """Align and weight a clip by what the list of clips says, where no reader was trained.

    Args:
        clip: The clip.
        sync: Pearson's r of lips and audio at the best lag; NaN if unknown.
        lips_late: By how many frames the lips are later than the audio.
    """
    if np.isnan(sync):
        return clip
    weight = clip.weight * float(np.clip(sync / 0.45, 0.05, 1.0))
    return replace(clip, shift=lips_late, weight=weight)


def _shifted(mel: Tensor, steps: int) -> Tensor:
    """Shift log-mel by steps, later if positive, and fill with silence."""
    quiet = silence_mel().expand(-1, abs(steps))
    if steps > 0:
        return torch.cat([quiet, mel[:, :-steps]], 1)
    return torch.cat([mel[:, -steps:], quiet], 1) if steps else mel


@torch.no_grad()
def predict_opening(reader: MouthReader, clip: AudioClip) -> np.ndarray:
    """Return the mouth opening that the reader predicts from a clip's audio, `(T,)`."""
    mel = clip.features[None].to(next(reader.parameters()).device)
    opening: np.ndarray = reader.eval()(mel)[0, :, 0].cpu().numpy()
    return opening


def evaluate_reader(reader: MouthReader, clips: list[AudioClip]) -> dict[str, float]:
    """Correlate predicted and true opening: all, real and GRID clips, and with shuffled audio."""
    predicted = [predict_opening(reader, clip) for clip in clips]
    true = [clip.targets[:, 0].numpy() for clip in clips]
    own = [correlation(a, b) for a, b in zip(predicted, true, strict=True)]
    shuffled = []
    for index, b in enumerate(true):
        a = predicted[(index + 1) % len(predicted)]
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


def mouth_loss(predicted: Tensor, true: Tensor) -> dict[str, Tensor]:
    """Return the losses of predicted mouth targets `(B, T, 11)`: value, change and correlation.

    The correlation loss is 1 - Pearson's r of the opening over an item. It ignores amplitude,
    because audio does not tell how wide a person opens the mouth. Items at rest hardly count.
    """
    a = predicted[..., 0] - predicted[..., 0].mean(1, keepdim=True)
    b = true[..., 0] - true[..., 0].mean(1, keepdim=True)
    amplitude = b.pow(2).mean(1).sqrt()
    r = (a * b).sum(1) / (a.pow(2).sum(1) * b.pow(2).sum(1) + 1e-4).sqrt()
    return {
        "value": 10 * (predicted - true).abs().mean(),
        "change": 5 * (predicted.diff(dim=1) - true.diff(dim=1)).abs().mean(),
        "correlation": CORRELATION_WEIGHT * ((1 - r) * amplitude).sum() / (amplitude.sum() + 1e-3),
    }


class AudioItemSource:
    """Draws random items of log-mel with their mouth targets.

    Args:
        clips: Clips longer than an item.
        frames: Length of an item in frames.
    """

    def __init__(self, clips: list[AudioClip], frames: int) -> None:
        self._clips, self._frames = clips, frames
        self._weights = _sampling_weights(clips)
        self._quiet = silence_mel()
        self.cleaned = False

    def clean(self, reader: MouthReader) -> None:
        """Align and weight the clips by what a reader predicts for them; see `clean_clip`."""
        self._clips = [clean_clip(reader, clip) for clip in self._clips]
        self._weights = _sampling_weights(self._clips)
        self.cleaned = True

    def draw(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw augmented log-mel `(B, 64, 4 * (T + L))` and targets `(B, T, 11)`; 5 % silence."""
        mels, targets = [], []
        for index in torch.multinomial(self._weights, batch_size, True, generator=generator):
            clip = self._clips[int(index)]
            last = len(clip.targets) - self._frames
            start = int(torch.randint(last + 1, (1,), generator=generator))
            stop = start + self._frames
            mel_stop = MEL_PER_FRAME * (stop + clip.lookahead_frames)
            mels.append(clip.features[:, MEL_PER_FRAME * start : mel_stop])
            targets.append(clip.targets[start:stop])
        mel, true = augment_mel(torch.stack(mels), generator), torch.stack(targets)
        silent = torch.rand(batch_size, 1, 1, generator=generator) < 0.05
        mel = torch.where(silent, self._quiet + 0.02 * torch.rand(mel.shape), mel)
        return mel, torch.where(silent, torch.zeros(()), true)


def _sampling_weights(clips: list[AudioClip]) -> Tensor:
    return torch.tensor([clip.weight * len(clip.targets) for clip in clips])


def train_audio(
    clips: list[Clip],
    validation: list[Clip],
    folder: Path,
    config: LoopConfig,
    *,
    batch_size: int = 24,
    frames: int = 48,
    initial_weights: dict[str, Tensor] | None = None,
    encoder: AudioEncoderConfig | None = None,
) -> MouthReader:
    """Train the reader and return the one that is best on the validation clips.

    Args:
        clips: Training clips.
        validation: Clips of other people in the train split, which select the best weights.
        folder: The run's folder; `best.pt` is written there.
        config: Schedule.
        batch_size: Items per step.
        frames: Length of an item in frames.
        initial_weights: Weights of an audio encoder that was trained on phones.
        encoder: Shape and look-ahead of the audio encoder; None for the default.
    """
    torch.manual_seed(0)
    reader = MouthReader(encoder)
    ahead = reader.audio.lookahead_frames
    long = [clip for clip in clips if clip.has_audio and clip.num_frames > frames]
    source = AudioItemSource([audio_clip(clip, ahead) for clip in long], frames)
    validation_clips = [audio_clip(clip, ahead) for clip in validation if clip.has_audio]
    if initial_weights is not None:
        reader.audio.load_state_dict(initial_weights)
    run = Run(folder, reader, config)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        mel, true = (part.to(run.device) for part in source.draw(batch_size, run.generator))
        parts = mouth_loss(reader(mel)[:, WARM_UP_FRAMES:], true[:, WARM_UP_FRAMES:])
        return sum(parts.values(), mel.new_zeros(())), {k: float(v) for k, v in parts.items()}

    def evaluate(averaged: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(averaged, MouthReader)
        figures = evaluate_reader(averaged, validation_clips)
        run.keep_if_best(float(np.nanmean([figures["mouth_all"], figures["mouth_real"]])))
        if step >= config.evaluate_every * 2 and not source.cleaned:
            source.clean(averaged)
        return figures

    run.train(loss, evaluate)
    reader.load_state_dict(torch.load(run.best, map_location="cpu", weights_only=True))
    return reader


@torch.no_grad()
def calibrate(reader: MouthReader, validation_clips: Sequence[AudioClip]) -> None:
    """Scale the mouth values to the deviation of true ones, and make them zero in silence.

    A regressed value is a mean of possible ones, so it varies less than true values. Only for
    encoders that predict mouth values themselves; the reader must not have been trained on the
    clips.
    """
    if reader.audio.mouth is None:
        return
    clips = [clip for clip in validation_clips if clip.is_real] or list(validation_clips)
    device = next(reader.parameters()).device
    predicted = [reader.eval()(clip.features[None].to(device))[0].cpu() for clip in clips]
    deviation = torch.stack([values.std(0) for values in predicted]).mean(0)
    true = torch.stack([clip.targets.std(0) for clip in clips]).mean(0)
    gain = (true / deviation.clamp(min=1e-4)).clamp(1.0, MAX_GAIN).to(device)
    quiet = silence_mel().expand(-1, QUIET_FRAMES * MEL_PER_FRAME)[None].to(device)
    reader.audio.mouth.read.bias.sub_(reader.audio.read_mouth(quiet)[0, -1])
    reader.audio.mouth.read.weight.mul_(gain[:, None])
    reader.audio.mouth.read.bias.mul_(gain)
