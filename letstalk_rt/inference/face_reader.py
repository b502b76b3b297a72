"""Follows the face of a film and encodes it, frame by frame, in a crop that stands upright.

The crop is aligned by the parts of a face that do not deform, so a tilted head is upright in it and
an opening jaw does not zoom it. It is placed by the landmarks of the frame before, and read once
more if the head has moved too far since.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from letstalk_rt.models.autoencoder.interfaces import LandmarkAutoencoder
from letstalk_rt.models.autoencoder.latents import IMAGE_SIZE
from letstalk_rt.models.face.detector import FaceFinder, head_yaw
from letstalk_rt.models.face.heatmaps import LEAST_CERTAINTY, certainty
from letstalk_rt.models.geometry.mouth_crop import RIGID, CropTransform, align_rigid
from letstalk_rt.types import FaceTrack

SEARCH_FRAMES = 4
"""While there is no face, the whole image is searched every so many frames."""

_MOST_SHIFT_PX, _MOST_SCALE = 10.0, 1.1
"""How far a head may move in its crop before the crop is placed anew and read again."""

_STILL_PX, _STILL_SCALE, _STILL_TURN = 1.5, 0.015, 0.015
"""A head that moves less in its crop is still: the crop of the next frame stays where it is, lest
the noise of landmarks move what is rendered in it."""


@dataclass(frozen=True)
class FilmedFace:
    """The face of one frame of a film.

    Attributes:
        to_crop: maps pixels of the frame to pixels of its crop, one item.
        crop: `(3, 256, 256)` uint8, on the CPU.
        latent: `(C, h, w)`, which encodes the crop.
        points: landmarks that the latent encodes, `(L, 2)` in pixels of the crop.
        yaw: rotation of the head in [-1, 1]; 0 faces the camera.
        sharpness: mean absolute Laplacian of the lower half of the crop.
    """

    to_crop: CropTransform
    crop: Tensor
    latent: Tensor
    points: Tensor
    yaw: float
    sharpness: float

    @property
    def frame_points(self) -> Tensor:
        """The landmarks in pixels of the frame, `(L, 2)`."""
        return self.to_crop.inverse()(self.points[None])[0]

    @property
    def track(self) -> FaceTrack:
        """What is needed to make this face again from its frame, without the encoder."""
        (cos, sin), (x, y) = self.to_crop.rotation[0].tolist(), self.to_crop.shift[0].tolist()
        latent = self.latent.float().cpu().numpy()
        return FaceTrack((cos, sin), (x, y), latent, self.yaw, self.sharpness)


def place_of(track: FaceTrack, device: torch.device) -> CropTransform:
    """Return the transform from a frame to the crop of its face."""
    rotation, shift = (
        torch.tensor([part], device=device) for part in (track.rotation, track.shift)
    )
    return CropTransform(rotation, shift)


def face_from(track: FaceTrack, rgb: np.ndarray, autoencoder: LandmarkAutoencoder) -> FilmedFace:
    """Return the face of a frame `(H, W, 3)` uint8 whose track is known."""
    latent = torch.from_numpy(track.latent).to(autoencoder.mean_points.device)
    place = place_of(track, latent.device)
    crop = torch.from_numpy(cut(rgb, place, IMAGE_SIZE)).permute(2, 0, 1)
    points = crop_pixels(autoencoder.decode_landmarks(latent))
    return FilmedFace(place, crop, latent, points, track.yaw, track.sharpness)


class FaceReader:
    """Follows the largest face of one film.

    Args:
        finder: finds faces in whole images.
        autoencoder: its encoder reads the crops.
        dtype: number format of the encoder.
    """

    def __init__(
        self,
        finder: FaceFinder,
        autoencoder: LandmarkAutoencoder,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._finder, self._autoencoder = finder, autoencoder
        self._encode = autoencoder.encoder_in(dtype)
        self._target = crop_pixels(autoencoder.mean_points.float())[RIGID]
        self.reset()

    def reset(self, last: FaceTrack | None = None) -> None:
        """Forget the face, as at a cut, or go on after a frame with this one."""
        self._place: CropTransform | None = None
        if last is not None:
            device = self._target.device
            latent = torch.from_numpy(last.latent).to(device)
            points = crop_pixels(self._autoencoder.decode_landmarks(latent))
            self._place = self._next_place(place_of(last, device), points)
        self._unseen = SEARCH_FRAMES

    @torch.inference_mode()
    def read(self, rgb: np.ndarray) -> FilmedFace | None:
        """Return the face in the next frame, `(H, W, 3)` uint8; None if there is none."""
        face = None if self._place is None else self._follow(rgb, self._place)
        if face is None:
            self._unseen += 1
            if self._unseen >= SEARCH_FRAMES:
                self._unseen = 0
                face = self._find(rgb)
        self._place = None if face is None else self._next_place(face.to_crop, face.points)
        if face is None:
            return None
        self._unseen = SEARCH_FRAMES  # a face that is lost is searched for at once
        return face

    def _find(self, rgb: np.ndarray) -> FilmedFace | None:
        """Search the whole image."""
        for found in self._finder.find_faces(rgb)[:1]:
            points = torch.from_numpy(found.landmarks).to(self._target.device)
            return self._follow(rgb, self._placed(points))
        return None

    def _follow(self, rgb: np.ndarray, place: CropTransform) -> FilmedFace | None:
        """Read the face in a crop, and again in a better one if the head has moved."""
        face = self._read(rgb, place)
        if face is None:
            return None
        moved = self._placed(face.points)
        centre = moved(face.points.new_full((1, 1, 2), IMAGE_SIZE / 2))[0, 0] - IMAGE_SIZE / 2
        scale = float(moved.scale)
        if float(centre.norm()) > _MOST_SHIFT_PX or not 1 / _MOST_SCALE < scale < _MOST_SCALE:
            return self._read(rgb, self._placed(face.frame_points))
        return face

    def _read(self, rgb: np.ndarray, place: CropTransform) -> FilmedFace | None:
        """Read the face in a crop; return None if there is no face."""
        crop = torch.from_numpy(cut(rgb, place, IMAGE_SIZE)).permute(2, 0, 1)
        image = crop.to(self._target.device).float() / 127.5 - 1
        latents, heat = self._encode(image[None])
        if float(certainty(heat)) < LEAST_CERTAINTY:
            return None
        points = crop_pixels(self._autoencoder.decode_landmarks(latents[0]))
        yaw = head_yaw(points.cpu().numpy())
        return FilmedFace(place, crop, latents[0], points, yaw, sharpness(crop))

    def _next_place(self, place: CropTransform, points: Tensor) -> CropTransform:
        """Return the crop of the next frame, given this one's and the landmarks in it."""
        moved = self._placed(points)
        centre = moved(points.new_full((1, 1, 2), IMAGE_SIZE / 2))[0, 0] - IMAGE_SIZE / 2
        turn = float(moved.rotation[0, 1]) / float(moved.scale)
        is_still = (
            float(centre.norm()) < _STILL_PX
            and abs(float(moved.scale) - 1) < _STILL_SCALE
            and abs(turn) < _STILL_TURN
        )
        return place if is_still else self._placed(place.inverse()(points[None])[0])

    def _placed(self, points: Tensor) -> CropTransform:
        """Return the transform to the crop of a face with these landmarks, `(L, 2)`."""
        return align_rigid(points[None].float(), self._target)


