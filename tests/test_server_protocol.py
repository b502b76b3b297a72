"""Messages and settings: what is understood, and that the rest is refused in words."""

import json

import pytest

from letstalk_rt.errors import ConfigError, WeightsError
from letstalk_server import main, protocol
from letstalk_server.main import parse, serve
from letstalk_server.settings import IceServer, Settings


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"type": "session.ping"}, protocol.Ping()),
        ({"type": "session.ping", "unknown": [1]}, protocol.Ping()),
        ({"type": "session.close"}, protocol.Close()),
        ({"type": "avatar.interrupt"}, protocol.Interrupt()),
        ({"type": "avatar.select", "avatar": "ada"}, protocol.Select(avatar="ada")),
        ({"type": "avatar.select", "portrait": "x1"}, protocol.Select(portrait="x1")),
    ],
)
def test_messages_of_the_page_are_understood(fields, message):
    assert protocol.parse(json.dumps(fields)) == message


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
        '{"type": "avatar.select"}',
        '{"type": "avatar.select", "avatar": 7}',
        '{"type": "avatar.select", "avatar": "a", "portrait": "b"}',
        json.dumps({"type": "avatar.select", "avatar": "a" * 1000}),
        "[" * 4000,
        '{"type": "session.ping", "x": "' + "y" * 5000 + '"}',
    ],
)
def test_other_messages_are_refused_without_repeating_them(text):
    with pytest.raises(protocol.BadMessage) as refused:
        protocol.parse(text)
    assert len(str(refused.value)) < 200


def test_messages_to_the_page_are_flat_json_with_their_type():
    message = protocol.Ready("s1", ("soft",))
    assert json.loads(protocol.encode(message)) == {
        "type": "session.ready",
        "session": "s1",
        "warnings": ["soft"],
    }


def test_settings_come_from_the_command_line_then_the_environment(monkeypatch):
    monkeypatch.setenv("LETSTALK_PORT", "9001")
    monkeypatch.setenv("LETSTALK_MAX_SESSIONS", "5")
    settings = parse(["--port", "9002", "--ice-server", "turn:t.example:3478,me,secret"])
    assert settings.port == 9002 and settings.max_sessions == 5
    assert settings.ice_servers == (IceServer("turn:t.example:3478", "me", "secret"),)


@pytest.mark.parametrize(
    "wrong",
    [{"port": 70_000}, {"max_sessions": 0}, {"size": 4}, {"threads": 0}, {"tls_cert": "c.pem"}],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError):
        Settings(**wrong)


def test_a_model_that_cannot_be_loaded_is_one_clear_line(capsys, monkeypatch):
    def load(settings):
        raise WeightsError("the weights are damaged; install the package again")

    monkeypatch.setattr(main, "serve", lambda settings: serve(settings, load))
    assert main.main(["--port", "0"]) == 2
    shown = capsys.readouterr()
    assert shown.err == "error: the weights are damaged; install the package again\n"
    assert shown.out == ""
