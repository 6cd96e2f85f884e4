"""deploy/redis: what its README says to do with a server that is older than its files, on a server."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import redis
from deploy.kit import DEPLOY, Stack, check

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = DEPLOY / "redis"
USERS = ("clusterports", "clusterports-status")
NEW = {"clusterports": {"+xadd", "+xrevrange"}, "clusterports-status": {"+xrevrange", "+info"}}


def commands(admin: redis.Redis) -> dict[str, set[str]]:
    """What each user may run."""
    told: dict[str, Any] = {user: admin.acl_getuser(user) for user in USERS}
    return {user: set(told[user]["commands"]) for user in USERS}


def without_new(line: str) -> str:
    """A user of before there were events."""
    return " ".join(word for word in line.split(" ") if word not in NEW.get(line.split(" ")[1], ()))


def test_older_users(tmp_path: Path) -> None:
    """After the commands of README.md users may do what the file of today lets them, also once that was read anew."""
    stack = Stack(tmp_path)
    file = stack.made / "valkey" / "users.acl"
    today = file.read_text()
    file.write_text("\n".join(map(without_new, today.splitlines())))
    (said,) = re.findall(r"```\n((?:ACL .*\n)+)```", (FOLDER / "README.md").read_text("utf-8"))
    with stack.running("valkey"), redis.Redis.from_url(stack.url_of("admin")) as admin:
        before = commands(admin)
        for line in said.splitlines():
            admin.execute_command(*line.split())
        after = commands(admin)
        admin.execute_command("ACL LOAD")
        saved = commands(admin)
        file.write_text(today)
        admin.execute_command("ACL LOAD")

        assert NEW == {user: after[user] - before[user] for user in USERS}
        assert commands(admin) == after == saved


def test_no_passwords(tmp_path: Path) -> None:
    """Where none can be made nobody has an empty one, and install.sh can be run again."""
    tools, folder = tmp_path / "tools", tmp_path / "made"
    tools.mkdir()
    (tools / "od").write_text("#!/bin/sh\nexit 1\n")
    (tools / "od").chmod(0o755)
    with pytest.raises(AssertionError):
        check("sh", FOLDER / "install.sh", folder, "127.0.0.1", environment={"PATH": f"{tools}:/usr/bin:/bin"})
    assert not (folder / "passwords").exists()
    check("sh", FOLDER / "install.sh", folder, "127.0.0.1")
    lines = (folder / "passwords").read_text().splitlines()
    assert [] == [line for line in lines if not re.fullmatch(r"[\w-]+ [0-9a-f]{48}", line)]
