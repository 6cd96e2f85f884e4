"""What the tests of deploy/ share: its files, the tools that check them, and its services without their containers."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
import redis
import servers
import yaml
from faults.control import free_port, until
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from clusterports import PortAllocator
from clusterports.metrics import OF_CLUSTER, instrument

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "DEPLOY",
    "MADE",
    "PATIENCE",
    "Stack",
    "check",
    "documents",
    "foreign_to_us",
    "get",
    "is_accepted",
    "panels",
    "tool",
]

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"

MADE = shutil.ignore_patterns("made", "made.new", ".env", "secret")
"""What somebody may have made of it in a checkout."""

PATIENCE = 60
"""Seconds; only a test that fails waits for so long."""

Sample = tuple[str, frozenset[tuple[str, str]]]


def tool(name: str) -> str:
    """Where a program is: of a Python package, or of the system."""
    found = shutil.which(name, path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    if found is not None:
        return found
    if os.environ.get("CI") == "true":
        pytest.fail(f"no {name} in PATH")
    pytest.skip(f"no {name} in PATH")


def check(name: str, *arguments: str | Path, environment: dict[str, str] | None = None, text: str = "") -> str:
    """Run a tool which must find nothing wrong, in a text as well; what it says."""
    done = subprocess.run(
        [tool(name), *map(str, arguments)],
        env=environment, input=text, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def documents(path: Path) -> list[Any]:
    """All YAML documents of a file."""
    return list(yaml.safe_load_all(path.read_text("utf-8")))


def is_accepted(words: list[str]) -> bool:
    """Whether ``clusterports`` has such a command with such options: it comes as far as to its help."""
    done = subprocess.run(
        [sys.executable, "-m", "clusterports.cli", *words, "--help"],
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    return done.returncode == 0 and words[0] in done.stdout


def panels() -> list[dict[str, Any]]:
    """Those of the dashboard that show figures."""
    dashboard = json.loads((DEPLOY / "grafana" / "clusterports.json").read_text("utf-8"))
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def foreign_to_us(query: str) -> set[str]:
    """Names of metrics in a query that nothing here exports, or else of labels that none of its metrics has."""
    registry = CollectorRegistry()
    with PortAllocator("memory://", host="h", probe=False) as allocator:
        instrument(allocator, registry)
    known = {name: set(labels) for name, (_, labels) in OF_CLUSTER.items()}
    for family in registry.collect():
        for one in family.samples:
            known.setdefault(one.name, set()).update(one.labels)
    known["host_range:clusterports_ports:fill_ratio"] = {"host", "range"}  # of alerts.yml
    known["up"] = {"job", "instance"}  # of Prometheus itself
    bare = re.sub(r'"[^"]*"', '""', query)
    names = set(re.findall(r"[a-z_:]*clusterports_[a-z_:]+|\bup\b", bare))
    if strange := names - set(known):
        return strange
    grouped = [label for labels in re.findall(r"\bby \(([^)]*)\)", bare) for label in labels.split(", ")]
    return {*grouped, *re.findall(r"(\w+)(?:=~|!=|!~|=)\"", bare)} - set().union(*(known[name] for name in names))


def get(url: str, token: str | None = None) -> str:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:  # noqa: S310
        return str(answer.read().decode())


class Stack:
    """The services of compose.yaml as processes of this machine, on what setup.sh makes.

    Their files are taken as they are. What containers would do is written over: addresses, ports and the paths at which
    a container sees a file. Prometheus asks every second instead of every half minute, and alerts fire after a second
    instead of after minutes: that is written over too.
    """

    def __init__(self, folder: Path, settings: str = "") -> None:
        shutil.copytree(DEPLOY, folder / "deploy", ignore=MADE)
        self.folder = folder / "deploy" / "compose"
        self.made = self.folder / "made"
        check("sh", self.folder / "setup.sh")
        self.services: dict[str, Any] = yaml.safe_load((self.folder / "compose.yaml").read_text("utf-8"))["services"]
        self.ports = {name: free_port() for name in ("valkey", "exporter", "page", "prometheus")}
        self.passwords = dict(line.split() for line in (self.made / "passwords").read_text().splitlines())
        self.token = (self.made / "token").read_text()
        self._put(
            "valkey/redis.conf",
            ("/clusterports", str(self.made / "valkey")),
            ("port 6379", f"port {self.ports['valkey']}"),
            ("bind 0.0.0.0", "bind 127.0.0.1"),
        )
        self._put("clusterports.toml", ("valkey:6379", f"127.0.0.1:{self.ports['valkey']}"))
        with (self.made / "clusterports.toml").open("a") as file:
            file.write(settings)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def _put(self, file: str, *changes: tuple[str, str]) -> None:
        path = self.made / file
        text = path.read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path.write_text(text)

    def url_of(self, user: str) -> str:
        return f"redis://{user}:{self.passwords[user]}@127.0.0.1:{self.ports['valkey']}/0"

    def at(self, name: str, path: str = "") -> str:
        return f"http://127.0.0.1:{self.ports[name]}{path}"

    @contextmanager
    def running(self, *names: str) -> Iterator[Stack]:
        """With these services."""
        with ExitStack() as stack:
            for name in names:
                process = self._start(name)
                stack.callback(process.wait, PATIENCE)
                stack.callback(process.kill)
            yield self

    def stop(self, name: str) -> None:
        self._processes[name].kill()
        self._processes[name].wait(PATIENCE)

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        words, environment = self.command(name), {"PATH": os.environ["PATH"], "HOME": str(self.made)}
        for key, value in self.services[name].get("environment", {}).items():
            environment[key] = value.replace("/run/secrets", str(self.made))
        with (self.made / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                words, cwd=self.made, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._processes[name] = process
        until(lambda: self._answers(name), PATIENCE, name)
        return process

    def _answers(self, name: str) -> bool:
        assert self._processes[name].poll() is None, (self.made / f"{name}.log").read_text()
        try:
            if name == "valkey":
                with redis.Redis.from_url(self.url_of("admin")) as client:
                    return bool(client.ping())
            return bool(get(self.at(name, "/-/ready" if name == "prometheus" else "/healthz")))
        except OSError:
            return False

    def command(self, name: str) -> list[str]:
        """Of a service, for this machine."""
        words = [word.replace("/run/secrets", str(self.made)) for word in self.services[name]["command"]]
        if name == "valkey":
            assert ["valkey-server", "/clusterports/redis.conf"] == words
            return [servers.find_valkey(), str(self.made / "valkey" / "redis.conf")]
        if name == "prometheus":
            words = [word.replace("/etc/prometheus", str(self.made / "etc")) for word in words]
            words = [word.replace("path=/prometheus", f"path={self.made}/prometheus") for word in words]
            return [tool("prometheus"), *words, f"--web.listen-address=127.0.0.1:{self.ports[name]}"]
        port = {"exporter": "9809", "page": "9810"}[name]
        words = [word.replace(f"0.0.0.0:{port}", f"127.0.0.1:{self.ports[name]}") for word in words]
        assert f"127.0.0.1:{self.ports[name]}" in words
        return [sys.executable, "-m", "clusterports.cli", *words]

    def check_health(self, name: str) -> None:
        """As its container does, with the words of compose.yaml, or else of the Dockerfile."""
        environment = {"PATH": os.environ["PATH"]}
        words: list[str]
        if "healthcheck" in self.services[name]:
            kind, *words = self.services[name]["healthcheck"]["test"]
        else:
            image = (DEPLOY / "Dockerfile").read_text("utf-8")
            ((line, usual),) = zip(
                re.findall(r"^HEALTHCHECK .*\n *CMD (\[.*\])$", image, re.MULTILINE),
                re.findall(r" HEALTH=(\S+)", image),
                strict=True,
            )
            kind, words = "CMD", json.loads(line)
            environment["HEALTH"] = self.services[name]["environment"].get("HEALTH", usual)
        if kind == "CMD-SHELL":
            words = ["sh", "-c", words[0].replace("valkey-cli", f"redis-cli -p {self.ports[name]}")]
        places = {"9809": "exporter", "9810": "page", "9090": "prometheus"}
        for port, service in places.items():
            words = [word.replace(f"127.0.0.1:{port}", f"127.0.0.1:{self.ports[service]}") for word in words]
            environment = {
                key: text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{self.ports[service]}")
                for key, text in environment.items()
            }
        check(words[0], *words[1:], environment=environment)

    def watch(self, *more: str) -> None:
        """What Prometheus is mounted, hurried on, with more targets."""
        folder = self.made / "etc"
        folder.mkdir()
        for volume in self.services["prometheus"]["volumes"]:
            source, target, *_ = volume.split(":")
            if target.startswith("/etc/prometheus/"):
                text = (self.folder / source).resolve().read_text("utf-8")
                times = r"^( *(?:for|scrape_interval|evaluation_interval|scrape_timeout): )\d+[sm]$"
                text = re.sub(times, r"\g<1>1s", text, flags=re.MULTILINE)
                targets = json.dumps([f"127.0.0.1:{self.ports['exporter']}", *more])
                text = text.replace('["exporter:9809"]', targets)
                (folder / Path(target).name).write_text(text)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What Prometheus answers now."""
        answer = json.loads(get(self.at("prometheus", f"/api/v1/query?query={quote(expression)}")))
        assert answer["status"] == "success"
        return list(answer["data"]["result"])

    def alerts(self) -> dict[tuple[str, str, str], str]:
        """State of each alert that is not quiet: by name, host and range."""
        found = json.loads(get(self.at("prometheus", "/api/v1/alerts")))["data"]["alerts"]
        return {
            (one["labels"]["alertname"], one["labels"].get("host", ""), one["labels"].get("range", "")): one["state"]
            for one in found
        }

    def figures(self, name: str = "exporter") -> dict[Sample, float]:
        """What a scrape of the exporter, or of the page, tells."""
        text = get(self.at(name, "/metrics"), self.token if name == "page" else None)
        return {
            (one.name, frozenset(one.labels.items())): one.value
            for family in text_string_to_metric_families(text)
            for one in family.samples
        }

    def say(self, *words: str) -> str:
        """What ``clusterports`` says with the settings that setup.sh made."""
        environment = {"PATH": os.environ["PATH"], "CLUSTERPORTS_CONFIG": str(self.made / "clusterports.toml")}
        done = subprocess.run(
            [sys.executable, "-m", "clusterports.cli", *words],
            cwd=self.made, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert (0, "") == (done.returncode, done.stderr), shlex.join(words)
        return done.stdout
