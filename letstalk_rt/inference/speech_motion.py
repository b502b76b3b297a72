"""The motion of speech in a film: taken out of a frame's latent, and the new speech's put in.

Motion is relative to a reference frame of the same person. Head motion is the affine map that best
fits the upper face; of what is left, the most likely motion in people who talk is taken out, as a
Gaussian estimate over the principal components of such motion. So head, gaze and brows stay.

Source: the mean of a Gaussian given noisy linear measurements of it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.inference.lip_control import LipControl
from letstalk_rt.models.autoencoder.latents import FACE_SIZE, LATENT_SIZE
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.face.head_motion import rigid_projection
from letstalk_rt.models.face.lip_values import LIP_VALUES
from letstalk_rt.models.parts import MOTION

_NOISE = 0.012
"""Standard deviation of a landmark's error, in units of half a crop: 1.5 px."""

_SMILE = [LIP_VALUES.index("width"), LIP_VALUES.index("corners")]
_KEPT = 1.0  # share of a smile that is kept


class SpeechMotion:
    """Changes latents so that a mouth says something else; prepared once per reference frame.

    Args:
        model: a model with landmarks and a motion denoiser.
        latent: latent of the reference, `(C, h, w)`.
    """

    def __init__(self, model: AvatarModel, latent: Tensor) -> None:
        face, mouth = model.face, model.part(MOTION).expression.mouth
        assert face is not None, "it has been refused otherwise"
        points = face.autoencoder.decode_landmarks(latent).float()
        self._latent = latent.float()
        ones = latent.new_ones(LATENT_SIZE, dtype=torch.float32)
        self._lips = LipControl.of(mouth, points, face.autoencoder.landmark_matrix, ones)
        readout = face.autoencoder.landmark_matrix
        identity = torch.eye(len(readout), device=readout.device)
        still = (identity - rigid_projection(points)) @ readout  # (2L, 384), without head motion
        natural = F.pad(mouth.natural.float(), (0, LATENT_SIZE - FACE_SIZE))
        seen = still @ natural.T  # (2L, K)
        slack = _NOISE**2 * torch.eye(len(natural), device=readout.device)
        scores = torch.linalg.solve(seen.T @ seen + slack, seen.T @ still)  # (K, 384)
        self._speech = natural.T @ scores
        """Maps motion to the part of it that is speech, `(384, 384)`."""

    @property
    def reference(self) -> Tensor:
        """The latent of the reference, `(C, h, w)` float32."""
        return self._latent

    def with_speech_of(self, latents: Tensor, others: Tensor) -> Tensor:
        """Return latents `(..., C, h, w)` whose part that speech moves is that of others."""
        change: Tensor = (others - latents).flatten(-3) @ self._speech.T
        return latents + change.view(latents.shape)

    def with_lips(
        self,
        latent: Tensor,
        values: Tensor,
        mood: Tensor | None = None,
        generated: Tensor | None = None,
    ) -> Tensor:
        """Return a frame's latent `(C, h, w)` with the mouth of these lip values, `(Q,)`.

        Args:
            latent: of the frame.
            values: lip values of the new speech.
            mood: the mean latent of the frames around: how wide it smiles is kept.
            generated: the frame's latent with a generated lower face, see `LowerFaces`; when None
                the lower face is the reference's.
        """
        if mood is not None:
            usual = self._lips.read @ (mood.float() - self._latent).flatten() - self._lips.rest
            values = values.clone()
            values[_SMILE] += _KEPT * usual[_SMILE]
        if generated is None:
            generated = self.with_speech_of(latent.float(), self._latent)
        return self._latent + self._lips.apply(generated - self._latent, values)
