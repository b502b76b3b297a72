"""The warp moves what the landmarks move, and leaves the rest."""

import torch

from letstalk_rt.models.geometry.landmark_warp import (
    coarse_flow,
    face_flow,
    mouth_gap,
    proximity_map,
    warp,
)
from letstalk_rt.models.geometry.landmarks import (
    INNER_LOWER_LIP,
    INNER_UPPER_LIP,
    LOWER_LIP_ONLY,
    NUM_LANDMARKS,
    UPPER_LIP_ONLY,
    landmark_indices,
)


def explicit_flow(source, target, cells, near_px=7.0, far_px=26.0):
    """The formula as it stands, cell by cell: kernel-weighted mean of the displacements."""
    out = torch.zeros(2, cells, cells, dtype=torch.float64)
    source, target = source.double(), target.double()
    for row in range(cells):
        for column in range(cells):
            here = torch.tensor([(column + 0.5) / cells * 2 - 1, (row + 0.5) / cells * 2 - 1])
            distance2 = ((here - target) ** 2).sum(-1) * 128**2
            weight = torch.exp(-distance2 / (2 * near_px**2))
            weight = weight + 1e-3 * torch.exp(-distance2 / (2 * far_px**2))
            moved = (weight[:, None] * (source - target)).sum(0)
            out[:, row, column] = moved / (weight.sum() + 2e-3)
    return out.float()


def test_it_equals_the_explicit_formula():
    torch.manual_seed(0)
    source = torch.rand(2, 25, 2) * 1.2 - 0.6
    target = source + 0.1 * torch.randn(2, 25, 2)
    flow = coarse_flow(source, target, 12)
    for item in range(2):
        torch.testing.assert_close(
            flow[item], explicit_flow(source[item], target[item], 12), atol=1e-5, rtol=1e-4
        )


def test_landmarks_at_rest_give_no_flow():
    points = torch.rand(2, 30, 2) - 0.5
    assert coarse_flow(points, points).abs().max() < 1e-6


def test_a_shifted_face_reads_from_where_it_was():
    torch.manual_seed(0)
    face = torch.rand(1, 200, 2) * 0.4 - 0.2
    flow = coarse_flow(face, face + torch.tensor([0.1, 0.0]))
    assert torch.allclose(flow[0, 0, 32, 35], torch.tensor(-0.1), atol=0.01)
    assert flow[0, :, 0, 0].abs().max() < 0.01


def test_flow_moves_a_face_where_its_landmarks_are():
    """A disc with landmarks all over is shown where they are wanted."""
    axis = (torch.arange(256) + 0.5) / 128 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    picture = ((x + 0.1) ** 2 + (y - 0.1) ** 2 < 0.09).float()[None, None]
    places = torch.stack(torch.meshgrid(*[torch.linspace(-0.4, 0.4, 12)] * 2, indexing="xy"), -1)
    source = places.view(1, -1, 2) + torch.tensor([-0.1, 0.1])
    target = source + torch.tensor([0.15, -0.05])
    moved = warp(picture, coarse_flow(source, target))[0, 0]
    centre = torch.stack([(moved * x).sum(), (moved * y).sum()]) / moved.sum()
    torch.testing.assert_close(centre, torch.tensor([0.05, 0.05]), atol=0.02, rtol=0)


def test_gradients_reach_the_landmarks():
    source, target = (torch.rand(1, 9, 2).requires_grad_() for _ in range(2))
    coarse_flow(source, target, 8).sum().backward()
    assert source.grad.isfinite().all() and target.grad.isfinite().all()


def test_zero_flow_keeps_the_picture():
    picture = torch.rand(1, 3, 32, 48)
    assert torch.allclose(warp(picture, torch.zeros(1, 2, 8, 8)), picture, atol=1e-5)


