"""deploy/prometheus: promtool takes it, each alert is shown to fire and not to fire, and names only what there is."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from deploy.kit import DEPLOY, check, documents, foreign_to_us, panels

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = DEPLOY / "prometheus"
(RULES,) = documents(FOLDER / "alerts.yml")
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule
}

PATIENT = {alert for alert, rule in ALERTS.items() if "for" in rule}


def test_config() -> None:
    """Prometheus takes the configuration, and the rules that it names."""
    assert "SUCCESS" in check("promtool", "check", "config", FOLDER / "prometheus.yml")


def test_patience() -> None:
    """A scrape waits for longer than the exporter waits for the store, which then says itself that it is away."""
    (config,) = documents(FOLDER / "prometheus.yml")
    (job,) = config["scrape_configs"]
    assert (
        5 < int(job["scrape_timeout"].removesuffix("s")) <= int(config["global"]["scrape_interval"].removesuffix("s"))
    )


def test_rules() -> None:
    """Each alert fires when it should, and not otherwise."""
    assert "SUCCESS" in check("promtool", "test", "rules", FOLDER / "alerts_test.yml")


@pytest.mark.parametrize(
    ("pattern", "instead", "told"),
    [
        pytest.param(r"(alert: .*\n *expr: ).*", r"\1clusterports_up == 77", set(ALERTS), id="none fires"),
        pytest.param(r"( for: )\w+", r"\g<1>16m", PATIENT, id="later"),
        pytest.param(r" *for: \w+\n", "", PATIENT, id="at once"),
        pytest.param(r"= 0\.9 < 1", "= 0.91 < 1", {"ClusterportsRangeNearlyFull"}, id="fuller"),
        pytest.param(r"= 0\.9 < 1", "= 0.9", {"ClusterportsRangeNearlyFull"}, id="full as well"),
        pytest.param(r'state!="excluded"', 'state!=""', {"ClusterportsRangeNearlyFull"}, id="with excluded ones"),
        pytest.param(r" and on \(range\).*", "", {"ClusterportsRangeFull"}, id="of one port"),
        pytest.param(r"\[1h:5m\]\) >= 3", "[1h:5m]) >= 2", {"ClusterportsLeasesInJeopardy"}, id="late less often"),
        pytest.param(r"\[1h:5m\]\) >= 3", "[1h:5m]) >= 4", {"ClusterportsLeasesInJeopardy"}, id="late more often"),
        pytest.param(r"\[1h:5m\]\) >= 3", "[30m:5m]) >= 3", {"ClusterportsLeasesInJeopardy"}, id="late lately"),
        pytest.param(r'\{kind="leases"\}', "", {"ClusterportsReclaimBacklog"}, id="of ports as well"),
        pytest.param(r'up\{job="clusterports"\}', "up", {"ClusterportsTargetDown"}, id="whatever is down"),
    ],
)
def test_rules_are_tested(tmp_path: Path, pattern: str, instead: str, told: set[str]) -> None:
    """When it does not fire, or fires for less, later or sooner, the tests of each alert fail."""
    (tmp_path / "alerts_test.yml").write_text((FOLDER / "alerts_test.yml").read_text("utf-8"))
    (tmp_path / "alerts.yml").write_text(re.sub(pattern, instead, (FOLDER / "alerts.yml").read_text("utf-8")))
    with pytest.raises(AssertionError, match="FAILED") as failed:
        check("promtool", "test", "rules", tmp_path / "alerts_test.yml")
    assert set() == told - set(re.findall(r"\bClusterports\w+", str(failed.value)))


def test_words() -> None:
    """An alert says how urgent it is, what is the matter and what to do; no name of the store is in a command."""
    for rule in ALERTS.values():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert {"summary", "description"} == set(rule["annotations"])
        assert len(rule["annotations"]["summary"]) < 120
        assert not re.search(r"labels\.(host|range)", rule["annotations"]["description"])


def test_names() -> None:
    """A rule asks for metrics and labels that the exporter or a manager has."""
    assert [] == [rule for group in RULES["groups"] for rule in group["rules"] if foreign_to_us(rule["expr"])]


def test_foreign_names() -> None:
    """Other names are found."""
    assert {"clusterports_portz"} == foreign_to_us("sum by (host) (clusterports_portz)")
    assert {"hots"} == foreign_to_us("sum by (hots) (clusterports_ports)")
    assert {"kind"} == foreign_to_us('clusterports_ports{kind="leases"}')
    assert {"host"} == foreign_to_us('up{host="a"}')


def test_job() -> None:
    """The alert on those that do not answer asks for the job as the configuration has it."""
    (config,) = documents(FOLDER / "prometheus.yml")
    (job,) = config["scrape_configs"]
    assert f'up{{job="{job["job_name"]}"}} == 0' == ALERTS["ClusterportsTargetDown"]["expr"]


def test_queries_parse(tmp_path: Path) -> None:
    """Prometheus understands the queries of the dashboard, which name metrics and labels that there are."""
    queries = [target["expr"] for panel in panels() for target in panel["targets"]]
    lines = ["groups:", "- name: dashboard", "  rules:"]
    for number, query in enumerate(queries):
        assert set() == foreign_to_us(query)
        lines += [f"  - record: query:{number}", f"    expr: '{query.replace('$__rate_interval', '5m')}'"]
    (tmp_path / "queries.yml").write_text("\n".join(lines))
    assert f"SUCCESS: {len(queries)} rules found" in check("promtool", "check", "rules", tmp_path / "queries.yml")
