"""What `deploy/` has: Kubernetes takes the manifests, and their parts agree with the programs."""

from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from letstalk_server.cluster.haproxy import DnsWorkers, Frontend, configuration
from letstalk_server.main import parse
from letstalk_server.settings import AGENT_PORT

KUBERNETES = Path(__file__).parents[1] / "deploy" / "kubernetes"
FILES = sorted(KUBERNETES.glob("*.yaml"))
VERSIONS = ("1.29", "1.35")


def objects(path):
    return [each for each in yaml.safe_load_all(path.read_text("utf-8")) if each is not None]


def only(kind, name="letstalk"):
    found = [
        each
        for path in FILES
        for each in objects(path)
        if (each["kind"], each["metadata"]["name"]) == (kind, name)
    ]
    assert len(found) == 1, (kind, name)
    return found[0]


def worker():
    (container,) = only("StatefulSet")["spec"]["template"]["spec"]["containers"]
    return container


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_kubernetes_takes_every_object(path, version):
    for each in objects(path):
        kubernetes_validate.validate(each, version, strict=True)


def test_a_wrong_object_is_found():
    wrong = only("StatefulSet")
    wrong["spec"]["replica"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_the_configuration_is_what_the_command_makes():
    made = configuration(
        DnsWorkers("letstalk.default.svc.cluster.local", 8080, AGENT_PORT, 40),
        Frontend(":8080", stats=":8404"),
    )
    assert only("ConfigMap", "letstalk-proxy")["data"]["haproxy.cfg"] == made


def test_the_server_knows_each_setting_of_the_workers(monkeypatch):
    for setting in worker()["env"]:
        monkeypatch.setenv(setting["name"], setting.get("value", "letstalk-0"))
    monkeypatch.setenv("LETSTALK_PUBLIC_ADDRESS", "203.0.113.7")
    settings = parse([])
    assert settings.worker_name == "letstalk-0" and settings.public_address == "203.0.113.7"
    assert settings.agent_port == AGENT_PORT and settings.auth_required
    assert settings.drain_s == settings.max_session_s
    spec = only("StatefulSet")["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] >= settings.drain_s + 30


def test_all_workers_are_listed_whatever_they_answer():
    service = only("Service")["spec"]
    assert service["clusterIP"] == "None" and service["publishNotReadyAddresses"]
    assert service["selector"] == only("StatefulSet")["spec"]["template"]["metadata"]["labels"]
    ports = {port["containerPort"] for port in worker()["ports"]}
    assert {port["port"] for port in service["ports"]} == ports == {8080, AGENT_PORT}


def test_places_scale_the_workers():
    (metric,) = only("HorizontalPodAutoscaler")["spec"]["metrics"]
    rules = yaml.safe_load(only("ConfigMap", "letstalk-metrics")["data"]["config.yaml"])
    (rule,) = rules["externalRules"]
    assert rule["name"]["as"] == metric["external"]["metric"]["name"]
    assert "letstalk_places" in rule["metricsQuery"]
