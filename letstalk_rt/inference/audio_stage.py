"""The stage "audio" of a step: what the model hears in a hop, for all sessions of a batch."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from letstalk_rt.inference.session_state import SessionState
from letstalk_rt.models.audio_encoder.mouth_sound import MOUTH_SOUND
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.batch_state import gather, scatter
from letstalk_rt.models.face.gestures import GestureWindow
from letstalk_rt.types import SAMPLES_PER_FRAME


@dataclass(frozen=True)
class LipReading:
    """What the lip reader hears in the frames of a step.

    Attributes:
        values: lip values in the size of measured ones, `(B, N, Q)`.
        sound: the sound around each frame, `(B, N, S)`, see `mouth_sound`.
    """

    values: Tensor
    sound: Tensor


@dataclass(frozen=True)
class Heard:
    """What was heard in a hop, for the frames of its step.

    Attributes:
        tokens: audio tokens, `(B, N, K, A)`.
        lips: what the lip reader hears; None without one.
        gestures: the gestures; None if the model has none.
        eye_closures: how far the avatar of each session closes its eyes in each frame.
    """

    tokens: Tensor
    lips: LipReading | None
    gestures: GestureWindow | None
    eye_closures: list[Sequence[float]]

    def part(self, first: int, count: int) -> "Heard":
        """Return `count` frames from number `first` on."""
        chosen = slice(first, first + count)
        lips, moved = self.lips, self.gestures
        return Heard(
            self.tokens[:, chosen],
            lips and LipReading(lips.values[:, chosen], lips.sound[:, chosen]),
            moved and GestureWindow(moved.motion[:, chosen], moved.eye_closures[:, chosen]),
            [closures[chosen] for closures in self.eye_closures],
        )


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

    def __call__(self, pcm: Tensor, states: Sequence[SessionState]) -> Heard:
        """Return what is heard in a hop.

        Args:
            pcm: `(B, hop)` on the model's device.
            states: states of B sessions; updated in place.
        """
        tokens = self.encode(pcm, states)
        lips = self.read_lips(pcm, states)
        gestures = self.gesture(pcm, states)
        return Heard(tokens, lips, gestures, self._eye_closures(gestures, states))

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

    @torch.inference_mode()
    def read_lips(self, pcm: Tensor, states: Sequence[SessionState]) -> LipReading | None:
        """Return what the lip reader hears in the frames of this step.

        None if the model has no lip reader.

        Args:
            pcm: `(B, hop)` on the model's device.
            states: states of B sessions; the states of the lip reader are updated in place.
        """
        lips, lip_motion = self._model.lips, self._model.lip_motion
        if lips is None or lip_motion is None:
            return None
        ahead = self._lookahead - states[0].lookahead_frames
        heard = self._encode(lips.hear, pcm, [s.lips for s in states], ahead)
        values, sound = heard.split([lips.config.values, MOUTH_SOUND], -1)
        return LipReading(lip_motion.to_shown(values), sound)

    @torch.inference_mode()
    def gesture(self, pcm: Tensor, states: Sequence[SessionState]) -> GestureWindow | None:
        """Return the gestures of the frames of this step; None if the model has none.

        Args:
            pcm: `(B, hop)` on the model's device.
            states: states of B sessions; the states of their gestures are updated in place.
        """
        gestures = self._model.gestures
        if gestures is None:
            return None
        sessions = [state.gestures for state in states if state.gestures is not None]
        ahead = self._lookahead - states[0].lookahead_frames
        prosody = self._encode(gestures.prosody, pcm, [s.prosody for s in sessions], ahead)
        noise = torch.cat([s.noise.draw(1, 0.0, 1.0) for s in sessions]).to(prosody.device)
        batch = gather([s.motion for s in sessions])
        window: GestureWindow = gestures(prosody, noise, batch)
        scatter(batch, [s.motion for s in sessions])
        return window

    def _eye_closures(
        self, gestures: GestureWindow | None, states: Sequence[SessionState]
    ) -> list[Sequence[float]]:
        """Return how far the avatars close their eyes in the frames of this step."""
        if gestures is not None:
            own: list[Sequence[float]] = gestures.eye_closures.tolist()
            return own
        return [state.motion_control.eye_closures(self._window) for state in states]

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
