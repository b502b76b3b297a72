"""The speech encoder: log-mel minus a running mean to features of each frame, causal but for 80 ms.

The running mean makes the tone of a voice or microphone matter little, and a floor that lies as far
below it in each recording makes silence sound like the pauses of speech. A linear map of ten frames
predicts most of what lips do; a few convolutions predict the rest and make the features.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from letstalk_rt.models.audio_encoder.lookahead import lookahead_in_frames
from letstalk_rt.models.audio_encoder.mel import (
    FEATURE_SCALE,
    MEL_PER_FRAME,
    MelState,
    RunningMeanState,
    StreamingMel,
    subtract_running_mean,
)
from letstalk_rt.models.audio_encoder.mouth_sound import mouth_sound
from letstalk_rt.models.layers.causal_conv import CausalConv1d, ConvState
from letstalk_rt.types import SAMPLES_PER_FRAME

_NATS = 4.0  # of power in one unit of log-mel


@dataclass(frozen=True)
class SpeechEncoderConfig:
    """Shape of the speech encoder.

    Attributes:
        width: channels of the features.
        dilations: one per convolution of three frames.
        reach: frames of audio that the linear map takes, the look-ahead included.
        dropout: dropout rate while training.
        lookahead_ms: 0, 40, 80 or 160.
        bands: bands of the log-mel, `M`.
        floor: power that is added before the logarithm.
        voiced_level: mean log-mel above which a frame enters the running mean.
        range_db: how far below the running mean each band is audible.
    """

    width: int = 192
    dilations: tuple[int, ...] = (1, 1, 2)
    reach: int = 10
    dropout: float = 0.25
    lookahead_ms: int = 80
    bands: int = 40
    floor: float = 1e-6
    voiced_level: float = -2.6
    range_db: float = 30.0


@dataclass
class SpeechState:
    """The state of the speech encoder, updated in place.

    Attributes:
        mel: state of the log-mel.
        mean: the running mean.
        linear: past inputs of the linear map.
        layers: past inputs of each convolution.
        inputs: the last `L + 1` frames of normalised log-mel, `(B, L + 1, 4 M)`.
    """

    mel: MelState
    mean: RunningMeanState
    linear: ConvState
    layers: list[ConvState]
    inputs: Tensor

    def reset(self) -> None:
        """Return to the initial state."""
        self.mel.reset()
        self.mean.reset()
        for part in (self.linear, *self.layers):
            part.reset()
        self.inputs.zero_()


@dataclass(frozen=True)
class Speech:
    """What is heard in some frames.

    Attributes:
        features: `(B, n, W)`.
        lips: the lips by the linear map alone, `(B, n, Q)`.
        sound: a few bands around each frame for the mouth painter, `(B, n, S)`.
    """

    features: Tensor
    lips: Tensor
    sound: Tensor


class SpeechEncoder(nn.Module):
    """Computes features of speech; the weights serve any number of sessions.

    Args:
        outputs: values of the linear map, `Q`.
        config: shape.

    Attributes:
        lookahead_frames: entry `n` of the output belongs to frame `n - lookahead_frames`.
        usual: initial mean of log-mel, `(M,)`.

    Raises:
        ConfigError: the look-ahead is none of 0, 40, 80 and 160 ms.
    """

    usual: Tensor

    def __init__(self, outputs: int, config: SpeechEncoderConfig | None = None) -> None:
        super().__init__()
        self.config = config or SpeechEncoderConfig()
        c, inputs = self.config, MEL_PER_FRAME * self.config.bands
        self.lookahead_frames = lookahead_in_frames(c.lookahead_ms)
        self.mel = StreamingMel(c.bands, c.floor)
        self.linear = CausalConv1d(inputs, outputs, c.reach)
        self.enter = nn.Linear(inputs, c.width)
        self.layers = nn.ModuleList(CausalConv1d(c.width, c.width, 3, d) for d in c.dilations)
        self.register_buffer("usual", torch.zeros(c.bands))

    def init_state(self, batch_size: int) -> SpeechState:
        """Create the state of new sessions."""
        inputs = MEL_PER_FRAME * self.config.bands
        return SpeechState(
            self.mel.init_state(batch_size),
            RunningMeanState.starting_at(self.usual, batch_size),
            self.linear.init_state(batch_size),
            [layer.init_state(batch_size) for layer in self.layers],  # type: ignore[operator]
            self.usual.new_zeros(batch_size, self.lookahead_frames + 1, inputs),
        )

    def forward(self, pcm: Tensor, state: SpeechState | None = None) -> Speech:
        """Encode the next part of a stream, or a whole one without `state`.

        Args:
            pcm: `(B, n)` in [-1, 1] at 16 kHz, `n` a positive multiple of 640.
            state: updated in place.
        """
        assert pcm.ndim == 2 and pcm.shape[1] % SAMPLES_PER_FRAME == 0, pcm.shape
        state = state or self.init_state(len(pcm))
        inputs = self.normalize(self.mel(pcm, state.mel), state.mean)
        sound = mouth_sound(inputs, state.inputs)
        state.inputs.copy_(torch.cat([state.inputs, inputs], 1)[:, -state.inputs.shape[1] :])
        features, lips = self.encode(inputs, state)
        return Speech(features, lips, sound)

    def normalize(self, mel: Tensor, state: RunningMeanState | None = None) -> Tensor:
        """Subtract the running mean from log-mel `(B, M, 4 n)`; return `(B, n, 4 M)`."""
        state = state or RunningMeanState.starting_at(self.usual, mel.shape[0])
        relative = subtract_running_mean(mel, state, self.config.voiced_level)
        floor = relative.new_tensor(-self.config.range_db / 10 * math.log(10))
        audible = torch.logaddexp(_NATS * relative, floor) / _NATS
        return FEATURE_SCALE * audible.flatten(2)

    def encode(self, inputs: Tensor, state: SpeechState | None = None) -> tuple[Tensor, Tensor]:
        """Return features `(B, n, W)` and lips `(B, n, Q)` of inputs from `normalize`."""
        p = self.config.dropout
        thinned = F.dropout(inputs, 2 * p, self.training).transpose(1, 2)
        lips = self.linear(thinned, state.linear if state else None).transpose(1, 2)
        h = F.gelu(self.enter(F.dropout(inputs, p, self.training))).transpose(1, 2)
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, CausalConv1d)
            h = self._residual(layer, h, state.layers[index] if state else layer.init_state(len(h)))
        return h.transpose(1, 2), lips

    def _residual(self, layer: CausalConv1d, h: Tensor, state: ConvState) -> Tensor:
        """Add a convolution of three frames to the middle one of them."""
        delay = layer.reach // 2
        whole = torch.cat([state.past[..., delay:].to(h.dtype), h], -1)
        middle = whole[..., : h.shape[-1]]
        return F.gelu(layer(F.dropout(h, self.config.dropout, self.training), state)) + middle
