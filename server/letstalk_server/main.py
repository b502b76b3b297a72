"""`letstalk serve`: reads the settings and runs the server."""

import argparse
import contextlib
import logging
import os
import ssl
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import cv2
import uvicorn

from letstalk_rt.conversation.parts import RECOGNISERS
from letstalk_rt.errors import ConfigError, LetsTalkError
from letstalk_rt.session.adaptive_quality import DegradationPreference
from letstalk_rt.threads import shorten_openmp_spin
from letstalk_server.app import create_app
from letstalk_server.http.client_sockets import (
    ACCEPTED_AT_ONCE,
    ClientSockets,
    SocketLimits,
    listen,
    protocol_for,
)
from letstalk_server.log_limit import LogLimit
from letstalk_server.memory import share_freed_memory
from letstalk_server.server import Server
from letstalk_server.session.avatar_service import LoadedModel, load_model
from letstalk_server.settings import AGENT_PORT, Bitrates, IceServer, Settings

PING_INTERVAL_S = 2.0
PING_TIMEOUT_S = 10.0
"""For WebSockets: a lost client is noticed within the sum of both, and a busy one is not lost."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until interrupted; return the exit status."""
    shorten_openmp_spin()
    try:
        settings = parse(arguments)
        return serve(settings)
    except LetsTalkError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def parse(arguments: Sequence[str] | None = None) -> Settings:
    """Read the settings from the command line, then from `LETSTALK_*` in the environment.

    Raises:
        ConfigError: A value is out of range.
    """
    given = vars(_parser().parse_args(arguments))
    given["ice_servers"] = tuple(_ice_server(text) for text in given.pop("ice_server"))
    given["ice_networks"] = tuple(given.pop("ice_network"))
    given["turn_urls"] = tuple(given.pop("turn_url"))
    given["allow_origins"] = tuple(given.pop("allow_origin"))
    given["bitrates"] = _bitrates(given.pop("bitrate"))
    for key in ("secret", "api_key", "turn_secret"):
        given[key] = _secret(key.upper())
    return Settings(**given)


def serve(settings: Settings, load: Callable[[Settings], LoadedModel] = load_model) -> int:
    """Serve until interrupted; print one line with the address when the server is ready.

    Returns:
        The exit status.

    Raises:
        LetsTalkError: The certificate cannot be used, or the model cannot be loaded.
    """
    _check_certificate(settings)
    if settings.isolate_model:  # the threads of a model allocate at the same time
        share_freed_memory()
    # A second thread would spin long after each frame is converted.
    cv2.setNumThreads(1)
    failures: list[LetsTalkError] = []

    def load_or_note(settings: Settings) -> LoadedModel:
        try:
            return load(settings)
        except LetsTalkError as error:
            failures.append(error)
            raise

    app = create_app(settings, load_or_note)
    clients = ClientSockets(SocketLimits.of(settings))
    config = uvicorn.Config(
        app,
        loop="asyncio",  # others do not accept connections by way of the listener
        http=protocol_for(clients),
        backlog=ACCEPTED_AT_ONCE,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        log_level="warning",
        access_log=False,  # it would contain IP addresses
        server_header=False,
        proxy_headers=False,  # whoever connects from this machine could name any address
        ws="websockets-sansio",
        ws_max_size=2 * settings.max_message_bytes,
        ws_max_queue=8,
        ws_ping_interval=PING_INTERVAL_S,
        ws_ping_timeout=PING_TIMEOUT_S,
        timeout_graceful_shutdown=10,
    )
    quieten_libraries()
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).addFilter(remove_message)
    for name in ("uvicorn.error", "asyncio", "aiortc.rtcrtpreceiver"):
        logging.getLogger(name).addFilter(LogLimit())
    # `main` prints one line instead of uvicorn's traceback of the same error. A refused WebSocket
    # is no error, although uvicorn logs it as one.
    logging.getLogger("uvicorn.error").addFilter(
        lambda record: not failures and "completing handshake" not in str(record.msg)
    )
    server = Server(config, settings, app)
    listeners = listen(settings.host, settings.port, clients)
    # Raised after uvicorn has shut down: by Ctrl-C, and if the start failed.
    with contextlib.suppress(KeyboardInterrupt, SystemExit), contextlib.ExitStack() as stack:
        for listener in listeners:
            stack.enter_context(listener)
        server.run(listeners)
    if failures:
        raise failures[0]
    return 0 if server.started else 1


