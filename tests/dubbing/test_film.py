"""Films are read and written with their own colours, sizes, directions and times."""

import struct
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from support.certificates import issue
from support.films import read_planes, scene, write_film
from support.packages import needs

from letstalk_rt.dubbing.extension import Longer, back_and_forth, extended, longer_from
from letstalk_rt.dubbing.film import Film, FilmFrame
from letstalk_rt.dubbing.film_writer import FilmWriter
from letstalk_rt.dubbing.planes import put
from letstalk_rt.errors import ConfigError, FilmError
from letstalk_rt.portrait.watermark import DUBBED_SOURCE_TYPE
from letstalk_rt.recording.credentials import SigningCredentials, read_authority
from letstalk_rt.recording.provenance import Provenance
from letstalk_rt.recording.signing import sign_existing, verify_recording


def copy_film(source: Path, target: Path) -> None:
    film = Film(source)
    with FilmWriter(target, film.facts, 16_000, 1, Provenance()) as writer:
        for frame in film.frames():
            writer.write(frame.planes, frame.time)
        writer.write_sound(np.zeros(16_000, np.float32))


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuvj420p", "yuv444p"])
def test_planes_are_those_of_the_decoder(tmp_path, pixel_format):
    path = write_film(tmp_path / "a.mkv", scene(3), pixel_format=pixel_format)
    film = Film(path)
    with av.open(str(path)) as container:
        lumas = [np.frombuffer(memoryview(f.planes[0]), np.uint8).reshape(-1, f.planes[0].line_size)
                 [:96, :128].copy() for f in container.decode(video=0)]  # fmt: skip
    assert len(lumas) == 3
    assert film.facts.tags.full_range is (pixel_format == "yuvj420p")
    for frame, luma in zip(film.frames(), lumas, strict=True):
        np.testing.assert_array_equal(frame.planes[0], luma)


def test_uneven_times_and_an_odd_rate_are_kept(tmp_path):
    times = [0, 40, 100, 120, 333]
    source = write_film(tmp_path / "a.mkv", scene(5), times=times)
    copy_film(source, tmp_path / "b.mp4")
    found, _, _ = read_planes(tmp_path / "b.mp4")
    np.testing.assert_allclose(found, np.array(times) / 1000, atol=0.002)
    ntsc = write_film(tmp_path / "c.mp4", scene(5), rate=Fraction(30000, 1001))
    copy_film(ntsc, tmp_path / "d.mp4")
    _, _, stream = read_planes(tmp_path / "d.mp4")
    assert abs(stream.average_rate - Fraction(30000, 1001)) < Fraction(1, 100)


@pytest.mark.parametrize(
    ("matrix", "turns"),
    [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)],
    ids=["90", "180", "270"],
)
def test_a_rotated_film_is_read_upright(tmp_path, matrix, turns):
    """A phone writes into the header of the track how its frames are to be turned."""
    path = write_film(tmp_path / "a.mp4", scene(2))
    plain = [frame.rgb for frame in Film(path).frames()]
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    film = Film(path)
    assert (film.facts.height, film.facts.width) == ((96, 128) if turns == 2 else (128, 96))
    for frame, rgb in zip(film.frames(), plain, strict=True):
        np.testing.assert_array_equal(frame.rgb, np.rot90(rgb, turns))
        assert frame.planes[0].shape == frame.rgb.shape[:2]


def test_full_range_is_still_full_range_after_writing(tmp_path):
    frames = [np.full((96, 128, 3), level, np.uint8) for level in (0, 255)]
    source = write_film(tmp_path / "a.mkv", frames, pixel_format="yuvj420p")
    copy_film(source, tmp_path / "b.mp4")
    film = Film(tmp_path / "b.mp4")
    assert film.facts.tags.full_range
    dark, bright = (frame.planes[0].mean() for frame in film.frames())
    assert dark < 4 and bright > 251


def test_ten_bits_become_eight_and_are_said_to(tmp_path):
    source = write_film(tmp_path / "a.mkv", scene(2), pixel_format="yuv420p10le")
    film = Film(source)
    assert film.facts.converted == "yuv420p10le" and film.facts.pixel_format == "yuv420p"
    assert next(film.frames()).planes[0].shape == (96, 128)


def test_files_that_are_no_films_are_refused(tmp_path):
    with pytest.raises(FilmError, match="Check the path"):
        Film(tmp_path / "lost.mp4")
    text = tmp_path / "text.mp4"
    text.write_bytes(b"not a film" * 1000)
    with pytest.raises(FilmError, match="not a video file"):
        Film(text)
    sound = tmp_path / "sound.mp4"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), "fltp", "mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(FilmError, match="no video track"):
        Film(sound)


