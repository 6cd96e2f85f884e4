"""deploy/grafana: a dashboard of nothing but what Grafana's own types for it have."""

from __future__ import annotations

import enum
import json
import re
from itertools import combinations
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from deploy.kit import DEPLOY, documents, panels
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard, DataTransformerConfig

PATH = DEPLOY / "grafana" / "clusterports.json"


@pytest.fixture(scope="module")
def parsed() -> Dashboard:
    register_default_plugins()
    return Dashboard.from_json(json.loads(PATH.read_text("utf-8")))


def lacking(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """What is in ours and was not understood."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [one for key in ours for one in lacking(ours[key], theirs.get(key), f"{path}.{key}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [
            one for at, pair in enumerate(zip(ours, theirs, strict=True)) for one in lacking(*pair, f"{path}[{at}]")
        ]
    return [] if ours == theirs else [f"{path}: {ours!r}"]


def misfits(value: Any, hint: Any, path: str) -> list[str]:
    """What is not of the type that Grafana has for it."""
    origin, args = get_origin(hint), get_args(hint)
    if hint in (Any, object):  # what depends on the kind of a panel is an object of that kind
        hint = type(value) if type(value).__module__.startswith(Dashboard.__module__.partition(".")[0]) else Any
    if hint is Any:
        return []
    if origin in (Union, UnionType):
        same = [one for one in args if type(value) in (one, get_origin(one))]
        return min((misfits(value, one, path) for one in same or args), key=len)
    if origin is Literal:
        return [] if value in args else [f"{path}: {value!r}"]
    if origin is list:
        if not isinstance(value, list):
            return [f"{path}: {value!r}"]
        return [one for at, item in enumerate(value) for one in misfits(item, args[0], f"{path}[{at}]")]
    if origin is dict:
        return [] if isinstance(value, dict) else [f"{path}: {value!r}"]
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return [] if value in [one.value for one in hint] else [f"{path}: {value!r}"]
    if hint is float:
        hint = int | float
    if hint is DataTransformerConfig:  # which their reader leaves as it is
        return [] if isinstance(value, dict) and {"id", "options"} == set(value) else [f"{path}: {value!r}"]
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        return [f"{path}: {value!r} is no {hint}"]
    if hint in (NoneType, str, int, int | float, bool):
        return []
    return [
        one
        for key, kind in get_type_hints(type(value)).items()
        for one in misfits(getattr(value, key), kind, f"{path}.{key}")
    ]


def test_schema(parsed: Dashboard) -> None:
    """Grafana 11.6, which compose.yaml runs, knows each key, and each value is of its type."""
    theirs = json.loads(json.dumps(parsed, cls=JSONEncoder))
    assert [] == lacking(json.loads(PATH.read_text("utf-8")), theirs)
    assert [] == misfits(parsed, Dashboard, "dashboard")
    (compose,) = documents(DEPLOY / "compose" / "compose.yaml")
    assert compose["services"]["grafana"]["image"].startswith("grafana/grafana:11.6.")


def test_schema_finds(parsed: Dashboard) -> None:
    """A key or a value that Grafana does not have is found."""
    ours = json.loads(PATH.read_text("utf-8"))
    ours["panels"][1]["fieldConfig"]["defaults"]["unti"] = "s"
    ours["graphTooltip"] = 7
    ours["panels"][1]["gridPos"]["w"] = "3"
    ours["panels"][1]["options"]["colorMode"] = "loud"
    odd = Dashboard.from_json(ours)
    assert [".panels[1].fieldConfig.defaults.unti: 's'"] == lacking(ours, json.loads(json.dumps(odd, cls=JSONEncoder)))
    found = misfits(odd, Dashboard, "dashboard")
    assert ["graph_tooltip", "w", "color_mode"] == [re.findall(r"\w+(?=:)", one)[0] for one in found]


def test_layout() -> None:
    """No panel covers another, each has a number, a title and a text of its own, and asks the chosen Prometheus."""
    dashboard = json.loads(PATH.read_text("utf-8"))
    everything = dashboard["panels"]
    for one, other in combinations([panel["gridPos"] for panel in everything], 2):
        assert (
            one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        )  # fmt: skip
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in everything)
    assert len(everything) == len({panel["id"] for panel in everything})
    assert len(panels()) == len({panel["title"] for panel in panels()})
    assert all(panel["description"].endswith(".") for panel in panels())
    sources = [panel["datasource"] for panel in panels()] + [
        t["datasource"] for panel in panels() for t in panel["targets"]
    ]
    assert [{"type": "prometheus", "uid": "${datasource}"}] * len(sources) == sources
    assert ["datasource", "range", "host"] == [one["name"] for one in dashboard["templating"]["list"]]


def test_provisioning() -> None:
    """What compose.yaml mounts is where the provisioning looks for it, and the figures come from that service."""
    (compose,) = documents(DEPLOY / "compose" / "compose.yaml")
    (sources,) = documents(DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml")
    (boards,) = documents(DEPLOY / "grafana" / "provisioning" / "dashboards" / "clusterports.yml")
    service, mounted = compose["services"]["grafana"], {}
    for volume in service["volumes"]:
        source, target, *_ = volume.split(":")
        mounted[target] = (DEPLOY / "compose" / source).resolve()
    assert DEPLOY / "grafana" / "provisioning" == mounted["/etc/grafana/provisioning"]
    (provider,) = boards["providers"]
    assert PATH == mounted[f"{provider['options']['path']}/clusterports.json"]
    home = service["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert f"{provider['options']['path']}/clusterports.json" == home
    (source,) = sources["datasources"]
    assert ("prometheus", "http://prometheus:9090") == (source["type"], source["url"])
    assert set(service["networks"]) & set(compose["services"]["prometheus"]["networks"])