def quieten_libraries() -> None:
    """Keep libraries from logging what clients have sent."""
    for name in ("aioice", "aiortc"):  # below WARNING they log IP addresses
        logging.getLogger(name).setLevel(logging.WARNING)
    # Damage of an image is told to who uploaded it.
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _check_certificate(settings: Settings) -> None:
    """Check the certificate before the model is loaded; uvicorn would print a traceback."""
    if settings.tls_cert is None:
        return
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=lambda: "")
    except OSError as error:  # SSLError is one, too
        raise ConfigError(
            f"the TLS certificate or its key cannot be used ({error.strerror or error}); "
            "--tls-cert and --tls-key must be PEM files that belong together, the key without a "
            "passphrase"
        ) from error


def remove_message(record: logging.LogRecord) -> bool:
    """Remove the message of an exception from its log record: it may contain user data.

    The type and the location stay. A logging filter that keeps every record: return True.
    """
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        frames = traceback.extract_tb(error.__traceback__)[-8:]
        path = " < ".join(f"{Path(p.filename).name}:{p.lineno}" for p in reversed(frames))
        record.msg, record.args = f"{type(error).__name__} at {path}", ()
        record.exc_info = record.exc_text = None
    return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="letstalk serve",
        description="Serve talking avatars. Each option may also be given in the environment, "
        "as LETSTALK_MAX_SESSIONS for --max-sessions. Secrets are read from there only: "
        "LETSTALK_SECRET (signs tokens), LETSTALK_API_KEY (for your own servers) and "
        "LETSTALK_TURN_SECRET, or from the files named by the same names with _FILE.",
    )
    default = Settings()
    add = parser.add_argument
    add("--host", default=_env("HOST", default.host), help="address to listen on")
    add("--port", type=int, default=_env("PORT", default.port), help="TCP port; 0 takes a free one")
    add(
        "--size", type=int, default=_env("SIZE", default.size), help="longest side of the video, px"
    )
    add("--preset", default=_env("PRESET", default.preset), help="which model")
    add("--weights", default=_env("WEIGHTS", None), metavar="FILE", help="its weights")
    add("--threads", type=int, default=_env("THREADS", None), help="CPU threads of the model")
    add("--tls-cert", default=_env("TLS_CERT", None), help="certificate file, for HTTPS")
    add("--tls-key", default=_env("TLS_KEY", None), help="private key file")
    add(
        "--degradation-preference",
        choices=get_args(DegradationPreference),
        default=_env("DEGRADATION_PREFERENCE", default.degradation_preference),
        help="what sessions lower while the model is too slow (%(default)s)",
    )
    add(
        "--bitrate",
        default=_env("BITRATE", None),
        metavar="START,MIN,MAX",
        help="video bitrate, bit/s (1000000,150000,2000000)",
    )
    add(
        "--codec",
        choices=("VP8", "H264"),
        default=_env("CODEC", default.codec),
        help="preferred video codec (%(default)s)",
    )
    _add_speech(parser, default)
    _add_conversation(parser, default)
    _add_recording(parser)
    _add_isolation(parser, default)
    _add_access(parser, default)
    _add_limits(parser, default)
    _add_cluster(parser, default)
    return parser


def _add_speech(parser: argparse.ArgumentParser, default: Settings) -> None:
    add = parser.add_argument_group("text to speech").add_argument
    add(
        "--speech",
        choices=("auto", "system", "openai", "piper", "off"),
        default=_env("SPEECH", default.speech),
        help="what speaks text; auto: what is installed (%(default)s)",
    )
    add("--speech-voice", default=_env("SPEECH_VOICE", None), help="voice, or a Piper voice file")
    add(
        "--speech-url",
        "--tts-url",
        default=_env("SPEECH_URL", None),
        metavar="URL",
        help="OpenAI-compatible endpoint, up to /v1; its key is read from OPENAI_API_KEY",
    )
    add("--speech-model", default=_env("SPEECH_MODEL", None), help="model of that endpoint")


