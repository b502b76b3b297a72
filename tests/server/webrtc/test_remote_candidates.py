"""Nobody else is sent packets because a peer names their address, and peers nearby connect."""

import asyncio
import socket
import time
from contextlib import ExitStack
from dataclasses import replace

import pytest
from aioice.stun import Class, Message, Method
from support.aiortc_internals import Arrivals
from support.server_fakes import Peer, patient, problem, serving
from support.transport_stage import staged

from letstalk_rt.errors import ConfigError
from letstalk_server.session.transport import PeerRole
from letstalk_server.settings import Settings
from letstalk_server.webrtc.remote_candidates import (
    CHECK_BURST,
    CHECKS_PER_S,
    MAX_LEARNED,
    MAX_USED,
    CandidatePolicy,
)
from letstalk_server.webrtc.sdp import clean_offer
from letstalk_server.webrtc.webrtc_connection import PATCH_BURST

KEY = "k" * 40
LOCKED = patient(auth="on", api_key=KEY, secret="s" * 40)
PUBLIC = Settings(host="0.0.0.0", insecure_http=True)
LINE = "a=candidate:1 1 udp 2122260223 {} {} typ host"


def bearer(token):
    return {"authorization": f"Bearer {token}"}


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
        *("224.0.0.1", "255.255.255.255", "0.0.0.0", "240.0.0.1", "192.0.2.1"),
        *("::1", "fd00::1", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "::", "2001:db8::1"),
        *("::ffff:10.0.0.1", "::10.0.0.1", "64:ff9b::10.0.0.1", "2002:a00:1::1", "2001::a00:1"),
        *("localhost", "router.example", ""),
    ],
)
def test_addresses_that_are_not_of_the_internet_are_refused(address):
    assert not CandidatePolicy().permits(address)


def test_the_internet_and_what_is_configured_are_permitted():
    policy = CandidatePolicy(("192.168.1.0/24", "fd00::/8"))
    for address in ("8.8.8.8", "2606:4700::1111", "192.168.1.7", "fd12::3"):
        assert policy.permits(address)
    for address in ("192.168.2.7", "224.0.0.1", "fe80::1"):
        assert not policy.permits(address)


@pytest.mark.parametrize(
    ("settings", "is_permitted"),
    [
        (Settings(), True),
        (PUBLIC, False),
        (Settings(auth="on"), False),
        (replace(PUBLIC, auth="off", insecure_no_auth=True), False),
        (replace(PUBLIC, ice_networks=("10.0.0.0/8", "127.0.0.0/8")), True),
    ],
)
def test_only_a_server_for_this_machine_checks_everything_unasked(settings, is_permitted):
    policy = CandidatePolicy.of(settings)
    assert policy.permits("10.0.0.1") is is_permitted
    assert policy.permits("127.0.0.1") is is_permitted
    assert not policy.permits("224.0.0.1")


def test_a_network_must_be_one():
    with pytest.raises(ConfigError, match=r"192\.168\.0\.0/16"):
        Settings(ice_networks=("192.168.0.1/16",))


def test_no_candidate_hides_behind_a_line_separator_of_another_kind():
    hidden = LINE.format("10.0.0.1", 53)
    for separator in ("\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\r"):
        offer = f"v=0\r\nm=video 9 X 96\r\na=mid:0\r\na=x:{separator}{hidden}\r\n"
        assert "10.0.0.1" not in clean_offer(offer, PeerRole.VIEWER, CandidatePolicy().permits)


