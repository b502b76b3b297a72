"""Whose turn it is: the loop of a conversation, with parts that a test moves step by step."""

import asyncio

import numpy as np
import pytest

from letstalk_rt.conversation.conversation import DEFAULT_PROMPT, Conversation
from letstalk_rt.conversation.interface import Caption, Failure, StateChange
from letstalk_rt.conversation.turns import TurnDetector
from letstalk_rt.errors import ChatError, ConfigError, RecognitionError, SynthesisError
from letstalk_rt.performance import GESTURES, MOODS, Gesture
from letstalk_rt.performance import mood as parse_mood
from letstalk_rt.session.events import Event
from letstalk_rt.speech.interface import prepare_text
from letstalk_rt.types import Interrupted

BLOCK = 512
VOICE = np.ones(4 * BLOCK, np.float32)
PAUSE = np.zeros(20 * BLOCK, np.float32)


class Marked:
    """A detector that takes the largest sample of a block for its probability."""

    block, hold_ms = BLOCK, 0

    def probability(self, block):
        return float(block.max())


class Avatar:
    """A session whose segments begin and end when the test says so."""

    def __init__(self, is_directable=False):
        self.is_directable, self.directed = is_directable, []
        self.epoch, self.interrupts, self.segments, self.listeners = 0, 0, [], []
        self._open, self.listened = [], []

    async def push_audio(self, pcm, sample_rate):
        self._open.append(pcm)

    def set_mood(self, mood, strength=1.0, *, at=None):
        parse_mood(mood, strength)
        self.directed.append((mood, strength, at))

    def gesture(self, name, amount=1.0, *, at=None):
        Gesture(name, amount)
        self.directed.append((name, amount, at))

    def push_listened(self, speaking, pitch_hz=None):
        self.listened.append((speaking, pitch_hz))

    async def end_segment(self):
        self.segments.append(len(self._open))
        self._open = []

    def interrupt(self):
        self.epoch += 1
        self.interrupts += 1
        self.segments, self._open = [], []
        return Interrupted(0, 0)

    def on_event(self, listener):
        self.listeners.append(listener)
        return lambda: self.listeners.remove(listener)

    def emit(self, kind):
        for listener in list(self.listeners):
            listener(Event(kind))

    async def begin(self):
        """Play the beginning of the next segment."""
        await until(lambda: self.segments)
        self.emit("segment.started")

    async def play(self):
        """Play the next segment."""
        await self.begin()
        self.segments.pop(0)
        self.emit("segment.finished")


class Heard:
    """A recogniser that understands prepared words; a list is understood one by one."""

    name = "prepared"

    def __init__(self, *words):
        self.words, self.samples, self.closed = list(words), [], False
        self.hold = None

    async def start(self):
        self.started = True

    async def transcribe(self, audio):
        words = self.words.pop(0)
        if isinstance(words, Exception):
            raise words
        partial, final = (words[:-1], words[-1]) if isinstance(words, list) else ([], words)
        for text in partial:
            yield text
        chunks = [chunk async for chunk in audio]
        self.samples.append(np.concatenate(chunks))
        if self.hold is not None:
            await self.hold.wait()
        yield final

    async def aclose(self):
        self.closed = True


class Answers:
    """A chat model with prepared answers."""

    name = "prepared"

    def __init__(self, *answers):
        self.answers, self.asked, self.hold = list(answers), [], None

    async def answer(self, messages):
        self.asked.append(list(messages))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        for word in answer.split(" "):
            yield word + " "
        if self.hold is not None:
            await self.hold.wait()


class Voice:
    """A voice that notes what it speaks."""

    name = "noted"

    def __init__(self, fail=False):
        self.said, self.fail = [], fail

    async def stream(self, text):
        if self.fail:
            raise SynthesisError("no voice")
        self.said.append(text)
        yield np.ones(100, np.int16), 16_000


async def until(condition):
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not happen")