def _add_conversation(parser: argparse.ArgumentParser, default: Settings) -> None:
    add = parser.add_argument_group(
        "conversation", "microphone -> recogniser -> chat model -> voice -> avatar"
    ).add_argument
    add(
        "--chat-url",
        default=_env("CHAT_URL", None),
        metavar="URL",
        help="OpenAI-compatible chat model, up to /v1; its key is read from OPENAI_API_KEY",
    )
    add("--chat-model", default=_env("CHAT_MODEL", None), metavar="NAME", help="name of the model")
    add(
        "--chat-prompt",
        default=_env("CHAT_PROMPT", None),
        metavar="TEXT",
        help="what it is told first (visitors may write their own)",
    )
    add(
        "--realtime-url",
        default=_env("REALTIME_URL", None),
        metavar="URL",
        help="WebSocket with OpenAI's Realtime interface, in place of recogniser, chat and voice",
    )
    for name, what in (("model", "its model"), ("voice", "its voice")):
        add(
            f"--realtime-{name}",
            default=_env(f"REALTIME_{name.upper()}", None),
            metavar="NAME",
            help=f"{what} (default: the server's own)",
        )
    add(
        "--stt",
        choices=RECOGNISERS,
        default=_env("STT", default.stt),
        help="what understands speech; pocketsphinx is a last resort (%(default)s)",
    )
    add(
        "--stt-url",
        default=_env("STT_URL", None),
        metavar="URL",
        help="OpenAI-compatible recogniser, up to /v1",
    )
    add(
        "--stt-model", default=_env("STT_MODEL", None), help="its model, or faster-whisper's folder"
    )
    add("--language", default=_env("LANGUAGE", None), help="language of what is said, such as en")


