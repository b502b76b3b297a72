"""The settings and their ranges. Only `main` reads the environment and the command line."""

import re
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Literal
from urllib.parse import urlsplit

from letstalk_rt.conversation.parts import RECOGNISERS, RecogniserName
from letstalk_rt.errors import ConfigError
from letstalk_rt.session.adaptive_quality import (
    DegradationPreference,
    check_degradation_preference,
)

MIN_SECRET_CHARS = 32
AGENT_PORT = 8081
"""The usual port of the agent check."""

WORKER_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
"""A name of a worker is a label of DNS, such as the name of a pod."""


@dataclass(frozen=True, slots=True)
class IceServer:
    """A STUN or TURN server."""

    url: str
    username: str | None = None
    credential: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Bitrates:
    """Bounds of the video bitrate, bit/s; within them it follows the bandwidth estimates.

    Attributes:
        start: bitrate before the first estimate of a receiver.
        minimum: lower bound; 512x512 px is visibly blurred below 0.25 Mbit/s, but with more, the
            audio and a video at rest do not fit into a line of 0.3 Mbit/s.
        maximum: upper bound; talking heads of 512x512 px look clean at 1 Mbit/s.
    """

    start: int = 1_000_000
    minimum: int = 150_000
    maximum: int = 2_000_000

    def __post_init__(self) -> None:
        if not 50_000 <= self.minimum <= self.start <= self.maximum <= 50_000_000:
            raise ConfigError(
                "video bitrates must be in bit/s with 50000 <= minimum <= start <= maximum <= "
                f"50000000, got minimum {self.minimum}, start {self.start}, "
                f"maximum {self.maximum}"
            )


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one server process.

    Attributes:
        host: address to listen on. Browsers open the microphone on `localhost` or over TLS only.
        port: TCP port; 0 takes a free one.
        max_sessions: maximum number of sessions. `None`: as many as the measured speed of the
            model allows.
        size: longest side of the video, px.
        preset: the model configuration.
        weights: weights file of the preset; `None` for the one in the package.
        threads: CPU threads of the model; `None` leaves the choice to the model.
        isolate_model: run the model in a process of its own, which is started again when it dies.
        model_timeout_s: duration of a step after which an isolated model counts as hung, s.
        model_recovery_s: how long sessions wait for a model that is started again, s.
        model_memory_mb: memory that an isolated model may take, MB; `None`: see `IsolationLimits`.
        degradation_preference: what sessions lower when the model is too slow; see `AvatarSession`.
        bitrates: bounds of the video bitrate.
        codec: video codec if the peer supports both.
        ice_servers: none by default: an unreachable one delays every connection by 5 s.
        ice_networks: networks, as `192.168.0.0/16`, whose addresses are checked when a peer names
            them; others but the internet's are not, unless only this machine's users are served.
        turn_urls: TURN servers that share `turn_secret`; each session gets its own credentials.
        turn_secret: coturn's `static-auth-secret`.
        turn_ttl_s: lifetime of those credentials.
        tls_cert: certificate file; with `tls_key` the page is served over HTTPS.
        tls_key: private key file.
        auth: whether tokens are required; `auto`: unless the server listens on loopback only.
        insecure_no_auth: listen beyond loopback although no tokens are required.
        insecure_http: listen beyond loopback without TLS. A worker of a cluster needs no
            permission: its proxies end TLS.
        secret: signs the tokens; `None` generates one for the lifetime of the process.
        api_key: key of the operator's own servers; permits everything, including issuing tokens.
        token_ttl_s: default lifetime of a token.
        allow_origins: origins of other sites whose pages may use this server; `*` for all.
        badge: the visible "AI avatar" badge: `on` (sessions may switch it off), `required` or
            `off`.
        max_connections: maximum number of connections of one session, viewers included.
        max_sockets_per_address: maximum number of TCP connections of one address; 0 is no limit.
            `None`: a quarter of all; no limit for this machine, and none in a cluster, where all
            visitors come through proxies.
        max_upload_bytes: maximum size of a portrait file.
        max_upload_pixels: maximum number of pixels of a portrait.
        max_subject_sessions: maximum number of sessions of one subject; `None`: half of all, one
            at least. Those that have no connection give way to a new one of the same subject.
        max_portraits: uploaded portraits kept in memory; of the subject that has most, the least
            recently used is dropped.
        speech: engine that speaks text: `system`, `openai`, `piper`, `auto` (what is installed, or
            none) or `off`.
        speech_voice: name of its voice, or the file of a Piper voice.
        speech_url: base URL of an OpenAI-compatible endpoint, up to and including `/v1`.
        speech_model: model of that endpoint.
        max_say_chars: maximum length of one text.
        chat_url: base URL of an OpenAI-compatible chat model, up to and including `/v1`, with which
            sessions may be conversations. `None`: no conversations.
        chat_model: name of that model.
        chat_prompt: what it is told first; `None`: the default, and clients may set their own.
        realtime_url: address of a WebSocket with OpenAI's Realtime interface, which takes the place
            of recogniser, chat model and voice.
        realtime_model: name of its model; `None`: its own.
        realtime_voice: name of its voice; `None`: its own.
        stt: recogniser of conversations: `openai`, `whisper`, `pocketsphinx` or `auto` (the
            endpoint of `stt_url`, else faster-whisper if `stt_model` is a folder, else
            pocketsphinx).
        stt_url: base URL of an OpenAI-compatible recogniser.
        stt_model: its model, or the folder of faster-whisper's model.
        language: ISO 639 code of what is said; `None` lets the recogniser find out.
        record_folder: record every session into this folder; `None` records nothing.
        sign_cert: certificate chain with which recordings are signed; with `sign_key`.
        sign_key: its private key file.
        kiosk: for a screen that is always on: sessions have no time limits, whatever
            `max_session_s` and `max_idle_s` are; they still end when their last peer is lost.
        max_session_s: maximum duration of a session; clients are warned a minute before; 0 is no
            limit.
        max_idle_s: maximum time without speech or messages, also with a warning; 0 is no limit.
        max_message_bytes: maximum size of a message on a WebSocket or data channel.
        max_message_rate: sustained rate of messages per connection, 1/s.
        max_speech_s: maximum duration of queued pushed speech.
        connect_timeout_s: maximum time from the offer to the connection.
        heartbeat_timeout_s: maximum time without any packet from a connected page, and half the
            time without a message on its data channel. An outage of 5 s must end no connection.
        report_timeout_s: maximum time without any packet from another peer.
        grace_s: grace period in which a lost peer may reconnect.
        worker_name: name of this worker in a cluster, which its session ids begin with.
        agent_port: TCP port that answers HAProxy's agent check; `None`: no agent check.
        public_address: IP address that the answers name for media, where it is not an address of
            this machine (NAT).
        drain_s: how long a worker that was told to stop waits for its sessions to end.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    max_sessions: int | None = None
    size: int = 512
    preset: str = "tiny"
    weights: str | None = None
    threads: int | None = None
    isolate_model: bool = True
    model_timeout_s: float = 2.5
    model_recovery_s: float = 10.0
    model_memory_mb: int | None = None
    degradation_preference: DegradationPreference = "balanced"
    bitrates: Bitrates = Bitrates()
    codec: Literal["VP8", "H264"] = "VP8"
    ice_servers: tuple[IceServer, ...] = ()
    ice_networks: tuple[str, ...] = ()
    turn_urls: tuple[str, ...] = ()
    turn_secret: str | None = field(default=None, repr=False)
    turn_ttl_s: int = 3600
    tls_cert: str | None = None
    tls_key: str | None = None
    auth: Literal["auto", "on", "off"] = "auto"
    insecure_no_auth: bool = False
    insecure_http: bool = False
    secret: str | None = field(default=None, repr=False)
    api_key: str | None = field(default=None, repr=False)
    token_ttl_s: int = 600
    allow_origins: tuple[str, ...] = ()
    badge: Literal["on", "required", "off"] = "on"
    max_connections: int = 16
    max_sockets_per_address: int | None = None
    max_upload_bytes: int = 20_000_000
    max_upload_pixels: int = 40_000_000
    max_subject_sessions: int | None = None
    max_portraits: int = 32
    speech: Literal["auto", "system", "openai", "piper", "off"] = "auto"
    speech_voice: str | None = None
    speech_url: str | None = None
    speech_model: str | None = None
    max_say_chars: int = 1000
    chat_url: str | None = None
    chat_model: str | None = None
    chat_prompt: str | None = None
    realtime_url: str | None = None
    realtime_model: str | None = None
    realtime_voice: str | None = None
    stt: RecogniserName = "auto"
    stt_url: str | None = None
    stt_model: str | None = None
    language: str | None = None
    record_folder: str | None = None
    sign_cert: str | None = None
    sign_key: str | None = None
    kiosk: bool = False
    max_session_s: float = 7200.0
    max_idle_s: float = 900.0
    max_message_bytes: int = 262_144
    max_message_rate: int = 200
    max_speech_s: float = 30.0
    connect_timeout_s: float = 20.0
    heartbeat_timeout_s: float = 8.0
    report_timeout_s: float = 8.0
    grace_s: float = 15.0
    worker_name: str | None = None
    agent_port: int | None = None
    public_address: str | None = None
    drain_s: float = 30.0

    @property
    def auth_required(self) -> bool:
        """Whether tokens are required."""
        return self.auth == "on" or (self.auth == "auto" and not is_loopback(self.host))

    @property
    def session_limit_s(self) -> float:
        """Maximum duration of a session, s; 0 is no limit."""
        return 0.0 if self.kiosk else self.max_session_s

    @property
    def idle_limit_s(self) -> float:
        """Maximum time without speech or messages, s; 0 is no limit."""
        return 0.0 if self.kiosk else self.max_idle_s

    def __post_init__(self) -> None:
        for key, low, high in _RANGES:
            _require(key, getattr(self, key), low, high)
        for key in ("max_sessions", "max_subject_sessions", "threads"):
            if (value := getattr(self, key)) is not None:
                _require(key, value, 1, 1024)
        if self.max_sockets_per_address is not None:
            _require("max_sockets_per_address", self.max_sockets_per_address, 0, 2**20)
        if self.model_memory_mb is not None:
            _require("model_memory_mb", self.model_memory_mb, 256, 2**20)
        check_degradation_preference(self.degradation_preference)
        _require_choice("auth", self.auth, "auto", "on", "off")
        _require_choice("codec", self.codec, "VP8", "H264")
        _require_choice("speech", self.speech, "auto", "system", "openai", "piper", "off")
        _require_choice("badge", self.badge, "on", "required", "off")
        _require_choice("stt", self.stt, *RECOGNISERS)
        if (self.chat_url is None) != (self.chat_model is None):
            raise ConfigError("chat_url and chat_model must be set together, such as llama3.2")
        if self.chat_url is not None and self.speech == "off":
            raise ConfigError("a conversation needs a voice: speech must not be off")
        if self.realtime_url is not None and self.chat_url is not None:
            raise ConfigError("set realtime_url or chat_url, not both: either makes a conversation")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("tls_cert and tls_key must be set together")
        if (self.sign_cert is None) != (self.sign_key is None):
            raise ConfigError("sign_cert and sign_key must be set together")
        if self.sign_cert is not None and self.record_folder is None:
            raise ConfigError("sign_cert signs recordings: set record_folder, too")
        if bool(self.turn_urls) != (self.turn_secret is not None):
            raise ConfigError("turn_urls and turn_secret must be set together")
        self._check_secrets()
        self._check_binding()
        self._check_origins()
        self._check_ice_networks()
        self._check_cluster()

    def _check_binding(self) -> None:
        if is_loopback(self.host):
            return
        if not self.auth_required and not self.insecure_no_auth:
            raise ConfigError(
                f"with auth off, whoever reaches {self.host} may open sessions and use every "
                "portrait: require tokens with --auth on, or permit this with --insecure-no-auth"
            )
        is_behind_proxies = self.worker_name is not None
        if self.tls_cert is None and not is_behind_proxies and not self.insecure_http:
            raise ConfigError(
                f"without TLS, others on the way to {self.host} can read tokens and portraits, and "
                "browsers open no microphone: give --tls-cert and --tls-key, listen on 127.0.0.1 "
                "behind a proxy that ends TLS, or permit this with --insecure-http"
            )

    def _check_cluster(self) -> None:
        if self.worker_name is not None and not WORKER_NAME.fullmatch(self.worker_name):
            raise ConfigError(
                f"worker_name is {self.worker_name!r}, expected 1 to 63 lower-case letters, digits "
                "and hyphens, such as w7"
            )
        if self.agent_port is not None:
            _require("agent_port", self.agent_port, 1, 65_535)
        if self.public_address is not None:
            try:
                ip_address(self.public_address)
            except ValueError:
                raise ConfigError(
                    f"public_address is {self.public_address!r}, expected an IP address"
                ) from None

    def _check_ice_networks(self) -> None:
        for network in self.ice_networks:
            try:
                ip_network(network)
            except ValueError:
                raise ConfigError(
                    f"the ICE network {network!r} must be like 192.168.0.0/16 or fd00::/8"
                ) from None

    def _check_secrets(self) -> None:
        for key in ("secret", "api_key"):
            value = getattr(self, key)
            if value is not None and len(value) < MIN_SECRET_CHARS:
                raise ConfigError(
                    f"{key} has {len(value)} characters, expected at least {MIN_SECRET_CHARS}; "
                    "make one with: openssl rand -hex 32"
                )

    def _check_origins(self) -> None:
        for origin in self.allow_origins:
            parts = urlsplit(origin)
            if origin != "*" and f"{parts.scheme}://{parts.netloc}" != origin:
                raise ConfigError(
                    f"allowed origin {origin!r} must be like https://app.example, without a path"
                )
        if "*" in self.allow_origins and not self.auth_required:
            raise ConfigError("all origins may be allowed only if tokens are required: set auth=on")


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("port", 0, 65_535),
    ("size", 256, 1080),
    ("model_timeout_s", 0.5, 600),
    ("model_recovery_s", 1, 600),
    ("turn_ttl_s", 60, 86_400),
    ("token_ttl_s", 10, 3600),
    ("max_connections", 1, 10_000),
    ("max_upload_bytes", 1000, 1_000_000_000),
    ("max_upload_pixels", 65_536, 1_000_000_000),
    ("max_portraits", 1, 10_000),
    ("max_session_s", 0, 30 * 86_400),
    ("max_idle_s", 0, 30 * 86_400),
    ("max_message_bytes", 4096, 16_777_216),
    ("max_message_rate", 1, 100_000),
    ("max_speech_s", 1, 600),
    ("max_say_chars", 1, 10_000),
    ("connect_timeout_s", 0.1, 600),
    ("heartbeat_timeout_s", 0.1, 600),
    ("report_timeout_s", 0.1, 600),
    ("grace_s", 0, 3600),
    ("drain_s", 0, 86_400),
)


def is_loopback(host: str) -> bool:
    """Return whether an address to listen on is reachable from this machine only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _require(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{key} is {value}, expected {low} to {high}")


def _require_choice(key: str, value: str, *known: str) -> None:
    if value not in known:
        raise ConfigError(f"{key} is {value!r}, expected one of {', '.join(known)}")
