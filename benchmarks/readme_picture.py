"""Renders the animation of the README: default avatars say a sentence.

    python benchmarks/readme_picture.py            # writes docs/speaking.webp

The voice is espeak-ng's; the frames come from the embedded model through the same path as live
use, and carry its badge.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from letstalk_rt.audio.files import read_audio
from letstalk_rt.avatars import list_avatars
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.portrait.image import prepare_portrait
from letstalk_rt.portrait.watermark import with_badge
from letstalk_rt.session.avatar import Avatar
from letstalk_rt.types import FPS

ROOT = Path(__file__).parents[1]
SENTENCE = "Hello! I am one picture and your voice. Speak, and I will speak with you."
FRAME_STRIDE = 2  # 12.5 frames per second are enough to see the lips move


def main(argv: Sequence[str] | None = None) -> int:
    """Render, write and print the size."""
    options = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        audio = options.audio or speak(options.sentence, options.voice, Path(folder))
        samples, rate = read_audio(audio)
    speech = samples if samples.ndim == 1 else samples.mean(1, dtype=np.float32)
    pipeline = AvatarPipeline.load(threads=options.threads)
    rows = [render(pipeline, name, speech, rate, options) for name in options.avatars]
    frames = [np.hstack(row) for row in zip(*rows, strict=True)]
    save(options.output, frames, options.quality)
    size_kb = options.output.stat().st_size / 1024
    print(f"{options.output}: {len(frames)} frames, {size_kb:.0f} kB")
    return 0


def speak(sentence: str, voice: str, folder: Path) -> Path:
    """Return a WAV file of the sentence, spoken by espeak-ng."""
    if shutil.which("espeak-ng") is None:
        sys.exit("espeak-ng is missing; install it with: apt-get install espeak-ng")
    path = folder / "speech.wav"
    subprocess.run(["espeak-ng", "-v", voice, "-s", "150", "-w", str(path), sentence], check=True)
    return path


def render(
    pipeline: AvatarPipeline,
    name: str,
    speech: np.ndarray,
    rate: int,
    options: argparse.Namespace,
) -> list[np.ndarray]:
    """Return the frames of one avatar that says the sentence."""
    portrait = prepare_portrait(list_avatars()[name], pipeline.finder, size=512)
    kept = []
    with Avatar.from_pipeline(pipeline, portrait) as avatar:
        for frame in avatar.render(speech, rate, seed=options.seed):
            if frame.index % FRAME_STRIDE == 0:
                small = Image.fromarray(frame.rgb).resize((options.side, options.side), 1)
                kept.append(with_badge(np.asarray(small)))
    return kept


def save(path: Path, frames: list[np.ndarray], quality: int) -> None:
    """Write a looping WebP or GIF, by the suffix of `path`."""
    images = [Image.fromarray(frame) for frame in frames]
    options: dict[str, int] = {} if path.suffix == ".gif" else {"quality": quality, "method": 6}
    duration_ms = 1000 * FRAME_STRIDE // FPS
    images[0].save(
        path, save_all=True, append_images=images[1:], duration=duration_ms, loop=0, **options
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--output", type=Path, default=ROOT / "docs" / "speaking.webp", help="webp or gif")
    add("--avatars", nargs="+", default=["mira", "leon"], help="(%(default)s)")
    add("--sentence", default=SENTENCE)
    add("--voice", default="en-us+f3", help="of espeak-ng (%(default)s)")
    add("--audio", type=Path, help="an audio file instead of espeak-ng")
    add("--side", type=int, default=320, help="of each avatar, px (%(default)s)")
    add("--quality", type=int, default=62, help="of the WebP (%(default)s)")
    add("--seed", type=int, default=0)
    add("--threads", type=int)
    return parser


if __name__ == "__main__":
    sys.exit(main())
