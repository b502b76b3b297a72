"""One participant of a room: its signalling connection and its two peer connections."""

import asyncio
import json
import secrets
from collections.abc import Callable

from aiohttp import web
from aiortc import (
    RTCConfiguration,
    RTCDataChannel,
    RTCIceCandidate,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.sdp import SessionDescription, candidate_from_sdp
from livekit.protocol import models, rtc

from stub.forwarding import PublishedTrack, Subscription

_CHANNELS = {"_reliable": {}, "_lossy": {"maxRetransmits": 0}}


class Participant:
    """A client as the server sees it.

    Args:
        socket: its signalling connection.
        info: what others are told of it.
        on_track: called with this participant and the identifier of a track that has arrived.
        on_data: called with this participant, the label of a data channel and a message.
    """

    def __init__(
        self,
        socket: web.WebSocketResponse,
        info: models.ParticipantInfo,
        on_track: Callable[["Participant", str], None],
        on_data: Callable[["Participant", str, bytes], None],
    ) -> None:
        self.socket, self.info = socket, info
        self.tracks: dict[str, PublishedTrack] = {}  # by sid
        self._on_track, self._on_data = on_track, on_data
        self._sids: dict[str, str] = {}  # of announced tracks, by the client's identifier
        self._cids: dict[str, str] = {}  # the client's identifiers, by media section
        self._subscribed: set[str] = set()
        self._early: list[tuple[RTCPeerConnection, RTCIceCandidate]] = []
        self._negotiating = asyncio.Lock()
        self._answered = asyncio.Event()
        configuration = RTCConfiguration(iceServers=[])
        self._publisher = RTCPeerConnection(configuration)
        self._subscriber = RTCPeerConnection(configuration)
        self._publisher.on("track", self._take_track)
        self._publisher.on("datachannel", self._take_channel)
        self._channels = {
            label: self._subscriber.createDataChannel(label, **options)
            for label, options in _CHANNELS.items()
        }

    @property
    def identity(self) -> str:
        return self.info.identity

    async def send(self, **message) -> None:
        """Send a signalling message."""
        if not self.socket.closed:
            await self.socket.send_bytes(rtc.SignalResponse(**message).SerializeToString())

    def send_data(self, label: str, message: bytes) -> None:
        """Send a message on the data channel `label`, if it is open."""
        if self._channels[label].readyState == "open":
            self._channels[label].send(message)

    def announce(self, request: rtc.AddTrackRequest) -> models.TrackInfo:
        """Note a track that the client will publish."""
        is_video = request.type == models.VIDEO
        track = models.TrackInfo(
            sid=f"TR_{secrets.token_hex(4)}",
            type=request.type,
            name=request.name,
            source=request.source,
            width=request.width,
            height=request.height,
            mime_type="video/VP8" if is_video else "audio/opus",
            stream=request.stream,
        )
        self._sids[request.cid] = track.sid
        self.info.tracks.append(track)
        return track

    async def subscribe(self, owner: "Participant", sid: str) -> None:
        """Begin to send a track of another participant to this one."""
        async with self._negotiating:
            if sid in self._subscribed or self.socket.closed:
                return
            self._subscribed.add(sid)
            track = next(track for track in owner.info.tracks if track.sid == sid)
            transceiver = self._subscriber.addTransceiver(
                "video" if track.type == models.VIDEO else "audio", direction="sendonly"
            )
            stream_id = f"{owner.info.sid}|{track.stream}"  # of one stream: played in sync
            Subscription(transceiver.sender, owner.tracks[sid], stream_id, sid)
            await self._offer()
        await owner.send(track_subscribed=rtc.TrackSubscribed(track_sid=sid))

    async def open_channels(self) -> None:
        """Offer the connection on which the client receives."""
        async with self._negotiating:
            await self._offer()

    async def take_offer(self, message: rtc.SessionDescription) -> None:
        """Answer the offer of the connection on which the client sends."""
        pc = self._publisher
        media = SessionDescription.parse(message.sdp).media
        self._cids = {m.rtp.muxId: m.msid.split()[-1] for m in media if m.msid}
        await pc.setRemoteDescription(RTCSessionDescription(message.sdp, "offer"))
        await self._take_early(pc)
        await pc.setLocalDescription(await pc.createAnswer())
        answer = rtc.SessionDescription(type="answer", sdp=pc.localDescription.sdp, id=message.id)
        await self.send(answer=answer)

    async def take_answer(self, message: rtc.SessionDescription) -> None:
        """Apply the client's answer to an offer."""
        await self._subscriber.setRemoteDescription(RTCSessionDescription(message.sdp, "answer"))
        await self._take_early(self._subscriber)
        self._answered.set()

    async def take_candidate(self, message: rtc.TrickleRequest) -> None:
        """Add an ICE candidate of the client."""
        fields = json.loads(message.candidateInit)
        if not fields.get("candidate"):
            return
        candidate = candidate_from_sdp(fields["candidate"].partition(":")[2])
        candidate.sdpMid = fields.get("sdpMid")
        candidate.sdpMLineIndex = fields.get("sdpMLineIndex")
        pc = self._publisher if message.target == rtc.PUBLISHER else self._subscriber
        if pc.remoteDescription is None:
            self._early.append((pc, candidate))
        else:
            await pc.addIceCandidate(candidate)

    async def close(self) -> None:
        """Close the signalling, then both connections."""
        await self.socket.close()
        self._answered.set()
        await self._publisher.close()
        await self._subscriber.close()

    async def _take_early(self, pc: RTCPeerConnection) -> None:
        """Add the candidates that came before the description of their connection."""
        early, self._early = self._early, []
        for owner, candidate in early:
            if owner is pc:
                await pc.addIceCandidate(candidate)
            else:
                self._early.append((owner, candidate))

    async def _offer(self) -> None:
        pc = self._subscriber
        self._answered.clear()
        await pc.setLocalDescription(await pc.createOffer())
        offer = rtc.SessionDescription(type="offer", sdp=pc.localDescription.sdp)
        await self.send(offer=offer)
        await self._answered.wait()

    def _take_track(self, track) -> None:
        transceivers = self._publisher.getTransceivers()
        transceiver = next(t for t in transceivers if t.receiver.track is track)
        sid = self._sids[self._cids[transceiver.mid]]
        self.tracks[sid] = PublishedTrack(transceiver.receiver)
        self._on_track(self, sid)

    def _take_channel(self, channel: RTCDataChannel) -> None:
        channel.on("message", lambda message: self._on_data(self, channel.label, message))
