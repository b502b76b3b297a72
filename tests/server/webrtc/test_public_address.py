"""The public address in answers, where NAT maps it to this machine."""

import pytest
from support.server_fakes import Peer, patient, serving

from letstalk_rt.errors import ConfigError
from letstalk_server.webrtc.public_address import PublicAddress

ANSWER = """v=0
o=- 1 1 IN IP4 0.0.0.0
m=audio 40000 UDP/TLS/RTP/SAVPF 96
c=IN IP4 10.0.0.5
a=candidate:1 1 udp 2130706431 10.0.0.5 40000 typ host
a=candidate:2 1 udp 2130706431 172.17.0.1 40001 typ host
a=candidate:3 1 udp 1694498815 203.0.113.9 40002 typ srflx raddr 10.0.0.5 rport 40000
""".replace("\n", "\r\n")


def test_the_local_address_becomes_the_public_one_and_others_go():
    answer = PublicAddress("203.0.113.7", "10.0.0.5").put_into(ANSWER)
    assert "172.17.0.1" not in answer and "10.0.0.5" not in answer.replace("raddr 10.0.0.5", "")
    assert "c=IN IP4 203.0.113.7\r\n" in answer
    assert "udp 2130706431 203.0.113.7 40000 typ host\r\n" in answer
    assert "203.0.113.9 40002 typ srflx" in answer, "what STUN has found stays"


async def test_an_answer_names_the_public_address_only():
    async with serving(patient(public_address="203.0.113.7")) as (_, client):
        peer = Peer()
        answer = (await client.post("/v1/offer", json=await peer.offer())).json()["sdp"]
        candidates = [line for line in answer.splitlines() if line.startswith("a=candidate")]
        assert {line.split()[4] for line in candidates} == {"203.0.113.7"}
        await peer.close()


def test_an_address_without_a_way_to_it_is_refused():
    with pytest.raises(ConfigError, match="visitors reach"):
        PublicAddress.find("255.255.255.255")
