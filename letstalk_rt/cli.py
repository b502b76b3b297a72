"""The command `letstalk`.

Knows the words of the command line; the work is done elsewhere and loaded only when it is asked
for, so that `--help` and mistakes are answered at once.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path

import numpy as np

from letstalk_rt import __version__
from letstalk_rt.errors import ConfigError, DependencyError, InputError, LetsTalkError
from letstalk_rt.types import FPS

FORWARDED = {
    "demo": ("letstalk_server.main", "server", "serve the page: choose a face, talk with it"),
    "serve": ("letstalk_server.main", "server", "the same, with all settings of the server"),
    "eval": ("letstalk_rt.training.evaluate", "eval", "measure the model on a data folder"),
    "train": ("letstalk_rt.training.cli", "train", "train the model on a data folder"),
}
"""Commands with options of their own: the module of their `main`, the extra it needs, a summary."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 when it worked; 2 when the input or an option cannot be used; 1 for everything else.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    try:
        return _run([word for word in words if word != "--debug"])
    except LetsTalkError as error:
        if debug:
            raise
        print(f"letstalk: {_one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, InputError | ConfigError) else 1
    except KeyboardInterrupt:
        return 130


def _run(words: list[str]) -> int:
    if words and words[0] in FORWARDED:
        module, extra, _ = FORWARDED[words[0]]
        return _main_of(module, extra, words[0])(words[1:])
    options = _parser().parse_args(words)
    return render(options)


def render(options: argparse.Namespace) -> int:
    """Write a video of `options.portrait` saying `options.audio`."""
    from letstalk_rt.audio.files import read_audio
    from letstalk_rt.sinks.file import write_video

    if options.fps != FPS:
        raise ConfigError(f"--fps is {options.fps}; the model makes {FPS} frames per second.")
    samples, rate = read_audio(options.audio)
    frames = _frames(options, samples, rate)
    count = write_video(options.output, frames, samples, rate)
    print(f"{options.output}: {count / FPS:.1f} s of video")
    return 0


def _frames(options: argparse.Namespace, samples: np.ndarray, rate: int) -> Iterator[np.ndarray]:
    """Load the model when the first frame is wanted: by then the output could be opened."""
    from tqdm import tqdm

    from letstalk_rt.engine import Avatar
    from letstalk_rt.pipeline import AvatarPipeline
    from letstalk_rt.portrait import prepare_portrait

    pipeline = AvatarPipeline.load(
        preset=options.preset, device=options.device, steps=options.steps, threads=options.threads
    )
    portrait = prepare_portrait(options.portrait, pipeline.finder, size=options.size)
    for warning in portrait.warnings:
        print(f"letstalk: {warning}", file=sys.stderr)
    speech = samples if samples.ndim == 1 else samples.mean(1, dtype=np.float32)
    total = -(-len(speech) * FPS // rate)
    with Avatar.from_pipeline(pipeline, portrait) as avatar:
        rendered = avatar.render(speech, rate, seed=options.seed)
        # disable=None: no bar where nobody watches
        for frame in tqdm(rendered, total=total, unit="frame", disable=None, leave=False):
            yield frame.rgb


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="letstalk",
        description="One portrait and live speech in, live video of that person talking out.",
    )
    parser.add_argument("--version", action="version", version=f"letstalk-rt {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_render(commands.add_parser("render", help="portrait + sound file -> video file"))
    for name, (_, _, what) in FORWARDED.items():
        commands.add_parser(name, help=f"{what} (see letstalk {name} --help)")
    return parser


def _add_render(parser: argparse.ArgumentParser) -> None:
    parser.description = "Write a video of the person in PORTRAIT saying what AUDIO holds."
    add = parser.add_argument
    add("portrait", type=Path, metavar="PORTRAIT", help="jpg, png or webp with a face")
    add("audio", type=Path, metavar="AUDIO", help="wav, flac, mp3, m4a, ogg or mp4")
    add("-o", "--output", type=Path, required=True, metavar="OUT.mp4", help="the file to write")
    add("--size", type=int, default=512, help="longer side of the video in pixels (%(default)s)")
    add("--seed", type=int, default=0, help="of head motion and blinks (%(default)s)")
    add("--preset", default="tiny", help="which model (%(default)s)")
    add("--device", default="auto", help="auto, cpu or cuda (%(default)s)")
    add("--steps", type=int, help="denoiser calls per window, 1 to 4 (the preset's)")
    add("--threads", type=int, help="CPU threads of the model (torch's choice)")
    add("--fps", type=int, default=FPS, help="frames per second; only %(default)s")


def _main_of(module: str, extra: str, command: str) -> Callable[[list[str]], int]:
    try:
        run: Callable[[list[str]], int] = import_module(module).main
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("letstalk_rt."):
            raise
        raise DependencyError(
            f"letstalk {command} needs the package {error.name!r}; "
            f"install it with: pip install 'letstalk-rt[{extra}]'"
        ) from error
    return run


def _one_line(error: LetsTalkError) -> str:
    text = " ".join(str(error).split())
    cause = error.__cause__
    if cause is not None and not isinstance(error, InputError | ConfigError):
        text += f" ({type(cause).__name__}: {' '.join(str(cause).split())})"
    return text


if __name__ == "__main__":
    sys.exit(main())
