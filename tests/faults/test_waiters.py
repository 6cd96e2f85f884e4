"""Many who wait for few ports, over many processes, some of which are killed. Judged from what they recorded."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from faults.checker import breaches, overtakings
from faults.history import Recorder, read

from clusterports import PortAllocator, PortRange
from clusterports._sync.acquire import WINDOW

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import servers

PROCESSES, THREADS, KILLED = 20, 10, 10
FIRST, LAST = 10809, 10812
TTL = 4.0

TESTS = Path(__file__).resolve().parents[1]


def start(folder: Path, url: str, client: str) -> subprocess.Popen[str]:
    told = {"url": url, "client": client, "history": str(folder / f"{client}.jsonl"), "threads": THREADS}
    return subprocess.Popen(
        [
            sys.executable,
            str(TESTS / "faults" / "waiter.py"),
            json.dumps({**told, "first": FIRST, "last": LAST, "ttl": TTL}),
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith("CLUSTERPORTS_")}
        | {"PYTHONPATH": str(TESTS)},
    )


def served(folder: Path, clients: Iterable[str]) -> dict[str, int]:
    """How many waiters of each got their port."""
    counts = dict.fromkeys(clients, 0)
    for event in read(sorted(folder.glob("*.jsonl"))):
        counts[event.client] += event.event == "granted"
    return counts


def wait_for(folder: Path, target: int) -> int:
    """Until so many were served: how many are."""
    while (count := sum(event.event == "granted" for event in read(sorted(folder.glob("*.jsonl"))))) < target:
        time.sleep(0.01)
    return count


@pytest.mark.timeout(180)
def test_two_hundred_waiters(
    valkey: servers.ServerStore, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Two hundred in twenty processes want four ports, ten processes are killed: served in order, nobody starves."""
    rng = random.Random(20)
    ranges = [PortRange("r", FIRST, LAST, quarantine=0.5)]
    with ExitStack() as cleanup:
        holder = cleanup.enter_context(PortAllocator(valkey.url, host="h", ranges=ranges, ttl=TTL))
        held = [holder.acquire("r") for _ in range(FIRST, LAST + 1)]
        processes = {}
        for number in range(PROCESSES):
            process = processes[f"p{number:02}"] = start(tmp_path, str(valkey.url), f"p{number:02}")
            cleanup.callback(process.wait)
            cleanup.callback(process.kill)
            assert process.stdout is not None
            cleanup.callback(process.stdout.close)
        for process in processes.values():
            assert process.stdout is not None
            assert "waiting\n" == process.stdout.readline()
        began = time.monotonic()
        for port in held:
            port.release()
        doomed: set[str] = set()
        granted = 0
        while len(doomed) < KILLED:
            granted = wait_for(tmp_path, granted + rng.randrange(1, 6))
            unserved = [client for client, count in served(tmp_path, processes).items() if count < THREADS]
            client = rng.choice(sorted(set(unserved) - doomed))
            doomed.add(client)
            asked = time.monotonic()
            processes[client].kill()
            processes[client].wait()
            recorder = Recorder(tmp_path / f"{client}.killed.jsonl", client)
            recorder.write("killed", asked)
            recorder.close()
        for client, process in processes.items():
            assert (-9 if client in doomed else 0) == process.wait(100), client
        took = time.monotonic() - began
        events = read(sorted(tmp_path.glob("*.jsonl")))
        counts = served(tmp_path, processes)
        record_property("seconds", round(took, 1))
        record_property("served", sum(counts.values()))
        assert {THREADS} == {count for client, count in counts.items() if client not in doomed}
        assert [] == overtakings(events, WINDOW)
        assert [] == breaches(events, ttl=TTL, quarantine=0.5)
        back = [holder.acquire("r", wait=TTL + 5).number for _ in range(FIRST, LAST + 1)]
        assert list(range(FIRST, LAST + 1)) == sorted(back)
