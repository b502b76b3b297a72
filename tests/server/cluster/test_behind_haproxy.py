"""Two workers behind a real HAProxy: placement, routing, draining, loss."""

import signal

import httpx
import pytest
from cluster_stage.cluster import OPERATOR, running, wait_for
from cluster_stage.hosts import LoopbackHosts
from support.packages import needs
from support.server_fakes import portrait_jpeg

pytestmark = needs("haproxy")

PLACES = 2


@pytest.fixture(scope="module")
def cluster():
    hosts = LoopbackHosts("loopback is enough for this test", [])
    with running(hosts, workers=2, proxies=1, places=PLACES, drain_s=60) as started:
        yield started


class Visitor(httpx.Client):
    """A client of the proxy that ends the sessions it has opened."""

    def __init__(self, cluster):
        super().__init__(base_url=cluster.url("p1"), headers=OPERATOR, timeout=20)
        self.opened = []

    def create(self, **fields):
        response = self.post("/v1/sessions", json=fields)
        if response.status_code == 201:
            self.opened.append(response.json()["session"])
        return response

    def end_sessions(self):
        while self.opened:
            self.delete(f"/v1/sessions/{self.opened.pop()}")


@pytest.fixture
def client(cluster):
    with Visitor(cluster) as opened:
        yield opened
        opened.end_sessions()


def test_places_fill_and_a_full_cluster_refuses_with_retry_after(cluster, client):
    answers = [client.create() for _ in range(2 * PLACES)]
    assert [answer.status_code for answer in answers] == [201] * 4
    assert sorted(name[:3] for name in client.opened) == ["w1.", "w1.", "w2.", "w2."]
    for _ in range(2):  # from a worker, then, when the agent check has told, from the proxy
        refused = client.create()
        assert refused.status_code == 503 and refused.headers["retry-after"] == "10"
        assert refused.json()["code"] == "at-capacity"
        wait_for(lambda: set(cluster.weights("p1").values()) == {0}, 10)
    client.end_sessions()
    wait_for(lambda: set(cluster.weights("p1").values()) == {100}, 10)
    assert client.create().status_code == 201


def test_who_waits_for_a_place_comes_in_on_the_worker_of_the_ticket(cluster, client):
    for _ in range(2 * PLACES):
        client.create()
    ticket = client.post("/v1/queue").json()["ticket"]
    worker = ticket.partition(".")[0]
    client.delete(
        f"/v1/sessions/{next(name for name in client.opened if name[:3] == worker + '.')}"
    )
    place = {"params": {"session": ticket}, "json": {"ticket": ticket}}
    standing = client.post("/v1/queue", **place).json()
    assert (standing["ticket"], standing["position"], standing["ready"]) == (ticket, 1, True)
    assert client.create().json()["code"] == "at-capacity", "the place is kept"
    made = client.post("/v1/sessions", **place)
    assert made.status_code == 201 and made.json()["session"].startswith(worker + ".")
    client.opened.append(made.json()["session"])


def test_metrics_of_workers_are_not_reachable_however_they_are_spelled(cluster, client):
    for path in ("/metrics", "/%6detrics", "/%6D%65trics", "/metric%73?x=1"):
        assert client.get(path).status_code == 404, path
        assert "letstalk_sessions" not in client.get(path).text


def test_a_forwarded_address_is_believed_by_nobody(cluster, client):
    """Neither may a visitor name one, nor does a worker read what the proxy passes on."""
    lies = {"x-forwarded-for": "203.0.113.7", "forwarded": "for=203.0.113.7", "x-real-ip": "::1"}
    assert client.get("/healthz", headers=lies).status_code == 200
    bare = httpx.get(cluster.url("p1") + "/v1/avatars", headers=lies | {"host": "localhost"})
    assert bare.status_code == 401


