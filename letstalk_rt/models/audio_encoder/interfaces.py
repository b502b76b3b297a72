"""The interface that all audio encoders implement."""

from typing import Any, Protocol

from torch import Tensor

from letstalk_rt.models.layers.network import Network


class AudioConfig(Protocol):
    """The settings that all audio encoders have."""

    @property
    def token_width(self) -> int:
        """Width of an audio token, `A`."""
        ...

    @property
    def lookahead_ms(self) -> int:
        """The look-ahead that the weights were trained for, in ms."""
        ...


class AudioEncoder(Network, Protocol):
    """A network from streamed audio to audio tokens; any number of sessions share its weights.

    `CausalAudioEncoder` and `Wav2VecEncoder` implement it. Each accepts only states from its own
    `init_state`.

    Attributes:
        lookahead_frames: the tokens returned for frame `n` of the audio belong to video frame
            `n - lookahead_frames`.
    """

    lookahead_frames: int

    @property
    def config(self) -> AudioConfig:
        """The encoder's settings."""
        ...

    def init_state(self, batch_size: int) -> Any:
        """Return the state of new sessions, whose past is silence."""
        ...

    def __call__(self, pcm: Tensor, state: Any = None) -> Tensor:
        """Encode the next chunk of a stream, or a whole recording when `state` is None.

        Args:
            pcm: `(B, n)` in [-1, 1] at 16 kHz, `n` a multiple of the encoder's block size.
            state: updated in place.

        Returns:
            Audio tokens `(B, n / 640, K, A)`.
        """
        ...
