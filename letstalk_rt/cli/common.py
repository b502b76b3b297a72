"""What several commands share: options, portraits by name, and how they talk to people."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from letstalk_rt.session.avatar import Avatar

_COLOURS = {"ok": "32", "slow": "33", "missing": "33", "bad": "31", "bold": "1"}


def add_portrait(parser: argparse.ArgumentParser) -> None:
    """Add the portrait, which every command that shows a face begins with."""
    parser.add_argument(
        "portrait",
        metavar="PORTRAIT",
        help="picture of a face (jpg, png, webp, heic), or the name of an avatar: "
        "see letstalk avatars list",
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add what the model can be told."""
    add = parser.add_argument
    add("--size", type=int, default=512, help="longer side of the video in pixels (%(default)s)")
    add("--seed", type=int, default=0, help="of head motion and blinks (%(default)s)")
    add("--preset", default="tiny", help="which model (%(default)s)")
    add("--device", default="auto", help="auto, cpu or cuda (%(default)s)")
    add("--steps", type=int, help="denoiser calls per window, 1 to 4 (the preset's)")
    add("--threads", type=int, help="CPU threads of the model (torch's choice)")
    add_badge_option(parser)


def add_badge_option(parser: argparse.ArgumentParser) -> None:
    """Add the switch of the badge."""
    parser.add_argument(
        "--no-badge",
        dest="badge",
        action="store_false",
        help='leave out the badge "AI avatar"; then it is yours to say that this is generated',
    )


def load_avatar(options: argparse.Namespace) -> "Avatar":
    """Load the model and the portrait that the options name."""
    from letstalk_rt.inference.pipeline import AvatarPipeline
    from letstalk_rt.portrait.library import AvatarLibrary
    from letstalk_rt.session.avatar import Avatar

    library = AvatarLibrary()
    picture = library.find(options.portrait)
    pipeline = AvatarPipeline.load(
        preset=options.preset, device=options.device, steps=options.steps, threads=options.threads
    )
    portrait = library.prepare(picture, pipeline.finder, size=options.size)
    for warning in portrait.warnings:
        note(warning)
    return Avatar.from_pipeline(pipeline, portrait)


def note(text: str) -> None:
    """Say something beside the result."""
    sys.stderr.write(f"letstalk: {text}\n")


def say(text: str = "") -> None:
    """Say a line of the result."""
    sys.stdout.write(text + "\n")


def say_json(value: Any) -> None:
    """Say the result as one line of JSON."""
    say(json.dumps(value, default=_plain))


def painted(text: str, colour: str, stream: TextIO | None = None) -> str:
    """Colour a text where a person reads it at a terminal that has colours."""
    stream = stream or sys.stdout
    plain = not stream.isatty() or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return text if plain else f"\033[{_COLOURS[colour]}m{text}\033[0m"


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(type(value).__name__)
