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


LONG = (
    "I would be happy to help you with that. First of all, let me think about it for a moment. "
    "Then I will tell you more about it, and answer all of your other questions."
)


@pytest.mark.parametrize(
    "heard",
    ["can you story about and all", "will you help me with other things", "i will go to all"],
)
def test_little_words_that_lie_far_apart_are_no_echo_of_a_long_answer(heard):
    assert not repeats(heard, LONG)
    assert repeats("think about it for a moment then i will tell", LONG)


def test_nothing_is_an_echo_of_silence():
    assert not repeats("hello there", "")
