"""Trains the face detector on scenes: faces pasted at random places and sizes.

Backgrounds are edges of still portraits (wall, hair, clothing), drawn patterns and noise, so that
scenes without a face are part of the training.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from letstalk_rt.models.face.detector import DETECTOR_SIZE, FACE_SHARE, STRIDE, FaceDetector
from letstalk_rt.training.data.dataset import STILL_SIZE, Clip, Stills
from letstalk_rt.training.loop import LoopConfig, Run

CELLS = DETECTOR_SIZE // STRIDE
_SMALLEST, _LARGEST = 22.0, 260.0
"""Bounds of a face crop's side in the scene, px."""


@dataclass(frozen=True)
class Scene:
    """A batch of scenes with their targets.

    Attributes:
        images: `(B, 3, 160, 160)` in [-1, 1].
        heat: Target heat maps, `(B, 20, 20)` in [0, 1]; 1 at a face's centre.
        boxes: `(B, 3, 20, 20)`: offset x and y in cells, log side; valid at centres.
    """

    images: Tensor
    heat: Tensor
    boxes: Tensor

    def to(self, device: torch.device) -> "Scene":
        """Return the scenes on a device."""
        return Scene(self.images.to(device), self.heat.to(device), self.boxes.to(device))


class SceneSource:
    """Draws random scenes.

    Args:
        clips: Clips of the train split.
        stills: Stills of the train split.
    """

    def __init__(self, clips: list[Clip], stills: Stills) -> None:
        self.clips, self.stills = clips, stills

    def draw(self, batch_size: int, generator: torch.Generator) -> Scene:
        """Draw scenes: a quarter without a face, some with two."""
        items = [self._scene(generator) for _ in range(batch_size)]
        return Scene(*(torch.stack(column) for column in zip(*items, strict=True)))

    def _scene(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        image = self._background(generator)
        heat, boxes = torch.zeros(CELLS, CELLS), torch.zeros(3, CELLS, CELLS)
        u = _uniform(generator, 0, 1)
        for _ in range(0 if u < 0.25 else 1 if u < 0.85 else 2):
            image = self._paste_face(image, heat, boxes, generator)
        gain, bias = _uniform(generator, 0.6, 1.25), _uniform(generator, -0.25, 0.25)
        if _uniform(generator, 0, 1) < 0.15:
            image = image.mean(0, keepdim=True).expand(3, -1, -1)
        image = image * gain + bias
        noise = _uniform(generator, 0, 0.08) * torch.randn(image.shape, generator=generator)
        return (image + noise).clamp(-1, 1), heat, boxes

    def _face(self, generator: torch.Generator) -> tuple[Tensor, np.ndarray]:
        """Draw the image of a face `(3, S, S)` with its landmarks, px."""
        if _uniform(generator, 0, 1) < 0.5:
            index = _below(generator, len(self.stills.frames))
            return _to_tensor(self.stills.frames[index]), self.stills.landmarks[index]
        clip = self.clips[_below(generator, len(self.clips))]
        index = _below(generator, clip.num_frames)
        return _to_tensor(clip.frames[index]), clip.landmarks[index]

    def _paste_face(
        self, scene: Tensor, heat: Tensor, boxes: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Paste a face into the scene and write it to the targets unless it is far from upright."""
        source, landmarks = self._face(generator)
        size = source.shape[-1]
        low, high = landmarks.min(0), landmarks.max(0)
        source_side = float(high[1] - low[1]) / FACE_SHARE
        centre = (low + high) / 2 - [0, 0.06 * source_side]
        side = float(np.exp(_uniform(generator, np.log(_SMALLEST), np.log(_LARGEST))))
        zoom = source_side / side  # source px per scene px
        reach = max(0.0, 0.5 * (DETECTOR_SIZE - 0.6 * side))
        at = 80 + np.array([_uniform(generator, -reach, reach), _uniform(generator, -reach, reach)])
        turned = _uniform(generator, 0, 1) < 0.15  # on its side or upside down: a negative
        angle = _uniform(generator, 1.3, 4.98) if turned else _uniform(generator, -0.35, 0.35)
        linear = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        offset = centre - linear @ at
        face, inside = _resample(source, linear, offset, size)
        column, row = int(at[0] // STRIDE), int(at[1] // STRIDE)
        if turned:
            heat.copy_(heat * (1 - inside_cells(inside)))
        elif 0 <= column < CELLS and 0 <= row < CELLS:
            axis = torch.arange(CELLS)
            spread = max(0.7, side / DETECTOR_SIZE * 2)
            bump = torch.exp(
                -((axis[:, None] - row) ** 2 + (axis[None] - column) ** 2) / (2 * spread**2)
            )
            heat.copy_(torch.maximum(heat * (1 - inside_cells(inside)), bump))
            place = torch.tensor([at[0] / STRIDE - column - 0.5, at[1] / STRIDE - row - 0.5])
            boxes[:2, row, column] = place.float()
            boxes[2, row, column] = float(np.log(side / 64))
        return torch.where(inside > 0.5, face, scene)

    def _background(self, generator: torch.Generator) -> Tensor:
        u = _uniform(generator, 0, 1)
        if u < 0.6:
            image = _to_tensor(self.stills.frames[_below(generator, len(self.stills.frames))])
            width = STILL_SIZE // 4
            left = 0 if _uniform(generator, 0, 1) < 0.5 else STILL_SIZE - width
            top = _below(generator, STILL_SIZE - width)
            patch = image[:, top : top + width, left : left + width]
            return F.interpolate(patch[None], (DETECTOR_SIZE, DETECTOR_SIZE), mode="bilinear")[0]
        if u < 0.75:
            return _pattern(generator)
        coarse = 2 ** (1 + _below(generator, 6))
        noise = torch.rand(1, 3, coarse, coarse, generator=generator) * 2 - 1
        return F.interpolate(noise, (DETECTOR_SIZE, DETECTOR_SIZE), mode="bilinear")[0]


def inside_cells(inside: Tensor) -> Tensor:
    """Return which cells a pasted image covers; faces below it leave the targets."""
    return F.adaptive_avg_pool2d(inside[None].float(), CELLS)[0, 0].round()


def _pattern(generator: torch.Generator) -> Tensor:
    """Draw stripes, checks or a few discs."""
    axis = torch.arange(DETECTOR_SIZE) / DETECTOR_SIZE
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    colors = torch.rand(2, 3, 1, 1, generator=generator) * 2 - 1
    turn, rate = _uniform(generator, 0, 3.2), _uniform(generator, 2, 20)
    wave = torch.sin(6.28 * rate * (x * np.cos(turn) + y * np.sin(turn)))
    u = _uniform(generator, 0, 1)
    if u < 0.3:
        wave = wave * torch.sin(6.28 * rate * (y * np.cos(turn) - x * np.sin(turn)))
    elif u < 0.6:
        wave = -torch.ones_like(x)
        for _ in range(4):
            cx, cy, r = (_uniform(generator, 0, 1) for _ in range(3))
            oval = ((x - cx) ** 2 + (y - cy) ** 2 * _uniform(generator, 0.5, 1.2)) < (0.3 * r) ** 2
            wave = torch.where(oval, -wave, wave)
    return torch.where(wave > 0, colors[0], colors[1])


def _resample(
    source: Tensor, linear: np.ndarray, offset: np.ndarray, size: int
) -> tuple[Tensor, Tensor]:
    zoom = float(np.sqrt(abs(np.linalg.det(linear))))
    factor = max(1, int(zoom))
    small = F.avg_pool2d(source[None], factor) if factor > 1 else source[None]
    axis = torch.arange(DETECTOR_SIZE) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    m = torch.from_numpy(linear).float()
    px = m[0, 0] * x + m[0, 1] * y + float(offset[0])
    py = m[1, 0] * x + m[1, 1] * y + float(offset[1])
    grid = torch.stack([px, py], -1)[None] / (size / 2) - 1
    inside = (grid.abs().amax(-1) < 0.99).float()
    return F.grid_sample(small, grid, align_corners=False)[0], inside


def _to_tensor(frame: np.ndarray) -> Tensor:
    return torch.from_numpy(frame.copy()).permute(2, 0, 1).float() / 127.5 - 1


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _below(generator: torch.Generator, limit: int) -> int:
    return int(torch.randint(limit, (1,), generator=generator))


def detector_loss(out: Tensor, scene: Scene) -> tuple[Tensor, dict[str, float]]:
    """Return the focal loss of the heat map plus the L1 error of offset and size at centres.

    Source: CenterNet, arXiv:1904.07850, equations 1 to 3.
    """
    share = torch.sigmoid(out[:, 0].float()).clamp(1e-5, 1 - 1e-5)
    centre = scene.heat == 1
    hit = -((1 - share) ** 2) * torch.log(share) * centre
    miss = -((1 - scene.heat) ** 4) * share**2 * torch.log(1 - share) * ~centre
    count = centre.sum().clamp(min=1)
    box = ((out[:, 1:].float() - scene.boxes).abs() * centre[:, None]).sum() / count
    heat = (hit + miss).sum() / count
    return heat + box, {"heat": float(heat.detach()), "box": float(box.detach())}


def train_face_detector(
    clips: list[Clip], stills: Stills, folder: Path, config: LoopConfig, *, batch_size: int = 32
) -> nn.Module:
    """Train the detector and return the averaged one."""
    torch.manual_seed(2)
    source = SceneSource(clips, stills)
    model = FaceDetector()
    head = model.head[-1]
    assert isinstance(head, nn.Conv2d) and head.bias is not None
    nn.init.constant_(head.bias[:1], -3.0)
    run = Run(folder, model, config)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        scene = source.draw(batch_size, run.generator).to(run.device)
        return detector_loss(model(scene.images), scene)

    return run.train(loss)