class Stage:
    """A conversation with all that it uses."""

    def __init__(self, words, answers, **options):
        self.avatar = Avatar(options.pop("is_directable", False))
        self.recogniser, self.chat = Heard(*words), options.pop("chat", None) or Answers(*answers)
        self.voice = options.pop("voice", None) or Voice()
        self.events = []
        self.conversation = Conversation(
            self.avatar,
            self.recogniser,
            self.chat,
            self.voice,
            turns=TurnDetector(Marked()),
            on_event=self.events.append,
            **options,
        )

    async def __aenter__(self):
        await self.conversation.__aenter__()
        return self

    async def __aexit__(self, *exc):
        await self.conversation.__aexit__(*exc)

    def hear(self, *parts):
        for pcm in parts:
            self.conversation.hear(pcm, 16_000)

    @property
    def captions(self):
        return [(e.speaker, e.text) for e in self.events if isinstance(e, Caption) and e.final]

    @property
    def states(self):
        return [e.state for e in self.events if isinstance(e, StateChange)]

    @property
    def dialogue(self):
        return [(m["role"], m["content"]) for m in self.conversation.messages]


async def test_a_question_is_answered_sentence_by_sentence():
    async with Stage(["how are you"], ["I am well. And you?"]) as stage:
        stage.hear(PAUSE, VOICE, PAUSE)
        await stage.avatar.play()
        assert stage.captions == [("user", "how are you"), ("avatar", "I am well.")]
        await stage.avatar.play()
        await stage.conversation.finish()
    system = {"role": "system", "content": DEFAULT_PROMPT}
    assert stage.chat.asked == [[system, {"role": "user", "content": "how are you"}]]
    assert stage.states == ["hearing", "thinking", "speaking", "listening"]
    assert stage.dialogue == [("user", "how are you"), ("assistant", "I am well. And you?")]
    assert stage.voice.said == ["I am well.", "And you?"]
    assert stage.recogniser.closed and stage.avatar.interrupts == 0
    (heard,) = stage.recogniser.samples
    assert heard.dtype == np.int16 and len(heard) == (16 + 4 + 13) * BLOCK
    assert stage.avatar.listeners == []


async def test_ten_turns_in_a_row_lose_nothing():
    words = [f"question {n}" for n in range(10)]
    async with Stage(list(words), [f"Answer {n}." for n in range(10)], prompt="Be brief.") as stage:
        for _ in range(10):
            stage.hear(PAUSE, VOICE, PAUSE)
            await stage.avatar.play()
            await stage.conversation.finish()
    said = [(f"question {n}", f"Answer {n}.") for n in range(10)]
    assert stage.dialogue == [turn for q, a in said for turn in (("user", q), ("assistant", a))]
    assert len(stage.chat.asked[-1]) == 20 and stage.chat.asked[-1][0]["content"] == "Be brief."


async def test_voice_silences_the_avatar_at_once_and_new_words_drop_its_answer():
    async with Stage(["tell me", "stop it"], ["One. Two. Three.", "As you like."]) as stage:
        stage.hear(PAUSE, VOICE, PAUSE)
        await stage.avatar.play()
        await stage.avatar.begin()
        assert stage.avatar.interrupts == 0
        stage.hear(VOICE[: 2 * BLOCK])
        assert stage.avatar.interrupts == 1, "64 ms of voice are enough"
        assert stage.states[-1] == "hearing"
        stage.hear(VOICE, PAUSE)
        await stage.avatar.play()
        await stage.conversation.finish()
    assert stage.dialogue == [
        ("user", "tell me"),
        ("assistant", "One. Two. ..."),
        ("user", "stop it"),
        ("assistant", "As you like."),
    ]


async def test_a_sound_without_words_lets_the_avatar_go_on_where_it_was():
    async with Stage(["tell me", ""], ["One. Two. Three."]) as stage:
        stage.hear(PAUSE, VOICE, PAUSE)
        await stage.avatar.play()
        await stage.avatar.begin()
        stage.hear(VOICE, PAUSE)
        for _ in range(2):
            await stage.avatar.play()
        await stage.conversation.finish()
    assert stage.voice.said[0] == "One." and stage.voice.said[-2:] == ["Two.", "Three."]
    assert stage.dialogue[-1] == ("assistant", "One. Two. Three.")
    assert len(stage.chat.asked) == 1


async def test_the_avatars_own_words_are_no_interrupt_and_are_not_answered():
    answer = "The sun is shining today. The wind is mild. And it is warm."
    heard = ["weather", "the sun is shining", ["the wind", "the wind is mild"]]
    async with Stage(heard, [answer]) as stage:
        stage.hear(PAUSE, VOICE, PAUSE)
        await stage.avatar.begin()
        stage.hear(VOICE, PAUSE)
        await stage.avatar.play()
        assert stage.avatar.interrupts == 1
        await stage.avatar.begin()
        stage.hear(VOICE, PAUSE)  # from now on it knows that the microphone hears it
        await stage.avatar.play()
        await stage.avatar.play()
        await stage.conversation.finish()
        assert stage.avatar.interrupts == 1
    assert stage.dialogue == [("user", "weather"), ("assistant", answer)]


