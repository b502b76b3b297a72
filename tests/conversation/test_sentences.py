"""Answers are cut into sentences while they are generated."""

import pytest

from letstalk_rt.conversation.sentences import FIRST_CHARS, MAX_CHARS, SentenceCutter


def cut(text, size=3):
    cutter = SentenceCutter()
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    return [sentence for piece in pieces for sentence in cutter.push(piece)] + cutter.flush()


def test_a_sentence_is_given_out_as_soon_as_the_next_one_begins():
    cutter = SentenceCutter()
    assert cutter.push("Hello there") == []
    assert cutter.push("!") == [], "it may go on with another mark"
    assert cutter.push(" How") == ["Hello there!"]
    assert cutter.push(" are you?") == []
    assert cutter.flush() == ["How are you?"]
    assert cutter.flush() == []


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_pieces_of_any_size_give_the_same_sentences(size):
    text = 'He said "no." Then 3.5 men left... Really?! Yes.\nMr. Fox, e.g. Reynard, stayed.'
    assert cut(text, size) == [
        'He said "no."',
        "Then 3.5 men left...",
        "Really?!",
        "Yes.",
        "Mr. Fox, e.g. Reynard, stayed.",
    ]


def test_the_number_of_a_list_is_no_sentence():
    assert cut("1. Bread.\n2. Milk.") == ["1. Bread.", "2. Milk."]


def test_only_the_first_piece_may_end_at_a_comma():
    first = "I cannot look outside today, but I hope that it is dry, and warm, and light. "
    assert cut(first + "You, in the north of the country, have rain.") == [
        "I cannot look outside today,",
        "but I hope that it is dry, and warm, and light.",
        "You, in the north of the country, have rain.",
    ]
    assert len("I cannot look outside today,") >= FIRST_CHARS
    assert cut("Yes, of course.") == ["Yes, of course."], "too short to be spoken alone"


def test_full_stops_of_east_asia_need_no_space():
    assert cut("你好。今天天气很好！再见", 1) == ["你好。", "今天天气很好！", "再见"]


def test_a_text_without_an_end_is_cut_at_a_space():
    sentences = cut("word " * 200)
    assert len(sentences) > 3 and max(map(len, sentences)) <= MAX_CHARS
    assert " ".join(sentences).split() == ["word"] * 200


def test_markup_and_thoughts_are_not_spoken():
    assert cut("<think>The user. Greets me.</think>\n\n**Hello** `you`. # Bye") == [
        "Hello you.",
        "Bye",
    ]
    assert cut("<think>I never end. And on.") == []
