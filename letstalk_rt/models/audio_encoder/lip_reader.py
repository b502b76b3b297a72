"""The lip reader: a small causal network beside the audio encoder that predicts lip values.

Its input is log-mel minus a running mean, so that the tone of a voice or microphone matters little,
above a floor that lies as far below the mean in each recording: silence sounds like the pauses of
speech, and lips come to rest in it as they do there.
A linear map of ten frames yields most of the prediction, a few convolutions the rest. Several
members, trained with different clips set aside, run side by side; their mean is the prediction.

Source: averaging of predictors trained on parts of the data: Breiman 1996, doi:10.1007/BF00058655.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from letstalk_rt.models.audio_encoder.lookahead import lookahead_in_frames
from letstalk_rt.models.audio_encoder.mel import STEP, MelState, StreamingMel
from letstalk_rt.models.audio_encoder.mouth_sound import mouth_sound
from letstalk_rt.models.layers.causal_conv import CausalConv1d, ConvState
from letstalk_rt.types import SAMPLES_PER_FRAME

MEL_PER_FRAME = SAMPLES_PER_FRAME // STEP

VOICED_LEVEL = -1.2
"""Mean log-mel above which a frame enters the running mean; digital silence is -1.55."""

PRIOR_FRAMES = 25
"""Weight of the initial mean in the running mean, in frames."""

MEAN_FRAMES = 750
"""Number of frames from which on the running mean forgets the oldest exponentially."""

FEATURE_SCALE = 4 / 3
"""Scales log-mel minus its mean to about unit variance."""

_NATS = 4.0  # of power in one unit of log-mel


@dataclass(frozen=True)
class LipReaderConfig:
    """Shape of the lip reader.

    Attributes:
        values: lip values per frame, `Q`.
        width: channels of the convolutions.
        dilations: one per convolution of three frames.
        reach: frames of audio that the linear map takes, the look-ahead included.
        dropout: dropout rate while training.
        lookahead_ms: 0, 40, 80 or 160.
        members: networks side by side whose predictions are averaged.
        bands: bands of the log-mel, `M`.
        floor: power that is added before the logarithm.
        voiced_level: mean log-mel above which a frame enters the running mean; digital silence is
            `(log(floor) + 3) / 4`.
        range_db: how far below the running mean each band is audible; noise of that level is added.
    """

    values: int = 8
    width: int = 192
    dilations: tuple[int, ...] = (1, 1, 2)
    reach: int = 10
    dropout: float = 0.25
    lookahead_ms: int = 80
    members: int = 5
    bands: int = 40
    floor: float = 1e-6
    voiced_level: float = -2.6
    range_db: float = 30.0


@dataclass
class RunningMeanState:
    """The running mean of log-mel.

    Attributes:
        mean: `(B, M)` log-mel.
        count: voiced frames in the mean, `(B, 1)`, at most `MEAN_FRAMES`.
        initial: the mean before any voiced frame, `(B, M)`.
    """

    mean: Tensor
    count: Tensor
    initial: Tensor

    @classmethod
    def starting_at(cls, usual: Tensor, batch_size: int) -> "RunningMeanState":
        """Create the state of new streams, whose mean is `usual`, `(M,)`."""
        initial = usual.repeat(batch_size, 1)
        return cls(initial.clone(), initial.new_zeros(batch_size, 1), initial)

    def reset(self) -> None:
        """Return to the initial mean."""
        self.mean.copy_(self.initial)
        self.count.zero_()


@dataclass
class LipReaderState:
    """The state of the lip reader, updated in place.

    Attributes:
        mel: state of the log-mel.
        mean: the running mean.
        linear: past inputs of the linear map.
        layers: past inputs of each convolution.
        features: the last `L + 1` frames of features, `(B, L + 1, 4 M)`.
    """

    mel: MelState
    mean: RunningMeanState
    linear: ConvState
    layers: list[ConvState]
    features: Tensor

    def reset(self) -> None:
        """Return to the initial state."""
        self.mel.reset()
        self.mean.reset()
        for part in (self.linear, *self.layers):
            part.reset()
        self.features.zero_()


class LipReader(nn.Module):
    """Predicts lip values from audio; the weights serve any number of sessions.

    Args:
        config: shape.

    Attributes:
        lookahead_frames: the values returned with audio frame `n` belong to frame
            `n - lookahead_frames`.
        usual: initial mean of log-mel, `(M,)`.

    Raises:
        ConfigError: the look-ahead is none of 0, 40, 80 and 160 ms.
    """

    usual: Tensor

    def __init__(self, config: LipReaderConfig | None = None) -> None:
        super().__init__()
        self.config = config or LipReaderConfig()
        c = self.config
        self.lookahead_frames = lookahead_in_frames(c.lookahead_ms)
        inputs, width = MEL_PER_FRAME * c.bands, c.members * c.width
        self.mel = StreamingMel(c.bands, c.floor)
        self.linear = CausalConv1d(inputs, c.values, c.reach)
        self.enter = nn.Linear(inputs, width)
        self.layers = nn.ModuleList(
            CausalConv1d(width, width, 3, d, groups=c.members) for d in c.dilations
        )
        self.leave = nn.Linear(width, c.values)
        self.register_buffer("usual", torch.zeros(c.bands))

    def init_state(self, batch_size: int) -> LipReaderState:
        """Create the state of new sessions."""
        return LipReaderState(
            self.mel.init_state(batch_size),
            RunningMeanState.starting_at(self.usual, batch_size),
            self.linear.init_state(batch_size),
            [layer.init_state(batch_size) for layer in self.layers],  # type: ignore[operator]
            self.usual.new_zeros(batch_size, *self._past_shape),
        )

    def forward(self, pcm: Tensor, state: LipReaderState | None = None) -> Tensor:
        """Return the lip values of the next part of a stream, or of a whole one without `state`.

        Args:
            pcm: `(B, n)` in [-1, 1] at 16 kHz, `n` a positive multiple of 640.
            state: updated in place.

        Returns:
            `(B, n / 640, Q)`; entry `i` of the stream belongs to frame `i - lookahead_frames`.
        """
        return self.hear(pcm, state)[..., : self.config.values]

    def hear(self, pcm: Tensor, state: LipReaderState | None = None) -> Tensor:
        """As `forward`, with the sound for the mouth painter: `(B, n / 640, Q + S)`.

        See `mouth_sound`.
        """
        assert pcm.ndim == 2 and pcm.shape[1] % SAMPLES_PER_FRAME == 0, pcm.shape
        state = state or self.init_state(len(pcm))
        features = self.normalize(self.mel(pcm, state.mel), state.mean)
        sound = mouth_sound(features, state.features)
        recent = torch.cat([state.features, features], 1)[:, -self._past_shape[0] :]
        state.features.copy_(recent)
        return torch.cat([self.predict(features, state), sound], -1)

    @property
    def _past_shape(self) -> tuple[int, int]:
        return self.lookahead_frames + 1, MEL_PER_FRAME * self.config.bands

    def normalize(self, mel: Tensor, state: RunningMeanState | None = None) -> Tensor:
        """Subtract the running mean from log-mel `(B, M, 4 n)`; return `(B, n, 4 M)`."""
        state = state or RunningMeanState.starting_at(self.usual, mel.shape[0])
        relative = subtract_running_mean(mel, state, self.config.voiced_level)
        return FEATURE_SCALE * self._above_floor(relative).flatten(2)

    def _above_floor(self, relative: Tensor) -> Tensor:
        """Add noise `range_db` below the running mean to log-mel relative to it."""
        floor = relative.new_tensor(-self.config.range_db / 10 * math.log(10))
        return torch.logaddexp(_NATS * relative, floor) / _NATS

    def predict(self, features: Tensor, state: LipReaderState | None = None) -> Tensor:
        """As `forward`, from the features of `normalize`; training augments those."""
        p, x = self.config.dropout, features.transpose(1, 2)
        linear: Tensor = self.linear(
            F.dropout(x, 2 * p, self.training), state.linear if state else None
        ).transpose(1, 2)
        h = F.gelu(self.enter(F.dropout(features, p, self.training))).transpose(1, 2)
        for index, layer in enumerate(self.layers):
            past = state.layers[index] if state else layer.init_state(len(h))  # type: ignore[operator]
            h = self._residual(layer, h, past)
        deep: Tensor = self.leave(F.dropout(h, p, self.training).transpose(1, 2))
        return linear + deep

    def _residual(self, layer: nn.Module, h: Tensor, state: ConvState) -> Tensor:
        """Add a convolution of three frames to the middle one of them."""
        assert isinstance(layer, CausalConv1d)
        delay = layer.reach // 2
        whole = torch.cat([state.past[..., delay:].to(h.dtype), h], -1)
        middle = whole[..., : h.shape[-1]]
        return F.gelu(layer(F.dropout(h, self.config.dropout, self.training), state)) + middle


def subtract_running_mean(
    mel: Tensor, state: RunningMeanState, voiced_level: float = VOICED_LEVEL
) -> Tensor:
    """Subtract the running mean from log-mel `(B, M, 4 n)`; return `(B, n, 4, M)`.

    Args:
        mel: log-mel of the next `n` frames.
        state: updated in place; frames without voice do not enter it.
        voiced_level: mean log-mel above which a frame is voiced.
    """
    split = mel.reshape(*mel.shape[:2], -1, MEL_PER_FRAME)
    frames = split.permute(0, 2, 3, 1)  # (B, n, 4, M)
    means, relative = frames.mean(2), []
    voiced = (means.mean(2, keepdim=True) > voiced_level).to(mel.dtype)
    for index in range(frames.shape[1]):
        share = voiced[:, index] / (state.count + 1 + PRIOR_FRAMES)
        state.mean.add_(share * (means[:, index] - state.mean))
        state.count.add_(voiced[:, index]).clamp_(max=MEAN_FRAMES)
        relative.append(frames[:, index] - state.mean[:, None])
    return torch.stack(relative, 1)


def joined(readers: Sequence[LipReader]) -> LipReader:
    """Return one lip reader that predicts the mean of several with one member each.

    The maps of ten frames become one; the convolutions run side by side.
    """
    assert readers and all(reader.config.members == 1 for reader in readers)
    whole = LipReader(replace(readers[0].config, members=len(readers)))
    parts = [reader.state_dict() for reader in readers]
    weights = {}
    for name in parts[0]:
        stacked = torch.stack([part[name] for part in parts])
        if name.startswith(("enter.", "layers.")):
            weights[name] = stacked.flatten(0, 1)
        elif name == "leave.weight":
            weights[name] = torch.cat(list(stacked), 1) / len(readers)
        else:
            weights[name] = stacked.mean(0)
    whole.load_state_dict(weights)
    return whole.eval()