async def test_words_still_interrupt_an_avatar_that_hears_itself():
    heard = ["weather", "the sun is shining", ["the", "the hell stop", "now stop please"]]
    async with Stage(heard, ["The sun is shining. It is warm.", "Sorry."]) as stage:
        stage.hear(PAUSE, VOICE, PAUSE)
        await stage.avatar.begin()
        stage.hear(VOICE, PAUSE)
        await stage.avatar.play()
        await stage.avatar.begin()
        stage.hear(VOICE)
        assert stage.avatar.interrupts == 1
        await until(lambda: stage.avatar.interrupts == 2)
        stage.hear(PAUSE)
        await stage.avatar.play()
        await stage.conversation.finish()
    assert stage.dialogue[-2:] == [("user", "now stop please"), ("assistant", "Sorry.")]


async def test_an_utterance_with_a_long_pause_is_one_question():
    async with Stage(["what is", "the time"], ["Wait.", "It is noon."]) as stage:
        stage.chat.hold = asyncio.Event()
        stage.hear(PAUSE, VOICE, PAUSE)
        await until(lambda: stage.chat.asked)
        stage.hear(VOICE, PAUSE)
        await until(lambda: len(stage.chat.asked) == 2)
        stage.chat.hold.set()
        await stage.avatar.play()
        await stage.conversation.finish()
    assert stage.dialogue == [("user", "what is the time"), ("assistant", "It is noon.")]


async def test_who_speaks_while_the_recogniser_works_is_heard_to_the_end():
    async with Stage(["what is", "the time"], ["It is noon."]) as stage:
        stage.recogniser.hold = asyncio.Event()
        stage.hear(PAUSE, VOICE, PAUSE, VOICE)
        await until(lambda: stage.recogniser.samples)
        stage.recogniser.hold.set()
        await until(lambda: stage.dialogue)
        assert stage.chat.asked == [], "the user still speaks"
        stage.hear(PAUSE)
        await stage.avatar.play()
        await stage.conversation.finish()
    assert stage.dialogue == [("user", "what is the time"), ("assistant", "It is noon.")]


@pytest.mark.parametrize(
    "part, words, answers, voice",
    [
        ("recogniser", [RecognitionError("deaf"), "again"], ["Yes."], None),
        ("chat", ["hello", "again"], [ChatError("no model"), "Yes."], None),
    ],
)
async def test_a_part_that_fails_is_reported_and_the_next_turn_works(part, words, answers, voice):
    async with Stage(words, answers) as stage:
        stage.hear(PAUSE, VOICE, PAUSE)
        await stage.conversation.finish()
        failures = [event for event in stage.events if isinstance(event, Failure)]
        assert [failure.part for failure in failures] == [part]
        assert stage.states[-1] == "listening"
        stage.hear(VOICE, PAUSE)
        await stage.avatar.play()
        await stage.conversation.finish()
    assert stage.dialogue[-1] == ("assistant", "Yes.")


async def test_a_voice_that_fails_is_reported():
    async with Stage(["hello"], ["Yes."], voice=Voice(fail=True)) as stage:
        stage.hear(PAUSE, VOICE, PAUSE)
        await stage.conversation.finish()
    assert Failure("voice", "no voice") in stage.events
    assert stage.states[-1] == "listening"


async def test_what_cannot_be_spoken_is_left_out():
    async with Stage(["hello"], ["Yes. \U0001f600"]) as stage:
        stage.voice.stream = lambda text, speak=stage.voice.stream: _checked(text, speak)
        stage.hear(PAUSE, VOICE, PAUSE)
        await stage.avatar.play()
        await stage.conversation.finish()
    assert stage.voice.said == ["Yes."]


async def _checked(text, speak):
    async for chunk in speak(prepare_text(text)):
        yield chunk


async def test_a_typed_text_is_a_turn_and_a_greeting_comes_first():
    async with Stage([], ["Hello to you."], greeting="Welcome! Ask me.") as stage:
        await stage.avatar.play()
        stage.conversation.say("  hello ")
        assert stage.avatar.interrupts == 1
        await stage.avatar.play()
        await stage.conversation.finish()
    assert stage.dialogue == [
        ("assistant", "Welcome!"),
        ("user", "hello"),
        ("assistant", "Hello to you."),
    ]


