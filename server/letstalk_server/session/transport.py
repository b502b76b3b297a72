"""What the server needs of a WebRTC stack: a few verbs, so that another one can stand in.

A session owns the engine and one `Media`. Peers attach to it, any number of them:

    media = transport.media(playout)            # once per session; encodes once for all its peers
    peer = transport.open(Role.TALKER, media, handlers)
    answer = await peer.answer(offer_sdp)
    ...
    media.show_anew()                           # the avatar was swapped: a key frame for everybody
    await peer.aclose()                         # the others go on
    await media.aclose()                        # after the last peer

Handlers run on the event loop and must not block; they may be called from inside `answer`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np

from letstalk_server.session.playout import SlotPlayout


class PeerRole(StrEnum):
    """What a peer does."""

    TALKER = "talker"  # microphone up, avatar down, data channel: the page
    VIEWER = "viewer"  # avatar down: WHEP
    PUBLISHER = "publisher"  # microphone up: WHIP


class PeerState(StrEnum):
    """How far a connection is. `FAILED` and `CLOSED` are final."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    FAILED = "failed"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class PeerStats:
    """What is known of one connection.

    Attributes:
        codec: of the video sent, e.g. `VP8`; `None` while there is none.
        bitrate: target of the video, bit/s.
        packets_sent: of sound and video.
        packets_resent: asked for again by the peer.
        lost_ratio: share of the video packets that the peer missed of late.
        round_trip_ms: `None` until a report came.
        key_frames: asked for by the peer.
        concealed_ms: gaps in the microphone's sound that were filled.
    """

    codec: str | None = None
    bitrate: int = 0
    packets_sent: int = 0
    packets_resent: int = 0
    lost_ratio: float = 0.0
    round_trip_ms: float | None = None
    key_frames: int = 0
    concealed_ms: int = 0


def _nothing(*args: object) -> None:
    """Handle nothing."""


@dataclass(frozen=True, slots=True)
class Handlers:
    """What a peer tells its session.

    Attributes:
        state: the connection changed; called once with each state.
        microphone: called once, when the peer's microphone track is there.
        audio: called with each piece of its voice, `(n,)` float32 in [-1, 1] at 16 kHz, in order
            and without gaps.
        channel: the data channel is open; `peer.send` works from now on.
        message: a data channel message, text or bytes, not trusted.
    """

    state: Callable[[PeerState], None] = _nothing
    microphone: Callable[[], None] = _nothing
    audio: Callable[[np.ndarray], None] = _nothing
    channel: Callable[[], None] = _nothing
    message: Callable[[object], None] = _nothing


class Media(Protocol):
    """The picture and the voice of one session, encoded once for all its peers."""

    def request_key_frame(self) -> None:
        """Make the next picture a key frame; call when the avatar was swapped."""
        ...

    async def aclose(self) -> None:
        """Stop encoding. Safe to call twice."""
        ...


class Peer(Protocol):
    """One connection."""

    @property
    def state(self) -> PeerState:
        """How far it is."""
        ...

    @property
    def last_received_s(self) -> float:
        """When anything last came from the peer, `time.monotonic`; 0 before that.

        A receiver reports about once a second, so 5 s of silence mean that it is gone.
        """
        ...

    async def answer(self, offer: str) -> str:
        """Accept an SDP offer and give the answer, candidates included; call it once.

        Raises:
            BadOfferError: the offer is not SDP, or not one for this role.
        """
        ...

    async def trickle(self, fragment: str) -> None:
        """Take further candidates: the body of a WHIP or WHEP `PATCH` (RFC 8840).

        Raises:
            BadRequestError: it is not a fragment of candidates.
            IceRestartError: it is for another connection.
        """
        ...

    def send(self, text: str) -> bool:
        """Send a data channel message; False when there is no open channel or it is full."""
        ...

    def stats(self) -> PeerStats:
        """Give what is known of the connection."""
        ...

    async def aclose(self) -> None:
        """Close the connection. Safe to call twice, and before an answer."""
        ...


class Transport(Protocol):
    """Makes connections. One per server process."""

    def media(self, playout: SlotPlayout) -> Media:
        """Make the media of a session."""
        ...

    def open(self, role: PeerRole, media: Media, handlers: Handlers) -> Peer:
        """Make the server's end of a connection; nothing happens before `answer`."""
        ...

    def close(self) -> None:
        """Give everything back; call when all peers and media are closed."""
        ...
