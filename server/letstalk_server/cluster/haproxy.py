"""The configuration of an HAProxy that places sessions on workers.

The proxy keeps no state of its own: a new session goes to a worker by free capacity, which the
agent check tells, and every later request names its worker in its path, query or token.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from letstalk_rt.errors import ConfigError
from letstalk_server.errors import RETRY_AFTER_S
from letstalk_server.settings import WORKER_NAME

MAX_WEIGHT = 256
BUFFER_BYTES = 131_072
"""Holds any offer, of which the server takes 100 kB of JSON; a larger request is not repeated."""

MAX_DNS_WORKERS = 4096


@dataclass(frozen=True, slots=True)
class WorkerAddress:
    """A worker as the proxy reaches it.

    Attributes:
        name: its `--worker-name`.
        host: name or address.
        port: of HTTP.
        agent_port: of the agent check.
        weight: size of the worker relative to others, 1 to 256.
    """

    name: str
    host: str
    port: int
    agent_port: int
    weight: int = 100

    @classmethod
    def parse(cls, text: str, agent_port: int) -> "WorkerAddress":
        """Read `NAME=HOST:PORT[,agent=PORT][,weight=N]`.

        Raises:
            ConfigError: The text is not of this form.
        """
        name, _, rest = text.partition("=")
        address, *options = rest.split(",")
        host, _, port = address.rpartition(":")
        values = dict(option.partition("=")[::2] for option in options)
        if not WORKER_NAME.fullmatch(name) or not host or not set(values) <= {"agent", "weight"}:
            raise ConfigError(
                f"{text!r} is no worker; expected NAME=HOST:PORT[,agent=PORT][,weight=N], with a "
                "name of lower-case letters, digits and hyphens"
            )
        return cls(
            name,
            host,
            _number(port, "port", 1, 65_535),
            _number(values.get("agent", str(agent_port)), "agent port", 1, 65_535),
            _number(values.get("weight", "100"), "weight", 1, MAX_WEIGHT),
        )


@dataclass(frozen=True, slots=True)
class DnsWorkers:
    """Workers that DNS lists, as a headless service of Kubernetes does.

    Attributes:
        service: domain whose A records are the addresses of the workers; `NAME.service` is the
            address of the worker of that name.
        port: of HTTP, the same on all.
        agent_port: of the agent check, the same on all.
        count: maximum number of workers.
        nameserver: `HOST:PORT` of the DNS server; `None` reads `/etc/resolv.conf`.
    """

    service: str
    port: int
    agent_port: int
    count: int
    nameserver: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_DNS_WORKERS:
            raise ConfigError(f"count is {self.count}, expected 1 to {MAX_DNS_WORKERS}")


@dataclass(frozen=True, slots=True)
class Frontend:
    """Where the proxy listens.

    Attributes:
        bind: address of visitors, such as `:8080`.
        tls_cert: PEM file with certificate and key; without it, HTTP.
        stats: address of the statistics and metrics of the proxy; `None` serves none.
        max_sockets_per_address: connections of one address of the internet; 0 is no limit. Private
            ones have none: they may be proxies.
    """

    bind: str = ":8080"
    tls_cert: str | None = None
    stats: str | None = None
    max_sockets_per_address: int = 256

    def __post_init__(self) -> None:
        if not 0 <= self.max_sockets_per_address <= 2**20:
            raise ConfigError(
                f"max_sockets_per_address is {self.max_sockets_per_address}, expected 0 to {2**20}"
            )


def configuration(
    workers: Sequence[WorkerAddress] | DnsWorkers, frontend: Frontend | None = None
) -> str:
    """Return the text of `haproxy.cfg`.

    Raises:
        ConfigError: There are no workers, or two have the same name.
    """
    if not isinstance(workers, DnsWorkers):
        names = [worker.name for worker in workers]
        if not names or len(set(names)) < len(names):
            raise ConfigError("name at least one worker, and each once: --worker w1=10.0.0.1:8080")
    front = frontend or Frontend()
    general = _GLOBAL.format(buffer=BUFFER_BYTES, away=_AWAY, retry=RETRY_AFTER_S)
    sections = [general, *_resolvers(workers), _frontend(front), *_backends(workers)]
    if front.stats is not None:
        sections.append(_STATS.format(stats=front.stats))
    return "\n".join(sections)


_GLOBAL = """\
# Made by `letstalk cluster haproxy`. It logs nothing: requests hold addresses of visitors.
global
  # An offer is kept until a worker has taken it, and goes to the next one after a 503.
  tune.bufsize {buffer}