def crop_pixels(points: Tensor) -> Tensor:
    """Convert landmarks in [-1, 1] to pixels of a crop."""
    return (points + 1) * (IMAGE_SIZE / 2)


def sharpness(crop: Tensor) -> float:
    """Return the mean absolute Laplacian of the lower half of a crop `(3, 256, 256)` uint8."""
    grey = crop[:, IMAGE_SIZE // 2 : -24, 48:-48].float().mean(0).cpu().numpy()
    return float(np.abs(cv2.Laplacian(grey, cv2.CV_32F)).mean())


def matrix_of(transform: CropTransform) -> np.ndarray:
    """Return one transform as a matrix `(2, 3)` for OpenCV, whose pixels have whole centres."""
    cos, sin = (float(v) for v in transform.rotation[0])
    x, y = (float(v) for v in transform.shift[0])
    shift = [x + (cos - sin) / 2 - 0.5, y + (sin + cos) / 2 - 0.5]
    return np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]]])


def cut(rgb: np.ndarray, transform: CropTransform, size: int) -> np.ndarray:
    """Cut a square crop `(size, size, 3)` out of a frame; beyond the frame its edge goes on.

    A much larger face is averaged first: sampling single pixels of it would flicker.
    """
    matrix = matrix_of(transform)
    factor = int(1 / float(transform.scale))
    if factor > 1:
        height, width = rgb.shape[0] // factor, rgb.shape[1] // factor
        rgb = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
        matrix[:, 2] += (factor - 1) / 2 * matrix[:, :2].sum(1)
        matrix[:, :2] *= factor
    crop: np.ndarray = cv2.warpAffine(
        rgb, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return crop
