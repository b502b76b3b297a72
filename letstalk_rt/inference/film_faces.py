"""Generates the faces of a film by a denoiser of latents that hold no landmarks, as the paper's.

The denoiser is told of a window's frames: each with its lower face masked, a reference frame and
the landmarks of the rest. What it generates is the whole crop; the lower face is shown, with the
film's own colours at its border. Memory goes on from window to window.

Source: DiffTalk, arXiv:2301.03786.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import torch
from torch import Tensor

from letstalk_rt.inference.face_reader import FilmedFace, cut, matrix_of
from letstalk_rt.inference.mouth_mask import lips_mask, mouth_mask, mouth_outline
from letstalk_rt.inference.mouth_renderer import (
    SAMPLE,
    Patch,
    colour_change,
    extent_of,
    from_part,
    to_cells,
)
from letstalk_rt.models.autoencoder.latents import IMAGE_SIZE, WHOLE_FRAME
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.denoiser import PortraitState
from letstalk_rt.models.geometry.lower_face import masked_frames
from letstalk_rt.models.geometry.mouth_crop import CropTransform
from letstalk_rt.models.landmark_condition import FilmBranch, rest_of_face
from letstalk_rt.models.memory import MemoryBank
from letstalk_rt.models.sampler import NoiseState, timesteps


def has_film_conditions(model: AvatarModel) -> bool:
    """Return whether a model was trained to generate faces of films in latents of its own."""
    return isinstance(model.denoiser.landmarks, FilmBranch)


@dataclass(frozen=True)
class _Reference:
    """The frame that a person is known by.

    Attributes:
        latent: `(1, C, h, w)`.
        points: its landmarks, `(1, L, 2)` in [-1, 1].
        state: its portrait state.
    """

    latent: Tensor
    points: Tensor
    state: PortraitState


class FilmFaces:
    """Generates crops of one person in consecutive windows; memory does not grow.

    Args:
        model: a model with the conditions of films.
        seed: seed of the noise; the same seed generates the same.
    """

    def __init__(self, model: AvatarModel, seed: int = 0) -> None:
        assert has_film_conditions(model), "see has_film_conditions"
        self._model = model
        still = torch.zeros(1, *model.autoencoder.latent_shape, device=model.motion_scale.device)
        self._bank = MemoryBank.anchored(still, model.denoiser.config.memory)
        self._kept = model.denoiser.init_cache(still)
        self._noise = NoiseState(seed, torch.zeros(still.shape))
        self._times = timesteps(model.preset.steps)
        self._reference: _Reference | None = None

    @property
    def has_reference(self) -> bool:
        """Whether the person of the shot is known."""
        return self._reference is not None

    def change_shot(self) -> None:
        """Forget the person, and the windows before."""
        self._reference = None
        self.forget()

    def forget(self) -> None:
        """Forget the windows before, as after frames without a face."""
        self._bank.reset()
        self._kept.reset()

    @torch.inference_mode()
    def refer_to(self, rgb: np.ndarray, face: FilmedFace) -> None:
        """Take a frame `(H, W, 3)` uint8 as the reference."""
        crop, points = self._crops([rgb], [face])
        latent = self._model.autoencoder.encode(crop[None], None)[0]
        state = self._model.denoiser.portrait_state(self._model.normalized_portrait(latent))
        self._reference = _Reference(latent, points, state)

    @torch.inference_mode()
    def generate(
        self, frames: Sequence[np.ndarray], faces: Sequence[FilmedFace], tokens: Tensor
    ) -> np.ndarray:
        """Return the crops of the next window, `(N, S, S, 3)` float32 in [0, 255].

        Args:
            frames: the film's, `(H, W, 3)` uint8; as many as the denoiser has in a window.
            faces: their faces.
            tokens: audio tokens of the new sound, `(N, K, A)`.
        """
        model, preset, reference = self._model, self._model.preset, self._reference
        assert reference is not None, "a shot begins with a reference"
        crops, points = self._crops(frames, faces)
        hidden = masked_frames(crops, points)
        masked = model.autoencoder.encode(hidden[None], None)
        scaled = (masked - model.latent_mean) / model.latent_scale
        same = model.normalized_portrait(reference.latent)[:, None].expand_as(scaled)
        noise = self._noise.draw(len(frames), preset.noise_correlation, preset.temperature)
        rest, shown = rest_of_face(points[None], reference.points), torch.cat([scaled, same], 2)
        motion = model.sample_window(
            noise.to(crops.device),
            tokens[None],
            reference.state,
            model.denoiser.memory_of(self._bank, self._kept),
            self._times,
            model.distilled_guidance,  # the weight is then 1, as in training
            predict=partial(model.denoiser.predict, rest=rest, shown=shown),
        )
        self._bank.write(motion)
        model.denoiser.update_cache(motion, self._kept)
        latents = model.to_latents(motion, reference.latent)
        made = model.autoencoder.decode(latents, None)[0].float()
        pixels = ((made.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1)
        generated: np.ndarray = pixels.cpu().numpy()
        return generated

    def _crops(
        self, frames: Sequence[np.ndarray], faces: Sequence[FilmedFace]
    ) -> tuple[Tensor, Tensor]:
        """Return crops `(N, 3, S, S)` in [-1, 1] and landmarks in them, `(N, L, 2)` in [-1, 1]."""
        size, device = self._model.autoencoder.image_size, self._model.motion_scale.device
        cropped = [
            cut(rgb, _enlarged(face.to_crop, size / IMAGE_SIZE), size)
            for rgb, face in zip(frames, faces, strict=True)
        ]
        pixels = torch.from_numpy(np.stack(cropped)).permute(0, 3, 1, 2).to(device)
        points = torch.stack([face.points.float() for face in faces]).to(device)
        return pixels.float() / 127.5 - 1, points / (IMAGE_SIZE / 2) - 1


def _enlarged(place: CropTransform, factor: float) -> CropTransform:
    """Return the transform to a crop of another size, in which the face has the same place."""
    return CropTransform(place.rotation * factor, place.shift * factor)


def lower_face_patch(
    rgb: np.ndarray, face: FilmedFace, made: np.ndarray, strength: float
) -> Patch | None:
    """Return the part of a frame that shows the lower face of a generated crop.

    Args:
        rgb: the frame, `(H, W, 3)` uint8.
        face: its face.
        made: the crop, `(S, S, 3)` float32 in [0, 255].
        strength: how much of it is shown, in [0, 1].

    Returns:
        None if the face lies outside of the frame.
    """
    points = face.points.float().cpu().numpy()
    mask = mouth_mask(mouth_outline(points), WHOLE_FRAME)
    extent = extent_of(mask, WHOLE_FRAME, face, rgb.shape)
    if extent is None:
        return None
    rows, columns = extent
    to_crop = from_part(matrix_of(face.to_crop), rows, columns)
    size = (columns.stop - columns.start, rows.stop - rows.start)
    small = cv2.resize(made, (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_AREA)
    crop = face.crop.permute(1, 2, 0).numpy()
    colours = colour_change(crop, small, mask, lips_mask(WHOLE_FRAME, points))
    coloured = made + cv2.resize(colours, made.shape[1::-1])
    to_made = to_cells(to_crop, len(made))
    new = cv2.warpAffine(coloured, to_made, size, flags=SAMPLE, borderMode=cv2.BORDER_REPLICATE)
    alpha = strength * cv2.warpAffine(mask, to_crop, size, flags=SAMPLE)
    before = np.ascontiguousarray(rgb[rows, columns])
    after = new.round().clip(0, 255).astype(np.uint8)
    mixed = cv2.blendLinear(after, before, alpha, 1 - alpha)
    return Patch(rows, columns, mixed, alpha)
