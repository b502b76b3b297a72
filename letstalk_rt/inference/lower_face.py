"""Generates the lower faces of a film by the denoiser, which is told the rest of the face.

A window of four frames is sampled from the new sound, the landmarks of the rest of the face in
these frames, the memory bank of the windows before, and the reference. Of what is generated only
the part that speech moves is used; head, gaze and brows stay the film's own. The memory bank keeps
what is shown before the lips are set, so each window goes on from the last one.

Source: reference, landmarks and sound as conditions: DiffTalk, arXiv:2301.03786. Its masked frame
is not an input here: what a film shows of the rest of a face reaches the denoiser by landmarks
alone, which these latents hold. `film_faces` is for latents that do not, and has it.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from letstalk_rt.inference.speech_motion import SpeechMotion
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.denoiser import PortraitState
from letstalk_rt.models.landmark_condition import rest_of_face
from letstalk_rt.models.memory import MemoryBank
from letstalk_rt.models.parts import LANDMARK_CONDITION
from letstalk_rt.models.sampler import NoiseState, timesteps


def has_lower_faces(model: AvatarModel) -> bool:
    """Return whether a model can generate lower faces of films in latents that hold landmarks."""
    return model.autoencoder.landmarks is not None and model.get(LANDMARK_CONDITION) is not None


@dataclass(frozen=True)
class _Person:
    """The reference that the next window is generated from.

    Attributes:
        motion: the motion of speech relative to it.
        latent: its latent, `(1, C, h, w)`.
        points: its landmarks, `(1, L, 2)`.
        state: its portrait state.
    """

    motion: SpeechMotion
    latent: Tensor
    points: Tensor
    state: PortraitState


class LowerFaces:
    """Generates the lower faces of one person in consecutive windows; memory does not grow.

    Args:
        model: a model with a landmark condition.
        seed: seed of the noise; the same seed generates the same.
    """

    def __init__(self, model: AvatarModel, seed: int = 0) -> None:
        assert model.autoencoder.landmarks is not None, "see has_lower_faces"
        self._model, self._landmarks = model, model.autoencoder.landmarks
        at_rest = torch.zeros(1, *model.autoencoder.latent_shape, device=model.motion_scale.device)
        self._memory = MemoryBank.anchored(at_rest, model.denoiser.config.memory)
        self._noise = NoiseState(seed, torch.zeros(at_rest.shape))
        self._times = timesteps(model.preset.steps)
        self._person: _Person | None = None

    def reset(self) -> None:
        """Return to the beginning."""
        self._memory.reset()
        self._noise.reset()
        self._person = None

    def forget(self) -> None:
        """Forget the windows before, as after frames without a face."""
        self._memory.reset()

    def rewind(self, frames: int) -> None:
        """Forget the last frames, which were not shown."""
        self._memory.rewind(frames)

    @torch.inference_mode()
    def generate(self, latents: Tensor, tokens: Tensor, reference: SpeechMotion) -> Tensor:
        """Return the next window of latents `(N, C, h, w)`, whose lower faces say something else.

        Args:
            latents: of the film's faces, `(N, C, h, w)`.
            tokens: audio tokens of the new sound, `(N, K, A)`.
            reference: the motion of speech relative to the reference; that nearest in pose.
        """
        model, preset, film = self._model, self._model.preset, latents.float()
        person = self._turn_to(reference)
        rest = rest_of_face(self._landmarks.decode_landmarks(film)[None], person.points)
        noise = self._noise.draw(len(film), preset.noise_correlation, preset.temperature)
        motion = model.sample_window(
            noise.to(film.device),
            tokens[None],
            person.state,
            model.denoiser.encode_memory(self._memory.latents, self._memory.filled),
            self._times,
            model.distilled_guidance,  # the weight is then 1: one call, of one item
            predict=partial(model.denoiser.predict, rest=rest),
        )
        shown = reference.with_speech_of(film, model.to_latents(motion, person.latent)[0])
        self._memory.write(model.to_motion(shown[None], person.latent))
        return shown

    def _turn_to(self, reference: SpeechMotion) -> "_Person":
        """Return the person as a reference shows it; memory goes on relative to that."""
        before = self._person
        if before is None or before.motion is not reference:
            latent = reference.reference[None]
            state = self._model.denoiser.portrait_state(self._model.normalized_portrait(latent))
            points = self._landmarks.decode_landmarks(latent)
            self._person = _Person(reference, latent, points, state)
            if before is not None:
                change = self._model.to_motion(before.latent[None], latent)
                known = self._memory.filled[:, 1:, None, None, None]
                self._memory.latents[:, 1:] += change * known
        assert self._person is not None
        return self._person
