"""The causal audio encoder: a hop of audio to audio tokens, with a declared look-ahead.

A stack of causal convolutions over log-mel at 100 Hz. Its four outputs per video frame are the
audio tokens of the frame that ended one look-ahead earlier: the look-ahead is a delay.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from letstalk_rt.models.audio_encoder.lookahead import lookahead_in_frames
from letstalk_rt.models.audio_encoder.mel import NUM_BANDS, STEP, MelState, StreamingMel
from letstalk_rt.models.layers.causal_conv import CausalConv1d, ConvState
from letstalk_rt.types import SAMPLES_PER_FRAME

TOKENS_PER_FRAME = SAMPLES_PER_FRAME // STEP
LOOKAHEAD_FRAMES = 2
"""Look-ahead of the default config: 80 ms."""


@dataclass(frozen=True)
class AudioEncoderConfig:
    """Shape of the audio encoder.

    Attributes:
        width: channels of the convolutional layers.
        token_width: width of an audio token, `A`.
        dilations: dilation of each layer.
        dropout: dropout rate in training.
        lookahead_ms: 0, 40, 80 or 160. Weights are trained for one look-ahead.
        mouth_values: width of the bottleneck before the tokens, see `MouthBottleneck`; 0 for none.
    """

    width: int = 160
    token_width: int = 96
    dilations: tuple[int, ...] = (1, 2, 4, 8, 16, 1, 2, 4)
    dropout: float = 0.1
    lookahead_ms: int = 80
    mouth_values: int = 0


@dataclass
class AudioEncoderState:
    """The past inputs of each layer, written in place."""

    mel: MelState
    stem: ConvState
    layers: list[ConvState]

    def reset(self) -> None:
        """Return to the state of a new session."""
        self.mel.reset()
        for part in (self.stem, *self.layers):
            part.reset()


class _Layer(nn.Module):
    def __init__(self, width: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = CausalConv1d(width, 2 * width, 3, dilation)
        self.out = nn.Conv1d(width, width, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, state: ConvState | None) -> Tensor:
        h = self.norm(x.transpose(1, 2)).transpose(1, 2)
        value, gate = self.conv(h, state).chunk(2, 1)
        out: Tensor = x + self.out(self.dropout(value * torch.sigmoid(gate)))
        return out


class MouthBottleneck(nn.Module):
    """A bottleneck: audio features to a few mouth values per frame, and these to audio tokens.

    With little video to train on, a denoiser that receives all of the audio memorises the clips.
    One that receives mouth values learns how faces move with them, and the path from audio to mouth
    values is trained separately, on far more speech than there is video of faces.

    Args:
        token_width: width of an audio token, `A`.
        values: mouth values per frame.
    """

    def __init__(self, token_width: int, values: int) -> None:
        super().__init__()
        self.read = nn.Linear(TOKENS_PER_FRAME * token_width, values)
        self.show = nn.Linear(values, TOKENS_PER_FRAME * token_width)
        nn.init.normal_(self.show.weight)  # mouth values are small: about 0.2

    def tokens(self, mouth: Tensor) -> Tensor:
        """Compute audio tokens `(B, N, 4, A)` from mouth values `(B, N, values)`."""
        tokens: Tensor = self.show(mouth).unflatten(-1, (TOKENS_PER_FRAME, -1))
        return tokens


class CausalAudioEncoder(nn.Module):
    """An audio encoder of causal convolutions; any number of sessions share its weights.

    Args:
        config: shape; the defaults when None.

    Attributes:
        lookahead_frames: the tokens returned for frame `n` of the audio belong to video frame
            `n - lookahead_frames`.

    Raises:
        ConfigError: the look-ahead is not 0, 40, 80 or 160 ms.
    """

    def __init__(self, config: AudioEncoderConfig | None = None) -> None:
        super().__init__()
        self.config = config or AudioEncoderConfig()
        self.lookahead_frames = lookahead_in_frames(self.config.lookahead_ms)
        width = self.config.width
        self.mel = StreamingMel()
        self.stem = CausalConv1d(NUM_BANDS, width, 3)
        self.layers = nn.ModuleList(
            _Layer(width, d, self.config.dropout) for d in self.config.dilations
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, self.config.token_width))
        values = self.config.mouth_values
        self.mouth = MouthBottleneck(self.config.token_width, values) if values else None

    def init_state(self, batch_size: int) -> AudioEncoderState:
        """Return the state of new sessions, whose past is silence."""
        return AudioEncoderState(
            self.mel.init_state(batch_size),
            self.stem.init_state(batch_size),
            # The type of a ModuleList does not include that of its modules.
            [layer.conv.init_state(batch_size) for layer in self.layers],  # type: ignore[union-attr, operator]
        )

    def forward(self, pcm: Tensor, state: AudioEncoderState | None = None) -> Tensor:
        """Encode the next chunk of a stream, or a whole recording when `state` is None.

        Args:
            pcm: `(B, n)` in [-1, 1] at 16 kHz, `n` a positive multiple of 640.
            state: updated in place.

        Returns:
            `(B, n / 640, 4, A)`; entry `i` of the stream belongs to frame `i - lookahead_frames`.
        """
        assert pcm.ndim == 2 and pcm.shape[1] % SAMPLES_PER_FRAME == 0, pcm.shape
        mel = self.mel(pcm, state.mel if state else None)
        return self.encode_mel(mel, state)

    def encode_mel(self, mel: Tensor, state: AudioEncoderState | None = None) -> Tensor:
        """Encode log-mel `(B, 64, 4 * frames)`; in training it is augmented first."""
        tokens = self._tokens(mel, state)
        if self.mouth is None:
            return tokens
        return self.mouth.tokens(self.mouth.read(tokens.flatten(2)))

    def read_mouth(self, mel: Tensor) -> Tensor:
        """Return the mouth values, `(B, frames, values)`; the encoder must have a bottleneck."""
        assert self.mouth is not None
        mouth: Tensor = self.mouth.read(self._tokens(mel, None).flatten(2))
        return mouth

    def _tokens(self, mel: Tensor, state: AudioEncoderState | None) -> Tensor:
        features = self.features(mel, state)
        tokens: Tensor = self.head(features.transpose(1, 2)).unflatten(1, (-1, TOKENS_PER_FRAME))
        return tokens

    def features(self, mel: Tensor, state: AudioEncoderState | None = None) -> Tensor:
        """Return the hidden features at 100 Hz, `(B, width, steps)`, before the token head."""
        x = self.stem(mel, state.stem if state else None)
        for index, layer in enumerate(self.layers):
            x = layer(x, state.layers[index] if state else None)
        return F.silu(x)