defaults
  mode http
  timeout connect 2s
  timeout http-request 10s
  timeout client 65s
  timeout server 65s
  timeout tunnel 2h
  timeout check 1s
  retries 3
  option redispatch 1
  # A worker that closes an idle connection would look as if it were gone.
  option http-server-close
  http-error status 503 content-type application/problem+json string '{away}' \
hdr Retry-After {retry} hdr Cache-Control no-store
"""

_AWAY = (
    '{"type": "urn:letstalk:problem:not-ready", "title": "The server is not ready", "status": 503, '
    '"code": "not-ready", "detail": "No worker can be reached. Try again in a minute."}'
)
_FULL = (
    '{"type": "urn:letstalk:problem:at-capacity", "title": "All places are taken", '
    f'"status": 503, "code": "at-capacity", "detail": "No worker has a free place. Try again in '
    f'{RETRY_AFTER_S} seconds."}}'
)
_GONE = (
    '{"type": "urn:letstalk:problem:unknown-session", "title": "There is no such session", '
    '"status": 404, "code": "unknown-session", "detail": "The worker of this session is gone. '
    'Create a new one."}'
)

_PRIVATE = (
    "127.0.0.0/8 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 ::1 fc00::/7 fe80::/10"
)
"""Whence many visitors may come: by a proxy in front, or by address translation."""

_LIMIT = """\
  # One address takes so many connections at most, and of IPv6 one network: the workers see this
  # proxy alone, and have no such limit.
  stick-table type ipv6 size 100k expire 60s store conn_cur
  tcp-request connection track-sc0 src,ipmask(32,64) if !{{ src {private} }}
  tcp-request connection reject if {{ sc0_conn_cur gt {most} }}
"""

_FRONTEND = """\
frontend letstalk
  bind {bind}
{limit}\
  # As the workers read it, which take /%6detrics for /metrics.
  http-request set-var(txn.path) path,url_dec
  # The worker of an existing session, from the path, the query, or a token for one session.
  http-request set-var(txn.name) var(txn.path),field(4,/) \
if {{ var(txn.path) -m beg /v1/sessions/ }}
  http-request set-var(txn.name) var(txn.path),field(4,/) \
if {{ var(txn.path) -m beg /v1/avatars/ }}
  http-request set-var(txn.name) url_param(session),url_dec if {{ url_param(session) -m found }}
  http-request set-var(txn.name) http_auth_bearer,jwt_payload_query('$.sid') \
if !{{ var(txn.name) -m found }} {{ http_auth_bearer -m found }}
  acl creates var(txn.path) -m str /v1/sessions /v1/offer /v1/whip /v1/whep
  acl creates_socket var(txn.path) -m str /v1/ws
  http-request wait-for-body time 10s if METH_POST creates
  # An uploaded portrait is on one worker, and so is every session that begins with it.
  http-request set-var(txn.name) req.body,json_query('$.avatar') \
if METH_POST creates !{{ var(txn.name) -m found }}
  http-request set-var(txn.name) req.body,json_query('$.portrait') \
if METH_POST creates !{{ var(txn.name) -m sub . }} {{ req.body,json_query('$.portrait') -m sub . }}
  http-request set-var(txn.name) url_param(avatar),url_dec \
if !{{ var(txn.name) -m sub . }} {{ url_param(avatar) -m sub . }}
  http-request set-var(txn.name) req.body,json_query('$.session') \
if METH_POST creates {{ req.body,json_query('$.session') -m sub . }}
  http-request set-var(txn.worker) var(txn.name),field(1,.) if {{ var(txn.name) -m sub . }}
  # Each worker has metrics of its own.
  http-request deny deny_status 404 if {{ var(txn.path) -m str /metrics }}
  use_backend owner if {{ var(txn.worker) -m reg ^[a-z0-9-]+$ }}
  use_backend place if METH_POST creates
  use_backend place if creates_socket
  default_backend any
