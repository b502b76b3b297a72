"""`letstalk render`: turns a portrait and an audio file into a video file."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from letstalk_rt.cli.options import (
    add_json_option,
    add_model_options,
    add_mood_options,
    add_portrait,
    add_sign_option,
    load_avatar,
    read_signing,
)
from letstalk_rt.cli.output import write_json, write_line
from letstalk_rt.errors import ConfigError
from letstalk_rt.paper import commands as paper
from letstalk_rt.types import FPS

SUMMARY = "portrait + audio file -> video file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `letstalk render`."""
    parser.description = "Write a video of the person in PORTRAIT speaking the words of AUDIO."
    add_portrait(parser)
    add = parser.add_argument
    add("audio", type=Path, metavar="AUDIO", help="wav, flac, mp3, m4a, ogg or mp4")
    add("-o", "--output", type=Path, required=True, metavar="OUT.mp4", help="video file to write")
    add("--fps", type=int, default=FPS, help="frames per second; only %(default)s")
    add_sign_option(parser)
    add_mood_options(parser)
    add_model_options(parser)
    paper.add_render_options(parser)
    add_json_option(parser)


def run(options: argparse.Namespace) -> int:
    """Render the video and print its length and size."""
    from letstalk_rt.audio.files import read_audio
    from letstalk_rt.recording.file import write_video

    if options.fps != FPS:
        raise ConfigError(f"--fps is {options.fps}; the model generates {FPS} frames per second.")
    signing = read_signing(options, options.portrait)
    samples, rate = read_audio(options.audio)
    size: list[int] = []
    is_faithful = paper.is_faithful(options.preset)
    if is_faithful and options.mood != "neutral":
        raise ConfigError("--mood needs a preset with moods; use the embedded one, 'tiny'.")
    make = paper.render if is_faithful else _render
    frames = make(options, samples, rate, size)
    count = write_video(options.output, frames, samples, rate, badge=options.badge, **signing)
    if options.json:
        facts = {"output": options.output, "frames": count, "seconds": count / FPS}
        write_json({**facts, "width": size[0], "height": size[1]})
    else:
        write_line(f"{options.output}: {count / FPS:.1f} s of video, {size[0]}x{size[1]}")
    return 0


def _render(
    options: argparse.Namespace, samples: np.ndarray, rate: int, size: list[int]
) -> Iterator[np.ndarray]:
    """Yield the frames; the model is loaded after the output file has been opened."""
    from tqdm import tqdm

    speech = samples if samples.ndim == 1 else samples.mean(1, dtype=np.float32)
    total = -(-len(speech) * FPS // rate)
    with load_avatar(options) as avatar:
        height, width = avatar.portrait.canvas.shape[:2]
        size += [width, height]
        rendered = avatar.render(
            speech,
            rate,
            seed=options.seed,
            mood=options.mood,
            mood_strength=options.mood_strength,
        )
        # disable=None: no progress bar unless stderr is a terminal
        for frame in tqdm(rendered, total=total, unit="frame", disable=None, leave=False):
            yield frame.rgb
