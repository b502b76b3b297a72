"""Where the finder looks, and, with the trained weights, what it finds."""

import numpy as np
import pytest
import torch
from PIL import Image

from letstalk_rt.avatars import list_avatars
from letstalk_rt.models.face.detector import (
    DETECTOR_SIZE,
    FACE_SHARE,
    Box,
    FaceDetector,
    FaceFinder,
    crop,
    distinct,
    face_crop_box,
    find_peaks,
    head_yaw,
)
from letstalk_rt.models.geometry.landmarks import (
    LEFT_LID,
    MOUTH_LEFT,
    MOUTH_RIGHT,
    NUM_LANDMARKS,
    RIGHT_LID,
)
from letstalk_rt.models.loading import load_face_finder, packaged_weights
from letstalk_rt.portrait.image import prepare_portrait, read_image


def map_of_places(height, width):
    """A picture `(1, 3, H, W)` whose pixels say where they are: x, y and 1."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)])[None]


class TestCrop:
    @pytest.mark.parametrize(
        "left, top, side, size",
        [(10, 20, 32, 32), (10.5, 7.25, 20, 64), (3, 5, 90, 40)],
    )
    def test_pixels_keep_their_position(self, left, top, side, size):
        cut = crop(map_of_places(100, 140), left, top, side, size)[0, :, 2:-2, 2:-2]
        steps = (torch.arange(size) + 0.5) * side / size
        torch.testing.assert_close(
            cut[0], (left + steps)[2:-2].expand(size - 4, -1), atol=0.01, rtol=0
        )
        torch.testing.assert_close(
            cut[1], (top + steps)[2:-2, None].expand(-1, size - 4), atol=0.01, rtol=0
        )

    def test_sides_that_averaging_does_not_divide_work(self):
        cut = crop(map_of_places(101, 103), 5, 5, 90, 30)[0, :2, 2:-2, 2:-2]
        assert cut[0, 0, 0] == pytest.approx(5 + 2.5 * 3, abs=0.01)
        assert cut[1, -1, 0] == pytest.approx(5 + 27.5 * 3, abs=0.01)

    def test_pixels_beyond_the_border_are_grey(self):
        cut = crop(map_of_places(40, 40), -40, -40, 120, 30)[0, 2]
        assert cut[10:20, 10:20].min() > 0.99
        assert cut[:9].abs().max() == 0 and cut[:, 21:].abs().max() == 0

    def test_fine_stripes_become_grey_and_do_not_alias(self):
        stripes = torch.ones(1, 3, 256, 256)
        stripes[..., ::2] = -1
        assert crop(stripes, 0, 0, 256, 64)[..., 2:-2].abs().max() < 1e-6


def logits(*find_peaks):
    """A detector's output with find_peaks of (row, column, logit, dx, dy, log side)."""
    out = torch.full((4, 20, 20), -8.0)
    out[1:] = 0
    for row, column, *values in find_peaks:
        out[:, row, column] = torch.tensor(values)
    return out


class TestPeaks:
    def test_a_peak_is_in_image_coordinates(self):
        (box,) = find_peaks(logits((5, 7, 4.0, 0.25, -0.25, 0.0)), 10.0, -20.0, 320.0)
        assert (box.x, box.y) == (10 + 7.75 * 16, -20 + 5.25 * 16)
        assert box.side == pytest.approx(128)
        assert box.score == pytest.approx(torch.sigmoid(torch.tensor(4.0)).item())

    def test_the_size_is_a_logarithm_and_bounded(self):
        sides = [
            find_peaks(logits((5, 5, 4.0, 0, 0, value)), 0, 0, 160)[0].side
            for value in (np.log(2), 99.0, -99.0)
        ]
        assert sides == pytest.approx([128, 64 * np.exp(3), 64 * np.exp(-3)])

    def test_only_the_highest_of_neighbours_counts(self):
        found = find_peaks(logits((5, 5, 3.0, 0, 0, 0), (5, 6, 4.0, 0, 0, 0)), 0, 0, 160)
        assert [box.x for box in found] == [52.0]

    def test_distant_peaks_both_count_and_weak_ones_do_not(self):
        out = logits((2, 2, 3.0, 0, 0, 0), (2, 9, 2.0, 0, 0, 0), (15, 4, -2.0, 0, 0, 0))
        assert sorted(box.x for box in find_peaks(out, 0, 0, 160)) == [20.0, 76.0]

    def test_an_empty_map_has_none(self):
        assert find_peaks(logits(), 0, 0, 160) == []


