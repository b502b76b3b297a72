"""Tags in text: what is spoken, what is performed where, what is unknown."""

import pytest

from letstalk_rt.performance.gestures import GESTURES
from letstalk_rt.performance.moods import MOODS
from letstalk_rt.performance.tags import Cue, TaggedText, parse_tags


def test_a_text_without_tags_stays_as_it_is():
    text = "Hello, dear.  Two spaces [1, 2] "
    assert parse_tags("Hello, dear.") == TaggedText("Hello, dear.", (), ())
    assert parse_tags(text.replace("[1, 2] ", "")).text == text.replace("[1, 2] ", "")


def test_tags_are_taken_out_and_keep_their_place():
    found = parse_tags("[serious] Listen. It is [nods] true, [smiles]really!")
    assert found.text == "Listen. It is true, really!"
    assert [(cue.name, cue.is_mood) for cue in found.cues] == [
        ("serious", True),
        ("nod", False),
        ("smile", False),
    ]
    places = [found.text[cue.position :].split()[0] for cue in found.cues]
    assert places == ["Listen.", "true,", "really!"]


def test_a_tag_at_the_end_is_performed_at_the_end():
    found = parse_tags("Goodbye. [winks]")
    assert found.text.strip() == "Goodbye." and found.cues[0].position >= len("Goodbye.")


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        ("Smiles", "smile"),
        ("looks left", "look_left"),
        ("look_left", "look_left"),
        ("raises eyebrows", "raise_brows"),
        ("SHAKES HEAD", "shake"),
        (" happy ", "cheerful"),
    ],
)
def test_forms_that_voices_and_chat_models_write(tag, name):
    found = parse_tags(f"a [{tag}] b")
    assert found.text == "a b" and [cue.name for cue in found.cues] == [name]


@pytest.mark.parametrize("name", [*GESTURES, *MOODS])
def test_every_name_is_a_tag(name):
    assert parse_tags(f"[{name}]").cues == (Cue(name, name in MOODS, 0),)


def test_unknown_tags_are_not_spoken_and_are_listed():
    found = parse_tags("Well [coughs] I [explodes] see. [nods]")
    assert found.text == "Well I see. " and found.unknown == ("coughs", "explodes")
    assert [cue.name for cue in found.cues] == ["nod"]


def test_brackets_that_are_no_tags_are_spoken():
    long = "[" + "a" * 100 + "]"
    assert parse_tags(f"an open [ bracket {long} x").text == f"an open [ bracket {long} x"
    assert parse_tags("").text == ""


def test_a_hostile_text_takes_no_long_time():
    assert parse_tags("[" * 100_000).text == "[" * 100_000