async def test_a_source_is_heard_to_its_end():
    class File:
        sample_rate = 16_000

        async def __aiter__(self):
            for pcm in (PAUSE, VOICE, VOICE):
                yield pcm

    async with Stage(["hello"], ["Yes."]) as stage:
        listening = asyncio.create_task(stage.conversation.listen(File()))
        await stage.avatar.play()
        await listening
        assert stage.dialogue == [("user", "hello"), ("assistant", "Yes.")]
        with pytest.raises(ConfigError, match="no sample_rate"):
            await stage.conversation.listen(File().__aiter__())


async def test_the_end_of_a_conversation_ends_all_that_it_started():
    stage = Stage(["hello"], ["word " * 50])
    async with stage:
        stage.chat.hold = asyncio.Event()
        stage.hear(PAUSE, VOICE, PAUSE)
        await until(lambda: stage.chat.asked)
    assert [
        task.get_name() for task in asyncio.all_tasks() if "conversation" in task.get_name()
    ] == []


# Directing


async def test_tags_of_an_answer_are_performed_at_their_word_and_never_spoken():
    answer = "[warm] Hello there. I am [nods] glad, [wobbles] you know. [winks]"
    async with Stage([], [answer], is_directable=True) as stage:
        stage.conversation.say("Hi")
        await stage.avatar.play()
        await stage.avatar.play()
        await stage.conversation.finish()
    said = ["Hello there.", "I am glad, you know."]
    assert stage.voice.said == said
    assert [name for name, _, _ in stage.avatar.directed] == ["warm", "nod", "wink"]
    assert all(at is not None for _, _, at in stage.avatar.directed)
    assert stage.captions == [("user", "Hi"), *(("avatar", words) for words in said)]
    assert stage.dialogue[-1][1].startswith("[warm] Hello there."), "the model goes on so"


@pytest.mark.parametrize("is_directable", [True, False])
async def test_the_chat_model_is_told_what_there_is_if_the_avatar_can_show_it(is_directable):
    async with Stage([], ["Yes."], is_directable=is_directable) as stage:
        stage.conversation.say("Hi")
        await stage.avatar.play()
    prompt = stage.chat.asked[0][0]["content"]
    assert prompt.startswith(DEFAULT_PROMPT)
    if not is_directable:
        assert prompt == DEFAULT_PROMPT
        return
    assert all(name in prompt for name in (*MOODS, *GESTURES, "[smiles]"))


async def test_an_answer_of_tags_alone_ends():
    async with Stage([], ["[nods]"], is_directable=True) as stage:
        stage.conversation.say("Hi")
        await stage.conversation.finish()
    assert [name for name, _, _ in stage.avatar.directed] == ["nod"] and stage.voice.said == []


class ToolAnswers(Answers):
    """A chat model that calls tools before it answers."""

    def __init__(self, *calls):
        super().__init__("Done.")
        self.calls, self.results = calls, []

    def with_tools(self, tools, on_tool_call):
        self.tools, self.run = tools, on_tool_call
        return self

    async def answer(self, messages):
        for name, arguments in self.calls:
            try:
                self.results.append(await self.run(name, arguments))
            except ConfigError as error:
                self.results.append(str(error))
        async for piece in super().answer(messages):
            yield piece


async def test_the_chat_model_directs_by_tools_and_is_told_what_is_wrong():
    calls = (
        ("set_mood", {"mood": "concerned", "strength": 0.5}),
        ("gesture", {"gesture": "raise_brows"}),
        ("gesture", {"gesture": "somersault"}),
        ("set_mood", {}),
        ("dance", {}),
    )
    chat = ToolAnswers(*calls)
    async with Stage([], [], chat=chat, is_directable=True) as stage:
        stage.conversation.say("Hi")
        await stage.avatar.play()
    assert {tool["function"]["name"] for tool in chat.tools} == {"set_mood", "gesture"}
    assert stage.avatar.directed == [("concerned", 0.5, None), ("raise_brows", 1.0, None)]
    done, made, *refused = chat.results
    assert done == made == "done"
    for word, text in zip(("nod", "warm", "set_mood"), refused, strict=True):
        assert word in text


async def test_a_model_whose_avatar_cannot_be_directed_gets_no_tools():
    chat = ToolAnswers()
    async with Stage([], [], chat=chat) as stage:
        stage.conversation.say("Hi")
        await stage.avatar.play()
    assert not hasattr(chat, "tools")
