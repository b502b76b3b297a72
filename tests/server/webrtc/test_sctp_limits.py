"""Incomplete messages of a peer: what is held for it is bounded, and more ends the peer."""

import pytest
from aiortc import RTCSctpTransport
from aiortc.rtcdtlstransport import RTCCertificate, RTCDtlsTransport
from aiortc.rtcicetransport import RTCIceGatherer, RTCIceTransport
from aiortc.rtcsctptransport import (
    SCTP_DATA_FIRST_FRAG,
    SCTP_DATA_LAST_FRAG,
    SCTP_DATA_UNORDERED,
    DataChunk,
)

from letstalk_server.webrtc.hardening import MAX_HELD_FRAGMENTS, MAX_STREAMS, harden_channel

BEGIN, MIDDLE = SCTP_DATA_FIRST_FRAG, 0
WHOLE = SCTP_DATA_FIRST_FRAG | SCTP_DATA_LAST_FRAG


@pytest.fixture
async def peer():
    """Return a hardened SCTP transport, and the list of its calls of `on_excess`."""
    ice = RTCIceTransport(RTCIceGatherer())
    sctp = RTCSctpTransport(RTCDtlsTransport(ice, [RTCCertificate.generateCertificate()]))
    sctp._last_received_tsn = 0
    calls = []
    harden_channel(sctp, lambda: calls.append("excess"))
    return sctp, calls


async def send(sctp, count, *, flags, size=1, streams=1, skip=0, others=MIDDLE):
    """Receive so many chunks; the first has `flags`, the rest `others`."""
    for index in range(count):
        chunk = DataChunk(flags=others if index else flags)
        chunk.tsn, chunk.stream_id, chunk.stream_seq = index + 1 + skip, index % streams, 0
        chunk.protocol, chunk.user_data = 51, bytes(size)
        await sctp._receive_data_chunk(chunk)


def held(sctp):
    return sum(len(stream.reassembly) for stream in sctp._inbound_streams.values())


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param({"flags": BEGIN, "size": 1000}, id="bytes"),
        pytest.param({"flags": BEGIN, "size": 0}, id="fragments"),
        pytest.param({"flags": BEGIN, "others": BEGIN, "streams": 3000}, id="streams"),
        pytest.param(
            {
                "flags": WHOLE | SCTP_DATA_UNORDERED,
                "others": WHOLE | SCTP_DATA_UNORDERED,
                "skip": 1,
            },
            id="gap",
        ),
    ],
)
async def test_endless_messages_end_the_peer_once(peer, attack):
    sctp, calls = peer
    await send(sctp, 3 * MAX_HELD_FRAGMENTS, **attack)
    assert calls == ["excess"]
    assert held(sctp) <= MAX_HELD_FRAGMENTS + 1
    assert len(sctp._inbound_streams) <= MAX_STREAMS + 1
    assert len(sctp._sack_misordered) <= MAX_HELD_FRAGMENTS + 1


async def test_a_message_of_the_largest_size_may_be_incomplete(peer):
    sctp, calls = peer
    await send(sctp, 65, flags=BEGIN, size=1000)
    assert held(sctp) == 65
    assert not calls
