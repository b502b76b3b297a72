"""The stage "sample" of a step for models whose denoiser generates latents, as the paper's does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from letstalk_rt.errors import ConfigError
from letstalk_rt.inference.protocol import StateOptions
from letstalk_rt.inference.session_state import ShownPortrait
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.batch_state import gather, scatter
from letstalk_rt.models.denoiser import PortraitState
from letstalk_rt.models.memory import MemoryBank, TemporalCache
from letstalk_rt.models.sampler import NoiseState
from letstalk_rt.types import MotionOptions

EASING = (0.5,)
"""Weight of the new motion in the first frames after an interrupt."""


@dataclass
class LatentState:
    """What the pipeline remembers of the latents of one session.

    Attributes:
        memory: memory bank of motion: the anchor and the last clean latents.
        cache: keys and values of the memory bank, if the denoiser caches them.
        portrait: portrait state, for the denoiser.
        noise: random number generator of the sampler's noise.
        ease_start: the last motion that was shown before an interrupt, `(1, C, h, w)`; the next one
            is eased in from there.
    """

    memory: MemoryBank
    cache: TemporalCache
    portrait: PortraitState
    noise: NoiseState
    ease_start: Tensor | None = None

    def interrupt(self, unseen: int) -> None:
        """Go on from the frame before the last `unseen` ones."""
        self.memory.rewind(unseen)
        self.cache.rewind(unseen)
        self.ease_start = self.memory.latents[:, -1].clone()

    def reset(self) -> None:
        """Return to the initial state."""
        self.memory.reset()
        self.cache.reset()
        self.noise.reset()
        self.ease_start = None


class SampleStage:
    """Samples the motion of latents, once a window.

    Args:
        model: in eval mode, on its device.
        guidance: weight of the audio condition against none.
        predict: the denoiser's prediction, which may be compiled.
    """

    kind = LatentState

    def __init__(self, model: AvatarModel, guidance: float, predict: Callable[..., Any]) -> None:
        self._model, self._guidance, self._predict = model, guidance, predict
        self._window: int = model.denoiser.config.window

    def init_state(self, shown: ShownPortrait, options: StateOptions) -> LatentState:
        """Create the state of a session: the portrait at rest.

        Raises:
            ConfigError: an option needs a motion denoiser.
        """
        check_undirected(options.motion, self._model)
        denoiser, shape = self._model.denoiser, self._model.autoencoder.latent_shape
        at_rest = torch.zeros(1, *shape, device=self._model.motion_scale.device)
        return LatentState(
            memory=MemoryBank.anchored(at_rest, denoiser.config.memory),
            cache=denoiser.init_cache(at_rest),
            portrait=self._portrait_state(shown),
            noise=NoiseState(options.seed, torch.zeros(1, *shape)),
        )

    def change_portrait(
        self, state: LatentState, shown: ShownPortrait, options: StateOptions
    ) -> LatentState:
        """Go on with another portrait: motion is relative to it."""
        state.portrait = self._portrait_state(shown)
        return state

    def _portrait_state(self, shown: ShownPortrait) -> PortraitState:
        latent = self._model.normalized_portrait(shown.features.latent)
        return self._model.denoiser.portrait_state(latent)

    def __call__(
        self, tokens: Tensor, times: Sequence[float], states: Sequence[LatentState]
    ) -> Tensor:
        """Return the motion of the next window, `(B, N, C, h, w)`; memory keeps what was sampled.

        Args:
            tokens: audio tokens, `(B, N, K, A)`.
            times: timesteps of the sampler.
            states: of B sessions; updated in place.
        """
        denoiser = self._model.denoiser
        memory = gather([state.memory for state in states])
        kept = gather([state.cache for state in states])
        motion = self._model.sample_window(
            self._draw_noise(states).to(tokens.device),
            tokens,
            gather([state.portrait for state in states]),
            denoiser.memory_of(memory, kept),
            times,
            self._guidance,
            predict=self._predict,
        )
        memory.write(motion)
        denoiser.update_cache(motion, kept)
        scatter(memory, [state.memory for state in states])
        scatter(kept, [state.cache for state in states])
        return torch.stack([_eased(*pair) for pair in zip(motion, states, strict=True)])

    def _draw_noise(self, states: Sequence[LatentState]) -> Tensor:
        """Draw the noise of the next window, `(B, N, C, h, w)`, on the CPU."""
        count, preset = self._window, self._model.preset
        drawn = [s.noise.draw(count, preset.noise_correlation, preset.temperature) for s in states]
        return torch.cat(drawn)


def _eased(motion: Tensor, state: LatentState) -> Tensor:
    """Return the motion of a window, `(N, C, h, w)`, eased in after an interrupt."""
    start, state.ease_start = state.ease_start, None
    if start is None:
        return motion
    eased = motion.clone()
    for number, share in enumerate(EASING):
        eased[number] = torch.lerp(start[0], motion[number], share)
    return eased


def check_undirected(motion: MotionOptions, model: AvatarModel) -> None:
    """Check that nothing is asked of the motion that needs a motion denoiser.

    Raises:
        ConfigError: something is.
    """
    if (motion.expressiveness, motion.head_motion, motion.gaze_at_camera) != (1.0, True, False):
        raise ConfigError(
            f"preset {model.preset.name!r} has no motion denoiser, which expressiveness, head "
            "motion and gaze need; leave these options out"
        )
