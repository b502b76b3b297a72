"""Any picture becomes a portrait, or says why not; faces go back without a seam."""

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.faces import SKIN, SkinFinder, draw

from letstalk_rt.errors import (
    ConfigError,
    ImageDamagedError,
    NoFaceError,
    NotAnImageError,
    PortraitError,
    TooManyPixelsError,
)
from letstalk_rt.portrait.image import face_box, prepare_portrait, read_image, shares_of
from letstalk_rt.types import Face


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


class TestReadImage:
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
    def test_usual_formats_are_read(self, kind: str) -> None:
        rgb = read_image(encoded(draw(120, 90, [(60, 45, 60)]), kind))
        assert rgb.shape == (90, 120, 3) and rgb.dtype == np.uint8
        assert np.abs(rgb[45, 60].astype(int) - SKIN).max() < 12

    def test_path_bytes_array_and_pil_agree(self, tmp_path: Path) -> None:
        image = draw(120, 90, [(60, 45, 60)])
        path = tmp_path / "face.png"
        image.save(path)
        sources = (path, str(path), path.read_bytes(), np.asarray(image), image)
        assert len({read_image(source).tobytes() for source in sources}) == 1

    def test_exif_orientation_is_applied(self) -> None:
        image = draw(120, 90, [(30, 45, 40)])
        exif = Image.Exif()
        exif[0x0112] = 6  # the top of the scene is on the right of the stored picture
        rgb = read_image(encoded(image, "JPEG", exif=exif, quality=95))
        assert rgb.shape == (120, 90, 3)
        assert np.abs(rgb[30, 45].astype(int) - SKIN).max() < 12

    def test_transparent_becomes_white(self) -> None:
        image = Image.new("RGBA", (80, 80), (255, 0, 0, 0))
        assert (read_image(encoded(image, "PNG")) == 255).all()
        palette = image.quantize()
        assert (read_image(encoded(palette, "PNG")) == 255).all()

    @pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "CMYK", "YCbCr", "I;16", "I", "F"])
    def test_other_pixel_modes_become_rgb(self, mode: str) -> None:
        grey = Image.new("L", (80, 70), 128)
        if mode in ("I;16", "I"):
            grey = Image.fromarray(np.full((70, 80), 128 * 257, np.uint16))
            grey = grey if mode == "I;16" else grey.convert("I")
            grey.putpixel((0, 0), 65535)
        else:
            grey = grey.convert(mode)
        rgb = read_image(grey)
        assert rgb.shape == (70, 80, 3) and rgb.dtype == np.uint8
        if mode != "1":
            assert np.abs(rgb[35, 40].astype(int) - 128).max() <= 2

    @pytest.mark.parametrize(
        "array",
        [
            np.full((70, 80), 128, np.uint8),
            np.full((70, 80, 1), 128, np.uint8),
            np.full((70, 80, 3), 128 * 257, np.uint16),
            np.full((70, 80, 3), 0.5, np.float32),
            np.full((70, 80, 4), 1.0) * [0.5, 0.5, 0.5, 1.0],
        ],
    )
    def test_arrays_of_other_kinds_are_read(self, array: np.ndarray) -> None:
        assert np.abs(read_image(array).astype(int) - 128).max() <= 1

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.zeros((70, 80, 2), np.uint8), "shape"),
            (np.zeros(70, np.uint8), "shape"),
            (np.zeros((0, 80, 3), np.uint8), "empty"),
            (np.zeros((70, 80, 3), np.int64), "dtype"),
            (np.zeros((70, 80, 3), object), "dtype"),
            (np.full((70, 80, 3), np.nan), "NaN"),
            (np.full((70, 80, 3), 200.0), "outside"),
            (np.zeros((20, 80, 3), np.uint8), "at least 64"),
        ],
    )
    def test_bad_arrays_are_refused(self, array: np.ndarray, message: str) -> None:
        with pytest.raises(PortraitError, match=message):
            read_image(array)

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
    def test_truncated_files_are_refused(self, kind: str) -> None:
        noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
        data = encoded(Image.fromarray(noise), kind)
        for share in (0.02, 0.5, 0.95):
            with pytest.raises((NotAnImageError, ImageDamagedError)):
                read_image(data[: int(share * len(data))])
        with pytest.raises(ImageDamagedError):
            read_image(data[: len(data) // 2])

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"", "empty"),
            (b"no picture at all", "not an image"),
            (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n", "not an image"),
        ],
    )
    def test_what_is_no_picture_is_refused(self, data: bytes, message: str) -> None:
        with pytest.raises(NotAnImageError, match=message):
            read_image(data)

    def test_a_float_picture_with_nan_is_refused(self) -> None:
        with pytest.raises(PortraitError, match="holds NaN"):
            read_image(Image.fromarray(np.full((80, 80), np.nan, np.float32)))

    def test_heic_is_read_or_says_what_it_needs(self) -> None:
        with pytest.raises(
            (NotAnImageError, ImageDamagedError), match="heic|supported format|damaged"
        ):
            read_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))

    def test_a_huge_picture_is_refused_before_it_is_decoded(self) -> None:
        for size in ((9000, 70), (20_000, 20_000)):
            with pytest.raises(PortraitError, match="at most 8192"):
                read_image(_png_that_says(*size))

    def test_more_pixels_than_allowed_are_refused_before_they_are_decoded(self) -> None:
        for size in ((1001, 1000), (9000, 1000)):
            with pytest.raises(TooManyPixelsError, match="at most 1 million are allowed"):
                read_image(_png_that_says(*size), max_pixels=1_000_000)
        picture = encoded(Image.new("L", (1000, 1000)), "PNG")
        assert read_image(picture, max_pixels=1_000_000).shape == (1000, 1000, 3)

    def test_a_large_picture_is_scaled_down(self) -> None:
        assert read_image(encoded(Image.new("L", (6000, 300)), "PNG")).shape == (205, 4096, 3)

    def test_missing_files_folders_urls_and_odd_types_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(PortraitError, match="nobody.jpg: No such file"):
            read_image(tmp_path / "nobody.jpg")
        with pytest.raises(PortraitError, match="directory"):
            read_image(tmp_path)
        with pytest.raises(PortraitError, match="URL"):
            read_image("https://example.com/face.jpg")
        with pytest.raises(PortraitError, match="int"):
            read_image(7)  # type: ignore[arg-type]


