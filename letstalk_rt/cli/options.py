"""Options that several commands share, and loading the avatar that they name."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from letstalk_rt.cli.output import write_notice
from letstalk_rt.errors import ConfigError
from letstalk_rt.performance.moods import MOODS

if TYPE_CHECKING:
    from letstalk_rt.recording.output_file import Signing
    from letstalk_rt.session.avatar import Avatar


def add_portrait(parser: argparse.ArgumentParser) -> None:
    """Add the portrait, the first argument of most commands."""
    parser.add_argument(
        "portrait",
        metavar="PORTRAIT",
        help="image of a face (jpg, png, webp, heic), short film of a person (mp4, mov, webm), or "
        "name of an avatar: see letstalk avatars list",
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the model and of the video."""
    add = parser.add_argument
    add("--size", type=int, default=512, help="longer side of the video in pixels (%(default)s)")
    add("--seed", type=int, default=0, help="seed of head motion and blinks (%(default)s)")
    add("--preset", default="tiny", help="model preset (%(default)s)")
    add("--weights", type=Path, metavar="FILE", help="its weights (default: those of the package)")
    add("--device", default="auto", help="auto, cpu or cuda (%(default)s)")
    add("--steps", type=int, help="sampling steps per window, 1 to 50 (default: the preset's)")
    add("--threads", type=int, help="CPU threads of the model (default: chosen by torch)")
    add(
        "--no-badge",
        dest="badge",
        action="store_false",
        help='omit the badge "AI avatar"; you must then disclose that the video is generated',
    )


def add_mood_options(parser: argparse.ArgumentParser) -> None:
    """Add how the person feels."""
    add = parser.add_argument
    add("--mood", choices=MOODS, default="neutral", help="how the person feels (%(default)s)")
    add(
        "--mood-strength",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="how much of it is shown, from 0 to 1 (%(default)s)",
    )


def add_sign_option(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """Add the option to sign what is recorded."""
    parser.add_argument(
        "--sign",
        nargs=2,
        type=Path,
        required=required,
        metavar=("CERT", "KEY"),
        help="sign the file when it is complete (C2PA) with a certificate and its key, PEM files",
    )


def read_signing(options: argparse.Namespace, shown: str | Path) -> "Signing":
    """Return what the recording that the options name states, and the credentials, checked.

    Args:
        options: of the command.
        shown: the portrait or film; if it is in the library, its recorded consent is stated.

    Raises:
        LetsTalkError: the portrait is unknown, or the credentials or the output cannot be used.
    """
    from letstalk_rt.portrait.library import AvatarLibrary
    from letstalk_rt.recording.credentials import SigningCredentials
    from letstalk_rt.recording.provenance import Provenance
    from letstalk_rt.recording.signing import media_type_of

    if options.sign is not None and options.output is None:
        raise ConfigError("--sign signs a recording; name its file with --output.")
    if options.sign is not None:
        media_type_of(options.output)
    consent = AvatarLibrary().consent_of(shown)
    return {
        "provenance": Provenance.of(options.preset, options.badge, consent),
        "credentials": None if options.sign is None else SigningCredentials.read(*options.sign),
    }


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add the option for machine-readable output."""
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON")


def load_avatar(options: argparse.Namespace) -> "Avatar":
    """Load the model and the portrait that the options name."""
    from letstalk_rt.dubbing.footage import prepare_footage
    from letstalk_rt.dubbing.footage_reader import is_film
    from letstalk_rt.inference.pipeline import AvatarPipeline
    from letstalk_rt.portrait.library import AvatarLibrary
    from letstalk_rt.session.avatar import Avatar

    library = AvatarLibrary()
    path = library.find(options.portrait)
    pipeline = AvatarPipeline.load(
        preset=options.preset,
        device=options.device,
        steps=options.steps,
        threads=options.threads,
        weights=options.weights,
    )
    if is_film(path):
        write_notice("the film is prepared; this takes about as long as it lasts.")
        portrait = prepare_footage(path, pipeline, size=options.size)
    else:
        portrait = library.prepare(path, pipeline.finder, size=options.size)
    for warning in portrait.warnings:
        write_notice(warning)
    return Avatar.from_pipeline(pipeline, portrait)
