"""Renders the lower face of a film's frame with other lips, from a reference frame.

The reference is warped along the landmarks that the face shall have, at the sharpness of the film;
the decoder corrects the flow and inpaints, the mouth painter inpaints between the lips. Colours
follow the frame: what the frame and the warped reference differ by is interpolated smoothly from
the skin around the lips. Outside the mask nothing changes.

Source: colours that continue across a seam: Poisson image editing, doi:10.1145/882262.882269;
here by normalised convolution (Knutsson and Westin, doi:10.1109/CVPR.1993.341081).
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from letstalk_rt.inference.face_reader import FilmedFace, crop_pixels, matrix_of
from letstalk_rt.inference.mouth_mask import lips_mask, mouth_mask
from letstalk_rt.inference.reference_frames import Reference
from letstalk_rt.models.autoencoder.latents import FLOW_SIZE, IMAGE_SIZE, DecodedLayers
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.portrait.mouth_compositor import MouthCompositor

_COLOUR_SIZE = 64
_COLOUR_CELLS = 3.0  # width of the kernel that interpolates colours
_MOST_COLOUR = 40.0
_SMALL = 1e-3


@dataclass(frozen=True)
class Patch:
    """A rectangle of a frame with new content.

    Attributes:
        rows: rows of the frame; the first is even.
        columns: columns of the frame, likewise.
        rgb: the new content, `(h, w, 3)` uint8.
        mask: how much of it is new, `(h, w)` in [0, 1]; where it is 0, `rgb` is the frame's.
    """

    rows: slice
    columns: slice
    rgb: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class _Face:
    """A generated face, in its crop.

    Attributes:
        flow: from pixels of the crop to those of the reference, `(128, 128, 2)`, in pixels.
        change: what is added to the warped reference, `(256, 256, 3)` in [-255, 255].
        image: the whole crop, `(256, 256, 3)` in [0, 255].
        points: its landmarks, `(L, 2)` in pixels of the crop.
    """

    flow: np.ndarray
    change: np.ndarray
    image: np.ndarray
    points: Tensor


class MouthRenderer:
    """Renders lower faces; holds no state.

    Args:
        model: a model with a lip reader and a mouth painter.
    """

    def __init__(self, model: AvatarModel) -> None:
        assert model.face is not None
        self._autoencoder = model.face.autoencoder

    @torch.inference_mode()
    def render(
        self,
        rgb: np.ndarray,
        face: FilmedFace,
        references: list[tuple[Reference, float]],
        values: Tensor,
        paint_mouth: MouthCompositor | None,
        strength: float = 1.0,
        mood: Tensor | None = None,
    ) -> Patch | None:
        """Return the part of a frame that changes; None if its face lies outside of the frame.

        Args:
            rgb: the frame, `(H, W, 3)` uint8.
            face: its face.
            references: references to mix, with weights whose sum is 1.
            values: lip values, `(Q,)`.
            paint_mouth: inpaints between the lips.
            strength: how much of the result is shown, in [0, 1].
            mood: the mean latent of the frames around, whose expression stays; None for that of
                the references.
        """
        faces = [(self._generate(face, r, values, mood), r, weight) for r, weight in references]
        old = face.points.float().cpu().numpy()
        new = [one.points.cpu().numpy() for one, _, _ in faces]
        mask = mouth_mask(old, *new)
        extent = _extent(mask, face, rgb.shape)
        if extent is None:
            return None
        rows, columns = extent
        to_crop = _from_part(matrix_of(face.to_crop), rows, columns)
        size = (columns.stop - columns.start, rows.stop - rows.start)
        before = rgb[rows, columns].astype(np.float32)
        lips = lips_mask(old, *new)
        crop = face.crop.permute(1, 2, 0).numpy()
        made = np.zeros_like(before)
        for one, reference, weight in faces:
            colours = _colour_change(crop, one.image, mask, lips)
            made += weight * _at_frame(one, reference, colours, to_crop, size)
        after = torch.from_numpy((made + 0.5).clip(0, 255).astype(np.uint8))[None]
        if paint_mouth is not None:
            corner = face.points.new_tensor([columns.start, rows.start])
            points = sum(weight * one.points for one, _, weight in faces)
            assert isinstance(points, Tensor)
            in_part = face.to_crop.inverse()(points[None]) - corner
            shown = after.to(points.device)
            paint_mouth(shown, in_part)
            after = shown.cpu()
        alpha = strength * cv2.warpAffine(mask, to_crop, size, flags=_SAMPLE)
        mixed = before + alpha[..., None] * (after[0].numpy().astype(np.float32) - before)
        return Patch(rows, columns, (mixed + 0.5).clip(0, 255).astype(np.uint8), alpha)

    def _generate(
        self, face: FilmedFace, reference: Reference, values: Tensor, mood: Tensor | None
    ) -> _Face:
        """Decode a face with other lips, in its crop."""
        latent = reference.motion.with_lips(face.latent, values, mood)[None]
        inputs = self._autoencoder.prepare_decoder(latent, reference.features)
        layers: DecodedLayers = self._autoencoder.run_decoder(inputs, reference.features)
        flow = layers.flow[0].permute(1, 2, 0) * (IMAGE_SIZE / 2)
        change = layers.residual[0].permute(1, 2, 0).float() * 127.5
        image = (layers.frames[0].permute(1, 2, 0).float() * 127.5 + 127.5).clamp(0, 255)
        return _Face(
            flow.float().cpu().numpy(),
            change.cpu().numpy(),
            image.cpu().numpy(),
            crop_pixels(layers.points[0].float()),
        )


_SAMPLE = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP


def _extent(
    mask: np.ndarray, face: FilmedFace, shape: tuple[int, ...]
) -> tuple[slice, slice] | None:
    """Return the rows and columns of a frame that a mask of its crop covers, from even numbers."""
    down, across = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(down):
        return None
    box = [[x, y] for x in (across[0], across[-1] + 1) for y in (down[0], down[-1] + 1)]
    corners = face.to_crop.inverse()(face.points.new_tensor([box]))[0]
    low = corners.amin(0).floor().long().tolist()
    high = corners.amax(0).ceil().long().tolist()
    first = [max(0, v) // 2 * 2 for v in low]
    last = [min(-(-v // 2) * 2, length) for v, length in zip(high, shape[1::-1], strict=True)]
    if first[0] >= last[0] or first[1] >= last[1]:
        return None
    return slice(first[1], last[1]), slice(first[0], last[0])


def _from_part(matrix: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
    """Return a matrix for pixels counted from the corner of a part of the frame."""
    moved = matrix.copy()
    moved[:, 2] += matrix[:, :2] @ [columns.start, rows.start]
    return moved


def _at_frame(
    face: _Face,
    reference: Reference,
    colours: np.ndarray,
    to_crop: np.ndarray,
    size: tuple[int, int],
) -> np.ndarray:
    """Return a generated face at the frame's resolution, `(h, w, 3)` float32.

    Args:
        face: the face.
        reference: what it was made from.
        colours: change of colours, `(64, 64, 3)`.
        to_crop: maps pixels of the part of the frame to those of the crop.
        size: width and height of the part.
    """
    cells = _to_cells(to_crop, FLOW_SIZE)
    flow = cv2.warpAffine(face.flow, cells, size, flags=_SAMPLE, borderMode=cv2.BORDER_REPLICATE)
    x, y = np.meshgrid(np.arange(size[0], dtype=np.float32), np.arange(size[1], dtype=np.float32))
    zoom = len(reference.source) / IMAGE_SIZE
    at = [
        (zoom * (row[0] * x + row[1] * y + row[2] + 0.5 + flow[..., axis]) - 0.5).astype(np.float32)
        for axis, row in enumerate(to_crop)
    ]
    warped = cv2.remap(
        reference.source, at[0], at[1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    ).astype(np.float32)
    warped += cv2.warpAffine(face.change, to_crop, size, flags=_SAMPLE)
    warped += cv2.warpAffine(
        colours, _to_cells(to_crop, _COLOUR_SIZE), size, flags=_SAMPLE,
        borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip
    sharp: np.ndarray = warped
    return sharp


def _to_cells(to_crop: np.ndarray, cells: int) -> np.ndarray:
    """Return a matrix to pixels of the crop as one to cells of a coarser grid."""
    share = cells / IMAGE_SIZE
    matrix = to_crop * share
    matrix[:, 2] += (share - 1) / 2
    return matrix


def _colour_change(
    crop: np.ndarray, image: np.ndarray, mask: np.ndarray, lips: np.ndarray
) -> np.ndarray:
    """Return what to add to a generated crop so that its skin has the frame's colours.

    Args:
        crop: the frame's crop, `(256, 256, 3)` uint8.
        image: the generated crop, likewise, float32.
        mask: the part that is replaced, `(256, 256)`.
        lips: 1 where the two show different things, `(256, 256)` uint8.

    Returns:
        `(64, 64, 3)` float32.
    """
    size = (_COLOUR_SIZE, _COLOUR_SIZE)
    weight = ((mask > 0) & (lips == 0)).astype(np.float32)
    change = (crop.astype(np.float32) - image).clip(-_MOST_COLOUR, _MOST_COLOUR)
    total = cv2.resize(change * weight[..., None], size, interpolation=cv2.INTER_AREA)
    share = cv2.resize(weight, size, interpolation=cv2.INTER_AREA)
    total = cv2.GaussianBlur(total, (0, 0), _COLOUR_CELLS)
    share = cv2.GaussianBlur(share, (0, 0), _COLOUR_CELLS)
    smooth: np.ndarray = total / (share + _SMALL)[..., None]
    return smooth