def _png_that_says(width: int, height: int) -> bytes:
    """Return a small PNG file whose header claims a size."""
    data = encoded(Image.new("1", (70, 70)), "PNG")
    said = data[12:16] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + data[24:29]
    return data[:12] + said + zlib.crc32(said).to_bytes(4, "big") + data[33:]


class TestPreparePortrait:
    def test_the_box_is_that_of_the_training_data(self) -> None:
        landmarks = np.array([[100, 200], [200, 346]], np.float32)
        centre_x, centre_y, side = face_box(landmarks)
        assert (centre_x, round(side)) == (150, 256)
        assert 273 - (centre_y - side / 2) == pytest.approx(0.56 * side)

    def test_a_large_face_keeps_the_whole_picture(self) -> None:
        portrait = prepare_portrait(draw(900, 1200, [(450, 560, 520)]), SkinFinder())
        assert portrait.canvas.shape == (512, 384, 3)
        assert portrait.box[2] == pytest.approx(520 / 0.57 * 512 / 1200, abs=1)
        assert portrait.warnings == ()

    def test_the_crop_is_as_large_as_the_finders_model_wants(self) -> None:
        finder = SkinFinder()
        finder.crop_px = 384
        portrait = prepare_portrait(draw(900, 1200, [(450, 560, 520)]), finder)
        assert portrait.crop.shape == (384, 384, 3)

    @pytest.mark.parametrize("size", [256, 401, 512, 720, 1080])
    @pytest.mark.parametrize("shape", [(1600, 900), (900, 1600), (3000, 700), (1000, 1000)])
    def test_a_small_face_is_brought_near(self, size: int, shape: tuple[int, int]) -> None:
        width, height = shape
        image = draw(width, height, [(width // 3, height // 2, 130)])
        portrait = prepare_portrait(image, SkinFinder(), size=size)
        canvas_height, canvas_width = portrait.canvas.shape[:2]
        left, top, side = portrait.box
        assert canvas_width % 2 == canvas_height % 2 == 0
        assert max(canvas_width, canvas_height) == size // 2 * 2
        assert max(canvas_width, canvas_height) <= 1.78 * min(canvas_width, canvas_height) + 2
        assert side >= min(256, size // 2)
        assert left >= 0 and top >= 0 and left + side <= canvas_width + 1

    @pytest.mark.parametrize("x", [60, 400, 760])
    def test_crop_and_canvas_show_the_face_at_the_box(self, x: int) -> None:
        portrait = prepare_portrait(draw(800, 600, [(x, 300, 120)]), SkinFinder())
        assert portrait.crop.shape == (256, 256, 3)
        found = SkinFinder().find_faces(portrait.crop)[0].landmarks
        assert np.ptp(found[:, 1]) == pytest.approx(146, abs=4)
        left, top, side = (int(value) for value in portrait.box)
        height, width = portrait.canvas.shape[:2]
        rows, cols = slice(max(top, 0), min(top + side, height)), slice(max(left, 0), left + side)
        shown = portrait.canvas[rows, cols].astype(int)
        assert side == 256
        crop = portrait.crop[rows.start - top : rows.stop - top, cols.start - left :]
        assert np.abs(shown - crop[:, : shown.shape[1]]).mean() < 1

    def test_beyond_the_picture_its_edge_is_repeated(self) -> None:
        portrait = prepare_portrait(draw(400, 400, [(70, 90, 150)]), SkinFinder())
        left, top, _ = portrait.box
        assert left < 0 and top < 0
        assert np.abs(portrait.crop[0, 200].astype(int) - portrait.crop[8, 200]).max() <= 1

    def test_the_largest_of_several_faces_is_taken_and_said(self) -> None:
        image = draw(1000, 600, [(250, 300, 150), (700, 300, 300)])
        portrait = prepare_portrait(image, SkinFinder())
        assert "2 faces" in portrait.warnings[0]
        found = SkinFinder().find_faces(portrait.crop)
        assert np.ptp(found[0].landmarks[:, 1]) == pytest.approx(146, abs=4)

    @pytest.mark.parametrize("point", [(0.25, 0.5), (0.28, 0.4), (0.2, 0.6)])
    def test_a_point_on_a_face_chooses_it(self, point: tuple[float, float]) -> None:
        image = draw(1000, 600, [(250, 300, 150), (700, 300, 300)])
        portrait = prepare_portrait(image, SkinFinder(), face_at=point)
        assert portrait.warnings == (), "the caller knows"
        alone = prepare_portrait(draw(1000, 600, [(250, 300, 150)]), SkinFinder())
        assert portrait.box == alone.box
        assert np.abs(portrait.crop.astype(int) - alone.crop).mean() < 1

    def test_a_point_beside_all_faces_is_refused(self) -> None:
        image = draw(1000, 600, [(250, 300, 150), (700, 300, 300)])
        with pytest.raises(NoFaceError, match="no face at that place"):
            prepare_portrait(image, SkinFinder(), face_at=(0.45, 0.5))

    @pytest.mark.parametrize("point", [(-0.1, 0.5), (0.5, 1.5), (250, 300), (np.nan, 0.5)])
    def test_a_point_outside_the_image_is_refused(self, point: tuple[float, float]) -> None:
        with pytest.raises(ConfigError, match="two shares from 0 to 1"):
            prepare_portrait(draw(300, 300, [(150, 150, 150)]), SkinFinder(), face_at=point)

    def test_places_are_shares_and_end_where_the_image_does(self) -> None:
        corners = np.array([[-10, 50], [40, 150]], np.float32)
        (shares,) = shares_of([Face(corners, 1.0, 0.0)], (200, 100))
        assert shares == (0.0, 0.5, 0.2, 0.5)

    def test_a_soft_face_is_said(self) -> None:
        portrait = prepare_portrait(draw(400, 300, [(200, 150, 80)]), SkinFinder())
        assert "soft" in portrait.warnings[0]

    @pytest.mark.parametrize(
        ("image", "yaw", "message"),
        [
            (draw(300, 300, [(150, 150, 40)]), 0.0, "41 px high"),
            (draw(300, 300, [(150, 150, 150)]), -0.9, "turned away"),
        ],
    )
    def test_unusable_faces_are_refused(self, image: Image.Image, yaw: float, message: str) -> None:
        with pytest.raises(PortraitError, match=message) as refused:
            prepare_portrait(image, SkinFinder(yaw))
        assert not isinstance(refused.value, NoFaceError)

    def test_a_picture_without_a_face_is_refused(self) -> None:
        with pytest.raises(NoFaceError, match="No face"):
            prepare_portrait(draw(300, 300, []), SkinFinder())

    def test_landmarks_that_are_not_finite_are_no_face(self) -> None:
        class Broken:
            def find_faces(self, rgb: np.ndarray) -> list[Face]:
                return [Face(np.full((5, 2), np.nan, np.float32), 1.0, 0.0)]

        with pytest.raises(NoFaceError, match="No face"):
            prepare_portrait(draw(300, 300, []), Broken())

    @pytest.mark.parametrize("size", [0, 255, 1081, -512])
    def test_sizes_out_of_range_are_refused(self, size: int) -> None:
        with pytest.raises(ConfigError, match="256 to 1080"):
            prepare_portrait(draw(300, 300, [(150, 150, 150)]), SkinFinder(), size=size)