def drawn_face(inner=0.0):
    """Landmarks of a head 2 wide and 2 high whose eyes and mouth are moved by `inner`."""
    points = np.zeros((NUM_LANDMARKS, 2))
    angles = np.linspace(0, 2 * np.pi, NUM_LANDMARKS)
    points[:, 0], points[:, 1] = np.cos(angles), np.sin(angles)
    points[RIGHT_LID], points[LEFT_LID] = [-0.4 + inner, -0.3], [0.4 + inner, -0.3]
    points[MOUTH_LEFT], points[MOUTH_RIGHT] = [-0.3 + inner, 0.4], [0.3 + inner, 0.4]
    points[:2] = [[-1, 0], [1, 0]]
    return points


class TestYaw:
    @pytest.mark.parametrize("inner, yaw", [(0, 0), (0.25, 0.5), (0.7, 1)])
    def test_it_is_how_far_eyes_and_mouth_are_from_the_middle(self, inner, yaw):
        assert head_yaw(drawn_face(inner)) == pytest.approx(yaw, abs=1e-6)

    def test_place_and_size_of_the_face_do_not_matter(self):
        assert head_yaw(drawn_face(0.2) * 90 + [400, 30]) == pytest.approx(0.4, abs=1e-6)

    def test_a_mirrored_face_looks_the_other_way(self):
        assert head_yaw(drawn_face(0.3)) == pytest.approx(-head_yaw(drawn_face(-0.3)))

    def test_a_face_without_width_gives_a_number(self):
        assert -1 <= head_yaw(np.zeros((NUM_LANDMARKS, 2))) <= 1


def test_a_refined_crop_is_framed_as_in_training():
    box = face_crop_box(drawn_face() * 50 + [300, 200], 0.9)
    assert 100 / box.side == pytest.approx(FACE_SHARE, rel=1e-3)
    assert box.x == pytest.approx(300)
    # The middle of the landmarks lies 0.56 of the side below the top.
    assert 200 - (box.y - box.side / 2) == pytest.approx(0.56 * box.side, rel=1e-3)
    assert box.score == 0.9


class Imagined(FaceFinder):
    """Sees given faces; and, at each box in `ghosts`, a face wherever it looks."""

    def __init__(self, faces, ghosts=()):
        self.faces, self.ghosts = faces, ghosts
        autoencoder = torch.nn.Module()
        autoencoder.mean_points = torch.zeros(NUM_LANDMARKS, 2)
        super().__init__(FaceDetector(), autoencoder, preset="none", crop_px=256)

    def detect(self, picture, rgb):
        return [face_crop_box(face, 0.9) for face in self.faces] + list(self.ghosts)

    def read(self, picture, box):
        for face in self.faces:
            if np.linalg.norm(face.mean(0) - [box.x, box.y]) < 0.3 * box.side:
                return face, 0.9
        return drawn_face() * 0.28 * box.side + [box.x, box.y], 0.9


def test_boxes_that_repeat_a_better_one_are_left_out_and_others_stay():
    best, again = Box(100, 100, 80, 0.9), Box(110, 95, 90, 0.5)
    beside, within = Box(190, 100, 80, 0.4), Box(100, 100, 30, 0.6)
    assert distinct([again, beside, within, best]) == [best, within, beside]