def test_a_truncated_film_is_noticed(tmp_path):
    whole = write_film(tmp_path / "a.mp4", scene(40), options={"crf": "4", "g": "5"})
    data = bytearray(whole.read_bytes())
    with av.open(str(whole)) as container:
        last = [p.pos for p in container.demux(video=0) if p.pos is not None]
    middle = sorted(last)[len(last) // 2]
    moov = data.find(b"moov")
    assert moov > middle, "the header is at the end"
    data[middle : sorted(last)[-1]] = bytes(sorted(last)[-1] - middle)
    broken = tmp_path / "b.mp4"
    broken.write_bytes(data)
    with pytest.raises(FilmError, match=r"damaged|truncated"):
        list(Film(broken).frames())


@needs("ffmpeg")
def test_a_film_that_was_cut_out_of_a_longer_one_is_complete(tmp_path):
    """It begins with frames since the last key frame that its edit list does not show."""
    whole = write_film(tmp_path / "a.mp4", scene(75), options={"crf": "4", "g": "250"})
    cut = tmp_path / "b.mp4"
    arguments = ["-loglevel", "error", "-ss", "2", "-t", "0.8", "-i", whole, "-c", "copy"]
    subprocess.run(["ffmpeg", *arguments, "-movflags", "+faststart", cut], check=True)
    with av.open(str(cut)) as container:
        assert container.streams.video[0].frames > 60, "most of its frames are not shown"
    film = Film(cut)
    shown = len(list(film.frames()))
    assert 20 <= shown <= film.facts.frames <= 25, "with some that were encoded before, shown later"
    data = cut.read_bytes()
    cut.write_bytes(data[: int(len(data) * 0.9)])
    with pytest.raises(FilmError, match=r"damaged|truncated"):
        list(Film(cut).frames())


def test_a_patch_changes_only_its_pixels_and_by_the_right_amount(tmp_path):
    source = write_film(tmp_path / "a.mkv", scene(1), pixel_format="yuv444p")
    film = Film(source)
    (frame,) = film.frames()
    planes = tuple(plane.copy() for plane in frame.planes)
    rows, columns = slice(20, 60), slice(30, 90)
    after = frame.rgb[rows, columns].copy()
    after[10:20, 10:20] = (200, 40, 90)
    put(planes, rows, columns, frame.rgb[rows, columns], after, film.facts.tags)
    for old, new in zip(frame.planes, planes, strict=True):
        changed = np.argwhere(old != new)
        assert changed.min(0).tolist() >= [30, 40] and changed.max(0).tolist() <= [39, 49]
    shown = av.VideoFrame(128, 96, "yuv444p")
    for plane, pixels in zip(shown.planes, planes, strict=True):
        plane.update(np.pad(pixels, ((0, 0), (0, plane.line_size - 128))).tobytes())
    rgb = shown.to_ndarray(format="rgb24")
    np.testing.assert_allclose(rgb[35, 45], (200, 40, 90), atol=4)


def test_a_short_film_holds_loops_or_ends(tmp_path):
    film = Film(write_film(tmp_path / "a.mp4", scene(4)))

    def brightness(longer: Longer, *, trim: bool = False, until: float = 0.36) -> list[float]:
        frames = list(extended(film.frames(), film.facts, longer, lambda t: t >= until, trim=trim))
        times = [float(f.time * film.facts.time_base) for f in frames]
        np.testing.assert_allclose(np.diff(times), 0.04, atol=1e-6)
        return [numbered(film, frame) for frame in frames]

    assert brightness(Longer.LOOP) == [0, 1, 2, 3, 2, 1, 0, 1, 2]
    assert brightness(Longer.HOLD) == [0, 1, 2, 3, 3, 3, 3, 3, 3]
    assert brightness(Longer.CUT) == [0, 1, 2, 3]
    assert brightness(Longer.LOOP, trim=True, until=0.08) == [0, 1]


def numbered(film: Film, frame: FilmFrame) -> int:
    """Return which frame of the film this is."""
    return [np.array_equal(frame.rgb, other.rgb) for other in film.frames()].index(True)


def test_one_frame_goes_nowhere_and_unknown_options_are_refused():
    places = back_and_forth(1)
    assert [next(places) for _ in range(3)] == [0, 0, 0]
    with pytest.raises(ConfigError, match="loop"):
        longer_from("rewind")


def test_a_dubbed_film_says_so_and_can_be_signed(tmp_path):
    pytest.importorskip("c2pa")
    keys = issue(tmp_path)
    credentials = SigningCredentials.read(keys.chain, keys.key)
    made = Provenance("tiny", True, "2026-11-22T10:00:00+00:00", DUBBED_SOURCE_TYPE)
    source = Film(write_film(tmp_path / "source.mp4", scene(3)))
    signed, later = tmp_path / "signed.mp4", tmp_path / "later.mp4"
    for path, chosen in ((signed, credentials), (later, None)):
        with FilmWriter(path, source.facts, 16_000, 1, made, chosen) as writer:
            for frame in source.frames():
                writer.write(frame.planes, frame.time)
    assert sign_existing(later, credentials) == made
    for path in (signed, later):
        found = verify_recording(path, read_authority(keys.authority))
        assert (found.state, found.provenance) == ("trusted", made)
        assert found.source_type == DUBBED_SOURCE_TYPE
    with pytest.raises(ConfigError, match="cannot carry a C2PA"):
        FilmWriter(tmp_path / "out.mkv", source.facts, 16_000, 1, made, credentials)
