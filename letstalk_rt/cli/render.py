"""`letstalk render`: a portrait and a sound file become a video file."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from letstalk_rt.cli.common import add_model_options, add_portrait, load_avatar, say, say_json
from letstalk_rt.errors import ConfigError
from letstalk_rt.types import FPS

SUMMARY = "portrait + sound file -> video file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command is told."""
    parser.description = "Write a video of the person in PORTRAIT saying what AUDIO holds."
    add_portrait(parser)
    add = parser.add_argument
    add("audio", type=Path, metavar="AUDIO", help="wav, flac, mp3, m4a, ogg or mp4")
    add("-o", "--output", type=Path, required=True, metavar="OUT.mp4", help="the file to write")
    add("--fps", type=int, default=FPS, help="frames per second; only %(default)s")
    add_model_options(parser)
    add("--json", action="store_true", help="tell the result as one line of JSON")


def run(options: argparse.Namespace) -> int:
    """Write a video of `options.portrait` saying `options.audio`."""
    from letstalk_rt.audio.files import read_audio
    from letstalk_rt.sinks.file import write_video

    if options.fps != FPS:
        raise ConfigError(f"--fps is {options.fps}; the model makes {FPS} frames per second.")
    samples, rate = read_audio(options.audio)
    size: list[int] = []
    frames = _frames(options, samples, rate, size)
    count = write_video(options.output, frames, samples, rate, badge=options.badge)
    if options.json:
        facts = {"output": options.output, "frames": count, "seconds": count / FPS}
        say_json({**facts, "width": size[0], "height": size[1]})
    else:
        say(f"{options.output}: {count / FPS:.1f} s of video, {size[0]}x{size[1]}")
    return 0


def _frames(
    options: argparse.Namespace, samples: np.ndarray, rate: int, size: list[int]
) -> Iterator[np.ndarray]:
    """Load the model when the first frame is wanted: by then the output could be opened."""
    from tqdm import tqdm

    speech = samples if samples.ndim == 1 else samples.mean(1, dtype=np.float32)
    total = -(-len(speech) * FPS // rate)
    with load_avatar(options) as avatar:
        height, width = avatar.portrait.canvas.shape[:2]
        size += [width, height]
        rendered = avatar.render(speech, rate, seed=options.seed)
        # disable=None: no bar where nobody watches
        for frame in tqdm(rendered, total=total, unit="frame", disable=None, leave=False):
            yield frame.rgb
