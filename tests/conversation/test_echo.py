"""The avatar's own words, heard by the microphone, are told from the user's."""

import pytest

from letstalk_rt.conversation.echo import repeats

SAID = "I cannot look outside, but I hope that the sun is shining where you are."


@pytest.mark.parametrize(
    "heard",
    [
        "I cannot look outside",
        "but i hope that the son is shining",
        "look outside but hope sun is shining were you are",
        "shining",
    ],
)
def test_words_of_the_avatar_are_an_echo_even_if_some_were_misheard(heard):
    assert repeats(heard, SAID)


@pytest.mark.parametrize(
    "heard",
    ["stop", "what time is it", "the weather is bad and I want to go home", "is", "", "but no"],
)
def test_other_words_are_none(heard):
    assert not repeats(heard, SAID)


def test_nothing_is_an_echo_of_silence():
    assert not repeats("hello there", "")
