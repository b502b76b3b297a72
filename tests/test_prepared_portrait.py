"""A prepared portrait can be kept in a file, which is checked when it is read."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from letstalk_rt.errors import ConfigError, PortraitError
from letstalk_rt.types import FaceTrack, Footage, Portrait


def picture(footage: Footage | None = None) -> Portrait:
    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)
    return Portrait(pixels, pixels[:4, :4].copy(), (1.5, -2.0, 4.0), ("soft ü",), footage)


def film() -> Footage:
    latent = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    face = FaceTrack((0.5, -0.1), (3.0, 4.0), latent, 0.2, 9.5)
    return Footage((b"first", b"", b"third"), (None, face, face))


def assert_equal(one: Portrait, other: Portrait) -> None:
    np.testing.assert_array_equal(one.canvas, other.canvas)
    np.testing.assert_array_equal(one.crop, other.crop)
    assert (one.box, one.warnings) == (other.box, other.warnings)


def test_a_portrait_is_the_same_after_saving(tmp_path: Path) -> None:
    picture().save(tmp_path / "anna.portrait")
    assert_equal(Portrait.load(tmp_path / "anna.portrait"), picture())
    assert [path.name for path in tmp_path.iterdir()] == ["anna.portrait"]


def test_so_is_a_film() -> None:
    kept = Portrait.from_bytes(picture(film()).to_bytes())
    assert kept.footage is not None and kept.footage.frames == film().frames
    nothing, *faces = kept.footage.faces
    assert nothing is None and len(faces) == 2
    expected = film().faces[1]
    assert expected is not None
    for face in faces:
        assert face is not None
        assert (face.rotation, face.shift) == (expected.rotation, expected.shift)
        assert (face.yaw, face.sharpness) == (expected.yaw, expected.sharpness)
        np.testing.assert_array_equal(face.latent, expected.latent)


def rewritten(**changes: np.ndarray | None) -> bytes:
    with np.load(io.BytesIO(picture(film()).to_bytes())) as arrays:
        kept = dict(arrays) | changes
    buffer = io.BytesIO()
    np.savez(buffer, **{name: array for name, array in kept.items() if array is not None})
    return buffer.getvalue()


def about(**changes: object) -> np.ndarray:
    values = {"kind": "letstalk_rt portrait", "layout": 1, "warnings": []} | changes
    return np.frombuffer(json.dumps(values).encode(), np.uint8)


def compressed() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("about.npy", bytes(1_000_000))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "not a prepared portrait"),
        (b"\xff\xd8\xff\xe0 a photograph", "not a prepared portrait"),
        (picture().to_bytes()[:-100], "not a prepared portrait"),
        (compressed(), "it is compressed"),
        (rewritten(about=about(kind="x")), "something else"),
        (rewritten(about=np.array([object()])), "not a prepared portrait"),
        (rewritten(about=about(layout=99)), "has layout 99, this version reads 1"),
        (rewritten(canvas=None), "damaged"),
        (rewritten(canvas=np.zeros((4, 4), np.uint8)), "its canvas is"),
        (rewritten(crop=np.zeros((4, 4, 3))), "its crop is"),
        (rewritten(box=np.array([0.0, np.nan, 1.0])), "its box is"),
        (rewritten(seen=np.array([True, True, True])), "faces of its film"),
        (rewritten(jpeg_sizes=np.array([1, 2, 3])), "frames of its film"),
    ],
)
def test_what_is_no_portrait_is_refused_with_the_reason(data: bytes, words: str) -> None:
    with pytest.raises(PortraitError, match=words) as caught:
        Portrait.from_bytes(data)
    assert "repare the image again" in str(caught.value)


def test_a_path_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(PortraitError, match="nothing.portrait: No such file"):
        Portrait.load(tmp_path / "nothing.portrait")
    with pytest.raises(ConfigError, match="Check the folder"):
        picture().save(tmp_path / "missing" / "x.portrait")
