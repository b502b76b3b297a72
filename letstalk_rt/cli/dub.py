"""`letstalk dub`: another voice for a film of a person."""

import argparse
from pathlib import Path

from letstalk_rt.cli.options import add_json_option, add_sign_option, read_signing
from letstalk_rt.cli.output import write_json, write_line, write_notice

SUMMARY = "film of a person + audio file -> the film with that voice"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `letstalk dub`."""
    parser.description = (
        "Write FILM with the sound AUDIO, and with lips that say it. Head, gaze, body and "
        "background stay. The person in the film must have consented."
    )
    add = parser.add_argument
    add("film", type=Path, metavar="FILM", help="mp4, mov, mkv, webm or avi")
    add("audio", type=Path, metavar="AUDIO", help="wav, flac, mp3, m4a, ogg or mp4")
    add("-o", "--output", type=Path, required=True, metavar="OUT.mp4", help="video file to write")
    add(
        "--longer",
        choices=("loop", "hold", "cut"),
        default="loop",
        help="while AUDIO is longer than FILM: go back and forth, hold the last frame, or end "
        "(%(default)s)",
    )
    add("--trim", action="store_true", help="end with AUDIO, even if FILM is longer")
    add("--preset", default="tiny", help="model preset (%(default)s)")
    add("--weights", type=Path, metavar="FILE", help="its weights (default: those of the package)")
    add("--device", default="auto", help="auto, cpu or cuda (%(default)s)")
    add("--threads", type=int, help="CPU threads of the model (default: chosen by torch)")
    add(
        "--no-badge",
        dest="badge",
        action="store_false",
        help='omit the badge "AI avatar"; you must then disclose that the film is generated',
    )
    add_sign_option(parser)
    add_json_option(parser)


def run(options: argparse.Namespace) -> int:
    """Dub the film and print its length and size."""
    from tqdm import tqdm

    from letstalk_rt.dubbing.dub_film import DubOptions, Speech, dub_film
    from letstalk_rt.dubbing.extension import Longer
    from letstalk_rt.dubbing.film import Film
    from letstalk_rt.inference.pipeline import AvatarPipeline

    film, speech = Film(options.film), Speech(options.audio, 0)
    signing = read_signing(options, options.film)
    if film.facts.converted is not None:
        write_notice(
            f"the film's pixel format {film.facts.converted} is converted to "
            f"{film.facts.pixel_format}, of 8 bits."
        )
    chosen = DubOptions(Longer(options.longer), options.trim, options.badge, **signing)
    pipeline = AvatarPipeline.load(
        options.preset, options.device, threads=options.threads, weights=options.weights
    )
    total = _total(film.facts.frames, float(film.facts.rate), speech.facts.seconds, chosen)
    # disable=None: no progress bar unless stderr is a terminal
    with tqdm(total=total or None, unit="frame", disable=None, leave=False) as bar:
        result = dub_film(pipeline, film, speech, options.output, chosen, bar.update)
    if options.json:
        write_json({"output": options.output, **result.__dict__})
    else:
        untouched = result.frames - result.changed
        note = f", {untouched} frames untouched" if untouched else ""
        write_line(
            f"{options.output}: {result.seconds:.1f} s of video, "
            f"{result.width}x{result.height}{note}"
        )
    return 0


def _total(frames: int, rate: float, speech_s: float, options: object) -> int:
    """Return how many frames will be written; 0 if unknown."""
    from letstalk_rt.dubbing.dub_film import DubOptions
    from letstalk_rt.dubbing.extension import Longer

    assert isinstance(options, DubOptions)
    spoken = round(speech_s * rate)
    if not frames or not spoken:
        return frames
    if options.trim:
        return min(frames, spoken) if options.longer is Longer.CUT else spoken
    return frames if options.longer is Longer.CUT else max(frames, spoken)
