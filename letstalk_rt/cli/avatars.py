"""`letstalk avatars`: the portraits that commands know by name."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from letstalk_rt.cli.common import note, painted, say, say_json
from letstalk_rt.errors import PortraitError
from letstalk_rt.portrait.library import CONSENT, ENDINGS, AvatarLibrary

if TYPE_CHECKING:
    from letstalk_rt.models.face.detector import FaceFinder

SUMMARY = "list, add, remove or prepare portraits that commands know by name"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command is told."""
    parser.description = (
        "Avatars are portraits with a name. Four ship with the package; your own lie in a folder "
        "of yours (LETSTALK_HOME). Prepared portraits are cached there, up to 256 MB."
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="show all avatars")
    adding = actions.add_parser("add", help="add a picture under a name", description=CONSENT)
    adding.add_argument("name", metavar="NAME", help="a-z, 0-9, - and _")
    adding.add_argument("picture", type=Path, metavar="PICTURE", help="jpg, png, webp or heic")
    adding.add_argument("--replace", action="store_true", help="take the place of an older one")
    removing = actions.add_parser("remove", help="delete an avatar that you added")
    removing.add_argument("name", metavar="NAME")
    preparing = actions.add_parser("prepare", help="find the faces of pictures now, to save time")
    preparing.add_argument(
        "sources",
        nargs="*",
        metavar="NAME|PICTURE|FOLDER",
        help="what to prepare (all avatars); of a folder, all pictures",
    )
    preparing.add_argument("--size", type=int, default=512, help="longer side, px (%(default)s)")
    preparing.add_argument("--clear", action="store_true", help="empty the cache first")
    for action in (listing, adding, removing, preparing):
        action.add_argument("--json", action="store_true", help="tell it as one line of JSON")


def run(options: argparse.Namespace) -> int:
    """Run the action that the options name."""
    library = AvatarLibrary()
    if options.action == "list":
        return _list(library, options.json)
    if options.action == "add":
        return _add(library, options)
    if options.action == "remove":
        library.remove(options.name)
        _tell(options.json, {"removed": options.name}, f"{options.name} is removed")
        return 0
    return _prepare(library, options)


def _list(library: AvatarLibrary, as_json: bool) -> int:
    entries = library.entries()
    if as_json:
        found = [{"name": e.name, "path": e.path, "builtin": e.builtin} for e in entries]
        say_json({"avatars": found, "cache_bytes": library.cache_bytes()})
        return 0
    width = max(len(entry.name) for entry in entries)
    for entry in entries:
        where = "ships with letstalk" if entry.builtin else str(entry.path)
        say(f"{painted(entry.name.ljust(width), 'bold')}  {where}")
    say(f"{library.cache_bytes() / 2**20:.1f} MB of prepared portraits in {library.folder}")
    return 0


def _add(library: AvatarLibrary, options: argparse.Namespace) -> int:
    portrait = library.prepare(options.picture, _finder())
    for warning in portrait.warnings:
        note(warning)
    entry = library.add(options.name, options.picture, replace=options.replace)
    if not options.json:
        note(CONSENT)
    facts = {"added": entry.name, "path": entry.path, "warnings": portrait.warnings}
    _tell(options.json, facts, f"{entry.name} is added: letstalk render {entry.name} speech.wav")
    return 0


def _prepare(library: AvatarLibrary, options: argparse.Namespace) -> int:
    from tqdm import tqdm

    if options.clear:
        library.clear_cache()
    pictures = _pictures(library, options.sources)
    finder = _finder()
    results: list[dict[str, Any]] = []
    for picture in tqdm(pictures, unit="picture", disable=None, leave=False):
        results.append(_prepare_one(library, picture, finder, options.size))
    if options.json:
        say_json({"prepared": results, "cache_bytes": library.cache_bytes()})
    else:
        for result in results:
            word = painted("ok ", "ok") if result["ok"] else painted("bad", "bad")
            say(f"{word} {result['picture']} {' '.join(result['notes'])}".rstrip())
    return 0 if all(result["ok"] for result in results) else 2


def _prepare_one(
    library: AvatarLibrary, picture: Path, finder: "FaceFinder", size: int
) -> dict[str, Any]:
    try:
        notes = library.prepare(picture, finder, size=size).warnings
    except PortraitError as error:
        return {"picture": picture, "ok": False, "notes": [str(error)]}
    return {"picture": picture, "ok": True, "notes": list(notes)}


def _pictures(library: AvatarLibrary, sources: list[str]) -> list[Path]:
    if not sources:
        return [entry.path for entry in library.entries()]
    found: list[Path] = []
    for source in sources:
        folder = Path(source)
        if folder.is_dir():
            found += sorted(p for p in folder.iterdir() if p.suffix.lower() in ENDINGS)
        else:
            found.append(library.find(source))
    if not found:
        raise PortraitError(f"There are no pictures in {', '.join(sources)}.")
    return found


def _finder() -> "FaceFinder":
    from letstalk_rt.models.loading import load_face_finder

    return load_face_finder()


def _tell(as_json: bool, facts: dict[str, Any], text: str) -> None:
    if as_json:
        say_json(facts)
    else:
        say(text)
