"""What can be set, and its limits. Only `main` reads the environment and the command line."""

from dataclasses import dataclass

from letstalk_rt.errors import ConfigError


@dataclass(frozen=True, slots=True)
class IceServer:
    """A STUN or TURN server, for peers behind a strict network."""

    url: str
    username: str | None = None
    credential: str | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one server process.

    Attributes:
        host: address to listen on. Browsers open the microphone on `localhost` or over TLS only.
        port: TCP port of the page; 0 takes a free one.
        max_sessions: people connected at once; more are told to come back later.
        size: longest side of the shown picture, px.
        preset: which model.
        threads: CPU threads of the model; `None` leaves the choice to the model.
        ice_servers: none by default: an unreachable one delays every connection by 5 s.
        tls_cert: certificate file; with `tls_key` the page is served over HTTPS.
        tls_key: private key file.
        max_upload_bytes: largest portrait file.
        max_portraits: uploaded portraits kept in memory; the least recently used one goes first.
        max_session_s: longest session; the user is warned a minute before.
        connect_timeout_s: how long a peer may take from offer to connection.
        heartbeat_timeout_s: how long a connected page may stay silent on the data channel.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    max_sessions: int = 2
    size: int = 512
    preset: str = "tiny"
    threads: int | None = None
    ice_servers: tuple[IceServer, ...] = ()
    tls_cert: str | None = None
    tls_key: str | None = None
    max_upload_bytes: int = 20_000_000
    max_portraits: int = 32
    max_session_s: float = 7200.0
    connect_timeout_s: float = 20.0
    heartbeat_timeout_s: float = 12.0

    def __post_init__(self) -> None:
        _require("port", self.port, 0, 65_535)
        _require("max_sessions", self.max_sessions, 1, 1000)
        _require("size", self.size, 256, 1080)
        if self.threads is not None:
            _require("threads", self.threads, 1, 1024)
        _require("max_upload_bytes", self.max_upload_bytes, 1000, 1_000_000_000)
        _require("max_portraits", self.max_portraits, 1, 10_000)
        _require("max_session_s", self.max_session_s, 1, 30 * 86_400)
        _require("connect_timeout_s", self.connect_timeout_s, 0.1, 600)
        _require("heartbeat_timeout_s", self.heartbeat_timeout_s, 0.1, 600)
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("tls_cert and tls_key belong together: give both or neither")


def _require(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{key} is {value}, expected {low} to {high}")
