"""The page behind a proxy: when its worker stops or dies, it goes on with another one by itself."""

import signal

import pytest
from cluster_stage.cluster import running
from cluster_stage.hosts import LoopbackHosts
from cluster_stage.page import resume_elsewhere
from support.browser_tools import needs_browser
from support.packages import needs

pytest.importorskip("playwright.sync_api")
pytestmark = [
    needs_browser,
    needs("haproxy"),
]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_page_resumes_elsewhere_when_its_worker_is_stopped_or_killed(number):
    hosts = LoopbackHosts("loopback is enough for this test", [])
    with running(hosts, workers=2, proxies=1, places=4, drain_s=0) as cluster:
        found = resume_elsewhere(cluster, "p1", number)
        assert {found["stopped"], found["resumed_on"]} == {"w1", "w2"}, found
        status = cluster.processes[found["stopped"]].wait(60)
        assert status == (0 if number is signal.SIGTERM else -signal.SIGKILL)
