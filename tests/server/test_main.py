"""Settings from the command line and the environment; how the server starts and what it logs."""

import logging
import signal
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from support.browser_tools import PAINTED
from support.certificates import self_signed

from letstalk_rt.errors import ConfigError, WeightsError
from letstalk_server import main
from letstalk_server.log_limit import MOST, LogLimit
from letstalk_server.main import parse, serve
from letstalk_server.server import page_address
from letstalk_server.session.avatar_service import load_model
from letstalk_server.settings import Bitrates, IceServer, Settings

TESTS = Path(__file__).parents[1]


def test_settings_come_from_the_command_line_then_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LETSTALK_PORT", "9001")
    monkeypatch.setenv("LETSTALK_MAX_SESSIONS", "5")
    monkeypatch.setenv("LETSTALK_TURN_SECRET_FILE", str(tmp_path / "turn"))
    (tmp_path / "turn").write_text("coturn knows it\n")
    settings = parse(
        ["--port", "9002", "--ice-server", "turn:t.example:3478,me,secret"]
        + ["--turn-url", "turn:t.example", "--bitrate", "600000,300000,900000"]
        + ["--allow-origin", "https://app.example", "--max-idle-s", "0"]
        + ["--ice-network", "10.0.0.0/8"]
    )
    assert settings.port == 9002 and settings.max_sessions == 5
    assert settings.ice_servers == (IceServer("turn:t.example:3478", "me", "secret"),)
    assert settings.ice_networks == ("10.0.0.0/8",)
    assert settings.turn_secret == "coturn knows it" and settings.turn_urls == ("turn:t.example",)
    assert settings.bitrates == Bitrates(600_000, 300_000, 900_000)
    assert settings.allow_origins == ("https://app.example",) and settings.max_idle_s == 0


def test_own_weights_are_loaded(monkeypatch):
    assert parse([]).weights is None
    monkeypatch.setenv("LETSTALK_WEIGHTS", "mine.safetensors")
    assert parse([]).weights == "mine.safetensors"
    with pytest.raises(WeightsError, match="no weights at own.safetensors"):
        load_model(parse(["--weights", "own.safetensors", "--no-isolate-model"]))


def test_the_model_is_isolated_unless_told_otherwise(monkeypatch):
    assert parse([]).isolate_model and not parse(["--no-isolate-model"]).isolate_model
    assert parse(["--model-memory-mb", "3000"]).model_memory_mb == 3000
    monkeypatch.setenv("LETSTALK_ISOLATE_MODEL", "off")
    assert not parse([]).isolate_model and parse(["--isolate-model"]).isolate_model
    monkeypatch.setenv("LETSTALK_ISOLATE_MODEL", "maybe")
    with pytest.raises(ConfigError, match="expected on or off"):
        parse([])


def test_what_may_be_lowered_is_an_option_and_can_be_switched_off(monkeypatch):
    assert parse([]).degradation_preference == "balanced"
    wanted = "maintain-framerate"
    assert parse(["--degradation-preference", wanted]).degradation_preference == wanted
    monkeypatch.setenv("LETSTALK_DEGRADATION_PREFERENCE", "disabled")
    assert parse([]).degradation_preference == "disabled"


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 70_000},
        {"degradation_preference": "none"},
        {"max_sessions": 0},
        {"size": 4},
        {"threads": 0},
        {"model_timeout_s": 0.1},
        {"model_memory_mb": 10},
        {"model_recovery_s": 0},
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
    assert Settings(host=host, insecure_http=True).auth_required is needs_tokens
    opened = Settings(host=host, auth="off", insecure_no_auth=True, insecure_http=True)
    assert not opened.auth_required


ELSEWHERE = ("0.0.0.0", "::", "192.0.2.7", "talk.example.org")
NO_TOKENS = "whoever reaches .* --auth on, or permit this with --insecure-no-auth"
NO_TLS = "can read tokens and portraits, .* --tls-cert .* or permit this with --insecure-http"


@pytest.mark.parametrize("host", ELSEWHERE)
def test_a_server_without_tokens_is_for_this_machine_unless_permitted(host):
    command = ["--host", host, "--auth", "off", "--insecure-http"]
    with pytest.raises(ConfigError, match=NO_TOKENS):
        parse(command)
    with pytest.raises(ConfigError, match=NO_TOKENS):
        parse([*command, "--worker-name", "w1"])
    assert not parse([*command, "--insecure-no-auth"]).auth_required


