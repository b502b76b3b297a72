"""Every request and every message, with every kind of token: what SECURITY.md says, and no more.

The tables of its threat model are read here. Each row is walked through with no token, forged and
expired ones, and with tokens of the owner, for the session, for another one and of somebody else,
each with one scope, with all of them and with all but those that the row names.
"""

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import httpx
import jwt
import pytest
from aiortc import RTCSessionDescription
from support.live_server import join, live
from support.server_fakes import DirectedPainter, Painter, Peer, model_of, patient, portrait_jpeg
from support.transport_stage import Guest
from websockets.exceptions import InvalidStatus

from letstalk_server import app as application
from letstalk_server.auth import SCOPES, Auth
from letstalk_server.http import openapi, pages
from letstalk_server.protocol.client_messages import ClientMessage
from letstalk_server.session import registry

KEY, SECRET = "k" * 40, "s" * 40
LOCKED = patient(
    auth="on",
    api_key=KEY,
    secret=SECRET,
    speech="off",
    max_sessions=100,
    max_subject_sessions=100,
    max_connections=1000,
    connect_timeout_s=600,
    grace_s=600,
    max_portraits=1000,
)
AUTH = Auth(LOCKED)
SECURITY = (Path(__file__).parents[2] / "SECURITY.md").read_text("utf-8")
LINES = [line for line in SECURITY.splitlines() if line.startswith("| `")]
CONNECTION = "/v1/sessions/{name}/connections/{connection}"


@dataclass(frozen=True)
class Row:
    """A row of a table: who may do what."""

    name: str
    variant: str
    ways: tuple[frozenset[str], ...]
    is_open: bool
    own: bool = False
    bound: bool = False
    others: bool = False

    @classmethod
    def read(cls, line):
        request, words, *who = [cell.strip() for cell in line.strip("|").split("|")]
        name, variant = re.fullmatch(r"`([^`]+)`(.*)", request).groups()
        ways = [frozenset(way.strip().split(" and ")) for way in words.split(",")]
        if words == "any":
            ways = [frozenset({each}) for each in SCOPES]
        flags = [{"yes": True, "no": False}[each] for each in who]
        if words == "none":
            ways = []
        return cls(name, variant.strip(), tuple(ways), not ways, *flags)

    def allows(self, scopes):
        return any(way <= scopes for way in self.ways)

    def scope_sets(self):
        """Return the sets of scopes to try."""
        if self.is_open:
            return {frozenset(SCOPES)}
        named = frozenset().union(*self.ways)
        singles = {frozenset({scope}) for scope in SCOPES}
        return {frozenset(SCOPES), frozenset(SCOPES) - named, *singles, *self.ways} - {frozenset()}


ROWS = [Row.read(line) for line in LINES]
REQUESTS = [row for row in ROWS if " " in row.name]
MESSAGES = {row.name: row for row in ROWS if " " not in row.name}


def bearer(token):
    return {"authorization": f"Bearer {token}"}


class World:
    """What ann owns, bob's session, and tokens of all kinds: a subject, and perhaps a session."""

    def __init__(self, http, address):
        self.http, self.address = http, address
        self.session = self.upload = self.images = None
        self.connections = {}
        self.kinds = {"own": ("ann", None), "others": ("bob", None)}

    async def post(self, path, who, **body):
        answer = await self.http.post(path, json=body, headers=who)
        assert answer.status_code == 201, answer.text
        return answer.json()

    def token(self, kind, scopes=SCOPES):
        """Return a token of a kind with these scopes; those of one kind have the same id."""
        subject, session = self.kinds[kind]
        issued, _ = AUTH.issue(subject, scopes, session=session, token_id=f"id of {kind}")
        return bearer(issued)

    async def prepare(self):
        """Make ann's session and upload, and bob's session, if they are not there."""
        if self.session is None:
            made = [await self.post("/v1/sessions", self.token(who)) for who in ("own", "others")]
            self.session, self.other = [each["session"] for each in made]
            self.kinds |= {
                "bound": ("ann", self.session),
                "elsewhere": ("ann", self.other),
                "others elsewhere": ("bob", self.other),
                "another token": ("ann", self.session),
            }
        if self.upload is None:
            made = await self.http.post(
                "/v1/avatars?consent=true", content=portrait_jpeg(), headers=self.token("own")
            )
            self.upload, self.images = made.json()["id"], made.json()["images"]

    async def connection(self, path, opener):
        """Return the address of a connection to ann's session; it is opened if it is gone."""
        if (path, opener) not in self.connections:
            who = self.token("bound" if opener == "the token" else opener)
            answer = await self.http.post(
                f"/v1/{path}?session={self.session}", content=await sdp(), headers=who | SDP
            )
            self.connections[path, opener] = answer.headers["location"], answer.headers["etag"]
        return self.connections[path, opener]

    async def end(self, *sessions):
        for name in sessions or (self.session, self.other):
            await self.http.delete(f"/v1/sessions/{name}", headers=bearer(KEY))


