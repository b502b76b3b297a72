"""Avatars are found by name, and a portrait is prepared once."""

from pathlib import Path

import numpy as np
import pytest
from support.faces import SkinFinder, draw

from letstalk_rt.avatars import list_avatars
from letstalk_rt.errors import ConfigError, PortraitError
from letstalk_rt.portrait.consent import Consent
from letstalk_rt.portrait.library import AvatarLibrary, default_folder
from letstalk_rt.types import Face

AGREED = Consent.now("Anna")


class CountingFinder(SkinFinder):
    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def find_faces(self, rgb: np.ndarray) -> list[Face]:
        self.asked += 1
        return super().find_faces(rgb)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "anna.png"
    draw(400, 300, [(200, 150, 130)]).save(path)
    return path


@pytest.fixture
def library(tmp_path: Path) -> AvatarLibrary:
    return AvatarLibrary(tmp_path / "home")


def test_the_avatars_that_ship_are_there(library: AvatarLibrary) -> None:
    assert {e.name for e in library.entries()} == set(list_avatars())
    assert all(entry.builtin for entry in library.entries())


def test_an_added_avatar_is_found_by_name_and_can_be_removed(
    library: AvatarLibrary, picture: Path
) -> None:
    library.add("anna", picture, AGREED)
    assert library.find("anna").read_bytes() == picture.read_bytes()
    with pytest.raises(ConfigError, match="already"):
        library.add("anna", picture, AGREED)
    library.add("anna", picture, AGREED, replace=True)
    library.remove("anna")
    with pytest.raises(PortraitError, match="no avatar named 'anna'"):
        library.find("anna")


def test_who_consented_and_when_is_kept(library: AvatarLibrary, picture: Path) -> None:
    added = library.add("anna", picture, AGREED)
    assert added.consent == AGREED == library.consent_of("anna")
    assert library.consent_of(picture) is None  # a file of that image says nothing
    assert library.consent_of(next(iter(list_avatars()))) is None
    later = Consent("Her agent", "2030-01-01T00:00:00+00:00")
    library.add("anna", picture, later, replace=True)
    assert library.consent_of("anna") == later


def test_a_damaged_record_of_consent_is_an_error(library: AvatarLibrary, picture: Path) -> None:
    entry = library.add("anna", picture, AGREED)
    for text in ("", "[]", '{"by": "Anna", "at": "once"}'):
        for record in entry.path.parent.glob("*.json"):
            record.write_text(text)
        with pytest.raises(PortraitError, match="record of consent .* cannot be read"):
            library.consent_of("anna")


def test_models_of_other_crops_have_portraits_of_their_own(
    library: AvatarLibrary, picture: Path
) -> None:
    small, large = SkinFinder(), SkinFinder()
    large.crop_px = 512
    assert library.prepare(picture, small).crop.shape == (256, 256, 3)
    assert library.prepare(picture, large).crop.shape == (512, 512, 3)


def test_removing_an_avatar_deletes_all_of_its_files(
    library: AvatarLibrary, picture: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.png"
    draw(300, 400, [(150, 200, 140)]).save(other)
    for name, image in (("anna", picture), ("ben", other)):
        entry = library.add(name, image, AGREED)
        for size in (512, 300):
            library.prepare(entry.path, SkinFinder(), size=size)
    (library.folder / "prepared" / f"{'0' * 32}.npz").write_bytes(b"of an earlier version")
    library.remove("anna")
    left = sorted(path for path in library.folder.rglob("*") if path.is_file())
    assert [path.name for path in left[:2]] == ["ben.consent.json", "ben.png"]
    assert len(left) == 4
    library.add("ben", picture, AGREED, replace=True)
    assert len([path for path in library.folder.rglob("*") if path.is_file()]) == 2


def test_what_ships_can_be_hidden_but_not_removed(library: AvatarLibrary, picture: Path) -> None:
    name = next(iter(list_avatars()))
    with pytest.raises(ConfigError, match="came with the package"):
        library.remove(name)
    library.add(name, picture, AGREED)
    assert library.find(name).read_bytes() == picture.read_bytes()
    library.remove(name)
    assert library.find(name) == list_avatars()[name]


def test_a_file_goes_before_a_name_and_a_path_is_given_back(
    library: AvatarLibrary, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mira").write_bytes(picture.read_bytes())
    assert library.find("mira") == Path("mira")
    assert library.find("lost.jpg") == Path("lost.jpg")


@pytest.mark.parametrize("name", ["", "Anna", "../x", "a b", "-x", "x" * 65])
def test_names_that_could_be_paths_are_refused(
    library: AvatarLibrary, picture: Path, name: str
) -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        library.add(name, picture, AGREED)


def test_a_portrait_is_prepared_once(library: AvatarLibrary, picture: Path) -> None:
    finder = CountingFinder()
    first = library.prepare(picture, finder)
    again = library.prepare(picture, finder)
    assert finder.asked == 1 and again.box == first.box and again.warnings == first.warnings
    assert np.array_equal(again.canvas, first.canvas) and np.array_equal(again.crop, first.crop)
    assert library.prepare(picture, finder, size=300).canvas.shape != first.canvas.shape
    assert finder.asked == 2


def test_another_picture_under_the_same_name_is_prepared_anew(
    library: AvatarLibrary, picture: Path
) -> None:
    finder = CountingFinder()
    library.prepare(picture, finder)
    draw(300, 400, [(150, 200, 140)]).save(picture)
    assert library.prepare(picture, finder).canvas.shape == (512, 384, 3)


def test_a_damaged_cache_is_made_anew(library: AvatarLibrary, picture: Path) -> None:
    finder = CountingFinder()
    library.prepare(picture, finder)
    for kept in (library.folder / "prepared").iterdir():
        kept.write_bytes(kept.read_bytes()[:1000])
    library.prepare(picture, finder)
    assert finder.asked == 2
    library.prepare(picture, finder)
    assert finder.asked == 2


def test_the_cache_keeps_to_its_size_and_the_oldest_goes(tmp_path: Path, picture: Path) -> None:
    finder, library = CountingFinder(), AvatarLibrary(tmp_path / "home")
    library.prepare(picture, finder)
    small = AvatarLibrary(tmp_path / "home", max_cache_bytes=2 * library.cache_bytes() + 100)
    for width in (402, 404, 406):
        draw(width, 300, [(200, 150, 130)]).save(picture)
        small.prepare(picture, finder)
        assert small.cache_bytes() <= 2.2 * library.cache_bytes()
    asked = finder.asked
    small.prepare(picture, finder)
    assert finder.asked == asked  # the newest is still there
    small.clear_cache()
    assert small.cache_bytes() == 0


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path: Path, picture: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    library = AvatarLibrary(tmp_path / "file" / "home")
    assert library.prepare(picture, SkinFinder()).canvas.shape == (384, 512, 3)
    with pytest.raises(ConfigError, match="LETSTALK_HOME"):
        library.add("anna", picture, AGREED)


def test_the_users_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LETSTALK_HOME", "/x/y")
    assert default_folder() == Path("/x/y")
