"""What may be asked of an audio encoder without knowing which one it is."""

from typing import Any, Protocol

from torch import Tensor

from letstalk_rt.models.layers.network import Network


class AudioConfig(Protocol):
    """What is known of every audio encoder's shape."""

    @property
    def token_width(self) -> int:
        """Width of an audio token, `A`."""
        ...

    @property
    def lookahead_ms(self) -> int:
        """Look-ahead that its weights were trained for."""
        ...


class AudioEncoder(Network, Protocol):
    """A stream of sound to audio tokens; the weights serve any number of sessions.

    `CausalAudioEncoder` and `Wav2VecEncoder` are two of them. Each takes only the states that it
    made itself.

    Attributes:
        lookahead_frames: tokens that come out with frame `n` of the sound belong to frame
            `n - lookahead_frames`.
    """

    lookahead_frames: int

    @property
    def config(self) -> AudioConfig:
        """Its shape."""
        ...

    def init_state(self, batch_size: int) -> Any:
        """Make the state of new sessions: silence has been heard so far."""
        ...

    def __call__(self, pcm: Tensor, state: Any = None) -> Tensor:
        """Encode the next piece of a stream, or a whole sound when `state` is None.

        Args:
            pcm: `(B, n)` in [-1, 1] at 16 kHz, `n` a multiple of what the encoder takes at once.
            state: updated in place.

        Returns:
            Audio tokens `(B, n / 640, K, A)`.
        """
        ...
