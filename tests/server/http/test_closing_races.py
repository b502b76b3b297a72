"""Sessions that end while something is being opened on them leave nothing behind."""

import asyncio

import pytest
from aiortc import RTCConfiguration, RTCPeerConnection
from support.server_fakes import patient, serving

SDP = {"content-type": "application/sdp"}
OFFERS = 6


async def offer_sdp():
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    pc.addTransceiver("audio", "recvonly")
    pc.addTransceiver("video", "recvonly")
    await pc.setLocalDescription(await pc.createOffer())
    sdp = pc.localDescription.sdp
    await pc.close()
    return sdp


@pytest.mark.parametrize("pause_s", [0.0, 0.002, 0.01, 0.05])
async def test_offers_to_a_session_that_is_deleted_leave_no_peer_and_no_place(pause_s):
    sdp = await offer_sdp()
    async with serving(patient(max_connections=20)) as (app, client):
        before = len(asyncio.all_tasks())
        session = (await client.post("/v1/sessions")).json()["session"]
        path = f"/v1/whep?session={session}"
        offers = [
            asyncio.create_task(client.post(path, content=sdp, headers=SDP)) for _ in range(OFFERS)
        ]
        await asyncio.sleep(pause_s)
        deleted = await client.delete(f"/v1/sessions/{session}")
        answers = await asyncio.gather(*offers)
        assert deleted.status_code == 204
        assert {answer.status_code for answer in answers} <= {201, 404}
        assert not list(app.state.sessions) and app.state.sessions.occupied == 0
        async with asyncio.timeout(20):
            while len(asyncio.all_tasks()) > before:
                await asyncio.wait([asyncio.create_task(asyncio.sleep(0.05))])


async def test_a_session_is_deleted_by_many_at_once():
    async with serving(patient()) as (app, client):
        session = (await client.post("/v1/sessions")).json()["session"]
        path = f"/v1/sessions/{session}"
        answers = await asyncio.gather(*(client.delete(path) for _ in range(OFFERS)))
        assert {answer.status_code for answer in answers} <= {204, 404}
        assert not list(app.state.sessions)