class TestFaceFinder:
    BLANK = np.zeros((400, 600, 3), np.uint8)

    @pytest.mark.parametrize("form", ["read-only", "mirrored", "a part"])
    def test_any_memory_layout_is_accepted(self, form):
        rgb = self.BLANK.copy()
        rgb.flags.writeable = form != "read-only"
        rgb = {"read-only": rgb, "mirrored": rgb[:, ::-1], "a part": rgb[:, 1::2]}[form]
        assert len(Imagined([drawn_face() * 60 + [150, 200]]).find_faces(rgb)) == 1

    def test_landmarks_all_in_one_place_are_no_face(self):
        class Point(Imagined):
            def read(self, picture, box):
                return drawn_face() * (60 if box.side > 150 else 0) + [300, 200], 0.9

        finder = Point([], [Box(300, 200, 120, 0.9)])
        assert finder.find_faces(self.BLANK) == []

    def test_landmarks_that_stay_in_place_are_a_face(self):
        (face,) = Imagined([drawn_face(0.1) * 60 + [300, 200]]).find_faces(self.BLANK)
        assert face.landmarks.dtype == np.float32 and face.landmarks.shape == (NUM_LANDMARKS, 2)
        assert (face.score, face.yaw) == (0.9, pytest.approx(0.2, abs=1e-6))

    def test_landmarks_that_move_with_the_crop_are_no_face(self):
        assert Imagined([], [Box(300, 200, 120, 0.9)]).find_faces(self.BLANK) == []

    def test_the_largest_comes_first(self):
        faces = [drawn_face() * size + [x, 200] for size, x in ((30, 80), (70, 250), (50, 480))]
        found = Imagined(faces).find_faces(self.BLANK)
        assert [round(float(np.ptp(f.landmarks[:, 1]))) for f in found] == [140, 100, 60]

    def test_a_face_found_twice_is_reported_once(self):
        face = drawn_face() * 60 + [300, 200]
        assert len(Imagined([face, face + 5]).find_faces(self.BLANK)) == 1

    @pytest.mark.parametrize("certainties", [(0.1, 0.9), (0.9, 0.6)])
    def test_landmarks_that_are_not_certain_are_no_face(self, certainties):
        class Doubted(Imagined):
            first, later = certainties

            def read(self, picture, box):
                points, _ = super().read(picture, box)
                sure, self.first = self.first, self.later
                return points, sure

        assert Doubted([drawn_face() * 60 + [300, 200]]).find_faces(self.BLANK) == []

    def test_a_crop_that_shrinks_to_nothing_ends_the_search(self):
        assert Imagined([drawn_face() * 1.5 + [300, 200]]).find_faces(self.BLANK) == []


def test_a_fingerprint_tells_other_weights_of_the_detector_or_the_encoder():
    torch.manual_seed(0)
    detectors = [FaceDetector(), FaceDetector()]
    encoders = [torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)]

    def fingerprint(detector: int, encoder: int) -> str:
        autoencoder = torch.nn.Module()
        autoencoder.encoder = encoders[encoder]
        finder = FaceFinder(detectors[detector], autoencoder, preset="none", crop_px=256)
        return finder.fingerprint()

    assert fingerprint(0, 0) == fingerprint(0, 0)
    assert len({fingerprint(i, j) for i in range(2) for j in range(2)}) == 4


def test_the_detector_returns_four_maps():
    torch.manual_seed(0)
    out = FaceDetector().eval()(torch.zeros(2, 3, DETECTOR_SIZE, DETECTOR_SIZE))
    assert out.shape == (2, 4, 20, 20)


@pytest.fixture(scope="module")
def finder():
    return load_face_finder("tiny")


@pytest.fixture(scope="module")
def known(finder):
    """Each avatar with the faces found in it."""
    pictures = {name: read_image(path) for name, path in list_avatars().items()}
    return {name: (rgb, finder.find_faces(rgb)) for name, rgb in pictures.items()}