def test_a_session_is_found_by_path_query_body_and_token(cluster, client):
    for _ in range(2 * PLACES):
        session = client.create().json()
        name = session["session"]
        bearer = {"authorization": f"Bearer {session['token']}"}
        for headers in (OPERATOR, bearer):
            for _ in range(3):
                assert client.get(f"/v1/sessions/{name}", headers=headers).status_code == 200
        offer = {"type": "offer", "sdp": "v=0"}
        for answer in (
            client.post(f"/v1/offer?session={name}", json=offer),
            client.post("/v1/offer", json={**offer, "session": name}),
            client.post("/v1/whip", headers=bearer | SDP, content="v=0"),
            client.post(f"/v1/whep?session={name}", headers=SDP, content="v=0"),
        ):
            assert answer.json()["code"] == "bad-offer", "its worker has read the offer"


SDP = {"content-type": "application/sdp"}


def test_a_token_of_one_worker_holds_on_all(cluster, client):
    token = client.post("/v1/tokens", json={"subject": "user-1"}).json()["token"]
    for worker in ("w1", "w2"):
        bearer = {"authorization": f"Bearer {token}"}
        assert httpx.get(f"{cluster.url(worker)}/v1/avatars", headers=bearer).status_code == 200


def test_a_portrait_is_asked_of_its_worker(cluster, client):
    for _ in range(4):
        session = client.create().json()["session"]
        uploaded = client.post(
            f"/v1/avatars?consent=true&session={session}", content=portrait_jpeg()
        )
        avatar = uploaded.json()["id"]
        images = uploaded.json()["images"]
        assert avatar.partition(".")[0] == session.partition(".")[0] == images.partition(".")[0]
        assert client.get(f"/v1/avatars/{images}/still.jpg").status_code == 200
        assert client.get(f"/v1/avatars/{avatar}").status_code == 200
        client.end_sessions()
        assert client.create(avatar=avatar).json()["avatar"] == avatar
        assert client.create(portrait=avatar).json()["avatar"] == avatar
        client.end_sessions()
        client.delete(f"/v1/avatars/{avatar}")


def test_pages_are_served_and_metrics_are_not(client):
    assert "<html" in client.get("/").text
    assert client.get("/metrics").status_code == 404


def test_a_draining_worker_keeps_its_sessions_and_gets_no_new_ones(cluster, client):
    for _ in range(2 * PLACES):
        client.create()
    kept = next(name for name in client.opened if name.startswith("w1."))
    cluster.stop("w1")
    wait_for(lambda: cluster.states("p1")["w1"].startswith("DRAIN"), 10)
    for name in [name for name in client.opened if name.startswith("w2.")]:
        client.delete(f"/v1/sessions/{name}")
    for _ in range(2 * PLACES):
        answer = client.create()
        assert client.get(f"/v1/sessions/{kept}").status_code == 200
        assert answer.status_code == 503 or answer.json()["session"].startswith("w2.")
    assert cluster.processes["w1"].poll() is None, "its sessions live"
    client.end_sessions()
    assert cluster.processes["w1"].wait(30) == 0, "it stops by itself when they have ended"


def test_a_killed_worker_is_left_out_and_comes_back(cluster, client):
    if cluster.processes["w1"].poll() is not None:
        cluster.start_workers("w1")
    cluster.wait_ready("p1", 2)
    for _ in range(2 * PLACES):
        client.create()
    lost = next(name for name in client.opened if name.startswith("w1."))
    cluster.stop("w1", signal.SIGKILL)
    cluster.processes["w1"].wait(10)
    answer = client.get(f"/v1/sessions/{lost}")
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown-session")
    wait_for(lambda: cluster.states("p1")["w1"].startswith("DOWN"), 4)
    client.end_sessions()
    wait_for(lambda: cluster.weights("p1") == {"w2": 100}, 10)
    for _ in range(PLACES):
        assert client.create().json()["session"].startswith("w2.")
    cluster.start_workers("w1")
    client.end_sessions()
    cluster.wait_ready("p1", 2)
