"""Figures of the inside of open mouths."""

import numpy as np
import torch
from support.mouths import TEETH, frontal_face, mesh, rotated, skin

from letstalk_rt.models.geometry.mouth_crop import (
    CROP_HEIGHT,
    CROP_WIDTH,
    align_mouths,
    aligned_centre,
    opening_mask,
    resample,
)
from letstalk_rt.training.evaluation.clips import INTERIOR
from letstalk_rt.training.evaluation.faces import FaceTrack
from letstalk_rt.training.evaluation.interior import (
    compare_interiors,
    mouth_sheet,
    read_interior,
    worst_first,
)


def talking_mouth(gaps, colour=TEETH, noise=0.0) -> tuple[np.ndarray, FaceTrack]:
    """Return a video of a mouth with a striped inside of one colour, and noise between frames.

    The head turns and moves all the time.
    """
    rng, frames, points = np.random.default_rng(0), [], []
    for index, gap in enumerate(gaps):
        at = (128 + 3 * np.sin(index), 140.0)
        face = rotated(frontal_face(gap, scale=0.8), 0.1 * np.cos(index)) + torch.tensor(at)
        frame = torch.from_numpy(skin())[None].permute(0, 3, 1, 2).float()
        transform = align_mouths(face.float(), aligned_centre(face.float()))
        crop = resample(frame, transform, (CROP_HEIGHT, CROP_WIDTH))
        inside = torch.tensor(colour).view(1, 3, 1, 1) + torch.zeros_like(crop)
        inside[..., ::8] *= 0.6
        inside = (inside + noise * torch.from_numpy(rng.normal(size=inside.shape))).clamp(0, 255)
        within = opening_mask(transform(face.float()), (CROP_HEIGHT, CROP_WIDTH), dilation_px=2.0)
        whole = resample(torch.cat([inside.float(), within], 1), transform.inverse(), (256, 256))
        frames.append(torch.lerp(frame, whole[:, :3], whole[:, 3:])[0].permute(1, 2, 0).numpy())
        points.append(face)
    track = FaceTrack(mesh(torch.cat(points).float()), np.ones(len(points), bool))
    return np.stack(frames).round().astype(np.uint8), track


class TestInterior:
    GAPS = [0.0, 9.0, 11.0, 13.0, 14.0, 12.0, 10.0, 9.0, 0.0]

    def test_a_video_compared_with_itself(self):
        inside = read_interior(*talking_mouth(self.GAPS))
        assert inside.open_frames.tolist() == list(range(1, 8))
        found = compare_interiors(inside, inside)
        assert found["interior_contrast_ratio"] == found["interior_shimmer"] == 1
        assert found["interior_ab"] == 0 and found["interior_contrast"] > 3

    def test_colour_and_contrast_do_not_depend_on_head_movement(self):
        true = read_interior(*talking_mouth(self.GAPS, (150.0, 140.0, 130.0)))
        flat = read_interior(*talking_mouth(self.GAPS, (60.0, 56.0, 52.0)))
        purple = read_interior(*talking_mouth(self.GAPS, (150.0, 110.0, 170.0)))
        assert compare_interiors(flat, true)["interior_contrast_ratio"] < 0.6
        assert compare_interiors(flat, true)["interior_ab"] < 4
        assert compare_interiors(purple, true)["interior_ab"] > 20

    def test_noise_between_frames_raises_shimmer(self):
        true = read_interior(*talking_mouth(self.GAPS, noise=2.0))
        crawling = read_interior(*talking_mouth(self.GAPS, noise=20.0))
        assert compare_interiors(crawling, true)["interior_shimmer"] > 1.5

    def test_a_closed_mouth_has_no_figures(self):
        shut = read_interior(*talking_mouth([0.0] * 6))
        true = read_interior(*talking_mouth(self.GAPS))
        assert all(np.isnan(compare_interiors(shut, true)[name]) for name in INTERIOR)
        assert mouth_sheet(shut, shut, count=3).shape == (320, 672, 3)

    def test_a_video_without_contrast_has_no_ratios(self):
        frames, face = talking_mouth(self.GAPS)
        blank = read_interior(np.full_like(frames, 19), face)
        found = compare_interiors(read_interior(frames, face), blank)
        assert np.isnan(found["interior_contrast_ratio"]) and np.isnan(found["interior_shimmer"])

    def test_sheets_show_true_mouths_above_generated(self):
        true, generated = (
            read_interior(*talking_mouth(self.GAPS, colour))
            for colour in ((200.0, 40.0, 40.0), (40.0, 40.0, 200.0))
        )
        sheet = mouth_sheet(true, generated, count=4)
        assert sheet.shape == (2 * 2 * CROP_HEIGHT, 4 * 2 * CROP_WIDTH, 3)
        upper, lower = sheet[: 2 * CROP_HEIGHT], sheet[2 * CROP_HEIGHT :]
        assert (upper[66, 116::224, 0] > upper[66, 116::224, 2]).all()
        assert (lower[66, 116::224, 2] > lower[66, 116::224, 0]).all()

    def test_the_worst_come_first_and_unknown_ones_last(self):
        rows = [
            {"name": "good", "interior_contrast_ratio": 1.0, "interior_ab": 1.0},
            {"name": "shut", "interior_contrast_ratio": float("nan")},
            {"name": "grey", "interior_contrast_ratio": 0.3, "interior_ab": 3.0},
            {"name": "purple", "interior_contrast_ratio": 1.0, "interior_ab": 14.0},
        ]
        sheets = [(str(row["name"]), np.zeros((1, 1, 3), np.uint8)) for row in rows]
        ordered = [name for name, _ in worst_first(rows, sheets)]
        assert ordered == ["purple", "grey", "good", "shut"]