SDP = {"content-type": "application/sdp"}
_offer = []


async def sdp():
    """Return an offer; the same each time, because nobody connects."""
    if not _offer:
        guest = Guest()
        _offer.append(await guest.offer())
        await guest.close()
    return _offer[0]


def reading(path):
    async def send(world, who):
        place = path.format(name=world.images, picture="still.jpg")
        return (await world.http.get(place, headers=who)).status_code

    return send


def options_of(path):
    async def send(world, who):
        return (await world.http.options(path, headers=who)).status_code

    return send


async def read_pages(world, who):
    paths = [f"{route.path}/" if route.path else "/" for route in pages.routes()]
    answers = [
        (await world.http.get(path.removesuffix("/") or "/", headers=who, follow_redirects=True))
        for path in paths
    ]
    return max(answer.status_code for answer in answers)


async def renew(world, who):
    return (await world.http.post("/v1/tokens", json={}, headers=who)).status_code


async def renew_for_session(world, who):
    body = {"session": world.session}
    return (await world.http.post("/v1/tokens", json=body, headers=who)).status_code


async def upload(world, who):
    path = "/v1/avatars?consent=true"
    return (await world.http.post(path, content=portrait_jpeg(), headers=who)).status_code


async def read_upload(world, who):
    return (await world.http.get(f"/v1/avatars/{world.upload}", headers=who)).status_code


async def rename_upload(world, who):
    path, body = f"/v1/avatars/{world.upload}", {"label": "Ann"}
    return (await world.http.patch(path, json=body, headers=who)).status_code


async def delete_upload(world, who):
    answer = await world.http.delete(f"/v1/avatars/{world.upload}", headers=who)
    if answer.is_success:
        world.upload = None
    return answer.status_code


def opening(with_upload):
    async def send(world, who):
        body = {"avatar": world.upload} if with_upload else {}
        answer = await world.http.post("/v1/sessions", json=body, headers=who)
        if answer.is_success:
            await world.end(answer.json()["session"])
        return answer.status_code

    return send


async def queue(world, who):
    return (await world.http.post("/v1/queue", headers=who)).status_code


async def read_session(world, who):
    return (await world.http.get(f"/v1/sessions/{world.session}", headers=who)).status_code


async def delete_session(world, who):
    answer = await world.http.delete(f"/v1/sessions/{world.session}", headers=who)
    if answer.is_success:
        await world.end(world.other)
        world.session, world.connections = None, {}
    return answer.status_code


def query(world, target):
    """Return the query of a connection: to ann's session, or for a new one."""
    if target == "session":
        return {"session": world.session}
    return {"avatar": world.upload} if target == "upload" else {}


async def joined(world, target, status, session):
    """Return a status: that of a refusal, if no new session was made where one was wanted."""
    if not 200 <= status < 300 or target == "session":
        return status
    if session in (world.session, world.other):
        return 403
    await world.end(session)
    return status


def offering(target):
    async def send(world, who):
        body = {"type": "offer", "sdp": await sdp()} | query(world, target)
        answer = await world.http.post("/v1/offer", json=body, headers=who)
        return await joined(world, target, answer.status_code, answer.json().get("session"))

    return send


def exchanging(path, target):
    async def send(world, who):
        answer = await world.http.post(
            path, content=await sdp(), headers=who | SDP, params=query(world, target)
        )
        session = answer.headers.get("location", "///").split("/")[3]
        return await joined(world, target, answer.status_code, session)

    return send


def joining(target):
    async def send(world, who):
        params = httpx.QueryParams(query(world, target))
        try:
            client = await join(world.address, str(params), additional_headers=who)
        except InvalidStatus as refused:
            return refused.response.status_code
        session = (await client.hear("session.ready"))["session"]
        await client.close()
        return await joined(world, target, 200, session)

    return send


def patching(path, opener):
    async def send(world, who):
        place, tag = await world.connection(path, opener)
        headers = {"content-type": "application/trickle-ice-sdpfrag", "if-match": tag}
        answer = await world.http.patch(place, content="a=mid:0\r\n", headers=who | headers)
        return answer.status_code

    return send


def closing(path, opener):
    async def send(world, who):
        place, _ = await world.connection(path, opener)
        answer = await world.http.delete(place, headers=who)
        if answer.is_success:
            del world.connections[path, opener]
        return answer.status_code

    return send


