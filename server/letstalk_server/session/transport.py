"""The interface of a WebRTC stack, so that it can be replaced.

A session owns the engine and one `Media`, to which any number of peers attach:

    media = transport.media(playout)            # once per session; encodes once for all peers
    peer = transport.open(PeerRole.TALKER, media, handlers)
    answer = await peer.answer(offer_sdp)
    ...
    media.request_key_frame()                   # after the avatar was changed
    await peer.aclose()                         # the other peers continue
    await media.aclose()                        # after the last peer

Handlers run on the event loop and must not block; they may be called from inside `answer`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np

from letstalk_rt.types import SAMPLE_RATE
from letstalk_server.session.playout import SlotPlayout


class PeerRole(StrEnum):
    """The role of a peer."""

    TALKER = "talker"  # microphone, perhaps a camera, avatar, data channel
    VIEWER = "viewer"  # receives the avatar: WHEP
    PUBLISHER = "publisher"  # sends a microphone, perhaps a camera: WHIP


class PeerState(StrEnum):
    """The state of a connection. `FAILED` and `CLOSED` are final."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    FAILED = "failed"
    CLOSED = "closed"


class CameraTrouble(StrEnum):
    """Why frames of a camera are not read; codes of `session.warning`."""

    TOO_LARGE = "camera-too-large"
    TOO_MUCH = "camera-too-much"


@dataclass(frozen=True, slots=True)
class PeerStats:
    """Statistics of one connection.

    Attributes:
        codec: video codec that is sent, e.g. `VP8`; `None` while no video is sent.
        bitrate: target bitrate of the video, bit/s.
        packets_sent: audio and video packets, without retransmissions.
        lost_ratio: smoothed share of video packets that the peer lost.
        concealed_ms: total duration of concealed gaps in the microphone's audio.
    """

    codec: str | None = None
    bitrate: int = 0
    packets_sent: int = 0
    lost_ratio: float = 0.0
    concealed_ms: int = 0


def _ignore(*args: object) -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True)
class Handlers:
    """Callbacks of a peer.

    Attributes:
        state: called once with each new state.
        microphone: called once, when the microphone track starts.
        audio: called with each chunk of the microphone, `(n,)` float32 in [-1, 1], in order and
            without gaps.
        audio_rate: sample rate of these chunks, 16000 or 48000 Hz.
        video: called with each frame of the peer's camera, `(H, W, 3)` uint8 RGB, and its capture
            time, `time.monotonic`; it is not trusted.
        trouble: called again and again while frames of the camera are not read, with the reason.
        has_camera: whether the peer may send a camera; without it, its video is declined.
        channel: called when the data channel is open and `peer.send` works.
        message: called with each data channel message, text or bytes; it is not trusted.
    """

    state: Callable[[PeerState], None] = _ignore
    microphone: Callable[[], None] = _ignore
    audio: Callable[[np.ndarray], None] = _ignore
    audio_rate: int = SAMPLE_RATE
    video: Callable[[np.ndarray, float], None] = _ignore
    trouble: Callable[[CameraTrouble], None] = _ignore
    has_camera: bool = False
    channel: Callable[[], None] = _ignore
    message: Callable[[object], None] = _ignore


class Media(Protocol):
    """The encoded audio and video of one session, shared by all its peers."""

    def request_key_frame(self) -> None:
        """Encode the next frame as a key frame; call after the avatar was changed."""
        ...

    async def aclose(self) -> None:
        """Stop encoding. Safe to call twice."""
        ...


class Peer(Protocol):
    """A peer connection."""

    @property
    def state(self) -> PeerState:
        """State of the connection."""
        ...

    @property
    def last_received_s(self) -> float:
        """When a packet of the peer last arrived, `time.monotonic`; 0 before the first one.

        Receivers send a report about once a second, so after 5 s of silence the peer is lost.
        """
        ...

    async def answer(self, offer: str) -> str:
        """Accept an SDP offer and return the answer with all candidates; call it once.

        Raises:
            BadOfferError: The offer is not valid SDP, or does not match the role.
        """
        ...

    async def trickle(self, fragment: str) -> None:
        """Add trickled candidates: the body of a WHIP or WHEP `PATCH` (RFC 8840).

        Raises:
            BadRequestError: The body is not a valid SDP fragment.
            IceRestartError: The fragment has another user name fragment.
        """
        ...

    async def restart(self, fragment: str) -> str:
        """Restart ICE with the body of a WHIP or WHEP `PATCH`; return that of the answer.

        Raises:
            BadRequestError: The body is not a valid SDP fragment, or has no credentials.
            IceRestartError: The connection cannot be restarted.
        """
        ...

    def send(self, text: str) -> bool:
        """Send a data channel message; return False if no channel is open or its buffer is full."""
        ...

    def stats(self) -> PeerStats:
        """Return statistics of the connection."""
        ...

    async def aclose(self) -> None:
        """Close the connection. Safe to call twice, and before an answer."""
        ...


class Transport(Protocol):
    """Creates peer connections; there is one per server process."""

    def media(self, playout: SlotPlayout) -> Media:
        """Create the media of a session."""
        ...

    def open(self, role: PeerRole, media: Media, handlers: Handlers) -> Peer:
        """Create the server's end of a connection; nothing is sent before `answer`."""
        ...

    def close(self) -> None:
        """Release all resources; call after all peers and media are closed."""
        ...
