"""One manager of ``clusterports demo``, in a process of its own: it takes ports of its host and serves TCP on them.

Its orders are lines of JSON on stdin; when that ends, it gives everything back and ends too, so it does not
outlive the demo. What it does it tells in lines of JSON on stdout, each written before the next thing is done:
SIGKILL takes none of them back.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast

from clusterports import Allocation, ClusterPortsError, PortAllocator, PortInUse, PortRange
from clusterports._backends import connect
from clusterports.abc import Opened, Renewed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from clusterports.abc import Backend, Occupied, Renewal

RETRY: Final = 0.1
"""Seconds between two asks for a port that was refused."""


def tell(kind: str, **what: Any) -> None:
    # One write of less than PIPE_BUF: lines of several threads do not mix.
    with suppress(BrokenPipeError):  # the demo is gone: give back what is held all the same
        os.write(1, json.dumps({"kind": kind, **what}).encode() + b"\n")


class Told:
    """A backend that tells of each heartbeat before it is sent and after it was answered."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def open(self, *args: Any, **kwargs: Any) -> Opened | Occupied:
        sent = monotonic()
        tell("sending", sent=sent)
        reply = self._backend.open(*args, **kwargs)
        if isinstance(reply, Opened):
            tell("beat", sent=sent, answered=monotonic())
        return reply

    def renew(self, renewals: Sequence[Renewal]) -> list[Any]:
        sent = monotonic()
        tell("sending", sent=sent)
        outcomes = self._backend.renew(renewals)
        if all(isinstance(outcome, Renewed) for outcome in outcomes):
            tell("beat", sent=sent, answered=monotonic())
        return outcomes


class Manager:
    """``job``: host, address, instance, url, ttl, and the range as first, last, quarantine."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._host = job["host"]
        self._address = job["address"]
        self._listeners: dict[Allocation, socket.socket] = {}
        self._leaving = threading.Event()
        self._ports = PortAllocator(
            host=job["host"],
            instance=job["instance"],
            ttl=job["ttl"],
            strict=False,
            ranges=[PortRange("backup", job["first"], job["last"], quarantine=job["quarantine"])],
            backend=cast("Backend", Told(connect(job["url"], timeout=5.0))),
            on_lost=lambda lost: tell("lost", message=str(lost)),
        )

    def take(self, owner: str, number: int | None = None) -> None:
        """Take a port, and serve on it."""
        asked = monotonic()
        try:
            port = self._ports.acquire("backup", port=number, owner=owner)
        except PortInUse as error:
            span = {"asked": asked, "answered": monotonic()}
            tell("refusal", number=number, state=error.holder.state, message=str(error), **span)
            raise
        tell("grant", number=port.number, fence=port.fence, asked=asked, answered=monotonic())
        listener = socket.create_server((self._address, port.number))
        self._listeners[port] = listener
        self._thread(partial(self._serve, listener, port))
        tell("serving", number=port.number)

    def take_all(self, owners: list[str]) -> None:
        """Each in a thread of its own, all at once."""
        start = threading.Barrier(len(owners))
        for owner in owners:
            self._thread(partial(self._take_at, start, owner))

    def want(self, numbers: list[int], owners: list[str]) -> None:
        """Ask for exactly these until each was given."""

        def ask() -> None:
            wanted = dict(zip(numbers, owners, strict=True))
            while wanted and not self._leaving.wait(RETRY):
                for number, owner in list(wanted.items()):
                    with suppress(PortInUse):
                        self.take(owner, number)
                        del wanted[number]

        self._thread(ask)

    def _take_at(self, start: threading.Barrier, owner: str) -> None:
        start.wait()
        self.take(owner)

    def leave(self) -> None:
        """Stop serving, then give everything back."""
        self._leaving.set()
        for port, listener in list(self._listeners.items()):
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            tell("release", fence=port.fence, sent=monotonic())
            port.release()
        self._ports.close()
        tell("left")

    def _serve(self, listener: socket.socket, port: Allocation) -> None:
        banner = {"host": self._host, "port": port.number, "owner": port.owner, "fence": port.fence}
        with suppress(OSError):  # closed: the port is being given back
            while True:
                client, _ = listener.accept()
                with client, suppress(OSError):
                    client.sendall(json.dumps(banner).encode() + b"\n")

    def _thread(self, work: Callable[[], object]) -> None:
        def guarded() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 (the demo judges)
                if not self._leaving.is_set():
                    tell("error", message=f"{type(error).__name__}: {error}")

        threading.Thread(target=guarded, daemon=True).start()


def main() -> int:
    manager = Manager(json.loads(sys.stdin.readline()))
    tell("ready")
    for line in sys.stdin:
        order = json.loads(line)
        getattr(manager, order.pop("do"))(**order)
    try:
        manager.leave()
    except ClusterPortsError as error:
        tell("error", message=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
