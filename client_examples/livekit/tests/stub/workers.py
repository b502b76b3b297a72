"""Agent workers: registration, availability, assignment, and the load that they report."""

import secrets
from dataclasses import dataclass, field
from typing import Any

from aiohttp import WSMsgType, web
from livekit import api
from livekit.protocol import agent, agent_dispatch, models

_SERVER = models.ServerInfo(version="1.9.0", protocol=16)


@dataclass(eq=False)
class Worker:
    """A connected worker.

    Attributes:
        agent_name: the jobs that it takes.
        socket: its connection.
        statuses: the statuses that it has reported, `WS_AVAILABLE` or `WS_FULL`.
    """

    agent_name: str
    socket: web.WebSocketResponse
    statuses: list[agent.WorkerStatus.ValueType] = field(default_factory=list)

    async def send(self, **message) -> None:
        await self.socket.send_bytes(agent.ServerMessage(**message).SerializeToString())


class Workers:
    """All workers. A job is offered to the first of the right name.

    Args:
        api_key, api_secret: sign the tokens with which workers join rooms.

    """

    def __init__(self, api_key: str, api_secret: str) -> None:
        self._connected: list[Worker] = []
        self._refused = 0
        self._key = api_key, api_secret
        self._jobs: dict[str, agent.Job] = {}
        self._asked: dict[str, Worker] = {}  # by job

    async def serve(self, request: web.Request, url: str) -> web.WebSocketResponse:
        """Serve a worker until it disconnects."""
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        worker = Worker("", socket)
        try:
            async for message in socket:
                if message.type is WSMsgType.BINARY:
                    await self._handle(worker, agent.WorkerMessage.FromString(message.data), url)
        finally:
            if worker in self._connected:
                self._connected.remove(worker)
        return socket

    async def dispatch(self, request: web.Request) -> web.Response:
        """Offer a job to a worker.

        A real server passes over workers that have reported to be full. This one asks them too, so
        that tests see the refusal.
        """
        wanted = agent_dispatch.CreateAgentDispatchRequest.FromString(await request.read())
        dispatch = agent_dispatch.AgentDispatch(
            id=await self._offer(wanted.agent_name, wanted.room, wanted.metadata),
            agent_name=wanted.agent_name,
            room=wanted.room,
            metadata=wanted.metadata,
        )
        return web.Response(body=dispatch.SerializeToString(), content_type="application/protobuf")

    async def recall(self, request: web.Request) -> web.Response:
        """End the job of a dispatch, which has the same identifier here."""
        wanted = agent_dispatch.DeleteAgentDispatchRequest.FromString(await request.read())
        if (worker := self._asked.pop(wanted.dispatch_id, None)) is not None:
            await worker.send(termination=agent.JobTermination(job_id=wanted.dispatch_id))
        body = agent_dispatch.AgentDispatch(id=wanted.dispatch_id).SerializeToString()
        return web.Response(body=body, content_type="application/protobuf")

    def to_json(self) -> dict[str, Any]:
        """Return the names of the workers, what they have reported, and how often they refused."""
        statuses = {
            worker.agent_name: [agent.WorkerStatus.Name(status) for status in worker.statuses]
            for worker in self._connected
        }
        return {"statuses": statuses, "refused": self._refused}

    async def _offer(self, agent_name: str, room: str, metadata: str) -> str:
        job = agent.Job(
            id=f"AJ_{secrets.token_hex(4)}",
            type=agent.JT_ROOM,
            room=models.Room(sid="RM_stub", name=room),
            agent_name=agent_name,
            metadata=metadata,
        )
        self._jobs[job.id] = job
        for worker in self._connected:
            if worker.agent_name == agent_name:
                self._asked[job.id] = worker
                await worker.send(availability=agent.AvailabilityRequest(job=job))
                break
        return job.id

    async def _handle(self, worker: Worker, message: agent.WorkerMessage, url: str) -> None:
        match message.WhichOneof("message"):
            case "register":
                worker.agent_name = message.register.agent_name
                self._connected.append(worker)
                registered = agent.RegisterWorkerResponse(worker_id="AW_1", server_info=_SERVER)
                await worker.send(register=registered)
            case "update_worker":
                worker.statuses.append(message.update_worker.status)
            case "availability":
                await self._assign(worker, message.availability, url)

    async def _assign(self, worker: Worker, answer: agent.AvailabilityResponse, url: str) -> None:
        if not answer.available:
            self._refused += 1
            return
        job = self._jobs[answer.job_id]
        token = (
            api.AccessToken(*self._key)
            .with_identity(answer.participant_identity)
            .with_name(answer.participant_name)
            .with_kind("agent")
            .with_attributes(dict(answer.participant_attributes))
            .with_grants(api.VideoGrants(room_join=True, room=job.room.name, agent=True))
            .to_jwt()
        )
        await worker.send(assignment=agent.JobAssignment(job=job, url=url, token=token))
