"""A manager in a process of its own, which somebody else may kill.

What it is to do comes as JSON: ``url`` of the store, ``instance``, ``ttl``, ``quarantine``, ``hosts`` (names and URIs),
and ``jobs``, one after another: ``host``, ``domain``, ``xml``, and ``nbd``, where to pull from with ``{port}`` in it.
It tells of each job that it has begun and on which port, then the checksum of what it pulled, then that it has ended.
With a job's ``hold`` it waits for a line before the pull; with ``resume`` it ends what it finds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from clusterports import PortAllocator, PortRange
from clusterports.libvirt import BackupPorts


def main(task: dict[str, Any]) -> None:
    logging.basicConfig(level=logging.WARNING)
    with ExitStack() as stack:
        ranges = [PortRange("backup", 10809, 10872, quarantine=task.get("quarantine", 15))]
        ports = PortAllocator(
            task["url"], host=task.get("host"), instance=task["instance"], ttl=task["ttl"], ranges=ranges
        )
        stack.enter_context(ports)
        hosts = {
            name: stack.enter_context(BackupPorts(ports, uri, host=name, interval=0.3))
            for name, uri in task["hosts"].items()
        }
        raw = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "raw"
        for backups in hosts.values():
            for found in backups.jobs():
                tell(found=found.domain, host=found.host, port=found.port.number, fence=found.port.fence)
                if task.get("resume"):
                    found.end()
        for job in task["jobs"]:
            with hosts[job["host"]].begin(job["domain"], job["xml"]) as backup:
                tell(began=job["domain"], host=backup.host, port=backup.port.number, fence=backup.port.fence)
                if job.get("hold"):
                    sys.stdin.readline()
                nbd = job["nbd"].format(port=backup.port.number)
                subprocess.run(["qemu-img", "convert", "-O", "raw", nbd, raw], check=True)
                tell(pulled=hashlib.sha256(raw.read_bytes()).hexdigest())
            tell(ended=job["domain"])


def tell(**what: object) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
