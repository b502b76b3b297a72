"""Hostile uploads cost their sender a refusal, and others nothing."""

import asyncio
import io
import subprocess
import sys

import av
import numpy as np
import pytest
from PIL import Image, ImageCms
from support.films import scene, write_film
from support.hostile_media import fast_film
from support.processes import needs_proc, processes_named
from support.server_fakes import Painter, model_of, portrait_jpeg

from letstalk_rt.dubbing.footage_reader import MOST_FRAMES, read_footage
from letstalk_rt.errors import (
    ImageDamagedError,
    NotAnImageError,
    PortraitError,
    TooManyPixelsError,
)
from letstalk_rt.portrait.image import read_image
from letstalk_server.session.avatar_service import AvatarService
from letstalk_server.session.upload_decoder import SPARES, DecodeLimits, UploadDecoder
from letstalk_server.settings import Settings

PIXELS = 40_000_000


def encoded(kind, image=None, **options):
    buffer = io.BytesIO()
    (image or Image.linear_gradient("L").convert("RGB")).save(buffer, kind, **options)
    return buffer.getvalue()


def add_sound(silent, path):
    """Copy a film with a second of sound."""
    with av.open(str(silent)) as film, av.open(str(path), "w") as container:
        video = film.streams.video[0]
        copy = container.add_stream_from_template(video)
        sound = container.add_stream("aac", rate=16_000, layout="mono")
        for packet in film.demux(video):
            if packet.dts is not None:
                packet.stream = copy
                container.mux(packet)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 16_000, 0
        for packet in (*sound.encode(frame), *sound.encode(None)):
            container.mux(packet)


@pytest.fixture
def decoder():
    decoder = UploadDecoder(256, PIXELS)
    yield decoder
    decoder.close()


async def test_a_hostile_film_holds_up_nobody_else(tmp_path):
    film = fast_film(tmp_path / "a.mp4", repeats=90)
    service = await AvatarService.open(Settings(size=256), model_of(Painter()))
    try:
        hostile = asyncio.create_task(service.upload(film, "mallory"))
        await asyncio.sleep(0.5)  # it is being decoded
        await service.upload(portrait_jpeg(), "alice")
        assert not hostile.done()
    finally:
        await service.aclose()
    with pytest.raises(PortraitError):
        await hostile


def test_images_and_films_are_those_that_are_read_in_this_process(decoder, tmp_path):
    for kind in ("JPEG", "PNG", "WEBP"):
        data = encoded(kind)
        np.testing.assert_array_equal(decoder.image(data), read_image(data))
    film = write_film(tmp_path / "a.mp4", scene(12)).read_bytes()
    assert decoder.film(film) == read_footage(film, 256)


def test_films_with_sound_and_images_with_profiles_open_no_file(decoder, tmp_path):
    """The process cannot open files any more, not even modules."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[274] = 6
    data = encoded("JPEG", icc_profile=profile, exif=exif)
    np.testing.assert_array_equal(decoder.image(data), read_image(data))
    transparent = encoded("PNG", Image.linear_gradient("L").convert("LA"))
    np.testing.assert_array_equal(decoder.image(transparent), read_image(transparent))
    for name, codec in (("a.mov", "libx264"), ("a.mkv", "libx265"), ("a.webm", "libvpx-vp9")):
        film = write_film(tmp_path / name, scene(12), codec=codec, options={"preset": "fast"})
        assert len(decoder.film(film.read_bytes())[0]) == 12
    add_sound(tmp_path / "a.mov", tmp_path / "sound.mov")
    assert len(decoder.film((tmp_path / "sound.mov").read_bytes())[0]) == 12


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP", "AVIF", "PPM"])
def test_other_formats_are_refused(decoder, kind):
    with pytest.raises(NotAnImageError, match="JPEG, PNG or WebP"):
        decoder.image(encoded(kind))


def test_errors_are_those_of_this_process(decoder):
    with pytest.raises(ImageDamagedError):
        decoder.image(encoded("PNG")[:-200])
    with pytest.raises(TooManyPixelsError):
        decoder.image(encoded("PNG", Image.new("L", (7000, 7000))))
    with pytest.raises(PortraitError, match="at least 64"):
        decoder.image(encoded("PNG", Image.new("L", (9, 9))))
    with pytest.raises(PortraitError, match="not a video file"):
        decoder.film(b"\0\0\0\x18ftypmp42" + bytes(99))


@needs_proc
@pytest.mark.parametrize(
    "limits",
    [DecodeLimits(cpu_s=1), DecodeLimits(wall_s=1), DecodeLimits(memory_mb=40)],
    ids=["processor time", "time", "memory"],
)
def test_a_film_that_needs_too_much_is_refused(tmp_path, limits):
    decoder = UploadDecoder(256, PIXELS, limits)
    film = fast_film(tmp_path / "a.mp4", repeats=60)
    try:
        with pytest.raises(PortraitError):
            decoder.film(film)
        assert len(processes_named("upload_process")) == SPARES, "its process is gone"
    finally:
        decoder.close()


def test_a_film_has_a_limit_of_frames(decoder, tmp_path):
    film = fast_film(tmp_path / "a.mp4", MOST_FRAMES // 30 + 1, 64, 64, rate=1000)
    with pytest.raises(PortraitError, match=f"more than {MOST_FRAMES} frames"):
        decoder.film(film)


@needs_proc
def test_the_process_knows_no_secret(decoder, monkeypatch):
    for name in ("LETSTALK_SECRET", "LETSTALK_API_KEY", "LETSTALK_TURN_SECRET", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "do-not-tell-" + "x" * 32)
    decoder.start_spares()
    found = processes_named("upload_process")
    assert len(found) == SPARES
    for process in found:
        assert b"PYTHONPATH" in (process / "environ").read_bytes()
        assert b"do-not-tell" not in (process / "environ").read_bytes()


def test_a_process_can_open_no_file_once_it_has_begun():
    """Its last words go to its parent: what it could not do."""
    program = (
        "import sys; from letstalk_rt.inference.media_process import limit_resources\n"
        "import socket; limit_resources(500, cpu_s=9)\n"
        "for attempt in (lambda: open(sys.executable), socket.socket):\n"
        "    try: attempt(); print('done')\n"
        "    except OSError as error: print(error.errno == 24)\n"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert shown.stdout.split() == ["True", "True"]
