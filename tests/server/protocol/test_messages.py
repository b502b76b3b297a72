"""Messages and settings: what is understood, and that the rest is refused in words."""

import base64
import json
import logging
import re
import signal
import ssl
import subprocess
import sys
import urllib.request
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from support.browser_tools import PAINTED

from letstalk_rt.errors import ConfigError, WeightsError
from letstalk_server import main
from letstalk_server.errors import BadMessageError
from letstalk_server.main import page_address, parse, serve
from letstalk_server.protocol import client_messages, server_messages
from letstalk_server.settings import Bitrates, IceServer, Settings

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
        '{"type": "session.configure", "audio": {"format": "mp3"}}',
        '{"type": "session.configure", "audio": {"sample_rate": 44101}}',
        '{"type": "session.configure", "audio": {"format": "opus", "sample_rate": 16000}}',
        '{"type": "session.configure", "frames": {"quality": true}}',
        '{"type": "session.configure", "stats_s": -1}',
        "[" * 4000,
        '{"type": "session.ping", "x": "' + "y" * 5000 + '"}',
    ],
)
def test_other_messages_are_refused_without_repeating_them(text):
    with pytest.raises(BadMessageError) as refused:
        client_messages.parse(text)
    assert len(str(refused.value)) < 220


KEYS = st.sampled_from(["type", "event_id", "audio", "frames", "avatar", "overlay", "stats_s"])
LEAVES = st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20)
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner))


@given(st.one_of(st.text(), st.binary(), TREES.map(json.dumps)))
def test_whatever_comes_is_a_message_or_a_bad_message(data):
    try:
        message = client_messages.parse(data)
    except BadMessageError:
        return
    assert isinstance(message, client_messages.ClientMessage)


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


def test_settings_come_from_the_command_line_then_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LETSTALK_PORT", "9001")
    monkeypatch.setenv("LETSTALK_MAX_SESSIONS", "5")
    monkeypatch.setenv("LETSTALK_TURN_SECRET_FILE", str(tmp_path / "turn"))
    (tmp_path / "turn").write_text("coturn knows it\n")
    settings = parse(
        ["--port", "9002", "--ice-server", "turn:t.example:3478,me,secret"]
        + ["--turn-url", "turn:t.example", "--bitrate", "600000,300000,900000"]
        + ["--allow-origin", "https://app.example", "--max-idle-s", "0"]
    )
    assert settings.port == 9002 and settings.max_sessions == 5
    assert settings.ice_servers == (IceServer("turn:t.example:3478", "me", "secret"),)
    assert settings.turn_secret == "coturn knows it" and settings.turn_urls == ("turn:t.example",)
    assert settings.bitrates == Bitrates(600_000, 300_000, 900_000)
    assert settings.allow_origins == ("https://app.example",) and settings.max_idle_s == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 70_000},
        {"max_sessions": 0},
        {"size": 4},
        {"threads": 0},
        {"tls_cert": "c.pem"},
        {"turn_urls": ("turn:x",)},
        {"secret": "short"},
        {"auth": "maybe"},
        {"allow_origins": ("app.example",)},
        {"allow_origins": ("*",)},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError):
        Settings(**wrong)


@pytest.mark.parametrize(
    ("host", "needs_tokens"),
    [("127.0.0.1", False), ("::1", False), ("localhost", False), ("0.0.0.0", True), ("a.b", True)],
)
def test_tokens_are_asked_for_beyond_loopback(host, needs_tokens):
    assert Settings(host=host).auth_required is needs_tokens
    assert not Settings(host=host, auth="off").auth_required


def test_secrets_are_not_shown():
    settings = Settings(
        api_key="a" * 32, secret="b" * 32, turn_urls=("turn:t",), turn_secret="cccc"
    )
    shown = repr(settings)
    assert "aaaa" not in shown and "bbbb" not in shown and "cccc" not in shown
    assert "pass" not in repr(IceServer("turn:t", "me", "pass"))


def test_the_address_holds_a_token_only_on_a_terminal(monkeypatch):
    from letstalk_server.auth import Auth

    settings = Settings(host="0.0.0.0")
    auth = Auth(settings)
    assert "#token=" not in page_address(settings, 8080, auth)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    address = page_address(settings, 8080, auth)
    assert address.startswith("http://localhost:8080/#token=")
    assert page_address(Settings(), 8080, Auth(Settings())) == "http://localhost:8080/"


def test_logged_errors_lose_their_words_and_keep_their_place():
    def fail():
        raise ValueError("a=candidate:1 1 udp 1 192.0.2.1 9 typ host")

    try:
        fail()
    except ValueError:
        record = logging.LogRecord("uvicorn.error", 40, "", 0, "failed %s", ("x",), sys.exc_info())
    assert main.without_words(record)
    shown = logging.Formatter().format(record)
    assert "ValueError" in shown and "test_server_protocol.py" in shown
    assert "192.0.2.1" not in shown and "candidate" not in shown
    plain = logging.LogRecord("uvicorn.error", 20, "", 0, "hello %s", ("you",), None)
    assert main.without_words(plain) and plain.getMessage() == "hello you"


def test_a_model_that_cannot_be_loaded_is_one_clear_line(capsys, monkeypatch):
    def load(settings):
        raise WeightsError("the weights are damaged; install the package again")

    monkeypatch.setattr(main, "serve", lambda settings: serve(settings, load))
    assert main.main(["--port", "0"]) == 2
    shown = capsys.readouterr()
    assert shown.err == "error: the weights are damaged; install the package again\n"
    assert shown.out == ""


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_certificate_that_cannot_be_used_is_one_clear_line(capsys, tmp_path, content):
    path = tmp_path / "site.pem"
    if content is not None:
        path.write_text(content)
    assert main.main(["--port", "0", "--tls-cert", str(path), "--tls-key", str(path)]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: the TLS certificate") and shown.count("\n") == 1


def self_signed(folder):
    """Write a certificate for localhost and its key; give both paths."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    cert, secret = folder / "cert.pem", folder / "key.pem"
    pem = serialization.Encoding.PEM
    cert.write_bytes(certificate.public_bytes(pem))
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    secret.write_bytes(key.private_bytes(pem, *plain))
    return cert, secret


def test_the_page_is_served_over_https_with_a_certificate(tmp_path):
    cert, key = self_signed(tmp_path)
    command = [*PAINTED, f"tls_cert={cert}", f"tls_key={key}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            address = process.stdout.readline().split()[-1]
            assert address.startswith("https://localhost:")
            context = ssl.create_default_context(cafile=cert)
            with urllib.request.urlopen(address, context=context) as answer:
                assert answer.status == 200 and b"<video" in answer.read()
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
