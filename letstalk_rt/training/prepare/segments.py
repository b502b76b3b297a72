"""Which parts of which videos are prepared: whole files, or what a published list says.

HDTF's lists are text files of one line per video: name and link, name and times, name of a part and
its square in pixels. CelebV-HQ's is one JSON file with link, times and box of each clip. The videos
themselves are the user's; they are found in RAW by name or by the id in their link.

Source: HDTF, arXiv by Zhang et al. (CVPR 2021), github.com/MRzzm/HDTF; CelebV-HQ, arXiv:2207.12393.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlparse

from letstalk_rt.errors import InputError

VIDEO_SUFFIXES = frozenset({".mp4", ".mkv", ".webm", ".mov", ".m4v", ".avi"})

_HDTF_PARTS = ("RD", "WDA", "WRA")


@dataclass(frozen=True)
class Segment:
    """A part of a raw video that is searched for clips.

    Attributes:
        name: Name of the part, which its clips' names begin with.
        start_s: Where it begins, in seconds.
        end_s: Where it ends; infinite for the end of the video.
        box: Left, top, right and bottom of the region that holds the face, as shares of width and
            height; the whole frame by default.
        box_px: The same in pixels of a frame that is `height_px` high, where the list says so.
        height_px: Height of the frame that `box_px` belongs to; 0 without it.
        person: Who is shown, if known; clips of one person stay in one split.
    """

    name: str
    start_s: float = 0.0
    end_s: float = float("inf")
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    box_px: tuple[float, float, float, float] | None = None
    height_px: int = 0
    person: str | None = None

    def region(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return the region in pixels of a frame of this size: left, top, right, bottom."""
        if self.box_px is not None:
            scale = height / self.height_px if self.height_px else 1.0
            left, top, right, bottom = (scale * value for value in self.box_px)
        else:
            left, right = self.box[0] * width, self.box[2] * width
            top, bottom = self.box[1] * height, self.box[3] * height
        return max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))


@dataclass(frozen=True)
class RawVideo:
    """A raw video with the parts of it to prepare.

    Attributes:
        path: The file.
        key: A name that is unique among all raw videos, for files about this one.
        segments: Its parts.
    """

    path: Path
    key: str
    segments: tuple[Segment, ...]


def find_videos(places: list[Path]) -> list[Path]:
    """Return all videos among files and in folders, folders searched to any depth.

    Raises:
        InputError: A place does not exist, or there is no video at all.
    """
    found: list[Path] = []
    for place in places:
        if not place.exists():
            raise InputError(f"{place} does not exist; give videos or folders that hold them")
        inside = sorted(place.rglob("*")) if place.is_dir() else [place]
        found += [p for p in inside if p.is_file() and p.suffix.lower() in VIDEO_SUFFIXES]
    if not found:
        known = ", ".join(sorted(VIDEO_SUFFIXES))
        raise InputError(f"no videos ({known}) in {', '.join(map(str, places))}")
    return found


def whole_videos(paths: list[Path], *, person_by_folder: bool = False) -> list[RawVideo]:
    """Return videos to be searched as a whole.

    Args:
        paths: The files.
        person_by_folder: Whether the folder that holds a video is named after the person in it.
    """
    keys = _unique_keys(paths)
    return [
        RawVideo(path, key, (Segment(key, person=path.parent.name if person_by_folder else None),))
        for path, key in zip(paths, keys, strict=True)
    ]


def listed_videos(paths: list[Path], lists: list[Path]) -> tuple[list[RawVideo], list[str]]:
    """Return the videos that lists name with the parts that they name, and what is not there.

    Args:
        paths: The files, named as in the list, or after the id in the video's link.
        lists: HDTF's folder of text files, or CelebV-HQ's JSON file.

    Raises:
        InputError: A list is of neither kind, or has a line that cannot be read.
    """
    by_name = {path.stem: path for path in paths}
    videos, missing = [], []
    for place in lists:
        for names, segments in _read_list(place):
            path = next((by_name[name] for name in names if name in by_name), None)
            if path is None:
                missing.append(names[0])
            else:
                videos.append(RawVideo(path, _safe(names[0]), tuple(segments)))
    return videos, missing