@pytest.mark.skipif(not packaged_weights("tiny").exists(), reason="needs the trained weights")
@pytest.mark.parametrize("name", sorted(list_avatars()))
class TestAvatars:
    def test_each_is_one_face_upright_and_in_front(self, known, name):
        avatar, (face,) = known[name]
        low, high = face.landmarks.min(0), face.landmarks.max(0)
        assert (low >= 0).all() and (high <= np.array(avatar.shape[1::-1])).all()
        eyes = face.landmarks[[*LEFT_LID, *RIGHT_LID], 1].mean()
        mouth = face.landmarks[[MOUTH_LEFT, MOUTH_RIGHT], 1].mean()
        assert mouth - eyes > 0.2 * (high[1] - low[1])
        assert abs(face.yaw) < 0.6

    def test_the_landmarks_move_with_the_face(self, finder, known, name):
        avatar, (face,) = known[name]
        factor, x, y = 512 * 0.3 / max(avatar.shape), 40, 260
        image = Image.fromarray(avatar)
        scene = Image.new("RGB", (640, 480), (90, 110, 120))
        scene.paste(image.resize([round(factor * s) for s in image.size]), (x, y))
        (found,) = finder.find_faces(np.asarray(scene))
        wanted = face.landmarks * factor + [x, y]
        error = np.linalg.norm(found.landmarks - wanted, axis=1).mean()
        assert error < 0.06 * np.ptp(wanted[:, 1])

    def test_each_becomes_a_portrait_without_warnings(self, finder, known, name):
        assert prepare_portrait(known[name][0], finder).warnings == ()

    @pytest.mark.parametrize("turns", [1, 2])
    def test_a_face_on_its_side_or_head_is_none(self, finder, known, name, turns):
        assert finder.find_faces(np.rot90(known[name][0], turns)) == []


@pytest.mark.skipif(not packaged_weights("tiny").exists(), reason="needs the trained weights")
def test_all_faces_of_a_large_picture_are_found_the_largest_first(finder, known):
    scene = Image.new("RGB", (4000, 1600), (90, 110, 120))
    wanted = []
    for place, (rgb, (face,)) in enumerate(list(known.values())[:3]):
        height = (44, 700, 90)[place]  # px of its landmarks
        factor = height / np.ptp(face.landmarks[:, 1])
        x, y = 100 + 1300 * place, 100
        scene.paste(
            Image.fromarray(rgb).resize([round(factor * s) for s in rgb.shape[1::-1]]), (x, y)
        )
        wanted.append(face.landmarks.mean(0) * factor + [x, y])
    found = finder.find_faces(np.asarray(scene))
    assert len(found) == 3
    for face, centre, height in zip(
        found, [wanted[i] for i in (1, 2, 0)], (700, 90, 44), strict=True
    ):
        assert np.linalg.norm(face.landmarks.mean(0) - centre) < 0.1 * height


@pytest.mark.skipif(not packaged_weights("tiny").exists(), reason="needs the trained weights")
class TestNoFace:
    def pictures_without_a_face(self):
        rng = np.random.default_rng(0)
        y, x = np.mgrid[:300, :400]

        def grey(values):
            return np.repeat(np.asarray(values, np.uint8)[..., None], 3, -1)

        yield "noise", rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        yield "blobs", np.asarray(coarse.resize((400, 300)))
        for level in (0, 128, 255):
            yield f"flat {level}", grey(np.full((300, 400), level))
        yield "skin colour", np.full((300, 400, 3), (224, 172, 140), np.uint8)
        for period in (4, 20, 60):
            yield f"stripes {period}", grey(255 * (x // period % 2))
        yield "checks", grey(255 * ((x // 30 + y // 30) % 2))
        yield "gradient across", grey(x * 255 // 399)
        yield "gradient down", grey(y * 255 // 299)
        yield "disc", grey(np.where((x - 200) ** 2 + (y - 150) ** 2 < 90**2, 200, 60))

    def test_images_without_a_face_have_none(self, finder):
        seen = [name for name, rgb in self.pictures_without_a_face() if finder.find_faces(rgb)]
        assert seen == []
