"""What is attacked. A target takes one input and raises `Broken`, or anything else, if the server
did what it must not."""

import asyncio
from unittest import mock

from aioice import stun
from google_crc32c import value as crc32c

from fuzz.world import SECRETS, Broken, application, connection, conversation
from letstalk_server.protocol.server_messages import Fail
from letstalk_server.session.announcer import Announcer

MARK = b"\xca\xfe\xd0\x0d"
"""In a packet: the SSRC of the attacked connection, or the TSN that it expects."""

REFUSED = {400, 401, 403, 404, 405, 409, 412, 413, 415, 422, 428, 429}
"""Answers to hostile requests. 503 is one too: each new session is refused while others end."""

FRESH_AFTER = 2000
"""Inputs after which a world is replaced: hostile peers may well ruin their own connection."""


class Target:
    """Attacks what a world holds; subclasses say how.

    Attributes:
        opening: makes the world.
        refused: how many inputs were refused, or dropped.
    """

    opening = None

    def __init__(self, world):
        self.world = world
        self.refused = 0
        self._count = 0

    def check(self, data):
        """Attack with one input."""
        self._count += 1
        try:
            goes_on = self.world.run(self.attack(self.world.inside, data))
            self.world.watch.check()
        except Exception:
            self.world.reopen()
            raise
        if not goes_on or self._count % FRESH_AFTER == 0:
            self.world.reopen()

    async def attack(self, inside, data):
        """Let an input arrive, and return whether the world can still be attacked."""
        raise NotImplementedError


class Requests(Target):
    """Attacks the HTTP API of a whole server; subclasses send the input."""

    opening = staticmethod(application)

    async def attack(self, inside, data):
        """Send a request; it is answered or refused in order."""
        response = await self.send(inside.client, inside, data)
        status = response.status_code
        if status in (200, 201, 204):
            if location := response.headers.get("location"):
                await inside.client.delete(location)
            return True
        self.refused += 1
        if status not in REFUSED | {503}:
            raise Broken(f"expected success or a refusal, got status {status}")
        problem = response.json()
        if problem["status"] != status or not problem["code"] or len(problem["detail"]) < 10:
            raise Broken(f"expected a problem document that explains, got {sorted(problem)}")
        if any(secret in response.text for secret in SECRETS):
            raise Broken(f"expected a refusal that does not repeat the input, got {problem}")
        return True

    async def send(self, client, inside, data):
        """Send the input, and return the response."""
        raise NotImplementedError


class Sdp(Requests):
    """Offers of pages, WHIP and WHEP."""

    async def send(self, client, inside, data):
        if b"m=application" in data:
            body = {"type": "offer", "sdp": data.decode("utf-8", "replace")}
            return await client.post("/v1/offer", json=body)
        kind = "whip" if b"a=sendonly" in data else "whep"
        headers = {"content-type": "application/sdp"}
        return await client.post(f"/v1/{kind}", content=data, headers=headers)


class Fragments(Requests):
    """Trickled candidates."""

    opening = staticmethod(conversation)

    async def send(self, client, inside, data):
        session = inside.peer.session
        described = (await client.get(f"/v1/sessions/{session}")).json()
        name = described["connections"][0]["id"]
        return await client.patch(
            f"/v1/sessions/{session}/connections/{name}",
            content=data.replace(b"UFRAG", inside.ufrag.encode()),
            headers={"content-type": "application/trickle-ice-sdpfrag", "if-match": f'"{name}"'},
        )


class Images(Requests):
    """Portraits that are uploaded."""

    async def send(self, client, inside, data):
        return await client.post("/v1/avatars?consent=true&label=x", content=data)


class Bodies(Requests):
    """JSON of requests: the first byte chooses the endpoint."""

    PATHS = ("/v1/sessions", "/v1/tokens", "/v1/offer")

    async def send(self, client, inside, data):
        path = self.PATHS[data[0] % len(self.PATHS)] if data else self.PATHS[0]
        headers = {"content-type": "application/json"}
        return await client.post(path, content=data[1:], headers=headers)