def _read_list(place: Path) -> list[tuple[list[str], list[Segment]]]:
    """Return for each video the names that its file may have, and its segments."""
    if place.is_dir() and any((place / f"{p}_annotion_time.txt").exists() for p in _HDTF_PARTS):
        return [entry for part in _HDTF_PARTS for entry in _read_hdtf(place, part)]
    if place.is_file() and place.suffix == ".json":
        return _read_celebv(place)
    raise InputError(
        f"{place} is no list that is known: expected HDTF's folder with RD_annotion_time.txt and "
        "its companions, or CelebV-HQ's celebvhq_info.json"
    )


def _read_hdtf(folder: Path, part: str) -> list[tuple[list[str], list[Segment]]]:
    """Read one of HDTF's three parts; segments without a square are left out, as published."""
    times = _table(folder / f"{part}_annotion_time.txt")
    squares = _table(folder / f"{part}_crop_wh.txt")
    links = _table(folder / f"{part}_video_url.txt")
    heights = _table(folder / f"{part}_resolution.txt")
    entries = []
    for file, spans in times.items():
        name = file.removesuffix(".mp4")
        link = (links.get(name) or links.get(file) or [""])[0]
        height = int((heights.get(file) or ["0"])[0])
        # Names of the two political parts are people, numbered where there are several videos.
        person = name if part == "RD" else name.rstrip("0123456789_")
        segments = []
        for index, span in enumerate(spans):
            square = squares.get(f"{name}_{index}.mp4")
            if square is None:
                continue
            left, wide, top, high = (float(value) for value in square)
            start, _, end = span.partition("-")
            segments.append(
                Segment(
                    f"{part}_{name}_{index}",
                    _seconds(start, folder),
                    _seconds(end, folder),
                    box_px=(left, top, left + wide, top + high),
                    height_px=height,
                    person=f"{part}_{person}",
                )
            )
        entries.append(([f"{part}_{name}", name, *_link_ids(link)], segments))
    return entries


def _read_celebv(path: Path) -> list[tuple[list[str], list[Segment]]]:
    """Read CelebV-HQ's list; its clips do not name people, so that a video counts as one person."""
    try:
        clips = json.loads(path.read_text())["clips"]
        by_video: dict[str, list[Segment]] = {}
        for name, clip in clips.items():
            box, time = clip["bbox"], clip["duration"]
            by_video.setdefault(clip["ytb_id"], []).append(
                Segment(
                    _safe(name),
                    float(time["start_sec"]),
                    float(time["end_sec"]),
                    box=(box["left"], box["top"], box["right"], box["bottom"]),
                    person=f"celebv_{clip['ytb_id']}",
                )
            )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path.name} is not CelebV-HQ's list: expected `clips` with `ytb_id`, `duration` and "
            f"`bbox` ({type(error).__name__}: {error})"
        ) from error
    return [([video], segments) for video, segments in by_video.items()]


def _table(path: Path) -> dict[str, list[str]]:
    """Read lines of words; the first is the key. A missing file is an empty table."""
    if not path.exists():
        return {}
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[0]: row[1:] for row in rows if row}


def _seconds(text: str, source: Path) -> float:
    """Return the seconds of `MM:SS` or `HH:MM:SS`."""
    try:
        total = 0.0
        for part in text.split(":"):
            total = 60 * total + float(part)
    except ValueError as error:
        raise InputError(f"{source.name}: {text!r} is no time; expected MM:SS") from error
    return total


def _link_ids(link: str) -> list[str]:
    """Return the id of a YouTube link, if it is one."""
    parsed = urlparse(link)
    ids = parse_qs(parsed.query).get("v", [])
    return ids or ([parsed.path.strip("/")] if parsed.netloc.endswith("youtu.be") else [])


def _unique_keys(paths: list[Path]) -> list[str]:
    """Return a name per file: its stem, preceded by its folder's where stems are not unique."""
    stems = [_safe(path.stem) for path in paths]
    keys: list[str] = []
    for path, stem in zip(paths, stems, strict=True):
        key = stem if stems.count(stem) == 1 else f"{_safe(path.parent.name)}_{stem}"
        while key in keys:
            key += "_"
        keys.append(key)
    return keys


def _safe(name: str) -> str:
    """Return a name with the characters that file names can have everywhere, without `-`.

    Clips of one source are equal up to the last `-`, so a source's own name must not hold one.
    """
    return "".join(c if c.isalnum() or c == "_" else "_" for c in name)
