"""What the processes of a fault run write down: what was asked and told, when, and what was done to them.

Every process appends JSON lines to a file of its own. All run on one machine, so their monotonic clocks are one
clock. An event has the time before it was asked for and the time at which its answer was there: what the store
did, it did in between.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from clusterports._names import space_host
from clusterports.abc import Occupied, Renewed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from clusterports.abc import Backend, Gone, Renewal

__all__ = ["Event", "Kind", "Recorder", "read", "recording"]

# fmt: off
Kind: TypeAlias = Literal[
    # told by a client of one port
    "granted", "found", "releasing", "released", "refused", "denied", "relied", "queued",
    # told by a client of all that it has on the host
    "jeopardy", "recovered", "lost", "beat", "returned", "detached",
    # told by whoever does things to clients and servers
    "killed", "stopped", "down", "stalled", "emptied", "rolled back", "clock", "left",
]
# fmt: on


@dataclass(frozen=True)
class Event:
    """One thing that happened; ``asked`` and ``answered`` in seconds of the monotonic clock.

    ``client`` is a process: "name#2" is the second under the instance name "name". "" is nobody's.

    Of one port: ``granted``; ``found`` after a restart, under the same fence; ``releasing``, written before the
    release, from when it is not relied upon; ``released``; ``refused``, a release that raised LeaseLost; ``denied``,
    asked for by number and held by this fence; ``relied``, it was valid; ``queued``, a place in the queue, by its
    ticket, was taken or kept (a port that was given to one who waited has the ticket too).

    Of all that the client holds on the host, or everywhere when ``host`` is "", or of one port when there is a fence:
    ``jeopardy``; ``recovered``; ``lost``. ``beat``: its lease was opened or renewed; ``host`` may name several,
    apart by blanks. ``returned``: it has started and found again what it could. ``detached``: it ended and left its
    ports.

    Of the world, from ``asked`` to ``answered``: ``killed`` and ``stopped``: the client. ``down``: the store answered
    nobody. ``stalled``: requests came late, perhaps after their sender's death. ``emptied``: the store lost all;
    ``rolled back``: the last of what was written. ``clock``: somebody's wall clock was set. ``left``: at the very end
    the store still holds this.
    """

    client: str
    event: Kind
    asked: float
    answered: float
    host: str = ""
    number: int = 0
    protocol: str = "tcp"
    fence: int = 0
    ticket: int = 0

    @property
    def instance(self) -> str:
        return self.client.partition("#")[0]

    def concerns(self, host: str) -> bool:
        return not self.host or host == self.host or host in self.host.split(" ")


class Recorder:
    """Writes events, each as one line, complete before the next step is taken."""

    def __init__(self, path: Path, client: str) -> None:
        self._file = path.open("a", buffering=1, encoding="utf-8")
        self._client = client
        self._lock = threading.Lock()

    def write(
        self,
        event: Kind,
        asked: float,
        answered: float | None = None,
        host: str = "",
        number: int = 0,
        protocol: str = "tcp",
        fence: int = 0,
        ticket: int = 0,
        client: str | None = None,
    ) -> None:
        at = time.monotonic() if answered is None else answered
        name = self._client if client is None else client
        line = json.dumps(asdict(Event(name, event, asked, at, host, number, protocol, fence, ticket)))
        with self._lock:
            self._file.write(line + "\n")

    def close(self) -> None:
        self._file.close()


def read(paths: Iterable[Path]) -> list[Event]:
    """All events of these files. The last line of a process that was killed may be cut short."""
    events = []
    for path in paths:
        lines = path.read_text("utf-8").split("\n")
        for number, line in enumerate(lines):
            try:
                events.append(Event(**json.loads(line)))
            except ValueError:
                if number != len(lines) - 1:
                    raise ValueError(f"{path.name}, line {number + 1}: not an event") from None
    return events


def recording(backend: Backend, recorder: Recorder) -> Backend:
    """The same backend; every lease that is opened or renewed goes into the history, before its holder relies on it."""
    renew, opening = backend.renew, backend.open

    def recorded(renewals: Sequence[Renewal]) -> list[Renewed | Gone | BaseException]:
        asked = time.monotonic()
        outcomes = renew(renewals)
        pairs = zip(renewals, outcomes, strict=True)
        hosts = [space_host(renewal.space) for renewal, outcome in pairs if isinstance(outcome, Renewed)]
        if hosts:
            recorder.write("beat", asked, host=" ".join(hosts))
        return outcomes

    def opened(space: str, *args: Any, **more: Any) -> Any:
        asked = time.monotonic()
        reply = opening(space, *args, **more)
        if not isinstance(reply, Occupied):
            recorder.write("beat", asked, host=space_host(space))
        return reply

    backend.renew = recorded  # type: ignore[method-assign]
    backend.open = opened  # type: ignore[method-assign]
    return backend
