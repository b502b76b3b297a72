import pytest

from letstalk_rt.errors import TextError
from letstalk_rt.speech.interface import MAX_TEXT_CHARS, prepare_text


@pytest.mark.parametrize(
    "text, spoken",
    [
        ("Hello, world!", "Hello, world!"),
        ("  two\r\n\tlines  ", "two lines"),
        ("a\x00b\x1b[31mc\x07", "a b [31mc"),
        ("well done \U0001f44d\U0001f3fd ❤️!", "well done !"),
        ("é 7 ½", "é 7 ½"),
        ("你好 привет مرحبا", "你好 привет مرحبا"),
        ("नमस्ते", "नमस्ते"),
        ("bro\ud800ken", "broken"),
    ],
)
def test_what_no_voice_can_read_is_left_out(text, spoken):
    assert prepare_text(text) == spoken


@pytest.mark.parametrize(
    "text", ["", "   \n", "\x00\x01", "\U0001f600\U0001f680", "?!...", "\u200d"]
)
def test_a_text_without_words_is_refused(text):
    with pytest.raises(TextError, match="letters or digits"):
        prepare_text(text)


def test_a_text_of_a_megabyte_is_refused_without_repeating_it():
    with pytest.raises(TextError, match="1000000 characters") as refused:
        prepare_text("x" * 1_000_000)
    assert len(str(refused.value)) < 150
    assert len(prepare_text("x" * MAX_TEXT_CHARS)) == MAX_TEXT_CHARS


def test_other_types_are_refused():
    with pytest.raises(TextError, match="bytes"):
        prepare_text(b"hello")
