"""Processes that hammer one SQLite file and are killed at any moment."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

from faults.crasher import QUARANTINE, WORKERS, ports_at

from clusterports_sqlite import connect


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """No port is ever held by two, none is lost beyond its quarantine, and the file stays whole."""
    url = f"sqlite:///{tmp_path}/x.db"
    command = [sys.executable, "-W", "error", str(Path(__file__).with_name("crasher.py")), url, str(tmp_path), "4", "7"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    ended = time.monotonic()
    assert ("", 0) == (ran.stderr, ran.returncode)
    told = json.loads(ran.stdout)
    print(f"\n{told['taken']} ports taken by {WORKERS} processes, {told['killed']} of which were killed")
    assert not (tmp_path / "twice").exists()
    assert [0] * WORKERS == told["codes"]
    assert min(told["taken"], 4 * told["killed"]) > 100

    with connect(url) as backend:
        left: list[str] = ["unknown"]
        while left:
            assert time.monotonic() < ended + QUARANTINE + 5  # the TTL is 30 s
            backend.reclaim("host:h")
            with ports_at(url) as look:
                hosts = look.status().hosts
            left = [str(item) for host in hosts for item in (*host.ports, *host.leases)]
        assert [] == [finding for finding in backend.diagnose() if finding.level == "error"]
    with closing(sqlite3.connect(tmp_path / "x.db")) as db:
        assert [("ok",)] == db.execute("PRAGMA integrity_check").fetchall()
