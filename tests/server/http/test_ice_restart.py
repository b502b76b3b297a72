"""ICE restarts by the `PATCH` of WHIP and WHEP: the connection goes on from another address."""

from bad_network.moving_client import restart_ice
from support.aiortc_internals import Arrivals
from support.server_fakes import Peer, problem, serving

FRAGMENT = "application/trickle-ice-sdpfrag"


async def test_an_ice_restart_moves_a_page_to_another_socket_in_the_same_connection():
    async with serving() as (app, client):
        peer = await Peer().join(client)
        await peer.until(lambda: len(peer.video) > 3)
        session = (await client.get(f"/v1/sessions/{peer.session}")).json()
        (connection,) = (each["id"] for each in session["connections"])
        place, port = f"/v1/sessions/{peer.session}/connections/{connection}", own_port(peer)
        answers = []

        async def patch(fragment, condition="*"):
            headers = {"content-type": FRAGMENT, "if-match": condition}
            answers.append(await client.patch(place, content=fragment, headers=headers))
            return answers[-1].text

        await restart_ice(peer.pc, patch)
        await peer.until(lambda: own_port(peer) != port)
        seen, pongs = len(peer.video), len(peer.said("session.pong"))
        await peer.until(lambda: len(peer.video) > seen + 5)
        await peer.until(lambda: len(peer.said("session.pong")) > pongs)
        assert peer.pc.connectionState == "connected" and len(app.state.sessions) == 1
        assert answers[0].status_code == 200 and "a=candidate:" in answers[0].text
        assert answers[0].headers["content-type"] == FRAGMENT
        tag = answers[0].headers["etag"]
        await patch("a=mid:0\r\n", f'"{connection}"')
        problem(answers[-1], 412, "precondition-failed")
        await patch("a=mid:0\r\n", tag)
        assert answers[-1].status_code == 204
        for bad in ("a=ice-ufrag:abcd\r\n", f"a=ice-ufrag:a b c\r\na=ice-pwd:{22 * 'x'}\r\n"):
            await patch(bad)
            problem(answers[-1], 400, "bad-request")
        await peer.close()


def own_port(peer):
    return Arrivals(peer.pc).own_port
