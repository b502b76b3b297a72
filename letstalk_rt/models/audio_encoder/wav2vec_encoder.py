"""The paper's audio path as a streaming audio encoder: wav2vec 2.0, then the audio projector.

It has the interface of `CausalAudioEncoder`: a hop of audio in, audio tokens per frame out, delayed
by the look-ahead of both parts.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from torch import Tensor, nn

from letstalk_rt.models.audio_encoder.projector import (
    AudioProjector,
    AudioProjectorConfig,
    ProjectorState,
)
from letstalk_rt.models.audio_encoder.wav2vec_stream import (
    Wav2Vec2State,
    Wav2Vec2Stream,
    Wav2Vec2StreamConfig,
)


@dataclass(frozen=True)
class Wav2VecEncoderConfig:
    """Shape of the audio path; the defaults are the paper's.

    Attributes:
        stream: settings of wav2vec 2.0.
        reach: neighbouring frames that the projector uses on either side.
        hidden: width of the projector's hidden layers.
        tokens: audio tokens per frame.
        token_width: width of an audio token, `A`.
    """

    stream: Wav2Vec2StreamConfig = field(default_factory=Wav2Vec2StreamConfig)
    reach: int = 2
    hidden: int = 512
    tokens: int = 32
    token_width: int = 768

    @property
    def lookahead_ms(self) -> int:
        """The look-ahead of wav2vec 2.0; the projector adds `reach` frames."""
        return self.stream.lookahead_ms

    def with_lookahead(self, lookahead_ms: int) -> "Wav2VecEncoderConfig":
        """Return a copy with another look-ahead of wav2vec 2.0."""
        return replace(self, stream=replace(self.stream, lookahead_ms=lookahead_ms))


@dataclass
class Wav2VecEncoderState:
    """The states of both parts, written in place."""

    stream: Wav2Vec2State
    projector: ProjectorState

    def reset(self) -> None:
        """Return to the state of a new session."""
        self.stream.reset()
        self.projector.reset()


class Wav2VecEncoder(nn.Module):
    """wav2vec 2.0 and the projector as one audio encoder; any number of sessions share its weights.

    Args:
        config: shape; the defaults when None.
        stream: wav2vec 2.0 with its weights; random weights when None.

    Attributes:
        lookahead_frames: the tokens returned for frame `n` of the audio belong to video frame
            `n - lookahead_frames`.
        block_frames: audio is encoded in blocks of this many frames.

    Raises:
        ConfigError: a setting is out of range.
        DependencyError: the extra `paper` is not installed.
    """

    def __init__(
        self, config: Wav2VecEncoderConfig | None = None, stream: Wav2Vec2Stream | None = None
    ) -> None:
        super().__init__()
        config = config or Wav2VecEncoderConfig()
        self.stream = stream or Wav2Vec2Stream(config.stream)
        self.config = replace(config, stream=self.stream.config)
        self.projector = AudioProjector(
            AudioProjectorConfig(
                reach=config.reach,
                layers=self.stream.num_states,
                feature_width=self.stream.config.width,
                hidden=config.hidden,
                tokens=config.tokens,
                token_width=config.token_width,
            )
        )
        self.lookahead_frames = self.stream.lookahead_frames + self.projector.lookahead_frames
        self.block_frames = self.stream.config.block_frames

    @classmethod
    def load(cls, source: str | Path, config: Wav2VecEncoderConfig | None = None) -> Self:
        """Load wav2vec 2.0 and initialise a projector, which is then trained.

        Args:
            source: a local folder, or a hub id such as `facebook/wav2vec2-base-960h`.
            config: settings to use; the shapes of wav2vec 2.0 are taken from the checkpoint.

        Raises:
            WeightsError: there is no checkpoint, or it is not wav2vec 2.0.
            ConfigError: its architecture is not that of wav2vec2-base.
            DependencyError: the extra `paper` is not installed.
        """
        config = config or Wav2VecEncoderConfig()
        return cls(config, Wav2Vec2Stream.load(source, config.stream)).eval()

    def init_state(self, batch_size: int) -> Wav2VecEncoderState:
        """Return the state of new sessions, which have had no audio yet."""
        return Wav2VecEncoderState(
            self.stream.init_state(batch_size), self.projector.init_state(batch_size)
        )

    def forward(self, pcm: Tensor, state: Wav2VecEncoderState | None = None) -> Tensor:
        """Encode the next chunk of a stream, or a whole recording when `state` is None.

        Args:
            pcm: `(B, n)` in [-1, 1] at 16 kHz, `n` a positive multiple of a block's samples.
            state: updated in place.

        Returns:
            Audio tokens `(B, n / 640, K, A)`.
        """
        state = state or self.init_state(pcm.shape[0])
        tokens: Tensor = self.projector(self.stream(pcm, state.stream), state.projector)
        return tokens