def _add_recording(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("recording").add_argument
    add(
        "--record-folder",
        default=_env("RECORD_FOLDER", None),
        metavar="FOLDER",
        help="record every session as mp4 into this folder; visitors must know",
    )
    add("--sign-cert", default=_env("SIGN_CERT", None), help="certificate that signs recordings")
    add("--sign-key", default=_env("SIGN_KEY", None), help="its private key file")


def _add_isolation(parser: argparse.ArgumentParser, default: Settings) -> None:
    add = parser.add_argument_group("isolation of the model").add_argument
    add(
        "--isolate-model",
        action=argparse.BooleanOptionalAction,
        default=_flag("ISOLATE_MODEL", default.isolate_model),
        help="run the model in a process of its own, which is started again when it dies",
    )
    add(
        "--model-timeout-s",
        type=float,
        default=_env("MODEL_TIMEOUT_S", default.model_timeout_s),
        metavar="S",
        help="a step that takes longer counts as hung (%(default)s)",
    )
    add(
        "--model-recovery-s",
        type=float,
        default=_env("MODEL_RECOVERY_S", default.model_recovery_s),
        metavar="S",
        help="sessions end when the model did not come back within this time (%(default)s)",
    )
    add(
        "--model-memory-mb",
        type=int,
        default=_env("MODEL_MEMORY_MB", None),
        metavar="N",
        help="memory of the model's process (twice what it has after loading, at least 2 GB more)",
    )


def _add_access(parser: argparse.ArgumentParser, default: Settings) -> None:
    add = parser.add_argument_group("access").add_argument
    add(
        "--auth",
        choices=("auto", "on", "off"),
        default=_env("AUTH", default.auth),
        help="require tokens; auto: unless it listens on loopback only",
    )
    for name, words in (
        ("insecure_no_auth", "beyond loopback although anybody may then use the server"),
        ("insecure_http", "beyond loopback without TLS: tokens and portraits can be read then"),
    ):
        add(
            "--" + name.replace("_", "-"),
            action=argparse.BooleanOptionalAction,
            default=_flag(name.upper(), False),
            help=f"listen {words}",
        )
    add(
        "--allow-origin",
        action="append",
        default=_env("ALLOW_ORIGINS", "").split(),
        metavar="ORIGIN",
        help="origin of a site whose pages may use this server; may be repeated",
    )
    add(
        "--ice-server",
        action="append",
        default=_env("ICE_SERVERS", "").split(),
        metavar="URL[,USER,PASSWORD]",
        help="STUN or TURN server, e.g. stun:example.org:3478; may be repeated",
    )
    add(
        "--ice-network",
        action="append",
        default=_env("ICE_NETWORKS", "").split(),
        metavar="NETWORK",
        help="local network, e.g. 192.168.0.0/16, whose addresses visitors may name for media; "
        "may be repeated",
    )
    add(
        "--turn-url",
        action="append",
        default=_env("TURN_URLS", "").split(),
        metavar="URL",
        help="TURN server with the secret LETSTALK_TURN_SECRET; may be repeated",
    )
    add(
        "--badge",
        choices=("on", "required", "off"),
        default=_env("BADGE", default.badge),
        help="the visible AI avatar badge; on: sessions may switch it off",
    )


def _add_limits(parser: argparse.ArgumentParser, default: Settings) -> None:
    group = parser.add_argument_group("limits")
    group.add_argument(
        "--kiosk",
        action="store_true",
        default=_env("KIOSK", "off") == "on",
        help="for a screen that is always on: sessions have no time limits",
    )
    help_of = {
        "max_sessions": "concurrent sessions (as many as the measured speed allows)",
        "max_subject_sessions": "concurrent sessions of one subject (half of all)",
        "max_connections": "connections on one session, viewers included",
        "max_sockets_per_address": "TCP connections of one address; 0 is no limit (a quarter of "
        "all, no limit for loopback and in a cluster)",
        "max_session_s": "maximum duration of a session, s; 0 is no limit",
        "max_idle_s": "maximum time without speech or messages, s; 0 is no limit",
        "max_say_chars": "maximum length of a text to be spoken",
        "grace_s": "grace period for a lost peer, s",
        "max_upload_bytes": "maximum size of a portrait file",
        "max_upload_pixels": "maximum number of pixels of a portrait",
        "max_portraits": "uploaded portraits kept in memory",
        "token_ttl_s": "lifetime of tokens, s",
        "turn_ttl_s": "lifetime of TURN credentials, s",
    }
    for key, words in help_of.items():
        value = getattr(default, key)
        group.add_argument(
            "--" + key.replace("_", "-"),
            type=type(value) if value is not None else int,
            default=_env(key.upper(), value),
            metavar="N",
            help=f"{words}" if value is None else f"{words} ({value:g})",
        )


def _add_cluster(parser: argparse.ArgumentParser, default: Settings) -> None:
    group = parser.add_argument_group("several machines, see docs/deployment.md")
    for key, kind, metavar, words in (
        ("worker_name", str, "NAME", "name of this worker, which its session ids begin with"),
        ("agent_port", int, "PORT", f"answer HAProxy's agent check here, usually {AGENT_PORT}"),
        ("public_address", str, "IP", "address for media that visitors reach, behind NAT"),
        ("drain_s", float, "S", "how long a worker waits for its sessions after SIGTERM (30)"),
    ):
        value = _env(key.upper(), getattr(default, key))
        option = "--" + key.replace("_", "-")
        group.add_argument(option, type=kind, default=value, metavar=metavar, help=words)


def _env(name: str, default: Any) -> Any:
    return os.environ.get(f"LETSTALK_{name}", default)


def _flag(name: str, default: bool) -> bool:
    text = str(_env(name, "on" if default else "off")).lower()
    if text not in ("on", "off"):
        raise ConfigError(f"LETSTALK_{name} is {text!r}, expected on or off")
    return text == "on"


def _secret(name: str) -> str | None:
    path = _env(f"{name}_FILE", None)
    if path is None:
        value: str | None = _env(name, None)
        return value
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"LETSTALK_{name}_FILE cannot be read ({error.strerror})") from None


def _bitrates(text: str | None) -> Bitrates:
    if text is None:
        return Bitrates()
    try:
        start, minimum, maximum = (int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError("--bitrate takes three integers: START,MIN,MAX in bit/s") from None
    return Bitrates(start, minimum, maximum)


def _ice_server(text: str) -> IceServer:
    url, _, login = text.partition(",")
    username, _, credential = login.partition(",")
    return IceServer(url, username or None, credential or None)


if __name__ == "__main__":
    sys.exit(main())
