"""Waiters in a process of their own: ``python waiter.py '{"url": ..., "client": ..., "history": ..., ...}'``.

Each thread waits for one port of a few, holds it for a moment and gives it back. A line on standard output says that
all of them wait.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faults.history import Recorder

from clusterports import Allocation, PortAllocator, PortRange
from clusterports._backends import connect
from clusterports.abc import Queued

if TYPE_CHECKING:
    from collections.abc import Callable

MOMENT = 0.02
"""Seconds."""


def main(*, url: str, client: str, history: str, threads: int, first: int, last: int, ttl: float) -> None:
    recorder = Recorder(Path(history), client)
    backend = connect(url, timeout=10.0)
    tickets = threading.local()
    waiting = threading.Semaphore(0)
    acquire: Callable[..., Any] = backend.acquire

    def recorded(*args: Any) -> Any:
        asked = time.monotonic()
        reply = acquire(*args)
        if isinstance(reply, Queued):
            if not hasattr(tickets, "mine"):
                waiting.release()
            tickets.mine = reply.ticket
            recorder.write("queued", asked, ticket=reply.ticket)
        tickets.asked = asked
        return reply

    backend.acquire = recorded  # type: ignore[assignment]
    ports = PortAllocator(
        host="h", instance=client, ranges=[PortRange("r", first, last, quarantine=0.5)], ttl=ttl, backend=backend
    )

    def wait() -> None:
        port: Allocation = ports.acquire("r", wait=100)
        recorder.write("granted", tickets.asked, host="h", number=port.number, fence=port.fence, ticket=tickets.mine)
        time.sleep(MOMENT)
        asked = time.monotonic()
        recorder.write("released", asked, asked, "h", port.number, "tcp", port.fence)  # it relies on it no longer
        port.release()

    workers = [threading.Thread(target=wait) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for _ in workers:
        waiting.acquire()
    print("waiting", flush=True)
    for worker in workers:
        worker.join()
    ports.close()


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
