"""The stage "sample" of a step: the motion of the next window, for all sessions of a batch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from letstalk_rt.inference.audio_stage import Heard
from letstalk_rt.inference.seam_easing import ease_seam
from letstalk_rt.inference.session_state import SessionState
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.batch_state import gather, scatter


class SampleStage:
    """Samples motion and eases the seam to the window before; then applies motion control.

    Args:
        model: in eval mode, on its device.
        guidance: weight of the audio condition against none.
        predict: the denoiser's prediction, which may be compiled.
    """

    def __init__(self, model: AvatarModel, guidance: float, predict: Callable[..., Any]) -> None:
        self._model, self._guidance, self._predict = model, guidance, predict
        self._window: int = model.denoiser.config.window

    def latents(self, motion: Tensor, heard: Heard, states: Sequence[SessionState]) -> Tensor:
        """Return the latents of the next frames after motion control, `(B, n, C, h, w)`.

        Args:
            motion: their sampled motion, of the same shape: a window, or its parts in order.
            heard: what was heard in these frames.
            states: states of B sessions; updated in place.
        """
        shown = []
        for index, state in enumerate(states):
            values = None if heard.lips is None else heard.lips.values[index][None]
            moved = None if heard.gestures is None else heard.gestures.motion[index][None]
            shown.append(state.motion_control.apply(motion[index][None], values, moved))
        portraits = torch.cat([state.features.latent for state in states])
        return self._model.to_latents(torch.cat(shown), portraits)

    def sample(self, tokens: Tensor, states: Sequence[SessionState]) -> Tensor:
        """Return the motion of the next window, `(B, N, C, h, w)`, which the memory keeps.

        Args:
            tokens: audio tokens, `(B, N, K, A)`.
            states: states of B sessions; updated in place.
        """
        denoiser = self._model.denoiser
        memory = gather([state.memory for state in states])
        kept = gather([state.cache for state in states])
        cache = (
            kept
            if denoiser.config.cached
            else denoiser.encode_memory(memory.latents, memory.filled)
        )
        motion = self._model.sample_window(
            self._draw_noise(states).to(tokens.device),
            tokens,
            gather([state.portrait for state in states]),
            cache,
            states[0].times,
            self._guidance,
            predict=self._predict,
        )
        motion = ease_seam(motion, memory, self._model.preset.seam)
        memory.write(motion)
        denoiser.update_cache(motion, kept)
        scatter(memory, [state.memory for state in states])
        scatter(kept, [state.cache for state in states])
        return motion

    def _draw_noise(self, states: Sequence[SessionState]) -> Tensor:
        """Draw the noise of the next window, `(B, N, C, h, w)`, on the CPU."""
        count, preset = self._window, self._model.preset
        drawn = [s.noise.draw(count, preset.noise_correlation, preset.temperature) for s in states]
        return torch.cat(drawn)
