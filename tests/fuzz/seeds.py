"""Makes the valid part of the corpus: `python -m fuzz.seeds` in tests/.

Offers are aiortc's, with secrets in place of addresses, and one by hand as browsers write them; the
rest is put together here. The files are in the repository, so that a seed gives the same inputs
everywhere.
"""

import asyncio
import io
import json
import re
import struct

from aioice import stun
from aiortc import RTCConfiguration, RTCPeerConnection, rtp
from PIL import Image
from support.opus import opus_packets
from support.server_fakes import portrait_jpeg

from fuzz.corpus import keep
from fuzz.targets import MARK

SSRC = int.from_bytes(MARK, "big")
CANDIDATE = "candidate:1 1 udp 2122260223 192.0.2.77 50000 typ host generation 0 ufrag UFRAG"
BROWSER = """v=0
o=- 4611731400430051336 2 IN IP4 127.0.0.1
s=SENTINEL
t=0 0
a=group:BUNDLE 0 1 2
a=extmap-allow-mixed
a=msid-semantic: WMS
m=audio 9 UDP/TLS/RTP/SAVPF 111 63 9
c=IN IP4 0.0.0.0
a=rtcp:9 IN IP4 0.0.0.0
a=ice-ufrag:aBcD
a=ice-pwd:SENTINELaBcDeFgHiJkLmNoP
a=ice-options:trickle
a=fingerprint:sha-256 {fingerprint}
a=setup:actpass
a=mid:0
a=extmap:1 urn:ietf:params:rtp-hdrext:ssrc-audio-level
a=extmap:4 urn:ietf:params:rtp-hdrext:sdes:mid
a=sendrecv
a=rtcp-mux
a=rtpmap:111 opus/48000/2
a=rtcp-fb:111 transport-cc
a=fmtp:111 minptime=10;useinbandfec=1
a=rtpmap:63 red/48000/2
a=fmtp:63 111/111
a=rtpmap:9 G722/8000
a=ssrc:1001 cname:SENTINEL
m=video 9 UDP/TLS/RTP/SAVPF 96 97 103 104
c=IN IP4 0.0.0.0
a=rtcp:9 IN IP4 0.0.0.0
a=ice-ufrag:aBcD
a=ice-pwd:SENTINELaBcDeFgHiJkLmNoP
a=fingerprint:sha-256 {fingerprint}
a=setup:actpass
a=mid:1
a=extmap:2 http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time
a=extmap:4 urn:ietf:params:rtp-hdrext:sdes:mid
a=recvonly
a=rtcp-mux
a=rtcp-rsize
a=rtpmap:96 VP8/90000
a=rtcp-fb:96 goog-remb
a=rtcp-fb:96 ccm fir
a=rtcp-fb:96 nack
a=rtcp-fb:96 nack pli
a=rtpmap:97 rtx/90000
a=fmtp:97 apt=96
a=rtpmap:103 H264/90000
a=rtcp-fb:103 nack pli
a=fmtp:103 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f
a=rtpmap:104 rtx/90000
a=fmtp:104 apt=103
m=application 9 UDP/DTLS/SCTP webrtc-datachannel
c=IN IP4 0.0.0.0
a=ice-ufrag:aBcD
a=ice-pwd:SENTINELaBcDeFgHiJkLmNoP
a=fingerprint:sha-256 {fingerprint}
a=setup:actpass
a=mid:2
a=sctp-port:5000
a=max-message-size:262144
"""
MESSAGES = [
    {"type": "session.ping", "event_id": "p1"},
    {"type": "session.configure", "stats_s": 2,
     "audio": {"format": "pcm16", "sample_rate": 24000, "channels": 1}},
    {"type": "session.configure", "audio": {"format": "opus"}},
    {"type": "session.configure",
     "frames": {"format": "jpeg", "quality": 80, "max_fps": 25, "sound": "pcm16"}},
    {"type": "avatar.interrupt", "event_id": "SENTINEL"},
    {"type": "avatar.select", "avatar": "amber"},
    {"type": "avatar.select", "portrait": "SENTINEL"},
    {"type": "audio.append", "audio": "AAABAAIAAwAEAAUABgAHAAgACQAKAAsADAANAA4ADwA="},
    {"type": "speech.say", "text": "SENTINEL says hello."},
    {"type": "segment.end"},
    {"type": "overlay.update", "overlay": {"name": "SENTINEL", "bg": "green", "n": 1.5}},
    {"type": "performance.mood", "mood": "warm", "strength": 0.7},
    {"type": "performance.mood", "style": {"smile": 1.5, "blink_rate": -1}},
    {"type": "performance.gesture", "gesture": "nod", "amount": 1.5, "at_ms": 400},
    {"type": "performance.listening", "mode": "attentive"},
]  # fmt: skip
BODIES = [
    b"\x00" + json.dumps({"avatar": "amber", "options": {
        "badge": True, "seed": 7, "sample_rate": 48000,
        "motion": {"expressiveness": 1.5, "head_motion": True, "blinks_per_min": 20},
    }}).encode(),
    b"\x00{}",
    b"\x01" + json.dumps({"subject": "SENTINEL", "scopes": ["sessions", "speak", "view"],
                          "ttl_s": 600}).encode(),
    b"\x01{}",
    b"\x02" + json.dumps({"type": "offer", "sdp": BROWSER.replace("\n", "\r\n"),
                          "avatar": "blue", "options": {"badge": False}}).encode(),
]  # fmt: skip


