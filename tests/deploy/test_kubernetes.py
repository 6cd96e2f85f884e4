"""deploy/kubernetes: what kustomize makes of it is of Kubernetes' own schemas, fits together, and may do little."""

from __future__ import annotations

import base64
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from deploy.kit import DEPLOY, MADE, check, documents, is_accepted

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = DEPLOY / "kubernetes"
TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All manifests in one file, as README.md says to make them."""
    folder = tmp_path_factory.mktemp("kubernetes") / "kubernetes"
    shutil.copytree(FOLDER, folder, ignore=MADE)
    shutil.copytree(folder / "secret.example", folder / "secret")
    (folder / "secret" / "token").write_text(TOKEN)
    path = folder / "all.yaml"
    path.write_text(check("kubectl", "kustomize", folder))
    return path


@pytest.fixture(scope="module")
def objects(built: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """By kind and name."""
    return {(one["kind"], one["metadata"]["name"]): one for one in documents(built)}


def pods(objects: dict[tuple[str, str], Any]) -> dict[str, dict[str, Any]]:
    return {name: one["spec"]["template"] for (kind, name), one in objects.items() if kind == "Deployment"}


@pytest.mark.parametrize("version", ["1.27", "1.37"])
def test_schema(built: Path, version: str) -> None:
    """Kubernetes knows each key, and each value is of its type."""
    said = check("kubernetes-validate", "--strict", "--kubernetes-version", version, built)
    assert len(documents(built)) == said.count(f"against version {version}")


def test_schema_finds(built: Path, tmp_path: Path) -> None:
    """A key that Kubernetes does not have is found."""
    (tmp_path / "wrong.yaml").write_text(built.read_text().replace("readOnlyRootFilesystem", "readOnlyRoot"))
    with pytest.raises(AssertionError, match="readOnlyRoot"):
        check("kubernetes-validate", "--strict", tmp_path / "wrong.yaml")


def test_no_secret(objects: dict[tuple[str, str], Any], tmp_path: Path) -> None:
    """Without secrets of one's own nothing is made, and those of the example are none."""
    bare = shutil.copytree(FOLDER, tmp_path / "bare", ignore=MADE)
    with pytest.raises(AssertionError, match=r"secret/clusterports\.toml"):
        check("kubectl", "kustomize", bare)
    (secret,) = [one for (kind, _), one in objects.items() if kind == "Secret"]
    held = {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}
    assert "redis://clusterports-status:PASSWORD@10.0.0.1:6379/0" in held["clusterports.toml"]
    assert TOKEN == held["token"]


def test_rights(objects: dict[tuple[str, str], Any]) -> None:
    """No root, no capabilities, no writes, no Kubernetes: also where the namespace did not refuse it."""
    assert (
        "restricted" == objects["Namespace", "clusterports"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    )
    assert not objects["ServiceAccount", "clusterports"]["automountServiceAccountToken"]
    for template in pods(objects).values():
        pod = template["spec"]
        (container,) = pod["containers"]
        assert ("clusterports", False) == (pod["serviceAccountName"], pod["automountServiceAccountToken"])
        assert {"runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001} == {
            key: value for key, value in pod["securityContext"].items() if key != "seccompProfile"
        }
        assert {"type": "RuntimeDefault"} == pod["securityContext"]["seccompProfile"]
        assert {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        } == container["securityContext"]
        assert {"cpu", "memory"} == set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]