def test_a_flow_of_one_pixel_reads_the_neighbour():
    picture = torch.rand(1, 2, 16, 16)
    flow = torch.zeros(1, 2, 16, 16)
    flow[:, 0] = 2 / 16
    torch.testing.assert_close(warp(picture, flow)[..., :-1], picture[..., 1:])


def test_nearness_is_one_at_its_points_and_fades():
    points = torch.tensor([[[0.5, -0.5], [-0.5, 0.5]]])
    near = proximity_map(points, 64, 8.0)
    assert near.shape == (1, 1, 64, 64)
    assert near[0, 0, 16, 48] > 0.9 and near[0, 0, 48, 16] > 0.9
    assert near[0, 0, 16, 16] < 1e-6 and near.max() <= 1


def test_nearness_of_many_points_at_one_place_is_one():
    assert proximity_map(torch.zeros(1, 9, 2), 64, 8.0).max() == 1


def face(opening: float) -> torch.Tensor:
    """A face whose mouth, at (0, 0.3), is open by so much; the lips are ellipses around it."""
    torch.manual_seed(0)
    points = 1.2 * torch.rand(NUM_LANDMARKS, 2) - 0.6
    points[points[:, 1] > 0.1, 1] -= 0.6
    corners = landmark_indices((61, 78, 308, 291))
    points[corners] = torch.tensor([[-0.22, 0.3], [-0.2, 0.3], [0.2, 0.3], [0.22, 0.3]])
    for lip, inner, way in (
        (UPPER_LIP_ONLY, INNER_UPPER_LIP, -1),
        (LOWER_LIP_ONLY, INNER_LOWER_LIP, 1),
    ):
        outer = [i for i in lip if i not in set(inner)]
        for group, thick in ((inner, 0.0), (outer, 0.08)):
            x = torch.linspace(-0.18, 0.18, len(group))
            bow = (1 - (x / 0.2) ** 2).sqrt()
            points[group] = torch.stack([x, 0.3 + way * (opening / 2 + thick) * bow], 1)
    return points[None]


def cell(y: float, x: float = 0.0, size: int = 128) -> tuple[int, int]:
    return round((y + 1) / 2 * size - 0.5), round((x + 1) / 2 * size - 0.5)


def test_a_face_at_rest_has_no_flow():
    assert face_flow(face(0.1), face(0.1)).abs().max() < 1e-6


def test_lips_part_without_dragging_each_other():
    closed, wide = face(0.0), face(0.2)
    torn, smooth = face_flow(closed, wide)[0, 1], coarse_flow(closed, wide, 128)[0, 1]
    upper, lower = cell(0.3 - 0.1 - 0.01), cell(0.3 + 0.1 + 0.01)
    assert torn[upper] > 0.085 and torn[lower] < -0.085  # each lip's own displacement is 0.1
    middle = slice(cell(0.3)[0] - 3, cell(0.3)[0] + 4), 64
    assert torn[middle].diff().abs().max() > 2 * smooth[middle].diff().abs().max()


def test_the_tear_ends_at_the_corners_of_the_mouth():
    torn = face_flow(face(0.0), face(0.2))[0, 1]
    beside = torn[cell(0.1)[0] : cell(0.5)[0], cell(0.3, 0.3)[1]]
    assert beside.diff().abs().max() < 0.02
    inside = torn[cell(0.1)[0] : cell(0.5)[0], 64]
    assert inside.diff().abs().max() > 0.05


def test_the_gap_is_between_parted_lips():
    gap = mouth_gap(face(0.2))[0, 0]
    assert gap[cell(0.3)] == 1 and gap[cell(0.3 + 0.07)] == 1
    assert not gap[cell(0.3 + 0.13)] and not gap[cell(0.3 - 0.13)]
    assert not gap[cell(0.3, 0.25)] and not gap[cell(0.3, -0.25)]
    area = float(gap.mean()) * 4
    assert 0.7 < area / (3.1416 * 0.1 * 0.2) < 1.1
    assert not mouth_gap(face(0.0)).any()