NEW, NEW_WITH_UPLOAD = "for a new session", "for a new session with an upload"
SENDERS = {
    ("GET /", "and the files of the pages"): read_pages,
    ("GET /healthz", ""): reading("/healthz"),
    ("GET /readyz", ""): reading("/readyz"),
    ("GET /openapi.json", ""): reading("/openapi.json"),
    ("GET /v1/config", ""): reading("/v1/config"),
    ("GET /v1/avatars/{name}/{picture}", "by the secret id of the images"): reading(
        "/v1/avatars/{name}/{picture}"
    ),
    ("OPTIONS /v1/whep", "without the ICE servers"): options_of("/v1/whep"),
    ("OPTIONS /v1/whip", "without the ICE servers"): options_of("/v1/whip"),
    ("GET /metrics", ""): reading("/metrics"),
    ("POST /v1/tokens", "to renew one's own"): renew,
    ("POST /v1/tokens", "for a session"): renew_for_session,
    ("GET /v1/avatars", ""): reading("/v1/avatars"),
    ("POST /v1/avatars", ""): upload,
    ("GET /v1/avatars/{name}", "of an upload"): read_upload,
    ("PATCH /v1/avatars/{name}", "of an upload"): rename_upload,
    ("DELETE /v1/avatars/{name}", "of an upload"): delete_upload,
    ("POST /v1/sessions", ""): opening(False),
    ("POST /v1/sessions", "with an upload"): opening(True),
    ("POST /v1/queue", ""): queue,
    ("GET /v1/sessions/{name}", ""): read_session,
    ("DELETE /v1/sessions/{name}", ""): delete_session,
    ("POST /v1/offer", "to a session"): offering("session"),
    ("POST /v1/offer", NEW): offering("default"),
    ("POST /v1/offer", NEW_WITH_UPLOAD): offering("upload"),
    ("GET /v1/ws", "to a session"): joining("session"),
    ("GET /v1/ws", NEW): joining("default"),
    ("GET /v1/ws", NEW_WITH_UPLOAD): joining("upload"),
}
for _path in ("/v1/whip", "/v1/whep"):
    SENDERS[f"POST {_path}", "to a session"] = exchanging(_path, "session")
    SENDERS[f"POST {_path}", NEW] = exchanging(_path, "default")
    SENDERS[f"POST {_path}", NEW_WITH_UPLOAD] = exchanging(_path, "upload")
for _opener in ("the token", "another token"):
    for _kind, _path in (("player", "whep"), ("microphone", "whip")):
        _words = f"of a {_kind} that {_opener} opened"
        SENDERS[f"PATCH {CONNECTION}", _words] = patching(_path, _opener)
        SENDERS[f"DELETE {CONNECTION}", _words] = closing(_path, _opener)


def served():
    """Return method and path of every route of the application, wherever it comes from."""
    found = set()
    files = {route.path for route in pages.routes()}
    for route in application.create_app(LOCKED, model_of(Painter())).routes:
        methods = getattr(route, "methods", None) or {"GET"}  # of a WebSocket, or of files
        if route.path in files:
            found.add("GET /")
        elif "TRACE" not in methods:  # else it refuses every method that no other route takes
            found |= {f"{method} {route.path}" for method in methods - {"HEAD"}}
    return found


def test_every_route_has_a_row_and_every_row_is_walked_through():
    assert {row.name for row in REQUESTS} == served()
    described = {
        f"{method.upper()} {path}"
        for path, operations in openapi.document()["paths"].items()
        for method in operations
        if method != "parameters"
    }
    assert described <= served()
    assert len(REQUESTS) == len(SENDERS)
    assert {(row.name, row.variant) for row in REQUESTS} == set(SENDERS)


@pytest.fixture(scope="module")
def address():
    with pytest.MonkeyPatch.context() as patch:  # who asks for everything asks often
        patch.setattr(registry, "SESSIONS_PER_S", 1000.0)
        patch.setattr(application, "UPLOADS_PER_S", 1000.0)
        patch.setattr(application, "CONNECTIONS_PER_S", 1000.0)
        patch.setattr(application, "QUEUE_ASKS_PER_S", 1000.0)
        with live(LOCKED, DirectedPainter()) as (_, found):
            yield found


@pytest.fixture
async def world(address):
    async with httpx.AsyncClient(base_url=f"http://{address}", timeout=60) as http:
        world = World(http, address)
        await world.prepare()
        yield world
        await world.end()


def bad_tokens(world):
    """Return headers of callers who are nobody: without a token, forged, expired, of no kind."""
    claims = {"iss": "letstalk", "sub": "ann", "scope": " ".join(SCOPES), "jti": "j", "login": 1}
    now = int(time.time())
    times = {"iat": now, "exp": now + 60}
    return [
        {},
        bearer("x"),
        bearer(jwt.encode(claims | times, "another secret" * 4)),
        bearer(jwt.encode(claims | times, None, "none")),
        bearer(jwt.encode(claims | {"iat": now - 90, "exp": now - 60}, SECRET)),
        bearer(jwt.encode(claims | times | {"iss": "somebody"}, SECRET)),
        {"authorization": "Basic " + KEY},
    ]


