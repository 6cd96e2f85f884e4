"""The services of deploy/compose as they are, but for their containers: a range fills up, and somebody is told."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import TYPE_CHECKING

from deploy.kit import PATIENCE, Stack, check, get, panels
from faults.control import until
from prometheus_client import CollectorRegistry, generate_latest, start_http_server

from clusterports import PortAllocator, PortRange
from clusterports.metrics import instrument

if TYPE_CHECKING:
    from pathlib import Path

JOBS = PortRange("jobs", 20000, 20049)
SETTINGS = f"""timeout = 0.5
[ranges.jobs]
first = {JOBS.first}
last = {JOBS.last}
"""
NEARLY_FULL = ("ClusterportsRangeNearlyFull", "kvm-07", "jobs")
AWAY = ("ClusterportsStoreUnreachable", "", "")


def test_story(tmp_path: Path) -> None:
    """At 90 % an alert fires, and no other; exporter, page, status and Prometheus have the same figures, and the
    dashboard shows them. With a port less the alert ends. Without the store another fires.
    """
    registry = CollectorRegistry()
    server, thread = start_http_server(0, "127.0.0.1", registry)
    stack = Stack(tmp_path, SETTINGS)
    with stack.running("valkey", "exporter", "page"):
        stack.watch(f"127.0.0.1:{server.server_port}")
        with PortAllocator(
            stack.url_of("clusterports"), host="kvm-07", ranges=[JOBS], ttl=4.0, probe=False
        ) as manager, stack.running("prometheus"):  # fmt: skip
            instrument(manager, registry)
            manager.acquire("jobs", count=45)
            until(
                lambda: {NEARLY_FULL: "firing"} == stack.alerts(), PATIENCE, "an alert of a range that is nearly full"
            )
            agree(stack, {"held": 45, "cooling": 0, "foreign": 0, "free": 5, "excluded": 0})
            show(stack)
            are_well_formed(stack, registry)
            for name in ("valkey", "exporter", "page", "prometheus"):
                stack.check_health(name)

            manager.release(manager.allocations()[0])
            until(lambda: {} == stack.alerts(), PATIENCE, "the end of the alert")
            manager.close()
            stack.stop("valkey")
            until(lambda: {AWAY: "firing"} == stack.alerts(), PATIENCE, "an alert of a store that is away")
            figures = stack.figures()
            assert 0 == figures["clusterports_up", frozenset()]
            assert [] == [name for name, _ in figures if name in ("clusterports_ports", "clusterports_store_healthy")]
    server.shutdown()
    server.server_close()
    thread.join(PATIENCE)


def agree(stack: Stack, expected: dict[str, float]) -> None:
    """All who tell how range jobs on kvm-07 is say this."""
    for status in (stack.say("status", "--json"), get(stack.at("page", "/api/status"), stack.token)):
        (jobs,) = [one for one in json.loads(status)["ranges"] if one["name"] == "jobs"]
        assert [{"host": "kvm-07"} | expected] == [
            {key: there[key] for key in ("host", *expected)} for there in jobs["hosts"]
        ]
    labels = {"host": "kvm-07", "range": "jobs"}
    for service in ("exporter", "page"):
        figures = stack.figures(service)
        assert expected == {
            state: figures["clusterports_ports", frozenset((labels | {"state": state}).items())] for state in expected
        }
    scraped = stack.query('clusterports_ports{range="jobs"}')
    assert expected == {one["metric"]["state"]: float(one["value"][1]) for one in scraped}
    (fill,) = stack.query('host_range:clusterports_ports:fill_ratio{range="jobs"}')
    taken = sum(expected[state] for state in ("held", "cooling", "foreign"))
    assert (labels, taken / JOBS.size) == ({key: fill["metric"][key] for key in labels}, float(fill["value"][1]))
    assert {"persistence": "1", "eviction": "1", "memory": "1", "replicas": "1"} == {
        one["metric"]["check"]: one["value"][1] for one in stack.query("clusterports_store_healthy")
    }, "the user of dashboards may not look: +info"


def are_well_formed(stack: Stack, registry: CollectorRegistry) -> None:
    """Prometheus' own tool has nothing to say against the figures of exporter, page and manager."""
    assert "" == check("promtool", "check", "metrics", text=get(stack.at("exporter", "/metrics")))
    assert "" == check("promtool", "check", "metrics", text=get(stack.at("page", "/metrics"), stack.token))
    own = generate_latest(registry).decode()
    assert "" == check("promtool", "check", "metrics", text=own)


def show(stack: Stack) -> None:
    """Each query of the dashboard is answered, with the labels that its legend names."""
    for panel in panels():
        for target in panel["targets"]:
            query = target["expr"].replace("$host", ".*").replace("$range", ".*").replace("$__rate_interval", "10s")
            answer = until(partial(stack.query, query), PATIENCE, query)
            legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            # What is unique in the whole cluster has no host.
            assert [] == [one["metric"] for one in answer if not legend <= {*one["metric"], "host"}], query