async def _offers():
    """Yield offers of aiortc: a page's, a player's, a microphone's."""
    kinds = [("sendrecv", "recvonly", True), ("recvonly", "recvonly", False)]
    for audio, video, channel in [*kinds, ("sendonly", None, False)]:
        pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        pc.addTransceiver("audio", audio)
        if video:
            pc.addTransceiver("video", video)
        if channel:
            pc.createDataChannel("control")
        await pc.setLocalDescription(await pc.createOffer())
        sdp = pc.localDescription.sdp
        sdp = re.sub(r"(a=candidate:\S+ \d+ udp \d+) \S+", r"\1 192.0.2.77", sdp)
        sdp = re.sub(r"(a=ice-pwd:).{8}", r"\1SENTINEL", sdp)
        yield sdp.encode()
        await pc.close()


def _images():
    face = portrait_jpeg(size=(128, 128))  # it is accepted, in each format
    yield face
    image = Image.open(io.BytesIO(face))
    for form, options in [
        ("PNG", {}), ("WEBP", {"lossless": True}), ("WEBP", {"quality": 90}), ("GIF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("JPEG", {"progressive": True, "quality": 95, "comment": b"SENTINEL"}),
    ]:  # fmt: skip
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        yield buffer.getvalue()
    indexed = image.quantize(16)
    for form, options in [("PNG", {"transparency": 3}), ("BMP", {}), ("TIFF", {})]:
        buffer = io.BytesIO()
        indexed.save(buffer, form, **options)
        yield buffer.getvalue()


def _datagrams():
    message = stun.Message(stun.Method.BINDING, stun.Class.REQUEST, b"SENTINEL----")
    message.attributes["PRIORITY"] = 1_853_824_767
    message.attributes["ICE-CONTROLLING"] = 2**63 + 1
    plain = bytes(message)
    yield b"\x01" + plain  # it will be signed
    message.attributes["USE-CANDIDATE"] = None
    yield b"\x03" + bytes(message)
    message.attributes["ICE-CONTROLLED"] = 1
    message.attributes["XOR-MAPPED-ADDRESS"] = ("192.0.2.77", 9)
    message.attributes["SOFTWARE"] = "SENTINEL"
    yield b"\x05" + bytes(message)
    message.add_message_integrity(b"a password that is not right")
    yield b"\x00" + bytes(message)
    for kind in (stun.Class.INDICATION, stun.Class.RESPONSE, stun.Class.ERROR):
        yield b"\x00" + bytes(stun.Message(stun.Method.BINDING, kind, b"SENTINEL----"))
    allocate = stun.Message(stun.Method.ALLOCATE, stun.Class.REQUEST)
    allocate.attributes["ERROR-CODE"] = (438, "Stale Nonce")
    yield b"\x00" + bytes(allocate)
    yield b"\x00"  # an empty datagram
    record = struct.pack("!BHHIHH", 22, 0xFEFD, 0, 0, 1, 60)
    yield b"\x00" + record + struct.pack("!BHBHHBH", 1, 0, 48, 0, 0, 0, 0) + bytes(48)
    yield b"\x00" + struct.pack("!BHHIHH", 21, 0xFEFD, 1, 0, 9, 2) + b"\x02\x28"
    yield b"\x00" + struct.pack("!BBHLL", 0x80, 96, 1, 2, 3) + bytes(60)
    yield b"\x00" + struct.pack("!BBHL", 0x80, 201, 7, 4) + bytes(40)


def _rtp():
    for number, payload in enumerate(opus_packets(0.1)):
        yield struct.pack("!BBHLL", 0x80, 96, number, number * 960, 5) + payload
    payload = opus_packets(0.02)[0]
    one = b"\xbe\xde\x00\x02" + b"\x10\x30" + b"\x22abc" + b"\x00\x00"
    yield struct.pack("!BBHLL", 0x90, 0xE0, 9, 9, 5) + one + payload
    two = b"\x10\x00\x00\x02" + b"\x01\x01\x30" + b"\x02\x02ab" + b"\x00"
    yield struct.pack("!BBHLL", 0x90, 96, 9, 9, 5) + two + payload
    yield struct.pack("!BBHLL", 0xA2, 96, 9, 9, 5) + b"SENTINEL" + payload + b"\x00\x00\x00\x04"
    yield struct.pack("!BBHLL", 0x80, 97, 9, 9, 6) + b"\x00\x08" + payload


def _rtcp():
    info = rtp.RtcpReceiverInfo(SSRC, 30, 100, 5000, 300, 7, 8)
    sender = rtp.RtcpSenderInfo(2**63, 2, 3, 4)
    packets = [
        rtp.RtcpRrPacket(ssrc=1, reports=[info]),
        rtp.RtcpSrPacket(ssrc=1, sender_info=sender, reports=[info, info]),
        rtp.RtcpRtpfbPacket(fmt=rtp.RTCP_RTPFB_NACK, ssrc=1, media_ssrc=SSRC, lost=[1, 2, 3, 40]),
        rtp.RtcpPsfbPacket(fmt=rtp.RTCP_PSFB_PLI, ssrc=1, media_ssrc=SSRC),
        rtp.RtcpPsfbPacket(fmt=rtp.RTCP_PSFB_FIR, ssrc=1, media_ssrc=0, fci=MARK + b"\1\0\0\0"),
        rtp.RtcpPsfbPacket(
            fmt=rtp.RTCP_PSFB_APP, ssrc=1, media_ssrc=0, fci=rtp.pack_remb_fci(300_000, [SSRC])
        ),
        rtp.RtcpSdesPacket(chunks=[rtp.RtcpSourceInfo(ssrc=1, items=[(1, b"SENTINEL")])]),
        rtp.RtcpByePacket(sources=[1, SSRC]),
    ]
    for packet in packets:
        yield bytes(packet)
    yield b"".join(map(bytes, packets[:4]))
    yield struct.pack("!BBHL4s", 0x80, 204, 2, 1, b"SENT")
    yield struct.pack("!BBHLLHHBBH", 0x8F, 205, 5, 1, SSRC, 0, 1, 0, 1, 0) + bytes(4)


def _chunk(kind, flags, body):
    return struct.pack("!BBH", kind, flags, len(body) + 4) + body + bytes(-len(body) % 4)


def _sctp():
    head = struct.pack("!HHLL", 5000, 5000, 0, 0)
    text = b'{"type": "session.ping", "event_id": "SENTINEL"}'
    opening = struct.pack("!BBHLHH", 3, 0, 0, 0, 5, 0) + b"other"
    for stream, protocol, body in [
        (1, 51, text), (1, 53, bytes(40)), (1, 56, b"\0"), (3, 50, opening), (5, 50, b"\2"),
    ]:  # fmt: skip
        yield head + _chunk(0, 3, MARK + struct.pack("!HHL", stream, 0, protocol) + body)
    for flags in (0, 1, 2, 4, 7):  # parts of messages, unordered ones
        yield head + _chunk(0, flags, MARK + struct.pack("!HHL", 1, 1, 51) + text)
    yield head + _chunk(3, 0, struct.pack("!LLHHHHL", 0, 131_072, 1, 1, 2, 3, 9))
    yield head + _chunk(4, 0, b"\0\1\0\x0cSENTINEL") + _chunk(5, 0, b"\0\1\0\x08SENT")
    yield head + _chunk(192, 0, MARK + struct.pack("!HH", 1, 1))
    reset = struct.pack("!HHLLLH", 13, 18, 1, 1, 1, 1) + bytes(2)
    yield head + _chunk(130, 0, reset + struct.pack("!HHLL", 16, 12, 1, 1))
    yield head + _chunk(130, 0, struct.pack("!HHLHH", 17, 12, 1, 5, 0))
    yield head + _chunk(1, 0, struct.pack("!LLHHL", 1, 131_072, 5, 5, 1) + b"\xc0\0\0\4")
    yield head + _chunk(10, 0, b"SENTINEL") + _chunk(11, 0, b"")
    yield head + _chunk(9, 0, b"\0\1\0\x08SENT") + _chunk(0x44, 0, b"unknown")


def main():
    """Write the seeds."""
    fingerprint = ":".join(["AB"] * 32)
    browser = BROWSER.format(fingerprint=fingerprint).replace("\n", "\r\n")

    async def offers():
        return [offer async for offer in _offers()]

    head = "a=ice-ufrag:UFRAG\r\nm=audio 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:0\r\n"
    made = {
        "sdp": [browser.encode(), *asyncio.run(offers())],
        "fragments": [
            f"{head}a={CANDIDATE}\r\na={CANDIDATE.replace('192.0.2.77', 'x.local')}\r\n".encode(),
            f"{head}a=end-of-candidates\r\n".encode(),
            f"{head}a={CANDIDATE.replace('192.0.2.77', '2001:db8::1')} tcptype active\r\n".encode(),
        ],
        "images": list(_images()),
        "bodies": [body.replace(b"{fingerprint}", fingerprint.encode()) for body in BODIES],
        "messages": [b"T" + json.dumps(message).encode() for message in MESSAGES]
        + [bytes(640), opus_packets(0.02)[0]],
        "datagrams": list(_datagrams()),
        "rtp": list(_rtp()),
        "rtcp": list(_rtcp()),
        "sctp": list(_sctp()),
    }
    for target, seeds in made.items():
        for seed in seeds:
            keep(target, seed, "seed")


if __name__ == "__main__":
    main()
