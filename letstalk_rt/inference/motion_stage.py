"""The stage "motion" of a step: motion codes of the next window, for all sessions of a batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from letstalk_rt.inference.audio_stage import AudioStage, AudioState
from letstalk_rt.inference.code_control import CodeControl
from letstalk_rt.inference.protocol import StateOptions
from letstalk_rt.inference.session_state import ShownPortrait
from letstalk_rt.models.audio_encoder.mouth_sound import MOUTH_SOUND
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.batch_state import gather, scatter
from letstalk_rt.models.face.lip_values import NUM_LIP_VALUES
from letstalk_rt.models.motion.code import LIPS, NUM_LIPS, NUM_STYLE
from letstalk_rt.models.motion.memory import MotionMemory
from letstalk_rt.models.parts import MOTION
from letstalk_rt.models.sampler import NoiseState
from letstalk_rt.performance.direction import DirectedWindow
from letstalk_rt.types import MotionOptions

USUAL_BLINKS_PER_MIN = 10.0
"""Blinks of the denoiser left alone: two thirds of those of filmed people whom it never saw."""


@dataclass
class MotionState:
    """What the pipeline remembers of the motion of one session.

    Attributes:
        speech: what the speech encoder has heard.
        memory: the memory bank: what was shown, and what was said then.
        noise: random numbers of the sampler, and one that decides about a blink.
        style: style of the motion, `(1, S)`.
        blink_gain: how much more often than usual the eyes blink, `(1,)`.
        direction: how the motion of the present window is changed; None if not at all.
        control: shows codes on the session's portrait.
    """

    speech: AudioState
    memory: MotionMemory
    noise: NoiseState
    style: Tensor
    blink_gain: Tensor
    control: CodeControl
    direction: DirectedWindow | None = None

    @property
    def shown_style(self) -> Tensor:
        """The style of the present window, `(1, S)`."""
        if self.direction is None:
            return self.style
        return self.style + torch.from_numpy(self.direction.style).to(self.style)

    @property
    def shown_blink_gain(self) -> Tensor:
        """The gain of blinks in the present window, `(1,)`."""
        rate = 1.0 if self.direction is None else self.direction.blink_rate
        return self.blink_gain * rate

    def set_options(self, motion: MotionOptions) -> None:
        """Change how the face moves, from the next window on."""
        self.control.options = motion
        self.blink_gain.fill_(_blink_gain(motion))

    def interrupt(self, unseen: int) -> None:
        """Forget past speech; go on before the last `unseen` frames; the lips ease to rest."""
        self.speech.interrupt(unseen)
        self.memory.rewind(unseen)
        self.control.ease()

    def reset(self) -> None:
        """Return to the initial state."""
        self.speech.reset()
        self.memory.reset()
        self.noise.reset()
        self.control.reset()
        self.direction = None


@dataclass(frozen=True)
class MovedWindow:
    """The motion of the frames of a window.

    Attributes:
        codes: motion codes, `(B, N, D)`.
        sound: the sound around each frame, for the mouth, `(B, N, S)`.
    """

    codes: Tensor
    sound: Tensor

    def part(self, first: int, count: int) -> "MovedWindow":
        """Return `count` frames from number `first` on."""
        chosen = slice(first, first + count)
        return MovedWindow(self.codes[:, chosen], self.sound[:, chosen])


class MotionStage:
    """Samples motion codes.

    Args:
        model: with a motion denoiser, in eval mode, on its device.
    """

    kind = MotionState

    def __init__(self, model: AvatarModel) -> None:
        self._model, self._denoiser = model, model.part(MOTION)
        self._audio_stage = AudioStage(model, self._denoiser.speech, self._encode)

    def init_state(self, shown: ShownPortrait, options: StateOptions) -> MotionState:
        """Create the state of a session: at rest, in silence."""
        denoiser, device = self._denoiser, self._model.motion_scale.device
        blink_gain = torch.tensor([_blink_gain(options.motion)])
        return MotionState(
            speech=self._audio_stage.init_state(shown, options),
            memory=denoiser.init_memory(1),
            noise=NoiseState(options.seed, torch.zeros(1, 1 + denoiser.config.size)),
            style=torch.zeros(1, NUM_STYLE, device=device),
            blink_gain=blink_gain.to(device),
            control=CodeControl(options.motion, self._model, shown.features),
        )

    def change_portrait(
        self, state: MotionState, shown: ShownPortrait, options: StateOptions
    ) -> MotionState:
        """Show the next codes on another portrait; the motion continues."""
        state.control.set_portrait(shown.features)
        return state

    def hear(self, pcm: Tensor, states: Sequence[MotionState], lookahead_frames: int) -> Tensor:
        """Encode a hop: features, linear lips and sound of each frame, `(B, N, W + Q + S)`.

        Args:
            pcm: `(B, hop)`.
            states: of B sessions; updated in place.
            lookahead_frames: see `AudioStage`.
        """
        return self._audio_stage(pcm, [state.speech for state in states], lookahead_frames)

    def _encode(self, pcm: Tensor, state: Any) -> Tensor:
        heard = self._denoiser.speech(pcm, state)
        return torch.cat([heard.features, heard.lips, heard.sound], -1)

    def lip_values(self, heard: Tensor) -> Tensor:
        """Return the lip values in frames, `(B, n, Q)`: all that a film as a portrait takes.

        Args:
            heard: from `hear`, `(B, n, W + Q + S)`.
        """
        width = self._denoiser.config.speech.width
        features, linear, _ = heard.split([width, NUM_LIPS, MOUTH_SOUND], -1)
        lips = self._denoiser.shown_lips(self._denoiser.predict_lips(features, linear))
        return lips[..., :NUM_LIP_VALUES]

    def __call__(self, heard: Tensor, steps: int, states: Sequence[MotionState]) -> MovedWindow:
        """Return the motion of the next window; its codes are written to memory.

        Args:
            heard: from `hear`, `(B, N, W + Q + S)`.
            steps: steps of the sampler.
            states: of B sessions; updated in place.
        """
        denoiser = self._denoiser
        width = denoiser.config.speech.width
        features, linear, sound = heard.split([width, NUM_LIPS, MOUTH_SOUND], -1)
        memory = gather([state.memory for state in states])
        drawn = torch.cat([state.noise.draw(1, 0.0, 1.0)[:, 0] for state in states]).to(heard)
        codes = denoiser(
            features,
            linear,
            torch.cat([state.shown_style for state in states]),
            drawn[:, 1:],
            torch.special.ndtr(drawn[:, 0]),
            memory,
            steps=steps,
            blink_gain=torch.cat([state.shown_blink_gain for state in states]),
        )
        last = memory.codes[:, -1, -1, LIPS] * denoiser.lip_unit
        shown = [s.control.shown(*pair) for s, *pair in zip(states, codes, last, strict=True)]
        codes = torch.stack(shown)
        denoiser.remember(codes, features, linear, memory)
        scatter(memory, [state.memory for state in states])
        return MovedWindow(codes, sound)


def _blink_gain(motion: MotionOptions) -> float:
    return motion.blinks_per_min / USUAL_BLINKS_PER_MIN
