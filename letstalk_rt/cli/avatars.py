"""`letstalk avatars`: manages the avatars that commands refer to by name."""

import argparse
import getpass
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from letstalk_rt.cli.options import add_json_option
from letstalk_rt.cli.output import colored, write_json, write_line, write_notice
from letstalk_rt.errors import ConfigError, PortraitError
from letstalk_rt.portrait.consent import Consent
from letstalk_rt.portrait.library import CONSENT, ENDINGS, AvatarLibrary
from letstalk_rt.types import Portrait

if TYPE_CHECKING:
    from letstalk_rt.models.face.detector import FaceFinder

SUMMARY = "list, add, remove or prepare avatars, portraits that have a name"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `letstalk avatars`."""
    parser.description = (
        "Avatars are portraits with a name. Four ship with the package; your own are stored in the "
        "folder LETSTALK_HOME. Prepared portraits are cached there, up to 256 MB."
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="show all avatars")
    adding = actions.add_parser("add", help="add an image as an avatar", description=CONSENT)
    adding.add_argument("name", metavar="NAME", help="a-z, 0-9, - and _")
    adding.add_argument("image", type=Path, metavar="IMAGE", help="jpg, png, webp or heic")
    adding.add_argument(
        "--replace", action="store_true", help="replace an existing avatar of this name"
    )
    adding.add_argument(
        "--consent-by",
        metavar="WHO",
        help="who states that the person consented (default: the user of this machine)",
    )
    removing = actions.add_parser("remove", help="delete an avatar that you added")
    removing.add_argument("name", metavar="NAME")
    preparing = actions.add_parser("prepare", help="find the faces in images in advance")
    preparing.add_argument(
        "sources",
        nargs="*",
        metavar="NAME|IMAGE|FOLDER",
        help="what to prepare (default: all avatars); a folder stands for all images in it",
    )
    preparing.add_argument(
        "--size", type=int, default=512, help="longer side in pixels (%(default)s)"
    )
    preparing.add_argument("--clear", action="store_true", help="empty the cache first")
    for action in (listing, adding, removing, preparing):
        add_json_option(action)


def run(options: argparse.Namespace) -> int:
    """Run the action that the options name."""
    library = AvatarLibrary()
    if options.action == "list":
        return _list(library, options.json)
    if options.action == "add":
        return _add(library, options)
    if options.action == "remove":
        library.remove(options.name)
        _report(options.json, {"removed": options.name}, f"{options.name} was removed")
        return 0
    return _prepare(library, options)


def _list(library: AvatarLibrary, as_json: bool) -> int:
    entries = library.entries()
    if as_json:
        found = [
            {
                "name": entry.name,
                "path": entry.path,
                "builtin": entry.builtin,
                "consent": asdict(entry.consent) if entry.consent else None,
            }
            for entry in entries
        ]
        write_json({"avatars": found, "cache_bytes": library.cache_bytes()})
        return 0
    width = max(len(entry.name) for entry in entries)
    for entry in entries:
        location = "ships with letstalk" if entry.builtin else str(entry.path)
        write_line(f"{colored(entry.name.ljust(width), 'bold')}  {location}")
    write_line(f"{library.cache_bytes() / 2**20:.1f} MB of prepared portraits in {library.folder}")
    return 0


def _add(library: AvatarLibrary, options: argparse.Namespace) -> int:
    portrait = _portrait_of(library, options.image)
    for warning in portrait.warnings:
        write_notice(warning)
    consent = Consent.now(options.consent_by or _user())
    entry = library.add(options.name, options.image, consent, replace=options.replace)
    if not options.json:
        write_notice(CONSENT)
    facts = {"added": entry.name, "path": entry.path, "warnings": portrait.warnings}
    text = f"{entry.name} was added; try: letstalk render {entry.name} speech.wav -o video.mp4"
    _report(options.json, facts, text)
    return 0


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError) as error:
        raise ConfigError("This user has no name; say who consents with --consent-by.") from error


def _portrait_of(library: AvatarLibrary, source: Path) -> Portrait:
    """Prepare an image, or a film, to check that it is usable."""
    from letstalk_rt.dubbing.footage import prepare_footage
    from letstalk_rt.dubbing.footage_reader import is_film
    from letstalk_rt.inference.pipeline import AvatarPipeline

    if is_film(source):
        return prepare_footage(source, AvatarPipeline.load())
    return library.prepare(source, _load_finder())


def _prepare(library: AvatarLibrary, options: argparse.Namespace) -> int:
    from tqdm import tqdm

    if options.clear:
        library.clear_cache()
    images = _find_images(library, options.sources)
    finder = _load_finder()
    results: list[dict[str, Any]] = []
    for image in tqdm(images, unit="image", disable=None, leave=False):
        results.append(_prepare_one(library, image, finder, options.size))
    if options.json:
        write_json({"prepared": results, "cache_bytes": library.cache_bytes()})
    else:
        for result in results:
            mark = colored("ok ", "ok") if result["ok"] else colored("bad", "bad")
            write_line(f"{mark} {result['picture']} {' '.join(result['notes'])}".rstrip())
    return 0 if all(result["ok"] for result in results) else 2


def _prepare_one(
    library: AvatarLibrary, image: Path, finder: "FaceFinder", size: int
) -> dict[str, Any]:
    try:
        notes = library.prepare(image, finder, size=size).warnings
    except PortraitError as error:
        return {"picture": image, "ok": False, "notes": [str(error)]}
    return {"picture": image, "ok": True, "notes": list(notes)}


def _find_images(library: AvatarLibrary, sources: list[str]) -> list[Path]:
    if not sources:
        paths = [entry.path for entry in library.entries()]
        return [path for path in paths if path.suffix.lower() in ENDINGS]  # films are not cached
    found: list[Path] = []
    for source in sources:
        folder = Path(source)
        if folder.is_dir():
            found += sorted(p for p in folder.iterdir() if p.suffix.lower() in ENDINGS)
        else:
            found.append(library.find(source))
    if not found:
        raise PortraitError(f"{', '.join(sources)} contains no images.")
    return found


def _load_finder() -> "FaceFinder":
    from letstalk_rt.models.loading import load_face_finder

    return load_face_finder()


def _report(as_json: bool, facts: dict[str, Any], text: str) -> None:
    if as_json:
        write_json(facts)
    else:
        write_line(text)
