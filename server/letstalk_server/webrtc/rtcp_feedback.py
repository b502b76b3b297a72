"""What feedback packets of a receiver say (RFC 4585): key frame requests, bandwidth estimates."""

import struct

from aiortc.rtp import (
    RTCP_PSFB_APP,
    RTCP_PSFB_FIR,
    RTCP_PSFB_PLI,
    RtcpPsfbPacket,
    unpack_remb_fci,
)


def asks_for_key_frame(packet: RtcpPsfbPacket, ssrc: int) -> bool:
    """Return whether a packet is a PLI, or a FIR of this stream."""
    if packet.fmt == RTCP_PSFB_FIR:
        # Entries of 8 bytes that begin with the SSRC.
        starts = range(0, len(packet.fci), 8)
        return ssrc.to_bytes(4, "big") in [packet.fci[start : start + 4] for start in starts]
    return packet.fmt == RTCP_PSFB_PLI


def estimated_bitrate(packet: RtcpPsfbPacket, ssrc: int) -> int | None:
    """Return the estimate of a REMB message for this stream, bit/s; None for any other packet."""
    if packet.fmt != RTCP_PSFB_APP:
        return None
    try:
        bitrate, ssrcs = unpack_remb_fci(packet.fci)
    except (ValueError, IndexError, struct.error):
        return None  # another application message, or a malformed one
    return bitrate if ssrc in ssrcs else None
