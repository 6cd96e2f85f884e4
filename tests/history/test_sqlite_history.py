"""The same random histories on a SQLite file: replies, what is shown, and every row agree with the state machine.

Two objects take turns, so each has to find out what the other did; and one that has seen nothing before reads it all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest
from history.test_history import ALL, STEPS, Different, Player, generate

from clusterports._space import Space
from clusterports_memory import MemoryBackend
from clusterports_memory import Store as MemorySpaces
from clusterports_sqlite._stored import StoredSpace

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    import servers

    from clusterports_sqlite import SqliteBackend
    from clusterports_sqlite._process import Process


TABLES: Final = ("space", "lease", "port", "place", "last", "change", "event")


def tables(db: sqlite3.Connection) -> list[str]:
    """Those that there are: that of events comes with the first one."""
    there = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    return [table for table in TABLES if table in there]


class LocalModel(MemorySpaces):
    """The state machine as it is for those who cannot be cut off; with ``patient``, for those who may be alive."""

    def __init__(self, clock: Callable[[], int], *, patient: bool) -> None:
        super().__init__(clock, events=ALL)
        self._patient = patient

    def space(self, name: str) -> Space:
        if name in self.spaces:
            return self.spaces[name]
        made = Space(name)
        made._patient = self._patient
        return made


class SqlitePlayer(Player):
    def __init__(self, store: servers.SqliteStore, *, patient: bool) -> None:
        def alive(process: Process) -> bool | None:
            return None if patient else False

        super().__init__(None)
        store.flush()
        self.clock = store.clock
        self.modelled = LocalModel(lambda: self.clock.now, patient=patient)
        self.model = MemoryBackend(self.modelled)
        self.subjects = [store.connect(virtual=True, alive=alive, events=ALL) for _ in range(2)]
        self.steps = 0

    def play_all(self, seed: int, steps: int) -> None:
        made = generate(seed, steps)
        try:
            for index, step in enumerate(made):
                try:
                    self.steps = index
                    self.step(self.subjects[index % 5 in (1, 2)], step)
                    self.check_rows()
                except AssertionError as error:
                    raise Different(index, f"seed {seed}, step {index}: {error}\n" + "\n".join(self.log[-6:])) from None
        finally:
            for subject in self.subjects:
                subject.close()

    def check_rows(self) -> None:
        expected = {name: inner(space) for name, space in self.modelled.spaces.items()}
        self.compare(expected, self.stored(self.subjects[0], anew=True))
        if self.steps % 7 == 0:
            for subject in self.subjects:
                self.compare(expected, self.stored(subject, anew=False))

    def copied(self) -> dict[str, list[tuple[Any, ...]]]:
        def work(db: sqlite3.Connection) -> dict[str, list[tuple[Any, ...]]]:
            return {table: db.execute(f"SELECT * FROM {table}").fetchall() for table in tables(db)}  # noqa: S608

        return self.subjects[0].file.read(work) or {}

    def put_back(self, stored: dict[str, list[tuple[Any, ...]]] | None) -> None:
        def work(db: sqlite3.Connection) -> None:
            for table in tables(db):
                db.execute(f"DELETE FROM {table}")  # noqa: S608
                for row in (stored or {}).get(table, ()):
                    db.execute(f"INSERT INTO {table} VALUES ({','.join('?' * len(row))})", row)  # noqa: S608

        self.subjects[1].file.write(work)

    @staticmethod
    def stored(subject: SqliteBackend, *, anew: bool) -> dict[str, dict[str, Any]]:
        def find(db: sqlite3.Connection, name: str) -> StoredSpace:
            if not anew:
                return subject._find(db, name)
            space = StoredSpace(name, subject._wall, subject._alive)
            assert space.load(db)
            return space

        def work(db: sqlite3.Connection) -> dict[str, dict[str, Any]]:
            return {name: inner(find(db, name)) for (name,) in db.execute("SELECT name FROM space").fetchall()}

        return subject.file.read(work) or {}

    @staticmethod
    def compare(expected: dict[str, dict[str, Any]], actual: dict[str, dict[str, Any]]) -> None:
        assert expected.keys() == actual.keys()
        for name, space in expected.items():
            for part, value in space.items():
                assert value == actual[name][part], f"{part} of {name}: {value} != {actual[name][part]}"


def inner(space: Space) -> dict[str, Any]:
    """Everything that a space knows, in a form that compares."""
    leases = {
        id: (lease.instance, lease.incarnation, lease.token, lease.ttl, lease.nominal, lease.expires, lease.floor)
        for id, lease in space._leases.items()
    }
    ports = {
        name: (port.state, port.lease.id, port.lease.instance, port.fence, port.since, port.until, port.labels)
        for name, port in space._ports.items()
    }
    asks = {
        name: (port.ask.range, port.ask.owner, port.ask.host)
        + ((port.ask.quarantine, port.ask.cooldown, port.ask.limit) if port.state == "held" else ())
        for name, port in space._ports.items()
    }
    return {
        "times": (space._seen, space._clock, space._fence, space._born, space._recovering, list(space._ended)),
        "leases": leases,
        "answers": {id: lease.done for id, lease in space._leases.items()},
        "revoked": {id: list(lease.revoked) for id, lease in space._leases.items()},
        "held": {id: lease.ports for id, lease in space._leases.items()},
        "names": dict(space._names),
        "ports": ports,
        "asks": asks,
        "due": dict(space._due),
        "counts": (space._owned, space._foreign),
        "last": dict(space._last),
        "queue": {ticket: (lease.id, ask) for ticket, (lease, ask) in space._queue.items()},
        "taken": {kind: bytes(taken) for kind, taken in space._taken.items()},
    }


@pytest.mark.parametrize("patient", [False, True], ids=["sharp", "patient"])
@pytest.mark.parametrize("seed", range(2))
def test_same_as_the_state_machine(sqlite: servers.SqliteStore, seed: int, patient: bool) -> None:
    """Every reply, everything visible and every row are those of the state machine, step by step."""
    SqlitePlayer(sqlite, patient=patient).play_all(seed, STEPS)