def row_name(row):
    return f"{row.name} {row.variant}".strip()


@pytest.mark.parametrize("row", REQUESTS, ids=row_name)
async def test_a_request_is_answered_to_whom_the_table_names_and_nobody_else(row, world):
    send = SENDERS[row.name, row.variant]
    for who in bad_tokens(world):
        status = await send(world, who)
        assert status < 300 if row.is_open else status == 401, who
    may = {
        "own": row.own,
        "bound": row.bound,
        "others": row.others,
        "elsewhere": row.others and row.bound,
        "others elsewhere": row.others and row.bound,
    }
    for kind, is_due in may.items():
        for scopes in sorted(row.scope_sets(), key=sorted):
            await world.prepare()
            status = await send(world, world.token(kind, scopes))
            is_allowed = row.is_open or (is_due and row.allows(scopes))
            told = f"{status} for a token that is {kind} with {sorted(scopes)}"
            assert 200 <= status < 300 if is_allowed else status in (403, 404), told
    await world.prepare()
    assert 200 <= await send(world, bearer(KEY)) < 300, "the operator may do everything"


# Messages

FIELDS = {
    "session.ping": {},
    "session.configure": {"stats_s": 0},
    "avatar.interrupt": {},
    "avatar.select": {"avatar": "blue"},
    "audio.append": {"audio": "AAAAAA=="},
    "speech.say": {"text": "Hello"},
    "segment.end": {},
    "overlay.update": {"overlay": {"name": "x"}},
    "camera.configure": {},
    "camera.neutral": {},
    "motion.configure": {"head_motion": False},
    "performance.mood": {"mood": "warm", "strength": 0.7},
    "performance.gesture": {"gesture": "nod"},
    "performance.listening": {"mode": "calm"},
    "conversation.configure": {},
    "conversation.say": {"text": "Hello"},
    "session.close": {},
}
"""A good message of each type; the last one ends the session."""


def test_every_message_has_a_row_and_every_row_is_walked_through():
    types = {message.type for message in get_args(ClientMessage)}
    assert set(MESSAGES) == types | {"binary"} == set(FIELDS) | {"binary"}
    assert {row.variant for row in MESSAGES.values()} == {"", "audio"}


class DataChannel:
    """A peer with a data channel, which has the interface of `live_server.Client`."""

    def __init__(self, peer):
        self.peer = peer
        self.hear, self.said = self._hear, peer.said

    @classmethod
    async def open(cls, world, who, may_speak):
        peer = Peer(ping_s=0)
        offer = await peer.offer()
        if may_speak:
            body = offer | {"session": world.session}
            answer = (await world.http.post("/v1/offer", json=body, headers=who)).json()["sdp"]
        else:
            path = f"/v1/whep?session={world.session}"
            answer = await world.http.post(path, content=offer["sdp"], headers=who | SDP)
            answer = answer.text
        await peer.pc.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        await peer.until(lambda: peer.said("session.ready"))
        return cls(peer)

    async def send(self, message):
        self.peer.send(message)

    async def _hear(self, kind, count=1):
        await self.peer.until(lambda: len(self.peer.said(kind)) >= count)
        return self.peer.said(kind)[count - 1]

    async def close(self):
        await self.peer.close()


async def open_connection(world, way, scope):
    who = world.token("bound", {scope})
    if way == "WebSocket":
        return await join(world.address, f"session={world.session}", additional_headers=who)
    return await DataChannel.open(world, who, scope == "speak")


@pytest.mark.parametrize("way", ["WebSocket", "data channel"])
@pytest.mark.parametrize("scope", ["view", "speak"])
async def test_a_message_is_heard_from_whom_the_table_names_and_nobody_else(way, scope, world):
    client = await open_connection(world, way, scope)
    try:
        await client.hear("session.ready")
        await client.send(bytes(640))
        for name, fields in FIELDS.items():
            await client.send({"type": name, "event_id": name} | fields)
        if scope == "speak":
            assert (await client.hear("session.ended"))["reason"] == "closed"
            world.session = None
        else:  # the session goes on, and answers the last message
            await client.send({"type": "session.ping", "event_id": "last"})
            await client.hear("session.pong", 2)
        errors = client.said("session.error")
        refused = [each.get("re") or "binary" for each in errors if each["code"] == "not-allowed"]
        due = [name for name, row in MESSAGES.items() if not row.allows({scope})]
        assert sorted(refused) == sorted(due)
        others = {each["code"] for each in errors} - {"not-allowed"}
        assert others <= {"no-speech-engine", "no-conversation"}, "each message was a good one"
    finally:
        await client.close()
    if world.session is None:
        await world.end(world.other)
        await world.prepare()
