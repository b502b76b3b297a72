"""Messages of clients and server: what is accepted, and that everything else is refused."""

import base64
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from letstalk_rt import CameraOptions, MotionOptions
from letstalk_rt.performance import Gesture, Performer, Style
from letstalk_server.errors import BadMessageError
from letstalk_server.protocol import client_messages, server_messages

DOCS = Path(__file__).parents[3] / "docs" / "protocol.md"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"type": "session.ping"}, client_messages.Ping()),
        ({"type": "session.ping", "unknown": [1]}, client_messages.Ping()),
        ({"type": "session.ping", "event_id": "p1"}, client_messages.Ping("p1")),
        ({"type": "session.close"}, client_messages.Close()),
        ({"type": "avatar.interrupt"}, client_messages.Interrupt()),
        ({"type": "avatar.select", "avatar": "ada"}, client_messages.Select(avatar="ada")),
        ({"type": "avatar.select", "portrait": "x1"}, client_messages.Select(portrait="x1")),
        ({"type": "segment.end"}, client_messages.EndSegment()),
        ({"type": "audio.append", "audio": "AAE="}, client_messages.Append(b"\x00\x01")),
        (
            {"type": "overlay.update", "overlay": {"bg": "green"}},
            client_messages.Overlay({"bg": "green"}),
        ),
        ({"type": "camera.neutral"}, client_messages.Neutral()),
        ({"type": "camera.configure"}, client_messages.Camera(CameraOptions())),
        (
            {"type": "camera.configure", "lips": "blend", "absolute": True},
            client_messages.Camera(CameraOptions("blend", True)),
        ),
        ({"type": "motion.configure"}, client_messages.Move()),
        (
            {"type": "motion.configure", "blinks_per_min": 4, "gaze_at_camera": True},
            client_messages.Move(MotionOptions(blinks_per_min=4, gaze_at_camera=True)),
        ),
        (
            {"type": "camera.configure", "role": "watch"},
            client_messages.Camera(CameraOptions(role="watch")),
        ),
        ({"type": "performance.mood", "mood": "warm"}, client_messages.ChangeMood("warm")),
        (
            {"type": "performance.mood", "style": {"smile": -1.5, "brows": 2}, "strength": 0},
            client_messages.ChangeMood(Style(smile=-1.5, brows=2), 0),
        ),
        (
            {"type": "performance.gesture", "gesture": "nod"},
            client_messages.MakeGesture(Gesture("nod")),
        ),
        (
            {"type": "performance.gesture", "gesture": "wink", "amount": 2, "at_ms": 1500},
            client_messages.MakeGesture(Gesture("wink", 2), 1.5),
        ),
        ({"type": "performance.listening", "mode": "calm"}, client_messages.Listen("calm")),
        ({"type": "performance.listening"}, client_messages.Listen("off")),
        ({"type": "conversation.configure"}, client_messages.Converse()),
        (
            {"type": "conversation.configure", "on": False, "prompt": "Be brief.", "voice": "de"},
            client_messages.Converse(False, "Be brief.", "de"),
        ),
        ({"type": "conversation.say", "text": "Hello"}, client_messages.Tell("Hello")),
        ({"type": "session.configure", "stats_s": 2}, client_messages.Configure(stats_s=2)),
    ],
)
def test_messages_of_a_client_are_understood(fields, message):
    assert client_messages.parse(json.dumps(fields)) == message


@pytest.mark.parametrize(
    "text",
    [
        b"\x00\xff",
        "",
        "not json",
        "[]",
        "null",
        "1e999",
        "{}",
        '{"type": 5}',
        '{"type": ["session.ping"]}',
        '{"type": "session.ready"}',
        '{"type": "session.ping", "event_id": 5}',
        '{"type": "avatar.select"}',
        '{"type": "avatar.select", "avatar": 7}',
        '{"type": "avatar.select", "avatar": "a", "portrait": "b"}',
        json.dumps({"type": "avatar.select", "avatar": "a" * 1000}),
        '{"type": "audio.append"}',
        '{"type": "audio.append", "audio": "!!!"}',
        '{"type": "overlay.update", "overlay": [1]}',
        '{"type": "overlay.update", "overlay": {"a": {}}}',
        '{"type": "overlay.update", "overlay": {"a": NaN}}',
        '{"type": "overlay.update", "overlay": {"a": 1e999}}',
        '{"type": "overlay.update", "overlay": {"a": -1e999}}',
        '{"type": "session.configure", "audio": {"format": "mp3"}}',
        '{"type": "session.configure", "audio": {"sample_rate": 192001}}',
        '{"type": "session.configure", "audio": {"format": "opus", "sample_rate": 16000}}',
        '{"type": "session.configure", "frames": {"quality": true}}',
        '{"type": "session.configure", "stats_s": -1}',
        '{"type": "camera.configure", "lips": "eyes"}',
        '{"type": "conversation.configure", "on": 1}',
        json.dumps({"type": "conversation.configure", "prompt": "a" * 4001}),
        '{"type": "conversation.configure", "voice": 5}',
        '{"type": "conversation.say"}',
        '{"type": "conversation.say", "text": ""}',
        '{"type": "camera.configure", "absolute": 1}',
        '{"type": "motion.configure", "head_motion": 1}',
        '{"type": "motion.configure", "expressiveness": 3}',
        '{"type": "motion.configure", "blinks_per_min": "many"}',
        '{"type": "camera.configure", "role": "spy"}',
        '{"type": "performance.mood"}',
        '{"type": "performance.mood", "mood": "furious"}',
        '{"type": "performance.mood", "mood": ["warm"]}',
        '{"type": "performance.mood", "mood": "warm", "style": {"smile": 1}}',
        '{"type": "performance.mood", "mood": "warm", "strength": NaN}',
        '{"type": "performance.mood", "mood": "warm", "strength": 1.1}',
        '{"type": "performance.mood", "mood": "warm", "strength": true}',
        '{"type": "performance.mood", "style": [1]}',
        '{"type": "performance.mood", "style": {"anger": 1}}',
        '{"type": "performance.mood", "style": {"smile": 1e999}}',
        '{"type": "performance.mood", "style": {"smile": 4}}',
        '{"type": "performance.gesture"}',
        '{"type": "performance.gesture", "gesture": "somersault"}',
        '{"type": "performance.gesture", "gesture": 5}',
        '{"type": "performance.gesture", "gesture": "nod", "amount": -1}',
        '{"type": "performance.gesture", "gesture": "nod", "amount": 1' + 400 * "0" + "}",
        '{"type": "performance.gesture", "gesture": "nod", "amount": 1' + 300 * "0" + "}",
        '{"type": "performance.gesture", "gesture": "nod", "at_ms": "soon"}',
        '{"type": "performance.gesture", "gesture": "nod", "at_ms": -5}',
        '{"type": "performance.listening", "mode": "asleep"}',
        '{"type": "performance.listening", "mode": null}',
        "[" * 4000,
        '{"type": "session.ping", "x": "' + "y" * 5000 + '"}',
    ],
)
def test_other_messages_are_refused_without_repeating_them(text):
    with pytest.raises(BadMessageError) as refused:
        client_messages.parse(text)
    assert len(str(refused.value)) < 260