@pytest.mark.parametrize("host", ELSEWHERE)
def test_a_server_without_tls_is_for_this_machine_unless_permitted(host):
    with pytest.raises(ConfigError, match=NO_TLS):
        parse(["--host", host])
    assert parse(["--host", host, "--insecure-http"]).auth_required
    assert parse(["--host", host, "--tls-cert", "c.pem", "--tls-key", "k.pem"]).auth_required


def test_neither_permission_is_the_other():
    command = ["--host", "0.0.0.0", "--auth", "off"]
    with pytest.raises(ConfigError, match=NO_TLS):
        parse([*command, "--insecure-no-auth"])
    both = parse([*command, "--insecure-no-auth", "--insecure-http"])
    assert both.host == "0.0.0.0" and not both.auth_required


def test_workers_of_a_cluster_have_proxies_that_end_tls():
    assert parse(["--host", "10.0.0.1", "--worker-name", "w1"]).auth_required


def test_permissions_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("LETSTALK_INSECURE_HTTP", "on")
    monkeypatch.setenv("LETSTALK_INSECURE_NO_AUTH", "on")
    assert not parse(["--host", "0.0.0.0", "--auth", "off"]).auth_required
    with pytest.raises(ConfigError, match=NO_TLS):
        parse(["--host", "0.0.0.0", "--no-insecure-http"])


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_a_demo_on_this_machine_needs_no_permission(host):
    assert not parse(["--host", host]).auth_required


def test_a_binding_that_is_refused_is_one_clear_line(capsys):
    assert main.main(["--host", "0.0.0.0", "--port", "0"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: without TLS,") and shown.err.count("\n") == 1
    assert shown.out == ""


def test_secrets_are_not_shown():
    settings = Settings(
        api_key="a" * 32, secret="b" * 32, turn_urls=("turn:t",), turn_secret="cccc"
    )
    shown = repr(settings)
    assert "aaaa" not in shown and "bbbb" not in shown and "cccc" not in shown
    assert "pass" not in repr(IceServer("turn:t", "me", "pass"))


def test_the_address_holds_a_token_only_on_a_terminal(monkeypatch):
    from letstalk_server.auth import Auth

    settings = Settings(host="0.0.0.0", insecure_http=True)
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
    assert main.remove_message(record)
    shown = logging.Formatter().format(record)
    assert "ValueError" in shown and Path(__file__).name in shown
    assert "192.0.2.1" not in shown and "candidate" not in shown
    plain = logging.LogRecord("uvicorn.error", 20, "", 0, "hello %s", ("you",), None)
    assert main.remove_message(plain) and plain.getMessage() == "hello you"


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


def test_the_page_is_served_over_https_with_a_certificate(tmp_path):
    cert, key = self_signed(tmp_path)
    command = [*PAINTED, f"tls_cert={cert}", f"tls_key={key}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=TESTS) as process:
        try:
            address = process.stdout.readline().split()[-1]
            assert address.startswith("https://localhost:")
            context = ssl.create_default_context(cafile=cert)
            with urllib.request.urlopen(address, context=context) as answer:
                assert answer.status == 200 and b"<video" in answer.read()
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)


def test_no_header_names_the_address_of_a_client(monkeypatch):
    """uvicorn would believe X-Forwarded-For of whoever connects from this machine."""
    made = []
    monkeypatch.setattr(main, "Server", lambda config, *_: made.append(config) or Stopped())
    assert serve(Settings(port=0, isolate_model=False)) == 1
    assert made[0].proxy_headers is False


class Stopped:
    """A server that does not start."""

    started = False

    def run(self, sockets):
        assert sockets


def test_a_logger_is_limited_for_a_minute_and_says_so():
    now_s = 0.0
    limit = LogLimit(lambda: now_s)

    def written():
        record = logging.LogRecord("aiortc", 30, "", 0, "damaged %s", ("frame",), None)
        return record.getMessage() if limit.filter(record) else None

    shown = [written() for _ in range(100)]
    assert [text is not None for text in shown] == [True] * MOST + [False] * (100 - MOST)
    assert shown[0] == "damaged frame" and "left out for a minute" in shown[MOST - 1]
    now_s = 60.0
    assert written() == "damaged frame"