def bystanders(stack, host, count):
    """Return UDP sockets of somebody else."""
    sockets = []
    for _ in range(count):
        sockets.append(stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
        sockets[-1].bind((host, 0))
        sockets[-1].setblocking(False)
    return sockets


def received(sockets):
    """Return the number of packets that arrived at each socket."""
    counts = []
    for each in sockets:
        counts.append(0)
        while True:
            try:
                each.recv(2000)
            except BlockingIOError:
                break
            counts[-1] += 1
    return counts


def own_address(offer):
    """Return an IPv4 address of this machine that an offer names."""
    lines = [line.split() for line in offer.splitlines() if line.startswith("a=candidate:")]
    return next(parts[4] for parts in lines if ":" not in parts[4])


@pytest.mark.parametrize("way", ["offer", "trickle"])
@pytest.mark.parametrize("is_configured", [True, False])
async def test_bystanders_whom_a_peer_names_are_left_alone(way, is_configured):
    networks = ("0.0.0.0/0", "::/0") if is_configured else ()
    began_s = time.monotonic()
    async with staged(policy=CandidatePolicy(networks)) as stage:
        guest, peer = stage.guest(), stage.open()
        offer = await guest.offer()
        host = own_address(offer)
        lines = [
            line for line in offer.splitlines() if not line.startswith(("a=candidate", "a=end"))
        ]
        with ExitStack() as stack:
            sockets = bystanders(stack, host, 60)
            named = [LINE.format(host, each.getsockname()[1]) for each in sockets]
            if way == "offer":
                last = next(i for i, line in enumerate(lines) if line.startswith("a=mid:"))
                await peer.answer("\r\n".join(lines[: last + 1] + named + lines[last + 1 :]))
            else:
                await peer.answer("\r\n".join(lines))
                await peer.trickle("\r\n".join(["a=mid:0", *named]))
            counts = [0] * 60
            for _ in range(15):
                await asyncio.sleep(0.1)
                counts = [a + b for a, b in zip(counts, received(sockets), strict=True)]
            passed_s = time.monotonic() - began_s
        hit = sum(count > 0 for count in counts)
        assert hit == (MAX_USED if is_configured else 0)
        assert sum(counts) <= CHECK_BURST + CHECKS_PER_S * passed_s


async def test_peers_nearby_connect_though_no_address_of_theirs_is_checked_unasked():
    async with serving(LOCKED) as (_, client):
        made = await client.post("/v1/tokens", json={"subject": "ann"}, headers=bearer(KEY))
        client.headers.update(bearer(made.json()["token"]))
        peer = await Peer().join(client)
        assert not CandidatePolicy().permits(own_address(peer.pc.localDescription.sdp))
        await peer.until(lambda: len(peer.video) > 5)
        await peer.close()


async def test_checks_from_forged_addresses_are_not_answered_with_checks_without_end():
    async with staged() as stage:
        guest = stage.guest()
        await stage.connect(guest)
        await guest.until(lambda: len(guest.video) > 3)
        ours = Arrivals(stage.connections[0])
        name, password = ours.credentials
        before = ours.known_addresses
        for port in range(1000, 1100):
            check = Message(message_method=Method.BINDING, message_class=Class.REQUEST)
            check.attributes["USERNAME"] = name
            check.attributes["PRIORITY"] = 1
            check.attributes["ICE-CONTROLLING"] = 1
            check.add_message_integrity(password.encode())
            ours.datagram(bytes(check), ("192.0.2.9", port))
        assert 0 < ours.known_addresses - before <= MAX_LEARNED
        count = len(guest.video)
        await guest.until(lambda: len(guest.video) > count + 5)


async def test_candidates_are_not_sent_all_the_time():
    async with serving() as (_, client):
        peer = await Peer().join(client)
        session = (await client.get(f"/v1/sessions/{peer.session}")).json()
        path = f"/v1/sessions/{peer.session}/connections/{session['connections'][0]['id']}"
        tag = f'"{session["connections"][0]["id"]}"'
        headers = {"content-type": "application/trickle-ice-sdpfrag", "if-match": tag}
        answers = [
            await client.patch(path, content="a=mid:0\r\n", headers=headers)
            for _ in range(2 * int(PATCH_BURST))
        ]
        assert answers[0].status_code == 204
        problem(answers[-1], 429, "too-many-requests")
        assert answers[-1].headers["retry-after"] == "2"
        await peer.close()
