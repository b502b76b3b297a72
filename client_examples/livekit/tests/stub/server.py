"""The server's address, and who may use it."""

import secrets

import jwt
from aiohttp import web
from livekit.protocol import models
from livekit.protocol import room as protocol_room

from stub.room import Room
from stub.workers import Workers

API_KEY, API_SECRET = "devkey", "a-secret-of-32-characters-or-more"


class StubServer:
    """A LiveKit server on a free port of the loopback interface; use it with `async with`.

    Attributes:
        url: its address, once it is open.
    """

    def __init__(self) -> None:
        self.url = ""
        self._rooms: dict[str, Room] = {}
        self._workers = Workers(API_KEY, API_SECRET)
        app = web.Application()
        app.router.add_get("/rtc", self._join)  # clients try /rtc/v1 first, and fall back on 404
        app.router.add_get("/rtc/validate", self._validate)
        app.router.add_get("/agent", self._register)
        app.router.add_post("/twirp/livekit.AgentDispatchService/CreateDispatch", self._dispatch)
        app.router.add_post("/twirp/livekit.AgentDispatchService/DeleteDispatch", self._recall)
        app.router.add_post("/twirp/livekit.RoomService/DeleteRoom", self._delete_room)
        app.router.add_get("/stub/workers", self._show_workers)
        self._runner = web.AppRunner(app, shutdown_timeout=1)

    async def __aenter__(self) -> "StubServer":
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"ws://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        for room in self._rooms.values():
            await room.close()
        await self._runner.cleanup()

    async def _join(self, request: web.Request) -> web.WebSocketResponse:
        claims = _claims(request)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        name = claims["video"]["room"]
        room = self._rooms.setdefault(name, Room(name))
        automatic = request.query.get("auto_subscribe", "1") != "0"
        await room.serve(socket, _describe(claims), automatic)
        return socket

    async def _validate(self, request: web.Request) -> web.Response:
        _claims(request)
        return web.Response(text="success")

    async def _register(self, request: web.Request) -> web.WebSocketResponse:
        _claims(request)
        return await self._workers.serve(request, self.url)

    async def _delete_room(self, request: web.Request) -> web.Response:
        _claims(request)
        wanted = protocol_room.DeleteRoomRequest.FromString(await request.read())
        if (room := self._rooms.pop(wanted.room, None)) is not None:
            await room.close()
        body = protocol_room.DeleteRoomResponse().SerializeToString()
        return web.Response(body=body, content_type="application/protobuf")

    async def _show_workers(self, request: web.Request) -> web.Response:
        """Show what no real server tells, for tests of the workers' reports."""
        return web.json_response(self._workers.to_json())

    async def _dispatch(self, request: web.Request) -> web.Response:
        _claims(request)
        return await self._workers.dispatch(request)

    async def _recall(self, request: web.Request) -> web.Response:
        _claims(request)
        return await self._workers.recall(request)


def _claims(request: web.Request) -> dict:
    authorization = request.headers.get("Authorization", "")
    token = request.query.get("access_token") or authorization.removeprefix("Bearer ")
    try:
        return jwt.decode(token, API_SECRET, algorithms=["HS256"], issuer=API_KEY)
    except jwt.InvalidTokenError as error:
        raise web.HTTPUnauthorized(text="invalid token") from error


def _describe(claims: dict) -> models.ParticipantInfo:
    """Return what others are told of the participant that a token names."""
    is_agent = claims.get("kind") == "agent"
    return models.ParticipantInfo(
        sid=f"PA_{secrets.token_hex(4)}",
        identity=claims["sub"],
        name=claims.get("name", ""),
        state=models.ParticipantInfo.ACTIVE,
        kind=models.ParticipantInfo.AGENT if is_agent else models.ParticipantInfo.STANDARD,
        attributes=claims.get("attributes") or {},
        permission=models.ParticipantPermission(
            can_publish=True, can_subscribe=True, can_publish_data=True
        ),
    )
