"""Makes the default avatars: people who do not exist, morphed from synthetic portraits.

Two portraits are aligned by their face landmarks, warped to their mean shape, and their faces
blended; hair, clothes and background are the first one's. To make the packaged images again:

    python -m letstalk_rt.training.data.default_avatars --data DATA
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from letstalk_rt.errors import InputError
from letstalk_rt.models.geometry.landmark_warp import coarse_flow, warp
from letstalk_rt.models.geometry.landmarks import IRISES, OVAL
from letstalk_rt.training.data.dataset import Landmarker, landmarker_file

SIZE = 768
FACE_SHARE = 0.38
"""Least height of the face as a share of the canvas."""

FACE_TOP = 0.47
"""Height of the face's centre on the canvas, as a share from its top."""


@dataclass(frozen=True)
class Recipe:
    """One avatar: a base portrait, the portrait whose face is blended in, and its share."""

    name: str
    base: str
    other: str
    share: float


RECIPES = (
    Recipe("mira", "faker_female_68", "faker_female_88", 0.5),
    Recipe("samuel", "faker_male_7", "faker_male_91", 0.5),
    Recipe("leon", "faker_male_32", "faker_male_62", 0.4),
    Recipe("ruth", "faker_female_81", "faker_female_13", 0.45),
)


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the 2x3 similarity transform from `source` points `(N, 2)` to `target`.

    Source: Umeyama 1991, least-squares estimation of transformation parameters.
    """
    a, b = source - source.mean(0), target - target.mean(0)
    u, scales, vt = np.linalg.svd(b.T @ a)
    sign = np.array([1.0, np.sign(np.linalg.det(u @ vt))])
    linear = (u * sign) @ vt * float((scales * sign).sum() / (a**2).sum())
    return np.concatenate([linear, (target.mean(0) - linear @ source.mean(0))[:, None]], 1)


def _place(image: Image.Image, matrix: np.ndarray) -> np.ndarray:
    """Draw an image on a square canvas by a 2x3 matrix (image to canvas); extend its edges."""
    pad = max(image.size)
    padded = np.pad(np.asarray(image), ((pad, pad), (pad, pad), (0, 0)), mode="edge")
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    inverse[:2, 2] += pad
    placed = Image.fromarray(padded).transform(
        (SIZE, SIZE), Image.Transform.AFFINE, tuple(inverse[:2].flatten()), Image.Resampling.BICUBIC
    )
    return np.asarray(placed)


def _reshape(canvas: np.ndarray, points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Warp a canvas so that its landmarks move to `target`."""

    def unit(p: np.ndarray) -> Tensor:
        return torch.from_numpy(p / (SIZE / 2) - 1).float()[None]

    flow = coarse_flow(unit(points), unit(target), 192, near_px=3.0, far_px=30.0)
    image = torch.from_numpy(canvas.copy()).permute(2, 0, 1)[None].float()
    return warp(image, flow)[0].permute(1, 2, 0).numpy()


def _face_mask(points: np.ndarray) -> np.ndarray:
    """Return a soft mask `(SIZE, SIZE, 1)` of the face within its outline."""
    outline = points[list(OVAL)]
    middle = outline.mean(0)
    inner = middle + (outline - middle) * [0.9, 0.86]
    mask = Image.new("L", (SIZE, SIZE))
    ImageDraw.Draw(mask).polygon([tuple(p) for p in inner], fill=255)
    return np.asarray(mask.filter(ImageFilter.GaussianBlur(SIZE * 0.018)))[..., None] / 255.0


def _framing(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the 2x3 matrix from an image to the canvas: face in place, no area outside."""
    side = min(float(np.ptp(points[:, 1])) / FACE_SHARE, *size)
    corner = (points.min(0) + points.max(0)) / 2 - np.array([0.5, FACE_TOP]) * side
    corner = np.clip(corner, 0, np.array(size) - side)
    return np.array([[1, 0, -corner[0]], [0, 1, -corner[1]]]) * SIZE / side


def morph(
    base: Image.Image, other: Image.Image, share: float, landmarker: Landmarker
) -> Image.Image:
    """Blend two portraits into one of `SIZE` pixels.

    Raises:
        InputError: A portrait has no face.
    """
    found = [landmarker(np.asarray(image)) for image in (base, other)]
    if found[0] is None or found[1] is None:
        raise InputError("no face was found in a portrait of the recipe")
    base_points, other_points = found[0].astype(float), found[1].astype(float)
    framing = _framing(base_points, base.size)
    base_points = base_points @ framing[:, :2].T + framing[:, 2]
    alignment = similarity(other_points, base_points)
    other_points = other_points @ alignment[:, :2].T + alignment[:, 2]
    target = (1 - share) * base_points + share * other_points
    irises = list(IRISES)
    target[irises] = base_points[irises] + (target - base_points)[irises].mean(0)
    first = _reshape(_place(base, framing), base_points, target)
    second = _reshape(_place(other, alignment), other_points, target)
    mask = _face_mask(target)
    core = mask[..., 0] > 0.9
    second = (second - second[core].mean(0)) / second[core].std(0)
    second = second * first[core].std(0) + first[core].mean(0)
    blended = first + share * mask * (second - first)
    return Image.fromarray(blended.clip(0, 255).round().astype(np.uint8))


def main(argv: list[str] | None = None) -> int:
    """Make all default avatars."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="data folder with portraits_hd/")
    parser.add_argument("--landmarker", type=Path, help="face_landmarker.task")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parents[2] / "avatars")
    args = parser.parse_args(argv)
    landmarker = Landmarker(landmarker_file(args.data, args.landmarker))
    for recipe in RECIPES:
        portraits = [
            Image.open(args.data / "portraits_hd" / f"{name}.jpg").convert("RGB")
            for name in (recipe.base, recipe.other)
        ]
        avatar = morph(portraits[0], portraits[1], recipe.share, landmarker)
        avatar.save(args.output / f"{recipe.name}.jpg", quality=90)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
