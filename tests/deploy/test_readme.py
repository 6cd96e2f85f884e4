"""deploy/README.md: what it names is there."""

from __future__ import annotations

import re

from deploy.kit import DEPLOY, documents

TEXT = (DEPLOY / "README.md").read_text("utf-8")


def test_paths() -> None:
    """Each file and folder that it names is there."""
    named = set(re.findall(r"`((?:redis|systemd|prometheus|grafana|compose|kubernetes)/[\w./-]*)`", TEXT))
    named |= set(re.findall(r"\]\(([\w./-]+)\)", TEXT))
    assert {"redis/README.md", "prometheus/prometheus.yml", "grafana/clusterports.json", "compose/"} <= named
    assert [] == sorted(name for name in named if not (DEPLOY / name).exists())
    units = "".join(path.read_text("utf-8") for path in (DEPLOY / "systemd").iterdir())
    handed = set(re.findall(r"^LoadCredential=.*:(.*)$", units, re.MULTILINE))
    assert {"/etc/clusterports/status.toml", "/etc/clusterports/token"} == handed
    assert [] == [path for path in handed if path not in TEXT]


def test_folders() -> None:
    """Each folder and file beside it is in the list of what one may need."""
    listed = TEXT.partition("## systemd")[0]
    others = ("README.md", "Dockerfile.dockerignore")
    assert [] == [path.name for path in DEPLOY.iterdir() if path.name not in listed and path.name not in others]


def test_alerts() -> None:
    """It has each alert, and no other."""
    (rules,) = documents(DEPLOY / "prometheus" / "alerts.yml")
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule}
    assert alerts == set(re.findall(r"`(Clusterports\w+)`", TEXT))


def test_anchors() -> None:
    """Each link within it leads somewhere."""
    titles = {title.lower().replace(" ", "-").strip("?") for title in re.findall(r"^##+ (.*)$", TEXT, re.MULTILINE)}
    assert set(re.findall(r"\(#([\w-]+)\)", TEXT)) <= titles
