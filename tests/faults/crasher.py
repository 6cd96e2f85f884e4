"""Processes that take and give ports from one SQLite file, one of which is killed every few milliseconds.

``python crasher.py URL FOLDER SECONDS SEED`` prints what happened, as JSON. While a process has a port it has a lock
on a file of that name, which the kernel takes away with the process: two that have one port cannot both have that.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from clusterports import Allocation, PortAllocator, PortRange, PortsExhausted

if TYPE_CHECKING:
    from collections.abc import Callable

WORKERS = 6
PORTS = 16
QUARANTINE = 0.1


def ports_at(url: str) -> PortAllocator:
    return PortAllocator(url, host="h", ranges=[PortRange("r", 1, PORTS, quarantine=QUARANTINE)], probe=False, ttl=30)


def work(url: str, folder: Path, seed: str) -> None:
    """Until killed, or told to stop: then everything is given back."""
    dice = random.Random(seed)
    taken = os.open(folder / "taken", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    held: dict[Allocation, int] = {}
    with ports_at(url) as ports:
        while signal.SIGTERM not in signal.sigpending():
            if held and (len(held) > 3 or dice.random() < 0.5):
                port = dice.choice(list(held))
                os.close(held.pop(port))
                port.release()
                continue
            try:
                port = ports.acquire("r")
            except PortsExhausted:
                time.sleep(0.001)
                continue
            held[port] = os.open(folder / str(port.number), os.O_WRONLY | os.O_CREAT)
            try:
                fcntl.flock(held[port], fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                (folder / "twice").write_text(f"{port!r}\n")
            os.write(taken, b".")
        for lock in held.values():
            os.close(lock)


def forked(job: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            job()
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


def main(url: str, folder: Path, seconds: float, seed: str) -> None:
    dice = random.Random(seed)
    killed = 0
    ports_at(url)  # what it needs is imported once, here
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def start() -> int:
        return forked(lambda: work(url, folder, f"{seed}-{killed}-{len(workers)}"))

    workers: list[int] = []
    while len(workers) < WORKERS:
        workers.append(start())
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(dice.uniform(0.0, 0.06))
        victim = dice.randrange(WORKERS)
        os.kill(workers[victim], signal.SIGKILL)
        os.waitpid(workers[victim], 0)
        killed += 1
        workers[victim] = start()
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers]
    print(json.dumps({"killed": killed, "codes": codes, "taken": (folder / "taken").stat().st_size}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4])
