"""Workers that DNS lists, behind a real HAProxy, as on Kubernetes."""

import signal

import httpx
from cluster_stage.cluster import AGENT_PORT, OPERATOR, PORT, Cluster, wait_for
from cluster_stage.hosts import LoopbackHosts
from support.dns_server import serving_dns
from support.packages import needs

from letstalk_server.cluster.haproxy import DnsWorkers

pytestmark = needs("haproxy")

SERVICE = "letstalk.test"


def test_workers_are_found_by_dns_and_sessions_by_the_name_of_their_worker():
    hosts = LoopbackHosts("loopback is enough for this test", [])
    cluster = Cluster(hosts, places=2)
    names = [f"letstalk-{number}" for number in range(2)]
    each = {f"{name}.{SERVICE}": [hosts.address(name)] for name in names}
    with serving_dns({SERVICE: sum(each.values(), []), **each}) as nameserver:
        try:
            cluster.start_workers(*names)
            cluster.start_proxy("p1", DnsWorkers(SERVICE, PORT, AGENT_PORT, 4, nameserver))
            with httpx.Client(base_url=cluster.url("p1"), headers=OPERATOR) as client:
                # A server is up from the start; "UP" alone says that all its checks succeeded.
                wait_for(lambda: list(cluster.states("p1").values()).count("UP") == 2, 60)
                wait_for(lambda: cluster.places_weighed("p1") == 2, 60)
                opened = [client.post("/v1/sessions").json()["session"] for _ in range(4)]
                assert {name.partition(".")[0] for name in opened} == set(names)
                assert client.post("/v1/sessions").status_code == 503
                for name in opened:
                    assert client.get(f"/v1/sessions/{name}").json()["session"] == name
                for _ in range(2):  # an unknown name, then one whose worker is gone
                    gone = client.get("/v1/sessions/letstalk-7.abc")
                    assert (gone.status_code, gone.json()["code"]) == (404, "unknown-session")
                lost = next(name for name in opened if name.startswith(names[0]))
                cluster.stop(names[0], signal.SIGKILL)
                cluster.processes[names[0]].wait(10)
                gone = client.get(f"/v1/sessions/{lost}")
                assert (gone.status_code, gone.json()["code"]) == (404, "unknown-session")
        finally:
            cluster.close()
