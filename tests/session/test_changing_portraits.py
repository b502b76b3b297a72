"""A session takes portraits as callers have them, and keeps the old one if it cannot."""

import asyncio
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.faces import SkinFinder, draw
from support.fakes import FakePipeline, portrait
from support.live_sessions import Screen, live_session
from support.sessions import offline
from support.virtual_time import run

from letstalk_rt.avatars import list_avatars
from letstalk_rt.errors import (
    ConfigError,
    NoFaceError,
    NotAnImageError,
    PortraitError,
    PortraitWarning,
)
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.inference.worker import ModelWorker
from letstalk_rt.session.avatar import Avatar
from letstalk_rt.types import AVFrame, MotionOptions


class WithFinder(FakePipeline):
    """A fake pipeline that finds drawn faces."""

    def __init__(self):
        super().__init__()
        self.finder = SkinFinder()


def picture(red=200):
    image = np.array(draw(300, 300, [(150, 150, 150)]))
    image[0, :, 0] = red
    return image


def wide_portrait(level):
    return replace(portrait(level), canvas=np.full((256, 256, 3), level, np.uint8))


def sources(folder):
    rgb = picture()
    image, data = Image.fromarray(rgb), io.BytesIO()
    image.save(data, "PNG")
    path = folder / "p.png"
    image.save(path)
    return [path, str(path), data.getvalue(), rgb, image]


@pytest.mark.parametrize("number", range(5), ids=["path", "text", "bytes", "array", "image"])
def test_a_session_takes_every_kind_of_picture(tmp_path, number):
    async def body():
        with Avatar.from_pipeline(WithFinder(), wide_portrait(10)) as avatar:
            async with avatar.session(idle=False) as session:
                await session.change_portrait(sources(tmp_path)[number])
                await session.push_audio(np.ones(2560, np.float32), 16_000)
                assert abs(int((await anext(session)).rgb[0, 0, 0]) - 200) < 30

    asyncio.run(body())


def test_it_takes_a_prepared_portrait_and_an_avatar():
    async def body():
        async with offline(FakePipeline()) as session:
            for level, source in ((7, portrait(7)), (9, Avatar(session._worker, portrait(9)))):
                await session.change_portrait(source)
                await session.push_audio(np.ones(2560, np.float32), 16_000)
                assert [await anext(session) for _ in range(4)][0].rgb[0, 0, 0] == level

    run(body())


@pytest.mark.parametrize(
    "bad, error",
    [
        ("no-such-file.jpg", PortraitError),
        (Path("no-such-film.mp4"), PortraitError),
        (b"no image", NotAnImageError),
        (np.zeros((300, 300, 3), np.uint8), NoFaceError),
        (np.zeros((3, 3), np.int64), PortraitError),
        (None, PortraitError),
        (42, PortraitError),
    ],
)
def test_a_bad_one_is_refused_and_the_session_goes_on_with_the_old_one(bad, error):
    async def body():
        with Avatar.from_pipeline(WithFinder(), wide_portrait(5)) as avatar:
            async with avatar.session(idle=False) as session:
                with pytest.raises(error):
                    await session.change_portrait(bad)
                await session.push_audio(np.ones(2560, np.float32), 16_000)
                assert (await anext(session)).rgb[0, 0, 0] == 5
                await session.change_portrait(portrait(6))

    asyncio.run(body())


def test_whoever_prepares_a_picture_of_two_is_warned_and_may_choose():
    image = draw(1000, 600, [(250, 300, 250), (700, 300, 300)])
    with Avatar.from_pipeline(WithFinder(), portrait()) as avatar:
        with pytest.warns(PortraitWarning, match="2 faces were found") as seen:
            largest = avatar.prepare(image, size=256)
        assert seen[0].filename == __file__, "it points at the caller"
        chosen = avatar.prepare(image, size=256, face_at=(0.25, 0.5))
        assert chosen.warnings == () and chosen.box[0] < largest.box[0]
        with pytest.raises(ConfigError, match="not of a film or prepared"):
            avatar.prepare(chosen, face_at=(0.25, 0.5))


def test_a_model_that_finds_no_faces_says_so():
    async def body():
        with Avatar.from_pipeline(FakePipeline(), portrait()) as avatar:
            with pytest.raises(ConfigError, match="prepared"):
                avatar.prepare(picture(), size=256)

    asyncio.run(body())


def test_a_prepared_portrait_is_shown_within_300_ms_of_audio():
    async def body():
        async with live_session() as session:
            screen = Screen(session)
            await asyncio.sleep(2.03)
            before = len(screen.frames)
            await session.change_portrait(portrait(9))
            await asyncio.sleep(1)
            await screen.close()
        first = [int(frame.rgb[0, 0, 0]) for frame in screen.frames].index(9)
        assert (first - before) * 40 < 300

    run(body())


def test_the_embedded_model_shows_it_at_once_and_never_a_black_frame():
    still = MotionOptions(head_motion=False)

    async def body():
        pipeline = AvatarPipeline.load("tiny", device="cpu")
        with Avatar.from_pipeline(pipeline, None, worker=ModelWorker(pipeline)) as avatar:
            old, new = (avatar.prepare(path, size=256) for path in avatars)
            avatar = avatar.with_portrait(old)
            async with avatar.session(idle=False, motion=still) as session:
                await session.push_audio(np.zeros(5 * 2560, np.float32), 16_000)
                frames = [await anext(session) for _ in range(4)]
                await session.change_portrait(new)
                frames += [await anext(session) for _ in range(12)]
            avatar._worker.shutdown(wait=True)
        assert all(isinstance(frame, AVFrame) for frame in frames)
        far = [np.abs(frame.rgb.astype(int) - new.canvas).mean() for frame in frames]
        shown = next(number for number, value in enumerate(far) if value < 8)
        assert shown - 4 <= 7, "less than 300 ms after the request"
        assert all(value > 8 for value in far[:shown]) and all(value < 8 for value in far[shown:])
        assert min(frame.rgb.mean() for frame in frames) > 30

    avatars = [list_avatars()[name] for name in ("mira", "leon")]
    asyncio.run(body())