"""


def _frontend(frontend: Frontend) -> str:
    bind = frontend.bind
    if frontend.tls_cert is not None:
        bind += f" ssl crt {frontend.tls_cert} alpn h2,http/1.1"
    most = frontend.max_sockets_per_address
    limit = _LIMIT.format(private=_PRIVATE, most=most) if most else ""
    return _FRONTEND.format(bind=bind, limit=limit)


_PLACE = f"""\
# New sessions: by free capacity. A worker without a place has weight 0; one that fills up between
# two agent checks answers 503, and the next one is asked.
backend place
  balance random(2)
  retry-on conn-failure empty-response response-timeout 503
  option httpchk GET /healthz
  http-check expect status 200
  http-error status 503 content-type application/problem+json string '{_FULL}' \
hdr Retry-After {RETRY_AFTER_S} hdr Cache-Control no-store
"""

_OWNER = """\
# Requests of an existing session: to its worker, also while that drains. If the worker is gone,
# another one answers that there is no such session, and the page opens a new one.
backend owner
  retries 1
  retry-on conn-failure empty-response
  use-server %[var(txn.worker)] if TRUE
"""

_OWNER_BY_DNS = """\
# Requests of an existing session: to its worker, which DNS knows by its name, also while that
# drains. If the worker is gone, the answer is that there is no such session.
backend owner
  retries 0
  http-request set-var(txn.host) var(txn.worker),concat(.{service})
  http-request do-resolve(txn.address,dns,ipv4) var(txn.host)
  http-request set-dst var(txn.address) if {{ var(txn.address) -m found }}
  http-request return status 404 content-type application/problem+json string '{gone}' \
hdr Cache-Control no-store if !{{ var(txn.address) -m found }}
  http-error status 503 content-type application/problem+json string '{gone}' \
hdr Cache-Control no-store hdr X-Worker gone
  http-after-response set-status 404 reason "Not Found" if {{ res.hdr(X-Worker) -m str gone }}
  server named 0.0.0.0:{port}
"""

_ANY = """\
# What every worker answers: pages, avatars, tokens.
backend any
  balance roundrobin
  retry-on conn-failure empty-response
"""

_STATS = """\
frontend statistics
  bind {stats}
  http-request use-service prometheus-exporter if {{ path /metrics }}
  stats enable
  stats uri /
"""

_CHECK = "check inter 1s fastinter 500ms fall 2 rise 1 agent-check agent-inter 500ms agent-port"


def _backends(workers: Sequence[WorkerAddress] | DnsWorkers) -> Iterator[str]:
    if isinstance(workers, DnsWorkers):
        template = f"  server-template w 1-{workers.count}"
        found = f"{workers.service}:{workers.port} resolvers dns init-addr none"
        checked = f"{template} {found} weight 100 {_CHECK} {workers.agent_port}\n"
        yield _PLACE + checked
        yield _OWNER_BY_DNS.format(service=workers.service, port=workers.port, gone=_GONE)
        yield _ANY + f"{template} {found} check inter 1s\n"
        return
    yield _PLACE + "".join(
        f"  server {one.name} {one.host}:{one.port} weight {one.weight} {_CHECK} {one.agent_port}\n"
        for one in workers
    )
    tracked = "".join(
        f"  server {one.name} {one.host}:{one.port} track place/{one.name}\n" for one in workers
    )
    yield _OWNER + tracked
    yield _ANY + tracked


def _resolvers(workers: Sequence[WorkerAddress] | DnsWorkers) -> Iterator[str]:
    if not isinstance(workers, DnsWorkers):
        return
    source = "parse-resolv-conf"
    if workers.nameserver is not None:
        source = f"nameserver first {workers.nameserver}"
    yield (
        f"resolvers dns\n  {source}\n  accepted_payload_size 8192\n  resolve_retries 3\n"
        "  timeout resolve 1s\n  timeout retry 1s\n  hold valid 1s\n  hold obsolete 5s\n"
    )


def _number(text: str, what: str, low: int, high: int) -> int:
    if not text.isdecimal() or not low <= int(text) <= high:
        raise ConfigError(f"{what} is {text!r}, expected a number from {low} to {high}")
    return int(text)