def test_fit(objects: dict[tuple[str, str], Any]) -> None:
    """Each command exists, is given the files that it asks for, and listens where probes and services look for it."""
    assert {"exporter", "page"} == set(pods(objects))
    for name, template in pods(objects).items():
        (container,) = template["spec"]["containers"]
        assert is_accepted(container["args"])
        (volume,) = template["spec"]["volumes"]
        (mount,) = container["volumeMounts"]
        keys = objects["Secret", volume["secret"]["secretName"]]["data"]
        files = {f"{mount['mountPath']}/{item['path']}" for item in volume["secret"]["items"] if item["key"] in keys}
        asked = {word for word in container["args"] if word.startswith("/")} | {
            one["value"] for one in container["env"]
        }
        assert asked == files
        (port,) = container["ports"]
        assert f"0.0.0.0:{port['containerPort']}" == container["args"][container["args"].index("--listen") + 1]
        probes = {key: container[key]["httpGet"] for key in container if key.endswith("Probe")}
        assert {"port": port["name"], "path": "/healthz"} == probes["livenessProbe"] == probes["readinessProbe"]
        assert ("page" == name) == ({"port": port["name"], "path": "/readyz"} == probes.get("startupProbe"))
        service, budget = objects["Service", name]["spec"], objects["PodDisruptionBudget", name]["spec"]
        assert template["metadata"]["labels"] == service["selector"] == budget["selector"]["matchLabels"]
        assert [port["name"]] == [one["targetPort"] for one in service["ports"]]
        policy = objects["NetworkPolicy", name]["spec"]
        assert template["metadata"]["labels"] == policy["podSelector"]["matchLabels"]
        assert [port["name"]] == [one["port"] for rule in policy["ingress"] for one in rule["ports"]]


def test_drain(objects: dict[tuple[str, str], Any]) -> None:
    """A node can be drained, and the page is there meanwhile. No two exporters count the same."""
    replicas = {name: objects["Deployment", name]["spec"]["replicas"] for name in pods(objects)}
    assert {"exporter": 1, "page": 2} == replicas
    assert 1 == objects["PodDisruptionBudget", "page"]["spec"]["minAvailable"]
    assert 1 == objects["PodDisruptionBudget", "exporter"]["spec"]["maxUnavailable"]
    assert "Recreate" == objects["Deployment", "exporter"]["spec"]["strategy"]["type"]


def test_network(objects: dict[tuple[str, str], Any]) -> None:
    """Nobody may talk to anybody but for what is named: the store, DNS, and who asks exporter and page."""
    policies = {name: one["spec"] for (kind, name), one in objects.items() if kind == "NetworkPolicy"}
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} == policies["nobody"]
    ways = [rule for policy in policies.values() for rule in (*policy.get("ingress", ()), *policy.get("egress", ()))]
    assert 4 == len(ways)
    assert all((rule.get("from") or rule.get("to")) and rule["ports"] for rule in ways)
    assert {53, 6379} == {port["port"] for rule in policies["store"]["egress"] for port in rule["ports"]}


def test_node_dns(objects: dict[tuple[str, str], Any], tmp_path: Path) -> None:
    """With the # away a DNS of each node may be asked as well, and nothing else changes."""
    text = re.sub(
        r"^( *)# (- ipBlock|    cidr)", r"\1\2", (FOLDER / "network.yaml").read_text("utf-8"), flags=re.MULTILINE
    )
    (tmp_path / "network.yaml").write_text(text)
    check("kubernetes-validate", "--strict", tmp_path / "network.yaml")
    policies = {one["metadata"]["name"]: one["spec"] for one in documents(tmp_path / "network.yaml")}
    dns = policies["store"]["egress"][1]["to"]
    assert {"ipBlock": {"cidr": "169.254.20.10/32"}} == dns.pop()
    assert {name: objects["NetworkPolicy", name]["spec"] for name in policies} == policies


def test_monitoring(objects: dict[tuple[str, str], Any]) -> None:
    """For Prometheus' operator: the same rules, and the same scrape. Of its resources there is no schema to be had."""
    rules, monitor = yaml.safe_load_all(check("kubectl", "kustomize", FOLDER / "monitoring"))
    if rules["kind"] != "PrometheusRule":
        rules, monitor = monitor, rules
    (alerts,) = documents(DEPLOY / "prometheus" / "alerts.yml")
    (config,) = documents(DEPLOY / "prometheus" / "prometheus.yml")
    assert alerts == rules["spec"]
    (endpoint,) = monitor["spec"]["endpoints"]
    service = objects["Service", "exporter"]
    assert monitor["spec"]["selector"]["matchLabels"] == service["metadata"]["labels"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    job = service["metadata"]["labels"][monitor["spec"]["jobLabel"]]
    assert config["scrape_configs"][0]["job_name"] == job
    assert (config["global"]["scrape_interval"], config["scrape_configs"][0]["scrape_timeout"]) == (
        endpoint["interval"],
        endpoint["scrapeTimeout"],
    )
