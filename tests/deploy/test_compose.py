"""deploy/compose and the Dockerfile: as the tools for them want it, with no more rights than needed, and secrets apart.

No container is started here, and no image built. That the commands work is shown by test_watching.py, without them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

import pytest
from deploy.kit import DEPLOY, MADE, Stack, check, documents, is_accepted

if TYPE_CHECKING:
    from pathlib import Path

FILE = DEPLOY / "compose" / "compose.yaml"
ROOT = DEPLOY.parent
DOCKERFILE = (DEPLOY / "Dockerfile").read_text("utf-8")


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    (compose,) = documents(FILE)
    return dict(compose["services"])


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Stack:
    return Stack(tmp_path_factory.mktemp("stack"))


def test_schema(tmp_path: Path) -> None:
    """It is of the schema of the compose specification, and what is not is found."""
    check("check-jsonschema", "--builtin-schema", "vendor.compose-spec", FILE)
    (tmp_path / "compose.yaml").write_text(FILE.read_text("utf-8").replace("read_only:", "readonly:"))
    with pytest.raises(AssertionError, match="'readonly' was unexpected"):
        check("check-jsonschema", "--builtin-schema", "vendor.compose-spec", tmp_path / "compose.yaml")


def test_rights(services: dict[str, dict[str, Any]]) -> None:
    """None is root, has a capability, writes outside of its folder, or is reached from another machine."""
    for service in services.values():
        assert service["user"] == "${ACCOUNT:?first run setup.sh}"
        assert (True, ["ALL"]) == (service["read_only"], service["cap_drop"])
        assert ["no-new-privileges:true"] == service["security_opt"]
        assert "mem_limit" in service
        assert not service.keys() & {"privileged", "cap_add", "network_mode", "pid", "devices"}
        assert [] == [port for port in service.get("ports", ()) if not port.startswith("127.0.0.1:")]
        writable = [volume for volume in service.get("volumes", ()) if not volume.endswith(":ro")]
        assert [] == [volume for volume in writable if not volume.startswith("./made/")]
    near_store = {name for name, service in services.items() if "store" in service["networks"]}
    assert {"valkey", "exporter", "page"} == near_store


def test_images(services: dict[str, dict[str, Any]]) -> None:
    """Each image is of a version, not of the day on which it was fetched."""
    for service in services.values():
        assert "build" in service or re.search(r":v?\d+\.\d+", service["image"])
        assert 2 == service["image"].count("/") + service["image"].count(":") or service["image"] == "clusterports"


def test_mounts(services: dict[str, dict[str, Any]], stack: Stack) -> None:
    """Each file and folder that is mounted is there once setup.sh has run."""
    (compose,) = documents(FILE)
    sources = [volume.split(":")[0] for service in services.values() for volume in service.get("volumes", ())]
    sources += [secret["file"] for secret in compose["secrets"].values()]
    assert [] == [source for source in sources if not (stack.folder / source).exists()]
    used = {name for service in services.values() for name in service.get("secrets", ())}
    assert set(compose["secrets"]) == used


def test_commands(services: dict[str, dict[str, Any]]) -> None:
    """The commands of exporter and page exist with these options; others do not."""
    assert is_accepted(services["exporter"]["command"])
    assert is_accepted(services["page"]["command"])
    assert not is_accepted(["exporter", "--token-file", "x"])


def test_setup(stack: Stack) -> None:
    """Passwords are new, for this account's eyes, and not where a service could read more than its own; not twice."""
    with pytest.raises(AssertionError, match="nothing was changed"):
        check("sh", stack.folder / "setup.sh")
    assert [] == [path for path in stack.made.rglob("*") if path.stat().st_mode & 0o077]
    text = "".join(path.read_text() for path in (stack.made / "valkey").rglob("*") if path.is_file())
    assert [] == [user for user, password in stack.passwords.items() if password in text]
    told = (stack.made / "clusterports.toml").read_text()
    assert ["clusterports-status"] == [user for user, password in stack.passwords.items() if password in told]
    assert re.fullmatch(r"[0-9a-f]{48}", stack.token)
    assert re.fullmatch(r"ACCOUNT=[1-9]\d*:[1-9]\d*\n", (stack.folder / ".env").read_text())


@pytest.mark.parametrize("failing", ["mkdir", "od", "sed", "sha256sum", "rm", "id", "mv"])
def test_setup_again(failing: str, tmp_path: Path) -> None:
    """Where it failed half way it can be run again, and makes all that it should."""
    shutil.copytree(DEPLOY, tmp_path / "deploy", ignore=MADE)
    folder, tools = tmp_path / "deploy" / "compose", tmp_path / "tools"
    tools.mkdir()
    (tools / failing).write_text("#!/bin/sh\nexit 1\n")
    (tools / failing).chmod(0o755)
    with pytest.raises(AssertionError):
        check("sh", folder / "setup.sh", environment=dict(os.environ) | {"PATH": f"{tools}:{os.environ['PATH']}"})
    assert not (folder / "made").exists()
    check("sh", folder / "setup.sh")
    assert {"clusterports.toml", "grafana", "grafana-password", "passwords", "prometheus", "token", "valkey"} == {
        path.name for path in (folder / "made").iterdir()
    }
    assert not (folder / "made.new").exists()


@pytest.mark.parametrize(
    "made",
    [
        "deploy/compose/made/token",
        "deploy/compose/made.new/token",
        "deploy/compose/.env",
        "deploy/kubernetes/secret/token",
    ],
)
def test_not_in_git(made: str) -> None:
    """What has a secret, or is of one machine, does not get into the repository."""
    done = subprocess.run(["git", "-C", str(ROOT), "check-ignore", "-q", made], check=False)
    assert 0 == done.returncode


# -------------------------------------------------------------------- the image


def words_of(instruction: str) -> list[str]:
    """The last of this name, which is in the form of a list."""
    return list(json.loads(re.findall(rf"^{instruction} (\[.*\])$", DOCKERFILE, re.MULTILINE)[-1]))


def test_dockerfile(tmp_path: Path) -> None:
    """hadolint has nothing to say against it, and finds what is wrong with another."""
    assert "" == check("hadolint", DEPLOY / "Dockerfile")
    (tmp_path / "Dockerfile").write_text(DOCKERFILE.replace("USER 10001:10001", "RUN cd /tmp"))
    with pytest.raises(AssertionError, match="DL3003"):
        check("hadolint", tmp_path / "Dockerfile")


def test_image_command() -> None:
    """By default the image is the exporter, and root is nobody in it."""
    assert ["clusterports"] == words_of("ENTRYPOINT")
    assert is_accepted(words_of("CMD"))
    assert "\nUSER 10001:10001\n" in DOCKERFILE.rpartition("\nFROM ")[2]


def test_build_context() -> None:
    """All that is copied into the image is there and not ignored; the folder of tests and .git stay outside."""
    rules = [
        line for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] not in ("", "#")
    ]

    def is_ignored(name: str) -> bool:
        last = [rule for rule in rules if fnmatch(name, rule.removeprefix("!").removeprefix("**/"))][-1:]
        return last != [] and not last[0].startswith("!")

    copied = [words.split()[:-1] for words in re.findall(r"^COPY (?!--)(.*)$", DOCKERFILE, re.MULTILINE)]
    names = [name for line in copied for name in line]
    assert {"pyproject.toml", "README.md", "LICENSE", "clusterports", "backends"} == set(names)
    assert [] == [name for name in names if is_ignored(name) or not (ROOT / name).exists()]
    assert all(is_ignored(name) for name in (".git", "tests", "deploy", ".env", "__pycache__"))
