"""The short form of what a cluster must do: three workers and two proxies on hosts of their own."""

import json

import prove_cluster
import pytest
from cluster_stage.hosts import LoopbackHosts, open_hosts
from support.packages import needs

pytestmark = needs("haproxy")


def test_a_cluster_places_drains_and_survives(tmp_path, capfd):
    path = tmp_path / "cluster.json"
    # Its exit status also tells whether all was in time: for a machine that does this alone.
    prove_cluster.main(["--placements", "40", "-o", str(path)])
    report = json.loads(path.read_text())
    parts = [part for part in report.values() if isinstance(part, dict)]
    assert len(parts) == 6 and all(part.get("holds", "skipped" in part) for part in parts)
    placed = report["placements"]
    assert sum(placed["placed"].values()) == 40
    assert max(placed["most_sessions"].values()) <= placed["places"]
    assert report["full_cluster"]["filled"] == 18
    assert report["lost_worker"]["answer_for_its_session"] == "unknown-session"
    assert report["drained_worker"]["exit_status"] == 0
    assert report["restarted_proxy"]["websocket_resumed"]
    if report["hosts"] != "network namespaces":
        pytest.skip(f"media from the worker's own address: {report['own_address']['skipped']}")
    addresses = [named for named in report["own_address"]["candidates"].values()]
    assert all(len(named) == 1 for named in addresses) and len(set(map(tuple, addresses))) == 3


def test_without_namespaces_hosts_are_addresses_of_loopback(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with open_hosts() as hosts:
        assert isinstance(hosts, LoopbackHosts) and "iproute2" in hosts.reason
        assert hosts.address("a") != hosts.address("b") == hosts.address("b")
        assert hosts.command("a", ["true"]) == ["true"]
