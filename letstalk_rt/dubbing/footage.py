"""Prepares a short film of a person as a portrait that moves: hands and body, too."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from letstalk_rt.dubbing.footage_reader import read_footage
from letstalk_rt.errors import NoFaceError, PortraitError
from letstalk_rt.inference.face_reader import cut
from letstalk_rt.inference.footage_player import decoded_frame
from letstalk_rt.models.geometry.mouth_crop import CropTransform
from letstalk_rt.portrait.image import CROP_PX, SOFT_FACE_PX
from letstalk_rt.types import FaceTrack, Footage, Portrait

CHUNK_FRAMES = 4
"""Frames whose faces are found in one call, so that other sessions wait only so long."""

_LEAST_SHARE = 0.5  # of the frames must show a face

TrackFaces = Callable[[np.ndarray, FaceTrack | None], list[FaceTrack | None]]
"""Finds the face in frames `(n, H, W, 3)` uint8, given that of the frame before."""


class FaceTracking(Protocol):
    """A pipeline that follows faces, as `AvatarPipeline` does."""

    def track_faces(self, frames: np.ndarray, last: FaceTrack | None) -> list[FaceTrack | None]:
        """Return the face in each of consecutive frames; see `AvatarPipeline.track_faces`."""
        ...


def prepare_footage(
    source: str | Path | bytes, pipeline: FaceTracking, *, size: int = 512
) -> Portrait:
    """Prepare a film as a portrait. Takes about as long as the film lasts.

    Args:
        source: path, or the bytes of a file.
        pipeline: follows the face.
        size: longer side of the video in pixels, 256 to 1080.

    Raises:
        FilmError: the film cannot be read.
        ConfigError: `size` is out of range, or the model cannot follow faces.
        PortraitError: the film cannot be used.
    """
    frames, warnings = read_footage(source, size)
    faces: list[FaceTrack | None] = []
    for chunk in chunks_of(frames):
        faces += pipeline.track_faces(chunk, faces[-1] if faces else None)
    return portrait_of(frames, faces, warnings)


def chunks_of(frames: list[bytes]) -> Iterator[np.ndarray]:
    """Yield frames in chunks for `track_faces`, `(n, H, W, 3)` uint8."""
    for start in range(0, len(frames), CHUNK_FRAMES):
        yield np.stack([decoded_frame(data) for data in frames[start : start + CHUNK_FRAMES]])


def portrait_of(
    frames: list[bytes], faces: list[FaceTrack | None], warnings: list[str]
) -> Portrait:
    """Make a portrait of frames and their faces.

    Raises:
        NoFaceError: no frame shows a face.
        PortraitError: too few frames do.
    """
    seen = [index for index, face in enumerate(faces) if face is not None]
    if not seen:
        raise NoFaceError(
            "No face was found in the film. Use a film of one person who looks towards the "
            "camera, well lit and not covered."
        )
    if len(seen) < _LEAST_SHARE * len(frames):
        raise PortraitError(
            f"Only {len(seen)} of {len(frames)} frames of the film show a face. Use a film in "
            "which the person looks towards the camera all the time."
        )
    shown = seen[0]
    face = faces[shown]
    assert face is not None
    place = CropTransform(torch.tensor([face.rotation]), torch.tensor([face.shift]))
    centre = place.inverse()(torch.full((1, 1, 2), CROP_PX / 2))[0, 0].tolist()
    side = CROP_PX / float(place.scale)
    left, top = centre[0] - side / 2, centre[1] - side / 2
    upright = CropTransform(
        torch.tensor([[CROP_PX / side, 0.0]]),
        torch.tensor([[-left * CROP_PX / side, -top * CROP_PX / side]]),
    )
    if 0.57 * side < SOFT_FACE_PX:
        warnings = [*warnings, "The face is small and will look soft; a closer film looks better."]
    canvas = decoded_frame(frames[shown])
    return Portrait(
        canvas=canvas,
        crop=cut(canvas, upright, CROP_PX),
        box=(float(left), float(top), float(side)),
        warnings=tuple(warnings),
        footage=Footage(tuple(frames), tuple(faces)),
    )
