"""The stage "audio" of a step: what an encoder hears in a hop, for all sessions of a batch."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from letstalk_rt.inference.protocol import StateOptions
from letstalk_rt.inference.session_state import ShownPortrait
from letstalk_rt.models.audio_encoder.interfaces import AudioEncoder
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.batch_state import gather, overwrite, scatter
from letstalk_rt.models.motion.speech_encoder import SpeechEncoder
from letstalk_rt.types import SAMPLES_PER_FRAME

SETTLE_SAMPLES = 52 * SAMPLES_PER_FRAME
"""Silence that fills the receptive field of an encoder: two seconds, in whole windows."""


@dataclass
class AudioState:
    """What an encoder has heard in one session.

    Attributes:
        encoder: the state of the encoder.
        silence: its state after long silence; shared and never written.
    """

    encoder: Any
    silence: Any

    def interrupt(self, unseen: int) -> None:
        """Forget all past audio, as after long silence."""
        self.reset()

    def reset(self) -> None:
        """Return to long silence."""
        overwrite(self.encoder, self.silence)


class AudioStage:
    """Encodes hops of audio.

    Args:
        model: in eval mode, on its device.
        encoder: the encoder.
        encode: encodes the next part of a stream `(B, n)` with a state of the encoder, which it
            updates; None for the encoder itself.
    """

    kind = AudioState

    def __init__(
        self,
        model: AvatarModel,
        encoder: AudioEncoder | SpeechEncoder,
        encode: Callable[[Tensor, Any], Tensor] | None = None,
    ) -> None:
        self._encode: Callable[[Tensor, Any], Any] = encode or encoder
        self._window: int = model.denoiser.config.window
        self._hop = self._window * SAMPLES_PER_FRAME
        self._lookahead: int = model.audio.lookahead_frames
        self._silence = _after_silence(encoder, model.motion_scale.device)

    def init_state(self, shown: ShownPortrait, options: StateOptions) -> AudioState:
        """Create the state of a session: long silence, which an encoder's first state is not."""
        return AudioState(copy.deepcopy(self._silence), self._silence)

    def change_portrait(
        self, state: AudioState, shown: ShownPortrait, options: StateOptions
    ) -> AudioState:
        """Return the state, which depends on no portrait."""
        return state

    @torch.inference_mode()
    def __call__(
        self, pcm: Tensor, states: Sequence[AudioState], lookahead_frames: int | None = None
    ) -> Tensor:
        """Return the output of the encoder for the frames of this step, `(B, N, ...)`.

        Args:
            pcm: `(B, hop)` on the model's device.
            states: of B sessions; updated in place.
            lookahead_frames: how many frames the video is behind the audio; None for the model's
                own look-ahead. With fewer, audio has not arrived that frames depend on. It is
                guessed as the hop mirrored in time, which is continuous.
        """
        encoders = [state.encoder for state in states]
        state = gather(encoders)
        encoded: Tensor = self._encode(pcm, state)
        scatter(state, encoders)
        ahead = 0 if lookahead_frames is None else self._lookahead - lookahead_frames
        if ahead:
            windows = -(-ahead // self._window)
            guess = torch.cat([pcm.flip(1), pcm] * windows, 1)[:, : windows * self._hop]
            following = self._encode(guess, copy.deepcopy(state))
            encoded = torch.cat([encoded, following], 1)[:, ahead : ahead + self._window]
        return encoded


@torch.inference_mode()
def _after_silence(encoder: AudioEncoder | SpeechEncoder, device: torch.device) -> Any:
    state = encoder.init_state(1)
    encoder(torch.zeros(1, SETTLE_SAMPLES, device=device), state)
    return state
