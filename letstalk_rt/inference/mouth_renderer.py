"""Renders the lower face of a film's frame with other lips, from a reference frame.

The reference is warped along the landmarks that the face shall have, at the sharpness of the film;
the decoder corrects the flow and inpaints, the mouth painter inpaints between the lips. Colours
follow the frame: what the frame and the warped reference differ by is interpolated smoothly from
the skin around the lips. Outside the mask nothing changes.

Source: colours that continue across a seam: Poisson image editing, doi:10.1145/882262.882269;
here by normalised convolution (Knutsson and Westin, doi:10.1109/CVPR.1993.341081).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from letstalk_rt.inference.face_reader import FilmedFace, crop_pixels, matrix_of
from letstalk_rt.inference.mouth_mask import lips_mask, mouth_mask, mouth_outline, part_around
from letstalk_rt.inference.reference_frames import Reference
from letstalk_rt.models.autoencoder.latents import (
    CELL_PX,
    FLOW_SIZE,
    IMAGE_SIZE,
    DecodedLayers,
    DecoderInputs,
    FramePart,
)
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.parts import MOUTH_PAINTER
from letstalk_rt.portrait.mouth_compositor import MouthCompositor, inpaint

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
class MouthTask:
    """A frame whose mouth is to be rendered.

    Attributes:
        rgb: the frame, `(H, W, 3)` uint8.
        face: its face.
        references: references to mix, with weights whose sum is 1.
        values: lip values, `(Q,)`.
        mouth: crops what is inpainted between the lips; None to leave it as it is.
        strength: how much of the result is shown, in [0, 1].
        mood: the mean latent of the frames around, whose expression stays; None for that of the
            references.
        generated: the latent of the face with a generated lower face; None for the references'.
    """

    rgb: np.ndarray
    face: FilmedFace
    references: Sequence[tuple[Reference, float]]
    values: Tensor
    mouth: MouthCompositor | None
    strength: float = 1.0
    mood: Tensor | None = None
    generated: Tensor | None = None


@dataclass(frozen=True)
class _Plan:
    """A face that will be generated.

    Attributes:
        inputs: of the decoder, one item.
        reference: what it is made from.
        weight: its share of the result.
        points: its landmarks, `(L, 2)` in pixels of the crop.
    """

    inputs: DecoderInputs
    reference: Reference
    weight: float
    points: Tensor


@dataclass(frozen=True)
class _Face:
    """A generated face, in a part of its crop.

    Attributes:
        flow: from pixels of the crop to those of the reference, `(128, 128, 2)`, in pixels.
        change: what is added to the warped reference in the part, `(h, w, 3)` in [-255, 255].
        image: the part, `(h, w, 3)` in [0, 255].
    """

    flow: np.ndarray
    change: np.ndarray
    image: np.ndarray


@dataclass(frozen=True)
class _Drawn:
    """A generated lower face at the frame's resolution.

    Attributes:
        rows: rows of the frame.
        columns: columns of the frame.
        rgb: its pixels there, `(h, w, 3)` uint8.
        alpha: its opacity, `(h, w)` in [0, 1].
        points: its landmarks, `(1, L, 2)` in pixels of `rgb`.
    """

    rows: slice
    columns: slice
    rgb: Tensor
    alpha: np.ndarray
    points: Tensor


class MouthRenderer:
    """Renders lower faces; holds no state.

    Args:
        model: a model with landmarks.
    """

    def __init__(self, model: AvatarModel) -> None:
        assert model.face is not None
        self._autoencoder = model.face.autoencoder
        self._painter = model.get(MOUTH_PAINTER)

    @torch.inference_mode()
    def render(self, tasks: Sequence[MouthTask]) -> list[Patch | None]:
        """Return the part that changes of each frame; None if its face lies outside of the frame.

        Several frames at once take less time than one by one.
        """
        plans: list[list[_Plan]] = [[] for _ in tasks]
        references = {id(r): r for task in tasks for r, _ in task.references}
        for reference in references.values():
            self._plan(tasks, reference, plans)
        drawn = [self._draw(*one) for one in zip(tasks, plans, strict=True)]
        self._inpaint(tasks, drawn)
        pairs = zip(tasks, drawn, strict=True)
        return [None if one is None else _patch(task, one) for task, one in pairs]

    def _plan(
        self, tasks: Sequence[MouthTask], reference: Reference, plans: list[list[_Plan]]
    ) -> None:
        """Prepare to decode all faces that are made from a reference; add to the tasks' plans."""
        chosen = [
            (index, weight)
            for index, task in enumerate(tasks)
            for used, weight in task.references
            if used is reference
        ]
        latents = [_with_lips(reference, tasks[i]) for i, _ in chosen]
        features = reference.features.repeat(len(latents))
        inputs = self._autoencoder.prepare_decoder(torch.stack(latents), features)
        points = crop_pixels(inputs.points.float())
        for number, (index, weight) in enumerate(chosen):
            one = inputs[number : number + 1]
            plans[index].append(_Plan(one, reference, weight, points[number]))

    def _draw(self, task: MouthTask, plans: Sequence[_Plan]) -> _Drawn | None:
        """Generate a lower face, its mouth not inpainted yet."""
        face = task.face
        old = face.points.float().cpu().numpy()
        new = [plan.points.cpu().numpy() for plan in plans]
        outline = mouth_outline(old, *new)
        part = part_around(outline)
        mask = mouth_mask(outline, part)
        extent = extent_of(mask, part, face, task.rgb.shape)
        if extent is None:
            return None
        rows, columns = extent
        to_crop = from_part(matrix_of(face.to_crop), rows, columns)
        size = (columns.stop - columns.start, rows.stop - rows.start)
        lips = lips_mask(part, old, *new)
        crop = face.crop[(slice(None), *part.pixels)].permute(1, 2, 0).numpy()
        after, shown = None, 0.0
        for plan in plans:
            made = self._generate(plan, part)
            colours = colour_change(crop, made.image, mask, lips)
            one = _at_frame(made, plan.reference, colours, to_crop, part, size)
            shown += plan.weight
            share = plan.weight / shown
            after = one if after is None else cv2.addWeighted(one, share, after, 1 - share, 0)
        assert after is not None, "a face is made from at least one reference"
        alpha = cv2.warpAffine(mask, in_part(to_crop, part), size, flags=SAMPLE)
        points = torch.stack([plan.weight * plan.points for plan in plans]).sum(0)
        corner = points.new_tensor([columns.start, rows.start])
        in_frame = face.to_crop.inverse()(points[None]) - corner
        return _Drawn(rows, columns, torch.from_numpy(after).to(points.device), alpha, in_frame)

    def _inpaint(self, tasks: Sequence[MouthTask], drawn: Sequence[_Drawn | None]) -> None:
        """Inpaint the open mouths of lower faces, in place."""
        mouths = [
            task.mouth.crop_open(one.rgb[None], one.points)
            for task, one in zip(tasks, drawn, strict=True)
            if task.mouth is not None and one is not None
        ]
        is_open = [one for one in mouths if one is not None]
        if is_open:
            assert self._painter is not None, "a mouth compositor comes from its model"
            inpaint(self._painter, is_open)

    def _generate(self, plan: _Plan, part: FramePart) -> _Face:
        """Decode a part of a face with other lips."""
        layers: DecodedLayers = self._autoencoder.run_decoder(
            plan.inputs, plan.reference.features, part
        )
        flow = layers.flow[0].permute(1, 2, 0) * (IMAGE_SIZE / 2)
        residual = layers.residual.float()
        image = (layers.warped.float() + residual)[0].permute(1, 2, 0) * 127.5 + 127.5
        change = residual[0].permute(1, 2, 0) * 127.5
        return _Face(*(x.contiguous().cpu().numpy() for x in (flow.float(), change, image)))


