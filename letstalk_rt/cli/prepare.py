"""`letstalk prepare`: turns raw videos into a data folder for `letstalk train`.

Shots are cut, one face is followed, and what is left becomes clips of 3 to 20 seconds at 25 fps:
square crops, landmarks, and 16 kHz sound of even loudness whose offset to the lips is measured and
mended. People, not clips, are split into `train` and `eval`. Run the same command again to resume;
add videos to prepare more. DATA/prepared.json says what was dropped and why.
"""

import argparse
import os
from pathlib import Path

from letstalk_rt.cli.output import write_json, write_line, write_notice
from letstalk_rt.errors import ConfigError
from letstalk_rt.training.prepare.job import PrepareConfig
from letstalk_rt.training.prepare.landmarkers import LANDMARKERS
from letstalk_rt.training.prepare.run import prepare_all
from letstalk_rt.training.prepare.segments import find_videos, listed_videos, whole_videos

_DEFAULT = PrepareConfig()


def main(argv: list[str] | None = None) -> int:
    """Prepare videos and print the report."""
    args = _parser().parse_args(argv)
    config = _config(args)
    paths = find_videos(args.raw)
    missing: list[str] = []
    if args.list:
        videos, missing = listed_videos(paths, args.list)
        for name in missing[:10]:
            write_notice(f"listed, but not there: {name}")
    else:
        videos = whole_videos(paths, person_by_folder=args.person_by_folder)
    report = prepare_all(
        videos,
        args.output,
        config,
        tag=args.tag,
        eval_share=args.eval_share,
        workers=args.workers,
        device=args.device,
        landmarker=args.landmarker,
        missing=missing,
    )
    for line in report.lines():
        write_line(line)
    if args.json:
        write_json(vars(report))
    return 0


def _config(args: argparse.Namespace) -> PrepareConfig:
    if args.size < 64 or args.size % 32:
        raise ConfigError(f"--size must be a multiple of 32 from 64 on, got {args.size}")
    if not 0 < args.min_s <= args.max_s:
        raise ConfigError(f"--min-s {args.min_s} must be above 0 and at most --max-s {args.max_s}")
    if not 0 <= args.eval_share < 1:
        raise ConfigError(f"--eval-share must be at least 0 and below 1, got {args.eval_share}")
    if args.workers < 1:
        raise ConfigError(f"--workers must be at least 1, got {args.workers}")
    return PrepareConfig(
        size=args.size,
        min_s=args.min_s,
        max_s=args.max_s,
        max_enlarge=args.max_enlarge,
        loudness=args.loudness,
        min_sync=args.min_sync,
        landmarks=args.landmarks,
        separate=args.separate or "",
        match_faces=args.match_faces,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="letstalk prepare", description=__doc__)
    add = parser.add_argument
    add("raw", nargs="+", type=Path, metavar="RAW", help="videos, or folders that hold them")
    add("-o", "--output", type=Path, required=True, metavar="DATA", help="the data folder")
    add("--size", type=int, default=_DEFAULT.size, help="side of the crops, px (%(default)s)")
    add(
        "--list",
        type=Path,
        action="append",
        metavar="PLACE",
        help="published list of parts: HDTF's folder of text files, or celebvhq_info.json",
    )
    add(
        "--tag",
        choices=("lab", "ship"),
        default="lab",
        help="ship: the licence allows distributing weights trained on it (%(default)s)",
    )
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    add(
        "--landmarks",
        choices=LANDMARKERS,
        default=_DEFAULT.landmarks,
        help="mediapipe (extra eval), or the package's own (%(default)s)",
    )
    add("--landmarker", type=Path, help="MediaPipe's face_landmarker.task")
    add("--device", default="cpu", help="where the package's own face finder runs (%(default)s)")
    add("--min-s", type=float, default=_DEFAULT.min_s, help="shortest clip (%(default)s)")
    add("--max-s", type=float, default=_DEFAULT.max_s, help="longest clip (%(default)s)")
    add(
        "--max-enlarge",
        type=float,
        default=_DEFAULT.max_enlarge,
        help="by how much a crop may be enlarged (%(default)s)",
    )
    add(
        "--min-sync",
        type=float,
        default=_DEFAULT.min_sync,
        help="correlation of lips and sound below which a clip is dropped (%(default)s)",
    )
    add("--loudness", type=float, default=_DEFAULT.loudness, help="in LUFS (%(default)s)")
    add(
        "--separate",
        metavar="COMMAND",
        help="program that separates speech from music, with {input} and {output} for wav files",
    )
    add(
        "--match-faces",
        action="store_true",
        help="recognise people who are in several videos (extra eval)",
    )
    add(
        "--person-by-folder",
        action="store_true",
        help="the folder that holds a video is named after the person in it",
    )
    add("--eval-share", type=float, default=0.05, help="share of people (%(default)s)")
    add("--json", action="store_true", help="print the report as one line of JSON, too")
    return parser
