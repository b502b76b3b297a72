"""The stage "audio" of a step: what the model hears in a hop, for all sessions of a batch."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from letstalk_rt.inference.session_state import SessionState
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.batch_state import gather, scatter
from letstalk_rt.types import SAMPLES_PER_FRAME


class AudioStage:
    """Encodes hops of audio.

    Args:
        model: in eval mode, on its device.
    """

    def __init__(self, model: AvatarModel) -> None:
        self._model = model
        self._window: int = model.denoiser.config.window
        self._hop = self._window * SAMPLES_PER_FRAME
        self._lookahead: int = model.audio.lookahead_frames

    @torch.inference_mode()
    def encode(self, pcm: Tensor, states: Sequence[SessionState]) -> Tensor:
        """Return the audio tokens of the frames of this step, `(B, N, K, A)`.

        Args:
            pcm: `(B, hop)` on the model's device.
            states: states of B sessions; the states of the audio encoder are updated in place.
        """
        ahead = self._lookahead - states[0].lookahead_frames
        return self._encode(self._model.audio, pcm, [state.audio for state in states], ahead)

    @torch.inference_mode()
    def hear(
        self, encoder: Callable[[Tensor, Any], Tensor], pcm: Tensor, states: Sequence[SessionState]
    ) -> Tensor:
        """Return the output of a speech encoder for the frames of this step, `(B, N, F)`.

        Args:
            encoder: encodes the next part of a stream; updates its state.
            pcm: `(B, hop)` on the model's device.
            states: states of B sessions; those of their speech encoders are updated in place.
        """
        ahead = self._lookahead - states[0].lookahead_frames
        speech = [state.motion.speech for state in states if state.motion is not None]
        return self._encode(encoder, pcm, speech, ahead)

    def _encode(
        self,
        encoder: Callable[[Tensor, Any], Tensor],
        pcm: Tensor,
        states: Sequence[Any],
        ahead: int,
    ) -> Tensor:
        """Return the output of an encoder for the frames of this step, `(B, N, ...)`.

        Args:
            encoder: encodes the next part of a stream; updates its state.
            pcm: `(B, hop)` on the model's device.
            states: states of the encoder; updated in place.
            ahead: how many frames of the look-ahead have not arrived. Their audio is guessed as the
                hop mirrored in time, which is continuous.
        """
        state = gather(states)
        encoded = encoder(pcm, state)
        scatter(state, states)
        if ahead:
            windows = -(-ahead // self._window)
            guess = torch.cat([pcm.flip(1), pcm] * windows, 1)[:, : windows * self._hop]
            following = encoder(guess, copy.deepcopy(state))
            encoded = torch.cat([encoded, following], 1)[:, ahead : ahead + self._window]
        return encoded
