"""The page behind a proxy: when its worker is stopped, it goes on with another one by itself."""

import shutil

import pytest
from cluster_stage.cluster import running
from cluster_stage.hosts import LoopbackHosts
from cluster_stage.page import resume_elsewhere
from support.browser_tools import needs_browser

pytest.importorskip("playwright.sync_api")
pytestmark = [
    needs_browser,
    pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed"),
]


def test_the_page_resumes_elsewhere_when_its_worker_is_stopped():
    hosts = LoopbackHosts("loopback is enough for this test", [])
    with running(hosts, workers=2, proxies=1, places=4, drain_s=0) as cluster:
        found = resume_elsewhere(cluster, "p1")
        assert {found["stopped"], found["resumed_on"]} == {"w1", "w2"}, found
        assert cluster.processes[found["stopped"]].wait(60) == 0
