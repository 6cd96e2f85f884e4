"""Many short commands under ``clusterports run`` on one SQLite file, while somebody kills them at random.

``python tests/faults/runs.py --loops 8 --runs 500``. Each command takes an exclusive lock that is named after its port,
and which the kernel takes back when it ends, however it ends: so two that have one port at once cannot go unseen.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

TTL = 10.0
QUARANTINE = 2.0
TWICE = 77
"""The exit code of a command that found its port's lock taken."""


class Outcome(NamedTuple):
    """``codes``: how often each exit code came. ``numbers``: how many different ports the commands had. ``left``: ports
    and leases at the end. ``check``: of the file.
    """

    codes: dict[int, int]
    numbers: int
    kills: int
    left: list[Any]
    check: str
    seconds: float


def play(folder: Path, loops: int, runs: int, kill_every: float, seed: int = 0) -> Outcome:
    """All of it; ends by itself."""
    environment = os.environ | {
        "CLUSTERPORTS_URL": f"sqlite:///{folder}/ports.db",
        "CLUSTERPORTS_HOST": "h",
        "CLUSTERPORTS_TTL": str(TTL),
        "CLUSTERPORTS_RANGES": json.dumps({"backup": {"first": 20000, "last": 29999, "quarantine": QUARANTINE}}),
        "XDG_CONFIG_HOME": str(folder),
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    clusterports = [sys.executable, "-m", "clusterports.cli"]
    command = [*clusterports, "run", "--", "flock", "-n", "-E", str(TWICE), f"{folder}/{{port}}", "true"]
    alive: dict[int, subprocess.Popen[bytes]] = {}
    lock, codes, done = threading.Lock(), Counter[int](), threading.Event()

    def loop() -> None:
        for _ in range(runs):
            with lock:
                process = subprocess.Popen(command, env=environment, cwd=folder, stdin=subprocess.DEVNULL)
                alive[process.pid] = process
            code = process.wait()
            with lock:
                del alive[process.pid]
                codes[code] += 1

    def kill() -> int:
        rng, kills = random.Random(seed), 0
        while not done.wait(rng.uniform(0, 2 * kill_every)):
            with lock, contextlib.suppress(IndexError):
                victim = rng.choice(list(alive.values()))
                if victim.returncode is None:
                    victim.send_signal(signal.SIGKILL)
                    kills += 1
        return kills

    began = time.monotonic()
    threads = [threading.Thread(target=loop) for _ in range(loops)]
    for thread in threads:
        thread.start()
    counted: list[int] = []
    killer = threading.Thread(target=lambda: counted.append(kill()))
    killer.start()
    for thread in threads:
        thread.join()
    done.set()
    killer.join()
    seconds = time.monotonic() - began

    left: list[Any] = ["not looked yet"]
    until = time.monotonic() + TTL + QUARANTINE + 10
    while left and time.monotonic() < until:
        subprocess.run([*clusterports, "gc"], env=environment, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        status = subprocess.run([*clusterports, "status", "--json"], env=environment, cwd=folder, check=True, stdout=-1)
        hosts = json.loads(status.stdout)["hosts"]
        left = [item for host in hosts for item in (*host["ports"], *host["leases"])]
        time.sleep(0.2)
    with contextlib.closing(sqlite3.connect(folder / "ports.db")) as db:
        ((check,),) = db.execute("PRAGMA integrity_check")
    numbers = sum(path.name.isdigit() for path in folder.iterdir())
    return Outcome(dict(codes), numbers, counted[0], left, check, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--loops", type=int, default=8)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--kill-every", type=float, default=0.05)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = play(Path(folder), arguments.loops, arguments.runs, arguments.kill_every)
    print(outcome)
    sys.exit(bool(outcome.left or outcome.check != "ok" or set(outcome.codes) - {0, -signal.SIGKILL}))


if __name__ == "__main__":
    main()