SAMPLE = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP


def _with_lips(reference: Reference, task: MouthTask) -> Tensor:
    """Return the latent of a task's face with the mouth of its lip values."""
    latent = task.face.latent
    return reference.motion.with_lips(latent, task.values, task.mood, task.generated)


def _patch(task: MouthTask, drawn: _Drawn) -> Patch:
    """Blend a lower face into its frame."""
    alpha = task.strength * drawn.alpha
    before = np.ascontiguousarray(task.rgb[drawn.rows, drawn.columns])
    mixed = cv2.blendLinear(drawn.rgb.cpu().numpy(), before, alpha, 1 - alpha)
    return Patch(drawn.rows, drawn.columns, mixed, alpha)


def extent_of(
    mask: np.ndarray, part: FramePart, face: FilmedFace, shape: tuple[int, ...]
) -> tuple[slice, slice] | None:
    """Return the rows and columns of a frame that a mask in its crop covers, from even numbers."""
    down, across = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(down):
        return None
    top, left = (side.start for side in part.pixels)
    box = [
        [left + x, top + y] for x in (across[0], across[-1] + 1) for y in (down[0], down[-1] + 1)
    ]
    corners = face.to_crop.inverse()(face.points.new_tensor([box]))[0]
    low = corners.amin(0).floor().long().tolist()
    high = corners.amax(0).ceil().long().tolist()
    first = [max(0, v) // 2 * 2 for v in low]
    last = [min(-(-v // 2) * 2, length) for v, length in zip(high, shape[1::-1], strict=True)]
    if first[0] >= last[0] or first[1] >= last[1]:
        return None
    return slice(first[1], last[1]), slice(first[0], last[0])


def from_part(matrix: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
    """Return a matrix for pixels counted from the corner of a part of the frame."""
    moved = matrix.copy()
    moved[:, 2] += matrix[:, :2] @ [columns.start, rows.start]
    return moved


def in_part(to_crop: np.ndarray, part: FramePart) -> np.ndarray:
    """Return a matrix to pixels of a crop as one to pixels of a part of it."""
    moved = to_crop.copy()
    moved[:, 2] -= [side.start for side in part.pixels[::-1]]
    return moved


def _at_frame(
    face: _Face,
    reference: Reference,
    colours: np.ndarray,
    to_crop: np.ndarray,
    part: FramePart,
    size: tuple[int, int],
) -> np.ndarray:
    """Return a generated face at the frame's resolution, `(h, w, 3)` uint8.

    Args:
        face: the face.
        reference: what it was made from.
        colours: change of colours, in cells of the part.
        to_crop: maps pixels of the part of the frame to those of the crop.
        part: the part of the crop that was generated.
        size: width and height of the part of the frame.
    """
    cells = to_cells(to_crop, FLOW_SIZE)
    flow = cv2.warpAffine(face.flow, cells, size, flags=SAMPLE, borderMode=cv2.BORDER_REPLICATE)
    x, y = np.arange(size[0], dtype=np.float32), np.arange(size[1], dtype=np.float32)[:, None]
    zoom = len(reference.source) / IMAGE_SIZE
    at = []
    for axis, row in enumerate(zoom * to_crop.astype(np.float32)):
        across, down = row[0] * x, row[1] * y + (row[2] + 0.5 * zoom - 0.5)
        at.append(zoom * flow[..., axis] + across + down)
    warped = cv2.remap(
        reference.source, at[0], at[1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    change = face.change + cv2.resize(colours, face.change.shape[1::-1])
    change = cv2.warpAffine(
        change, in_part(to_crop, part), size, flags=SAMPLE, borderMode=cv2.BORDER_REPLICATE
    )
    made: np.ndarray = cv2.add(warped, change, dtype=cv2.CV_8U)
    return made


def to_cells(to_crop: np.ndarray, cells: int) -> np.ndarray:
    """Return a matrix to pixels of the crop as one to cells of a coarser grid."""
    share = cells / IMAGE_SIZE
    matrix = to_crop * share
    matrix[:, 2] += (share - 1) / 2
    return matrix


def colour_change(
    crop: np.ndarray, image: np.ndarray, mask: np.ndarray, lips: np.ndarray
) -> np.ndarray:
    """Return what to add to a part of a generated crop so that its skin has the frame's colours.

    Args:
        crop: the frame's crop, `(h, w, 3)` uint8.
        image: the generated one, likewise, float32.
        mask: the part that is replaced, `(h, w)`.
        lips: 1 where the two show different things, `(h, w)` uint8.

    Returns:
        `(h / 4, w / 4, 3)` float32.
    """
    size = (mask.shape[1] // CELL_PX, mask.shape[0] // CELL_PX)
    weight = ((mask > 0) & (lips == 0)).astype(np.float32)
    change = (crop - image.clip(0, 255)).clip(-_MOST_COLOUR, _MOST_COLOUR)
    weighted = np.concatenate([change * weight[..., None], weight[..., None]], -1)
    total = cv2.resize(weighted, size, interpolation=cv2.INTER_AREA)
    total = cv2.GaussianBlur(total, (0, 0), _COLOUR_CELLS, borderType=cv2.BORDER_CONSTANT)
    smooth: np.ndarray = total[..., :3] / (total[..., 3:] + _SMALL)
    return smooth
