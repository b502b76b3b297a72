"""Measures the inside of open mouths: contrast, colour, and change from frame to frame.

Mouths are aligned by the skull, so head movement has no effect. Colours are in CIELAB.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from letstalk_rt.models.geometry.landmarks import SUBSET
from letstalk_rt.models.geometry.mouth_crop import (
    CROP_HEIGHT,
    CROP_WIDTH,
    align_mouths,
    aligned_centre,
    lip_gap_px,
    opening_mask,
    resample,
)
from letstalk_rt.training.evaluation.faces import FaceTrack

OPEN_PX = 4.0
"""Lip gap of a mouth 68 px wide from which its inside is visible."""

FEWEST_FRAMES = 5
_DILATION_PX = -1.0
"""Dilation of the opening; negative, so that lips are not measured."""


@dataclass(frozen=True)
class Interior:
    """The open mouths of a video.

    Attributes:
        crops: `(T, 80, 112, 3)` uint8, aligned by the skull.
        lab: the same in CIELAB, `(T, 80, 112, 3)` float32, L from 0 to 100.
        inside: which pixels lie between the lips, `(T, 80, 112)` bool.
        lip_gap_px: lip gap, `(T,)`.
    """

    crops: np.ndarray
    lab: np.ndarray
    inside: np.ndarray
    lip_gap_px: np.ndarray

    @property
    def open_frames(self) -> np.ndarray:
        """Indices of the frames whose mouth is open."""
        return np.flatnonzero((self.lip_gap_px >= OPEN_PX) & (self.inside.sum((1, 2)) > 0))

    @property
    def contrast(self) -> float:
        """Standard deviation of L inside, median over open mouths; NaN if there are too few."""
        found = [self.lab[i, self.inside[i], 0].std() for i in self.open_frames]
        return float(np.median(found)) if len(found) >= FEWEST_FRAMES else float("nan")

    @property
    def colour(self) -> np.ndarray:
        """Mean a and b inside open mouths, `(2,)`; NaN if there are too few."""
        chosen = self.open_frames
        if len(chosen) < FEWEST_FRAMES:
            return np.full(2, np.nan)
        means = [self.lab[i, self.inside[i], 1:].mean(0) for i in chosen]
        mean: np.ndarray = np.mean(means, axis=0)
        return mean

    @property
    def shimmer(self) -> float:
        """Mean change of L inside between consecutive open frames; NaN if there are too few."""
        chosen, found = set(self.open_frames.tolist()), []
        for i in sorted(chosen):
            both = self.inside[i] & self.inside[i - 1] if i - 1 in chosen else None
            if both is not None and both.any():
                found.append(np.abs(self.lab[i, both, 0] - self.lab[i - 1, both, 0]).mean())
        return float(np.median(found)) if len(found) >= FEWEST_FRAMES else float("nan")


def read_interior(frames: np.ndarray, track: FaceTrack) -> Interior:
    """Crop the mouths of a video `(T, H, W, 3)` uint8 along its face track."""
    points = torch.from_numpy(np.ascontiguousarray(track.points[:, SUBSET], np.float32))
    transform = align_mouths(points, aligned_centre(points).median(0, keepdim=True).values)
    placed = transform(points)
    size = (CROP_HEIGHT, CROP_WIDTH)
    crops = torch.cat(
        [resample(_float(frames[i]), transform[[i]], size) for i in range(len(frames))]
    )
    pixels = crops.permute(0, 2, 3, 1).contiguous().numpy()
    lab = np.stack([cv2.cvtColor(crop, cv2.COLOR_RGB2LAB) for crop in pixels])
    inside = opening_mask(placed, size, dilation_px=_DILATION_PX)[:, 0].numpy() > 0.5
    shown = (pixels * 255).round().astype(np.uint8)
    return Interior(shown, lab, inside & track.found[:, None, None], lip_gap_px(placed).numpy())


def _float(frame: np.ndarray) -> Tensor:
    pixels = frame.astype(np.float32) / 255  # a copy: frames of clips are read-only maps of files
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def compare_interiors(generated: Interior, true: Interior) -> dict[str, float]:
    """Return ratios of contrast and change to the true ones, and the distance of mean colours."""
    return {
        "interior_contrast_ratio": _ratio(generated.contrast, true.contrast),
        "interior_ab": float(np.linalg.norm(generated.colour - true.colour)),
        "interior_shimmer": _ratio(generated.shimmer, true.shimmer),
        "interior_contrast": generated.contrast,
        "interior_contrast_true": true.contrast,
        "interior_change": generated.shimmer,
        "interior_change_true": true.shimmer,
    }


def _ratio(value: float, true: float) -> float:
    """Return `value / true`, or NaN if the true video has no contrast or change at all."""
    return value / true if true else float("nan")


def mouth_sheet(
    true: Interior, generated: Interior, count: int = 8, enlarged: int = 2
) -> np.ndarray:
    """Return true mouths above generated ones, enlarged, at even intervals of open frames."""
    chosen = [i for i in true.open_frames if i < len(generated.crops)]
    if not chosen:
        chosen = list(range(min(len(true.crops), len(generated.crops))))
    picked = [chosen[i] for i in np.linspace(0, len(chosen) - 1, count).round().astype(int)]
    rows = [np.concatenate(list(part.crops[picked]), 1) for part in (true, generated)]
    sheet = np.concatenate(rows)
    size = (sheet.shape[1] * enlarged, sheet.shape[0] * enlarged)
    larger: np.ndarray = cv2.resize(sheet, size, interpolation=cv2.INTER_CUBIC)
    return larger


def interior_error(row: dict[str, float | str]) -> float:
    """Return a clip's distance from true mouths, for sorting; -1 if unknown."""
    parts = [row.get(name, np.nan) for name in ("interior_contrast_ratio", "interior_shimmer")]
    ratios = [abs(np.log(max(float(value), 1e-3))) for value in parts if np.isfinite(float(value))]
    colour = float(row.get("interior_ab", np.nan))
    if np.isfinite(colour):
        ratios.append(colour / 4)
    return float(sum(ratios)) if ratios else -1.0


def worst_first(
    rows: Sequence[dict[str, float | str]], sheets: Sequence[tuple[str, np.ndarray]]
) -> list[tuple[str, np.ndarray]]:
    """Return the contact sheets sorted by `interior_error`, worst first."""
    errors = {str(row["name"]): interior_error(row) for row in rows}
    return sorted(sheets, key=lambda named: -errors.get(named[0], -1.0))
