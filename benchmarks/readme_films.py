"""Renders the moving pictures of camera drive and of dubbing for the README.

    python benchmarks/readme_films.py                    # docs/driven.webp, docs/dubbed.webp
    python benchmarks/readme_films.py --driver me.mp4    # who moves the avatar is not shown

The film that is dubbed is of a default avatar, so no person's film is needed or shown. The driver
is a film of yours; without one it is that avatar, too. Voices are espeak-ng's.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image
from readme_picture import FRAME_STRIDE, ROOT, SENTENCE, save, speak

from letstalk_rt.audio.files import read_audio
from letstalk_rt.avatars import list_avatars
from letstalk_rt.dubbing.dub_film import Speech, dub_film
from letstalk_rt.dubbing.film import Film
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.inference.protocol import CameraStatus, StateOptions
from letstalk_rt.models.face.face_motion import NUM_MOTION, DriveWindow
from letstalk_rt.portrait.image import prepare_portrait
from letstalk_rt.portrait.watermark import with_badge
from letstalk_rt.session.avatar import Avatar
from letstalk_rt.types import FPS

NEW_SENTENCE = "Now I say something else, and nobody had to film me again."


def main(argv: Sequence[str] | None = None) -> int:
    """Render and write both, and print their sizes."""
    options = _parser().parse_args(argv)
    pipeline = AvatarPipeline.load(threads=options.threads)
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder) / "film.mp4"
        make_film(pipeline, film, options)
        dubbed = dub(pipeline, film, options)
        moved = drive(pipeline, options.driver or film, options)
    for name, frames in (("dubbed", dubbed), ("driven", moved)):
        path = options.folder / f"{name}.webp"
        save(path, [small(frame, options.side) for frame in frames[::FRAME_STRIDE]], 60)
        print(f"{path}: {len(frames)} frames, {path.stat().st_size / 1024:.0f} kB")
    return 0


def voice(sentence: str) -> tuple[np.ndarray, int]:
    """Return a sentence that espeak-ng says, mono, and its sample rate."""
    with tempfile.TemporaryDirectory() as folder:
        samples, rate = read_audio(speak(sentence, "en-us", Path(folder)))
    return (samples if samples.ndim == 1 else samples.mean(1, dtype=np.float32)), rate


def make_film(pipeline: AvatarPipeline, path: Path, options: argparse.Namespace) -> None:
    """Write the film of an avatar that says the first sentence."""
    portrait = prepare_portrait(list_avatars()[options.speaker], pipeline.finder, size=512)
    speech, rate = voice(SENTENCE)
    with (
        Avatar.from_pipeline(pipeline, portrait) as avatar,
        av.open(str(path), "w") as container,
    ):
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "14"})
        stream.pix_fmt = "yuv420p"
        stream.height, stream.width = portrait.canvas.shape[:2]
        for frame in avatar.render(speech[: options.seconds * rate], rate):
            picture = av.VideoFrame.from_ndarray(frame.rgb, "rgb24")
            picture.pts, picture.time_base = frame.index, Fraction(1, FPS)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def dub(pipeline: AvatarPipeline, film: Path, options: argparse.Namespace) -> list[np.ndarray]:
    """Return the frames of the film beside those with another voice."""
    speech, rate = voice(NEW_SENTENCE)
    output = film.with_name("dubbed.mp4")
    dub_film(pipeline, Film(film), Speech(speech, rate), output)
    pairs = zip(Film(film).frames(), Film(output).frames(), strict=False)
    return [np.hstack([with_badge(old.rgb), new.rgb]) for old, new in pairs]


def drive(pipeline: AvatarPipeline, film: Path, options: argparse.Namespace) -> list[np.ndarray]:
    """Return the frames of an avatar that moves as the person in a film does."""
    portrait = prepare_portrait(list_avatars()[options.avatar], pipeline.finder, size=512)
    reader, state = pipeline.open_camera(), pipeline.init_state(portrait, StateOptions())
    silence = np.zeros((1, pipeline.hop), np.float32)
    shown, motions, weights = [], [], []
    last = np.zeros(NUM_MOTION, np.float32)
    for number, frame in enumerate(Film(film).frames()):
        if number == options.seconds * FPS:
            break
        reading = reader.read(frame.rgb, number / FPS, absolute=False)
        last = last if reading.motion is None else reading.motion
        motions.append(last)
        weights.append(float(reading.status is CameraStatus.FACE))
        if len(motions) == pipeline.frames_per_window:
            window = DriveWindow(np.array(weights, np.float32), np.stack(motions), "camera")
            pipeline.steer(state, window.part)
            shown += [with_badge(rgb) for rgb in pipeline.step(silence, [state])[0]]
            motions, weights = [], []
    return shown


def small(frame: np.ndarray, side: int) -> np.ndarray:
    """Return a frame of this height."""
    width = round(side * frame.shape[1] / frame.shape[0])
    return np.asarray(Image.fromarray(frame).resize((width, side), Image.Resampling.BICUBIC))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--folder", type=Path, default=ROOT / "docs", help="where the pictures are written")
    add("--avatar", default="mira", help="who is moved (%(default)s)")
    add("--speaker", default="samuel", help="of whom the film is (%(default)s)")
    add("--driver", type=Path, help="film of the person who moves the avatar; not shown")
    add("--seconds", type=int, default=5, help="of each (%(default)s)")
    add("--side", type=int, default=288, help="height of the pictures, px (%(default)s)")
    add("--threads", type=int)
    return parser


if __name__ == "__main__":
    sys.exit(main())
