"""The pose reader: crops that are level whatever the frame, and angles that mirror with it."""

import numpy as np
import pytest
import torch

from letstalk_rt.models.face.head_pose import average_head
from letstalk_rt.models.face.pose_reader import (
    CROP_PX,
    PoseReader,
    even,
    face_places,
    level_faces,
    read_turns,
)
from letstalk_rt.models.layers.folded_conv import without_norms

SIDE = 300


def pattern(points):
    """A smooth picture in coordinates of an image, `(1, 1, SIDE, SIDE)`, for pixels `(..., 2)`."""
    x, y = points[..., 0], points[..., 1]
    return torch.from_numpy(np.sin(x / 15) + np.cos(y / 11 + x / 40)).float()[None, None]


def grid():
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    return np.stack([x, y], -1)


@pytest.fixture
def points():
    """Landmarks of the average head in the middle of the image, eyes level."""
    return average_head().points[:, :2] * 90 + 150


@pytest.fixture
def reader():
    torch.manual_seed(0)
    return PoseReader().eval()


class TestCrops:
    @pytest.mark.parametrize(("scale", "angle"), [(0.7, 0.0), (0.9, 0.3), (1.1, -0.25)])
    def test_a_face_that_is_moved_turned_and_scaled_gives_the_same_crop(self, points, scale, angle):
        cos, sin = np.cos(angle), np.sin(angle)
        turn = scale * np.array([[cos, -sin], [sin, cos]])
        middle = points.mean(0)
        moved = (points - middle) @ turn.T + middle + [4, -7]
        back = (grid() - middle - [4, -7]) @ np.linalg.inv(turn).T + middle
        plain, found = (
            level_faces(image, torch.from_numpy(face_places(at[None])))
            for image, at in ((pattern(grid()), points), (pattern(back), moved))
        )
        assert plain.shape == (1, 1, CROP_PX, CROP_PX) and plain.std() > 0.3
        assert (plain - found)[..., 8:-8, 8:-8].abs().max() < 0.15

    def test_light_does_not_change_them(self):
        crops = torch.rand(2, 1, CROP_PX, CROP_PX)
        torch.testing.assert_close(even(0.8 * crops + 0.1), even(crops), atol=0.08, rtol=0.08)


class TestReading:
    def test_a_mirrored_face_turns_the_other_way_and_nods_alike(self, reader, points):
        image = pattern(grid()).expand(1, 3, SIDE, SIDE)
        mirrored = points * [-1, 1] + [SIDE, 0]
        plain = read_turns(reader, image, points)
        flipped_points = mirrored_order(mirrored)
        flipped = read_turns(reader, image.flip(-1), flipped_points)
        np.testing.assert_allclose(flipped, plain * [-1, 1], atol=0.01)
        assert np.abs(plain).max() > 0.02

    def test_a_batch_is_read_as_one_by_one(self, reader):
        crops = torch.randn(3, 1, CROP_PX, CROP_PX)
        with torch.no_grad():
            single = torch.cat([reader(crop[None]) for crop in crops])
            torch.testing.assert_close(reader(crops), single, atol=1e-4, rtol=1e-3)

    def test_norms_are_folded_away_for_inference(self, reader):
        torch.manual_seed(1)
        crops = torch.randn(2, 1, CROP_PX, CROP_PX)
        reader.train()(crops)  # so that the norms have seen something
        folded = without_norms(reader.eval())
        assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in folded.modules())
        with torch.no_grad():
            torch.testing.assert_close(folded(crops), reader(crops), atol=1e-4, rtol=1e-3)

    def test_it_is_small(self, reader):
        assert sum(part.numel() for part in reader.parameters()) < 150_000


def mirrored_order(points):
    """Return mirrored landmarks with each in the place of its mirror point."""
    front = average_head().points[:, :2]
    distance = np.linalg.norm((front * [-1, 1])[:, None] - front[None], axis=-1)
    return points[distance.argmin(1)]
