"""Offer in, answer out: one peer connection with the microphone up, picture and voice down."""

import logging
import re

from aiortc import (
    RTCConfiguration,
    RTCIceServer,
    RTCPeerConnection,
    RTCRtpCodecCapability,
    RTCRtpSender,
    RTCSessionDescription,
)
from aiortc.codecs import vpx
from aiortc.mediastreams import MediaStreamTrack

from letstalk_server import problems
from letstalk_server.problems import Problem
from letstalk_server.settings import Settings

log = logging.getLogger(__name__)

START_BITRATE = 1_000_000
MIN_BITRATE = 400_000
MAX_BITRATE = 2_000_000
"""Of VP8, bit/s. 512x512 talking heads look clean at 1 Mbit/s; below 0.4 they smear."""

MAX_OFFER_CHARS = 64_000
MAX_SECTIONS = 4
MAX_CANDIDATES = 64


def set_bitrates() -> None:
    """Set the bounds of aiortc's VP8 encoder; it has no public way (aiortc issue 1159)."""
    vpx.DEFAULT_BITRATE = START_BITRATE
    vpx.MIN_BITRATE = MIN_BITRATE
    vpx.MAX_BITRATE = MAX_BITRATE


def open_peer(
    settings: Settings, video: MediaStreamTrack, audio: MediaStreamTrack
) -> RTCPeerConnection:
    """Make the server's end of a connection that sends these tracks and receives a voice."""
    servers = [
        RTCIceServer(urls=server.url, username=server.username, credential=server.credential)
        for server in settings.ice_servers
    ]
    peer = RTCPeerConnection(RTCConfiguration(iceServers=servers))
    sight = peer.addTransceiver(video, "sendonly")
    sight.setCodecPreferences(_codecs("video", "video/vp8", "video/rtx", "video/h264"))
    sound = peer.addTransceiver(audio, "sendrecv")
    sound.setCodecPreferences(_codecs("audio", "audio/opus"))
    return peer


async def answer(peer: RTCPeerConnection, sdp: str) -> str:
    """Accept an offer and give the answer, candidates included.

    Raises:
        Problem: the offer is not SDP, or not one for an avatar session.
    """
    offer = RTCSessionDescription(sdp=clean_offer(sdp), type="offer")
    try:
        await peer.setRemoteDescription(offer)
        await peer.setLocalDescription(await peer.createAnswer())
    except Exception as error:
        # aiortc's parser raises whatever a malformed line leads to, and its text may quote SDP.
        log.info("offer refused (%s)", type(error).__name__)
        raise Problem(
            problems.BAD_OFFER,
            "The offer could not be negotiated. It must be WebRTC SDP with one video section "
            "that receives VP8 or H.264 and at most one audio section with Opus.",
        ) from None
    return str(peer.localDescription.sdp)


def clean_offer(sdp: str) -> str:
    """Check the outline of an offer and take out what would only cost time.

    mDNS candidates (`.local`) need multicast to resolve, which holds up the answer for seconds
    where there is none. The peer reaches us all the same: it knows our addresses, and its checks
    tell us its own. End-of-candidates goes too, or ICE would give up before they arrive.

    Raises:
        Problem: it is too long, or has other sections than an avatar session needs.
    """
    if len(sdp) > MAX_OFFER_CHARS:
        raise Problem(
            problems.BAD_OFFER,
            f"The offer has {len(sdp)} characters; at most {MAX_OFFER_CHARS} are read.",
        )
    lines = sdp.replace("\r\n", "\n").split("\n")
    kinds = [line[2:].split(" ")[0] for line in lines if line.startswith("m=")]
    if kinds.count("video") != 1 or kinds.count("audio") > 1 or len(kinds) > MAX_SECTIONS:
        raise Problem(
            problems.BAD_OFFER,
            "The offer must have one video section, at most one audio section and at most one "
            "data channel section.",
        )
    mids = {line[6:].strip() for line in lines if line.startswith("a=mid:")}
    bundles = [line.split()[1:] for line in lines if line.startswith("a=group:BUNDLE")]
    if any(mid not in mids for bundle in bundles for mid in bundle):
        raise Problem(problems.BAD_OFFER, "The offer bundles a section that it does not have.")
    if sum(line.startswith("a=candidate:") for line in lines) > MAX_CANDIDATES:
        raise Problem(problems.BAD_OFFER, f"The offer has more than {MAX_CANDIDATES} candidates.")
    return "\r\n".join(line for line in lines if not _SLOW_LINE.match(line))


_SLOW_LINE = re.compile(r"a=candidate:\S+ \d+ \S+ \d+ \S+\.local |a=end-of-candidates")


def _codecs(kind: str, *names: str) -> list[RTCRtpCodecCapability]:
    known = RTCRtpSender.getCapabilities(kind).codecs
    return [codec for name in names for codec in known if codec.mimeType.lower() == name]