class Messages(Target):
    """Messages of a data channel: text after the byte `T`, otherwise audio."""

    opening = staticmethod(conversation)

    async def attack(self, inside, data):
        """Let a message arrive; it may end the session, that is its right."""
        session = inside.session
        if session is None:
            return False
        (connection,) = list(session.connections)
        message = data[1:].decode("utf-8", "replace") if data[:1] == b"T" else data
        with mock.patch.object(Announcer, "send", self._counted(Announcer.send)):
            session.connections.receive(connection, message)
        return session.end_reason is None and len(session.connections) == 1

    def _counted(self, send):
        def counted(announcer, connection, message, *rest):
            self.refused += isinstance(message, Fail)
            return send(announcer, connection, message, *rest)

        return counted


class Packets(Target):
    """Attacks a connection with packets; subclasses let the input arrive."""

    opening = staticmethod(connection)

    async def attack(self, inside, data):
        """Let a packet arrive; the connection stands after it."""
        dropped = self.world.watch.dropped
        await self.arrive(inside.packets, data)
        await asyncio.sleep(0)  # what the packet woke up
        self.refused += self.world.watch.dropped > dropped
        if not (inside.is_connected and inside.packets.is_alive):
            raise Broken("expected that the connection stands, but it was closed")
        return self.is_usable(inside.packets)

    def is_usable(self, packets):
        """Return whether the connection can still be attacked."""
        return True

    async def arrive(self, packets, data):
        """Let an input arrive."""
        raise NotImplementedError


class Datagrams(Packets):
    """Datagrams at the socket: STUN and what else comes. The first byte chooses the sender's port,
    and whether the rest becomes the attributes of a check that is signed."""

    async def arrive(self, packets, data):
        flags, rest = (data[0], data[1:]) if data else (0, b"")
        if flags & 1:
            rest = signed(rest, *packets.credentials)
        packets.datagram(rest, ("127.0.0.1", 40_000 + (flags >> 1)))


def signed(data, username, password):
    """Return a STUN message with the attributes of another one, for a known user."""
    request = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
    request.attributes["USERNAME"] = username
    request.add_message_integrity(password.encode())
    head = bytes(request)
    start = head[: -(24 + 8)]  # without MESSAGE-INTEGRITY and FINGERPRINT
    body = start[20:] + data[20:1000]
    body += bytes(-len(body) % 4)
    header = start[:2] + (len(body) + 24).to_bytes(2, "big") + start[4:20]
    integrity = stun.message_integrity(header + body, password.encode())
    body += b"\x00\x08\x00\x14" + integrity
    header = header[:2] + (len(body) + 8).to_bytes(2, "big") + header[4:]
    fingerprint = stun.message_fingerprint(header + body)
    return header + body + b"\x80\x28\x00\x04" + fingerprint.to_bytes(4, "big")


class Rtp(Packets):
    """RTP packets of a peer, decrypted."""

    async def arrive(self, packets, data):
        await packets.rtp(data)


class Rtcp(Packets):
    """RTCP packets of a peer, decrypted, about what it receives."""

    async def arrive(self, packets, data):
        ssrc = max(packets.ssrcs).to_bytes(4, "big")
        await packets.rtcp(data.replace(MARK, ssrc))


class Sctp(Packets):
    """SCTP packets of a peer, decrypted, with a valid tag and checksum."""

    def is_usable(self, packets):
        return packets.has_association

    async def arrive(self, packets, data):
        tag, tsn = packets.sctp_tags
        data = data.replace(MARK, tsn.to_bytes(4, "big"))
        first = data[12:13]
        head = data[:4].ljust(4, b"\0") + (0 if first == b"\1" else tag).to_bytes(4, "big")
        checksum = crc32c(head + bytes(4) + data[12:]).to_bytes(4, "little")
        await packets.sctp(head + checksum + data[12:])


TARGETS = {
    "sdp": (Sdp, 0.05),
    "fragments": (Fragments, 0.05),
    "images": (Images, 0.03),
    "bodies": (Bodies, 0.07),
    "messages": (Messages, 0.15),
    "datagrams": (Datagrams, 0.2),
    "rtp": (Rtp, 0.15),
    "rtcp": (Rtcp, 0.15),
    "sctp": (Sctp, 0.15),
}
"""Each with its share of the inputs."""