KEYS = st.sampled_from(["type", "event_id", "audio", "frames", "avatar", "overlay", "stats_s"])
PERFORMANCE = ["performance.mood", "performance.gesture", "performance.listening"]
PARTS = ["mood", "style", "strength", "gesture", "amount", "at_ms", "mode"]
LEAVES = st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20)
NAMES = st.sampled_from(["warm", "nod", "calm", 0.5, {"smile": 1}, {"brows": -3.5}])
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner))


@given(st.one_of(st.text(), st.binary(), TREES.map(json.dumps)))
def test_whatever_comes_is_a_message_or_a_bad_message(data):
    try:
        message = client_messages.parse(data)
    except BadMessageError:
        return
    assert isinstance(message, client_messages.ClientMessage)


@given(
    st.sampled_from(PERFORMANCE), st.dictionaries(st.sampled_from(PARTS), TREES | NAMES, max_size=4)
)
def test_whatever_a_performance_asks_for_can_be_performed_or_is_refused(kind, fields):
    try:
        message = client_messages.parse(json.dumps({"type": kind} | fields))
    except BadMessageError as refused:
        assert len(str(refused)) < 260
        return
    performer = Performer()
    match message:
        case client_messages.ChangeMood(mood, strength):
            performer.set_mood(mood, strength)
        case client_messages.MakeGesture(gesture, at_s):
            performer.gesture(gesture.name, gesture.amount, 0, at_s)
        case client_messages.Listen(mode):
            performer.set_listening(mode)


def test_a_refusal_knows_which_message_it_is_about():
    with pytest.raises(BadMessageError) as refused:
        client_messages.parse('{"type": "avatar.select", "event_id": "s1"}')
    assert refused.value.re == "s1"


def test_long_sound_may_come_as_text():
    audio = base64.b64encode(bytes(20_000)).decode()
    message = client_messages.parse(json.dumps({"type": "audio.append", "audio": audio}))
    assert message == client_messages.Append(bytes(20_000))


def test_a_part_that_is_left_out_stays_as_it_was():
    config = client_messages.config_from_query({"audio": "opus", "frames": "jpeg", "max_fps": "10"})
    assert config.audio == client_messages.AudioFormat("opus", 48_000, 1)
    changed = client_messages.Configure(frames={"quality": 50}).apply(config)
    assert changed.audio == config.audio
    assert changed.frames == client_messages.FramesFormat("jpeg", 50, 10, "pcm16")


def test_messages_to_a_client_are_flat_json_with_type_and_numbers():
    encode = server_messages.ServerMessageEncoder("s1")
    first = json.loads(encode(server_messages.Pong(), 3, "p1"))
    assert first == {
        "type": "session.pong",
        "event_id": "e1",
        "session": "s1",
        "segment_id": 3,
        "re": "p1",
    }
    second = json.loads(encode(server_messages.Finished(120), 4))
    assert (second["event_id"], second["segment_id"], second["played_ms"]) == ("e2", 4, 120)


def messages_in_docs():
    blocks = re.findall(r"```json\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S)
    for block in blocks:
        decoder, place = json.JSONDecoder(), 0
        while place < len(block.rstrip()):
            value, place = decoder.raw_decode(block, place)
            yield value
            while place < len(block) and block[place].isspace():
                place += 1


def test_the_examples_in_the_docs_are_the_messages_we_send_and_take():
    sent = {kind.type: kind for kind in server_messages.ServerMessage.__args__}
    shown = [value for value in messages_in_docs() if "." in value.get("type", "")]
    for example in shown:
        if (kind := sent.get(example["type"])) is None:
            client_messages.parse(json.dumps(example))
            continue
        known = {field.name for field in fields(kind)}
        extra = set(example) - known - {"type", "event_id", "session", "segment_id", "re"}
        assert not extra, example
    assert {example["type"] for example in shown} >= set(sent)


def test_the_docs_name_every_client_message():
    text = DOCS.read_text(encoding="utf-8")
    for kind in client_messages.ClientMessage.__args__:
        assert f"`{kind.type}`" in text, kind.type
