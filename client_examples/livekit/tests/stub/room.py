"""A room: what its participants tell each other, and which tracks they receive."""

import asyncio
from collections.abc import Coroutine

from aiohttp import WSMsgType, web
from livekit.protocol import models, rtc

from stub.participant import Participant

_SERVER = models.ServerInfo(edition=models.ServerInfo.Standard, version="1.9.0", protocol=16)
_CODECS = [models.Codec(mime="video/VP8"), models.Codec(mime="audio/opus")]


class Room:
    """A room and everybody in it.

    Attributes:
        participants: by identity.
    """

    def __init__(self, name: str) -> None:
        self.participants: dict[str, Participant] = {}
        self._name = name
        self._automatic: set[Participant] = set()  # who subscribes to every track
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(
        self, socket: web.WebSocketResponse, info: models.ParticipantInfo, automatic: bool
    ) -> None:
        """Serve one participant until it leaves.

        Args:
            socket: its signalling connection.
            info: what others are told of it.
            automatic: whether it subscribes to every track by itself.
        """
        others = [other.info for other in self.participants.values()]
        participant = Participant(socket, info, self._offer_track, self._relay)
        if automatic:
            self._automatic.add(participant)
        self.participants[info.identity] = participant
        await participant.send(join=self._welcome(info, others))
        await self._tell_others(participant)
        self._start(self._set_up(participant))
        try:
            async for message in socket:
                if message.type is WSMsgType.BINARY:
                    await self._handle(participant, rtc.SignalRequest.FromString(message.data))
        finally:
            await self._forget(participant)

    async def remove(self, identity: str, reason: models.DisconnectReason.ValueType) -> None:
        """Send a participant out."""
        participant = self.participants[identity]
        leave = rtc.LeaveRequest(reason=reason, action=rtc.LeaveRequest.DISCONNECT)
        await participant.send(leave=leave)
        await participant.close()

    async def close(self) -> None:
        """Send everybody out."""
        for identity in list(self.participants):
            await self.remove(identity, models.ROOM_DELETED)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _welcome(
        self, info: models.ParticipantInfo, others: list[models.ParticipantInfo]
    ) -> rtc.JoinResponse:
        return rtc.JoinResponse(
            room=models.Room(sid="RM_stub", name=self._name),
            participant=info,
            other_participants=others,
            subscriber_primary=False,
            ping_interval=5,
            ping_timeout=20,
            server_version=_SERVER.version,
            server_info=_SERVER,
            enabled_publish_codecs=_CODECS,
        )

    async def _handle(self, participant: Participant, request: rtc.SignalRequest) -> None:
        kind = request.WhichOneof("message")
        message = getattr(request, kind)
        match kind:
            case "offer":
                await participant.take_offer(message)
            case "answer":
                await participant.take_answer(message)
            case "trickle":
                await participant.take_candidate(message)
            case "add_track":
                track = participant.announce(message)
                published = rtc.TrackPublishedResponse(cid=message.cid, track=track)
                await participant.send(track_published=published)
                await self._tell_others(participant)
            case "subscription":
                self._subscribe(participant, set(message.track_sids))
            case "ping_req":
                pong = rtc.Pong(last_ping_timestamp=message.timestamp, timestamp=message.timestamp)
                await participant.send(pong_resp=pong)
            case "leave":
                await participant.socket.close()

    async def _set_up(self, participant: Participant) -> None:
        await participant.open_channels()
        if participant in self._automatic:
            self._subscribe(participant, None)

    def _subscribe(self, participant: Participant, sids: set[str] | None) -> None:
        """Send tracks that have arrived to a participant; None for all."""
        for owner in self.participants.values():
            for sid in owner.tracks:
                if owner is not participant and (sids is None or sid in sids):
                    self._start(participant.subscribe(owner, sid))

    def _offer_track(self, owner: Participant, sid: str) -> None:
        for participant in self._automatic - {owner}:
            self._start(participant.subscribe(owner, sid))

    def _relay(self, sender: Participant, label: str, message: bytes) -> None:
        packet = models.DataPacket.FromString(message)
        packet.participant_identity = sender.identity
        wanted = set(packet.destination_identities) or set(self.participants)
        for participant in self.participants.values():
            if participant is not sender and participant.identity in wanted:
                participant.send_data(label, packet.SerializeToString())

    async def _tell_others(self, participant: Participant) -> None:
        update = rtc.ParticipantUpdate(participants=[participant.info])
        for other in list(self.participants.values()):
            if other is not participant:
                await other.send(update=update)

    async def _forget(self, participant: Participant) -> None:
        self._automatic.discard(participant)
        if self.participants.get(participant.identity) is participant:
            del self.participants[participant.identity]
        await participant.close()
        participant.info.state = models.ParticipantInfo.DISCONNECTED
        await self._tell_others(participant)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
