"""The file of ``sqlite://``: from its URL to what is said when it is locked, full, damaged or somebody else's."""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from clusterports import AsyncPortAllocator, PortAllocator, PortRange, PortsExhausted
from clusterports.abc import (
    Ask,
    Claim,
    Claimed,
    Full,
    Gone,
    Granted,
    Holder,
    Opened,
    Port,
    Recovering,
    Released,
    Renewal,
    Renewed,
    Request,
    SpaceView,
    Wait,
)
from clusterports.errors import BackendError, BackendUnavailable, ConfigurationError, IncompatibleSchema
from clusterports_sqlite import SqliteBackend, connect, connect_async
from clusterports_sqlite._file import APPLICATION, SCHEMA, translate
from clusterports_sqlite._url import file_of, file_system

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import servers

SPACE = "host:h"
SECOND = 1_000_000
TTL = 30 * SECOND
RANGES = [PortRange("r", 1, 100)]


def ask(count: int = 1, first: int = 1, last: int = 100, **more: Any) -> Ask:
    return Ask("r", ((first, last),), count, **more)


class Client:
    """A holder on one backend."""

    def __init__(
        self, backend: SqliteBackend, instance: str = "one", space: str = SPACE, *, bound: bool = False
    ) -> None:
        self.backend, self.space, self.number = backend, space, 0
        opened = backend.open(space, instance, token=instance.encode().hex(), ttl=TTL, bound=bound)
        assert isinstance(opened, Opened)
        self.holder = Holder(instance, opened.lease, opened.incarnation)

    def ask(self, *asks: Ask) -> Any:
        self.number += 1
        return self.backend.acquire(self.space, self.holder, Request(self.number, self.number), asks or (ask(),))

    def take(self, *asks: Ask) -> tuple[Port, ...]:
        reply = self.ask(*asks)
        assert isinstance(reply, Granted)
        return reply.ports

    def renew(self) -> Any:
        (outcome,) = self.backend.renew([Renewal(self.space, self.holder)])
        return outcome


def held(backend: SqliteBackend, space: str = SPACE) -> list[int]:
    (view,) = backend.read([space])
    assert not isinstance(view, BackendError)
    return [port.number for port in view.ports if port.state == "held"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.db"


@pytest.fixture
def make(path: Path) -> Iterator[Callable[..., SqliteBackend]]:
    """Makes backends on one file, and closes them."""
    made: list[SqliteBackend] = []

    def make(timeout: float = 0.2) -> SqliteBackend:
        made.append(SqliteBackend(str(path), timeout=timeout))
        return made[-1]

    yield make
    for backend in made:
        backend.close()


def raw(path: Path, *statements: str) -> list[Any]:
    """What somebody else does to the file; the rows of the last statement."""
    rows: list[Any] = []
    with closing(sqlite3.connect(path)) as db:
        for statement in statements:
            rows = db.execute(statement).fetchall()
        db.commit()
    return rows


# -------------------------------------------------------------------- URL


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:///x.db", "{cwd}/x.db"),
        ("sqlite:///a/../x.db", "{cwd}/a/../x.db"),
        ("sqlite:////var/x.db", "/var/x.db"),
        ("sqlite://///var/x.db", "/var/x.db"),
        ("sqlite:///~/x.db", "{home}/x.db"),
        ("sqlite:///%7Eliteral", "{home}-no"),
        ("sqlite:///a%20b%3Fc%23d", "{cwd}/a b?c#d"),
        ("sqlite:///%C3%A9.db", "{cwd}/\u00e9.db"),
    ],
)
def test_path(url: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three slashes and a relative path, or four for an absolute one; ``~`` is the home, %XX any character."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home-of-test")
    if expected.endswith("-no"):
        with pytest.raises(ConfigurationError, match=r"no home directory is known for '~literal'"):
            file_of(url)
        return
    assert expected.format(cwd=tmp_path, home="/home-of-test") == file_of(url)
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("sqlite://", "names no file; got 'sqlite://'"),
        ("sqlite:///", "names no file; got 'sqlite:///'"),
        ("sqlite://x.db", "three slashes before a relative path; got 'sqlite://x.db'"),
        ("sqlite://host/x.db", "three slashes before a relative path"),
        ("sqlite:///x.db?mode=ro", r"without options \(\? in a name is %3F\); got 'sqlite:///x.db\?mode=ro'"),
        ("sqlite:///x.db#f", r"without a fragment \(# in a name is %23\)"),
        ("sqlite:///:memory:", "a store in memory is memory://; got 'sqlite:///:memory:'"),
        ("sqlite:///a%00b", "without NUL"),
        ("sqlite:///.", "'.' is a directory; got 'sqlite:///.'"),
        ("sqlite:///new/", "'new/' is a directory"),
        ("sqlite:///\x1b[31m/", r"'\\x1b\[31m/' is a directory"),
    ],
)
@pytest.mark.parametrize("make", [connect, connect_async], ids=["sync", "async"])
def test_bad_path(make: Any, url: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no path of a file is refused, naming key, bound and value, and nothing is made."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=f"^url: .*{what}"):
        make(url)
    assert [] == list(tmp_path.iterdir())


def test_working_directory_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path needs a working directory, an absolute one does not."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(ConfigurationError, match=r"^url: 'sqlite:///x.db' is relative to the working directory, which"):
        file_of("sqlite:///x.db")
    assert f"{tmp_path}/x.db" == file_of(f"sqlite:///{tmp_path}/x.db")
    monkeypatch.chdir(tmp_path)


def test_client_is_refused() -> None:
    """There is no client object to bring along."""
    with pytest.raises(ConfigurationError, match=r"^client: sqlite:// has no client, got object"):
        connect("sqlite:///x.db", client=object())


MOUNTS = r"""
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:26 / /nfs rw shared:2 - nfs4 server:/export rw
31 22 0:27 / /with\040blank rw - fuse.sshfs x rw
32 30 0:28 / /nfs/local rw shared:3 master:1 - tmpfs tmpfs rw
33 22 0:29 / /twice rw - nfs old rw
34 22 0:30 / /twice rw - xfs new rw
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/var/x.db", "ext4"),
        ("/nfs/x.db", "nfs4"),
        ("/nfs-not/x.db", "ext4"),
        ("/nfs/local/deep/x.db", "tmpfs"),
        ("/with blank/x.db", "fuse.sshfs"),
        ("/twice/x.db", "xfs"),
    ],
)
def test_file_system(path: str, expected: str) -> None:
    """A file is on the file system that is mounted nearest above it, and last."""
    assert expected == file_system(path, MOUNTS)


def test_network_file_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that several machines may see is refused, and it is said what to use instead."""
    monkeypatch.setattr("clusterports_sqlite._url.file_system", lambda path: "nfs4")
    with pytest.raises(ConfigurationError, match=r"'/var/x.db' is on a network file system \(nfs4\); use redis://"):
        connect("sqlite:////var/x.db")


# -------------------------------------------------------------------- the file


def test_new_directory_is_private(tmp_path: Path) -> None:
    """A directory that is made for the file is its user's alone, and so is the file."""
    old = os.umask(0o002)
    try:
        with SqliteBackend(str(tmp_path / "a" / "b" / "x.db")) as backend:
            Client(backend).take()
    finally:
        os.umask(old)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "a/b", "a/b/x.db")]
    assert [0o700, 0o700, 0o600] == modes


def test_old_directory_may_be_shared(make: Callable[..., SqliteBackend], path: Path) -> None:
    """In a directory that was there, the umask decides who else may use the file, and its journal."""
    old = os.umask(0o002)
    try:
        Client(make()).take()
        names = [path, path.with_name("x.db-wal"), path.with_name("x.db-shm")]
        assert [0o664] * 3 == [stat.S_IMODE(name.stat().st_mode) for name in names]
    finally:
        os.umask(old)


def test_link(make: Callable[..., SqliteBackend], path: Path, tmp_path: Path) -> None:
    """A link may lead to a file that is not made yet; that, and its journal, are made where it leads."""
    (tmp_path / "there").mkdir()
    path.symlink_to(tmp_path / "there" / "y.db")
    Client(make()).take()
    assert path.is_symlink()
    assert ["y.db", "y.db-shm", "y.db-wal"] == sorted(found.name for found in (tmp_path / "there").iterdir())


def test_looking_makes_nothing(make: Callable[..., SqliteBackend], tmp_path: Path) -> None:
    """Whoever only looks finds nothing, and leaves nothing behind."""
    backend = make()
    view = backend.read([SPACE])[0]
    assert SpaceView(SPACE, 0, (), ()) == view
    assert ([], []) == (backend.spaces(), backend.spaces("one"))
    assert isinstance(backend.preview(SPACE, [ask()]), Granted)
    assert Gone("unknown") == backend.held(SPACE, Holder("one", 1, 1))
    assert backend.drop(SPACE)
    backend.watch(SPACE, 1).wait(0)
    assert "ok" == next(backend.diagnose()).level
    assert [] == list(tmp_path.iterdir())


def test_below_a_file(tmp_path: Path) -> None:
    """A path that cannot be made is an error that names it and the reason."""
    (tmp_path / "file").touch()
    with SqliteBackend(str(tmp_path / "file" / "x.db")) as backend:
        for call in (lambda: Client(backend), lambda: backend.read([SPACE]), backend.spaces):
            with pytest.raises(BackendError, match=r"^Unable to open '.*/file/x.db': Not a directory"):
                call()
        assert ["error"] == [finding.level for finding in backend.diagnose() if finding.check == "store"]


def test_no_permission() -> None:
    """Where nobody may write, not even root, the error says so."""
    with SqliteBackend("/proc/clusterports/x.db") as backend, pytest.raises(BackendError, match=r"^Unable to open"):
        Client(backend)


def test_read_only(make: Callable[..., SqliteBackend]) -> None:
    """A file that cannot be written is shown all the same; a step is an error that says why, and changes nothing."""
    backend = make()
    client = Client(backend)
    client.take()
    backend.file.read(lambda db: db.execute("PRAGMA query_only = ON"))
    with pytest.raises(BackendError, match=r"^This user may not write '.*/x.db': attempt to write a readonly database"):
        client.ask()
    assert isinstance(client.renew(), BackendError)
    assert [1] == held(backend)
    backend.file.read(lambda db: db.execute("PRAGMA query_only = OFF"))
    assert [2] == [port.number for port in client.take()]
    assert Renewed(False) == client.renew()


def test_other_application(make: Callable[..., SqliteBackend], path: Path) -> None:
    """The database of another program is refused, and stays as it is to the byte."""
    raw(path, "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)")
    before = path.read_bytes()
    backend = make()
    for call in (lambda: Client(backend), backend.spaces):
        with pytest.raises(BackendError, match=r"is the database of another application, and was not touched"):
            call()
    assert before == path.read_bytes()


@pytest.mark.parametrize("schema", [SCHEMA - 1, SCHEMA + 1])
def test_other_schema(make: Callable[..., SqliteBackend], path: Path, schema: int) -> None:
    """The file of an older or a newer clusterports is refused and not touched, also by the doctor."""
    backend = make()
    Client(backend).take()
    backend.close()
    raw(path, f"PRAGMA user_version = {schema}")
    before = path.read_bytes()
    for call in (lambda: Client(backend), lambda: backend.read([SPACE])):
        with pytest.raises(IncompatibleSchema, match=rf"has schema {schema}; this clusterports knows schema 2 only"):
            call()
    (found,) = [finding for finding in backend.diagnose(repair=True) if finding.level == "error"]
    cure = (
        "use the newer clusterports everywhere on this machine; if this is the newer one, end the jobs on these ports"
    )
    assert ("schema", f"{cure}, then move the file away and start anew") == (found.check, found.cure)
    assert before == path.read_bytes()


def test_older_layout(make: Callable[..., SqliteBackend], path: Path) -> None:
    """What a space lacked when its schema had another number is not met as a row that cannot be read."""
    Client(make()).take()
    raw(
        path,
        "ALTER TABLE space DROP COLUMN born",
        "ALTER TABLE space DROP COLUMN recovering",
        "PRAGMA user_version = 1",
    )
    with pytest.raises(IncompatibleSchema, match=r"has schema 1"):
        Client(make(), "two")


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_file_is_taken_away(make: Callable[..., SqliteBackend], path: Path, how: str) -> None:
    """Who holds a port in a file that is gone is told; nobody goes on in a file that others do not see."""
    first, second = make(), make()
    client = Client(first)
    (port,) = client.take()
    for suffix in ("", "-wal", "-shm"):
        path.with_name(f"x.db{suffix}").unlink()
    if how == "replaced":
        Client(second).take()
    assert Gone("unknown") == client.renew()
    assert Gone("unknown") == client.ask()
    other = Client(first, "two")
    (again,) = other.take()
    assert again.fence > port.fence
    assert held(first) == held(second)


def test_taken_away_from_another(make: Callable[..., SqliteBackend], path: Path) -> None:
    """A file that was taken away while a process works in it leaves a journal, in which the new one has no part."""
    code = """
import sys
from clusterports_sqlite import SqliteBackend
backend = SqliteBackend(sys.argv[1])
opened = backend.open("host:h", "old", token="aa", ttl=30_000_000)
print(flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        path.unlink()
        first, second = make(), make()
        assert [1] == [port.number for port in Client(first).take()]
        process.communicate()
    assert [2] == [port.number for port in Client(second, "two").take()]
    assert [1, 2] == held(first)
    assert [("ok",)] == raw(path, "PRAGMA integrity_check")


@pytest.mark.parametrize("how", ["removed", "replaced", "left alone"])
def test_taken_away_in_the_middle(make: Callable[..., SqliteBackend], path: Path, how: str) -> None:
    """An error of a file that is not there any more is none; one of the file that everybody has is told at once."""
    backend, other = make(), make()
    Client(backend)
    Client(make(), "two")
    looks: list[list[tuple[str]]] = []

    def work(db: sqlite3.Connection) -> None:
        looks.append(db.execute("SELECT instance FROM lease ORDER BY instance").fetchall())
        if len(looks) > 1:
            return
        if how != "left alone":
            path.unlink()
        if how == "replaced":
            Client(other, "three")
        raise failure("SQLITE_IOERR_SHORT_READ")

    if how == "left alone":
        with pytest.raises(BackendError, match=r"^The disk refuses '.*/x.db'"):
            backend.file.write(work)
    else:
        backend.file.write(work)
    again: dict[str, list[list[tuple[str]]]] = {"removed": [[]], "replaced": [[("three",)]], "left alone": []}
    assert [[("one",), ("two",)], *again[how]] == looks


@pytest.mark.parametrize("when", [1, 2, 3])
def test_made_while_it_is_looked_at(make: Callable[..., SqliteBackend], path: Path, when: int) -> None:
    """Whoever finds an empty file that another one makes meanwhile takes it for ours: never for somebody else's."""
    first, second = make(), make(timeout=0)
    is_ours = first.file._is_ours
    looks: list[str] = []

    class Slow:
        """A connection under which the other one does its part before the first, second or third look."""

        def __init__(self, db: sqlite3.Connection) -> None:
            self.db = db

        def execute(self, statement: str) -> sqlite3.Cursor:
            looks.append(statement)
            if len(looks) == when:
                with suppress(BackendUnavailable):
                    Client(second, "two")
            return self.db.execute(statement)

    path.touch()
    first.file._is_ours = lambda db: is_ours(Slow(db))  # type: ignore[arg-type, method-assign]
    assert [1] == [port.number for port in Client(first).take()]
    assert [2] == [port.number for port in Client(second, "two").take()]


def locks(path: Path) -> int:
    """How many locks this process has on the file."""
    lines = [line.split() for line in Path("/proc/locks").read_text(encoding="ascii").splitlines()]
    return sum(line[4] == str(os.getpid()) and line[5].endswith(f":{path.stat().st_ino}") for line in lines)


def test_making_opens_nothing(make: Callable[..., SqliteBackend], path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file itself is opened by SQLite alone: to close it would take the locks of another object of this process."""
    opened: list[str] = []
    os_open = os.open

    def watched(name: str, *arguments: Any) -> int:
        opened.append(os.fspath(name))
        return os_open(name, *arguments)

    monkeypatch.setattr(os, "open", watched)
    Client(make())
    assert [str(path.parent)] == opened


def test_late_maker(make: Callable[..., SqliteBackend], path: Path) -> None:
    """Whoever comes to make a file that another object of this process has made by then leaves it its locks."""
    first, second = make(), make()
    clients: list[Client] = []
    make_it = second.file._make

    def late() -> None:
        clients.append(Client(first))
        make_it()

    second.file._make = late  # type: ignore[method-assign]
    Client(second, "two")
    second.close()
    assert locks(path) > 0
    assert path.with_name("x.db-wal").exists()
    assert [1] == [port.number for port in clients[0].take()]


def test_makers_wait_for_each_other(make: Callable[..., SqliteBackend], path: Path) -> None:
    """While somebody makes a file in the directory, nobody else does; that is waited for."""
    backend = make()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        with pytest.raises(BackendUnavailable, match=r"'.*/x.db' was locked by another process for more than 0.2 s"):
            Client(backend)
        assert not path.exists()
    finally:
        os.close(folder)
    assert [1] == [port.number for port in Client(backend).take()]


def test_older_copy(make: Callable[..., SqliteBackend], path: Path) -> None:
    """Where an older copy of the file is put in its place, what was done after that is not mistaken for what was done
    before: nobody's memory of the file outlives the history that it is of."""
    first, second = make(), make()
    client = Client(first)
    client.take()
    first.file.checkpoint()
    copy = path.read_bytes()
    for _ in range(3):
        first.release(SPACE, client.holder, client.take())
    first.file.checkpoint()
    path.write_bytes(copy)
    other = Client(second, "two")
    given = [port.number for _ in range(5) for port in other.take()]
    assert [2, 3, 4, 5, 6] == given
    assert [1, *given] == held(first)
    assert [7] == [port.number for port in client.take()]


def test_dropped_and_made_anew(make: Callable[..., SqliteBackend]) -> None:
    """A space that was dropped and made anew by others is not mistaken for the one that we remember."""
    first, second = make(), make()
    client = Client(first)
    client.take()
    client.backend.close_lease(SPACE, client.holder)
    assert held(first) == []
    assert second.drop(SPACE)
    other = Client(second, "two")
    other.take()
    other.take()
    assert [1, 2] == held(first)
    assert Gone("unknown") == client.renew()


def test_lost_data_and_a_restart(make: Callable[..., SqliteBackend]) -> None:
    """Where fences begin, and for how long nothing is given out, outlive the process; so does what a claim took."""
    two = Client(make(), "two")
    (lower,) = two.take()
    knew = two.holder.lease + 10**9
    opened = two.backend.open(SPACE, "one", token="01", ttl=TTL, knew=knew)
    assert isinstance(opened, Opened)
    one = Holder("one", opened.lease, opened.incarnation)
    higher = lower._replace(fence=lower.fence + 1)
    assert Claimed() == two.backend.claim(SPACE, one, Request(1, 1), [Claim(higher, ask())])
    two.backend.close()

    after = make()
    assert [Renewed(False, (lower,)), Renewed(False)] == after.renew([Renewal(SPACE, two.holder), Renewal(SPACE, one)])
    assert isinstance(after.acquire(SPACE, one, Request(2, 2), [ask()]), Recovering)
    (view,) = after.read([SPACE])
    assert isinstance(view, SpaceView)
    assert 0 < view.recovering <= TTL
    assert (one.lease, knew < one.lease) == (view.ports[0].lease, True)
    assert Gone("unknown") == after.held(SPACE, Holder("one", two.holder.lease - 1, two.holder.lease - 1))
    assert not after.drop(SPACE)


def test_many_changes(make: Callable[..., SqliteBackend], path: Path) -> None:
    """However much others did meanwhile, it is seen; and what is kept for that purpose stays small."""
    first, second, third = make(), make(), make()
    one, two = Client(first), Client(second, "two")
    kept = one.take(ask(3))
    for count in (1, 150, 450):
        ports = [two.take()[0] for _ in range(3)]
        for _ in range(count):
            second.release(SPACE, two.holder, two.take())
        assert held(third) == held(first) == [1, 2, 3, 4, 5, 6]
        assert [7] == [port.number for port in one.take()]
        first.release(SPACE, one.holder, [Port(7, "tcp", one_fence(first, 7))])
        second.release(SPACE, two.holder, ports)
    assert 90 < raw(path, "SELECT count(DISTINCT version) FROM change")[0][0] < 250
    bulk = two.take(ask(1200, 1000, 4000))
    assert 1203 == len(held(first))
    assert Released(1200) == second.release(SPACE, two.holder, bulk)
    assert [port.number for port in kept] == held(first)
    assert 1000 > raw(path, "SELECT count(*) FROM change")[0][0]


def test_not_read_again(make: Callable[..., SqliteBackend]) -> None:
    """What others do, if only that they renew, is no reason to read what has not changed."""
    first, second = make(), make()
    clients = Client(first), Client(second, "two")
    clients[0].take()
    clients[1].renew()
    known = [backend.file.cache[SPACE] for backend in (first, second)]
    for _ in range(3):
        assert [Renewed(False)] * 2 == [client.renew() for client in clients]
    assert [True, True] == [
        backend.file.cache[SPACE] is space for backend, space in zip((first, second), known, strict=True)
    ]


def one_fence(backend: SqliteBackend, number: int) -> int:
    (view,) = backend.read([SPACE])
    assert not isinstance(view, BackendError)
    return next(port.fence for port in view.ports if port.number == number)


def test_labels_of_the_caller(make: Callable[..., SqliteBackend]) -> None:
    """What a caller does to its labels later has no part in what is kept, also when the port is written again."""
    backend = make()
    client = Client(backend)
    labels = {"job": "42"}
    ports = client.take(ask(labels=labels, cooldown=TTL))
    labels["job"] = "43"
    backend.release(SPACE, client.holder, ports)
    (view,) = make().read([SPACE])
    assert not isinstance(view, BackendError)
    assert [("cooling", {"job": "42"})] == [(port.state, port.labels) for port in view.ports]


def test_more_spaces_than_are_remembered(make: Callable[..., SqliteBackend]) -> None:
    """What is remembered of spaces is bounded; the others are read again."""
    backend = make(timeout=5.0)
    clients = [Client(backend, "one", f"host:{number}") for number in range(80)]
    for client in clients:
        client.take()
    assert len(backend.file.cache) <= 64
    assert [2] * 80 == [client.take()[0].number for client in clients]


def test_threads(make: Callable[..., SqliteBackend]) -> None:
    """Several threads may use one object, each port is given once."""
    backend = make(timeout=10.0)
    clients = [Client(backend, f"i{number}") for number in range(4)]
    given: list[int] = []

    def take(client: Client) -> None:
        given.extend(client.take()[0].number for _ in range(10))

    threads = [threading.Thread(target=take, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(range(1, 41)) == sorted(given) == held(backend)


# -------------------------------------------------------------------- errors


def test_locked(make: Callable[..., SqliteBackend], path: Path) -> None:
    """A file that somebody else has locked is waited for, until the time is over; then nothing was done."""
    backend = make()
    client = Client(backend)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(BackendUnavailable, match=r"'.*/x.db' was locked by another process for more than 0.2 s"):
            client.ask()
        assert isinstance(client.renew(), BackendUnavailable)
        assert [] == held(backend)
        other.execute("ROLLBACK")
    assert Renewed(False) == client.renew()
    assert [1] == [port.number for port in client.take()]


def test_locked_for_a_moment(make: Callable[..., SqliteBackend], path: Path) -> None:
    """A lock that is given up in time is no error."""
    backend = make(timeout=10.0)
    client = Client(backend)
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(0.1, other.execute, ("COMMIT",))
        timer.start()
        assert [1] == [port.number for port in client.take()]
        timer.join()


def test_another_thread_waits(make: Callable[..., SqliteBackend]) -> None:
    """Who cannot get at the object because another thread waits in it is told after the same time."""
    backend = make()
    client = Client(backend)
    inside, told = threading.Event(), threading.Event()

    def work(db: sqlite3.Connection) -> None:
        inside.set()
        told.wait(10)

    thread = threading.Thread(target=backend.file.write, args=(work,))
    thread.start()
    try:
        assert inside.wait(10)
        with pytest.raises(BackendUnavailable, match=r"Other threads used '.*' for more than 0.2 s"):
            client.ask()
    finally:
        told.set()
        thread.join()
    assert [1] == [port.number for port in client.take()]


def test_full(make: Callable[..., SqliteBackend]) -> None:
    """When no space is left, an acquire fails and changes nothing; what is held is kept, and renewed and released."""
    backend, look = make(), make()
    client = Client(backend)
    first = client.take()
    backend.file.read(lambda db: db.execute("PRAGMA max_page_count = 1"))
    before = look.read([SPACE])[0]
    assert not isinstance(before, BackendError)
    with pytest.raises(BackendError, match=r"^No space is left on the disk for '.*/x.db'") as caught:
        client.ask(ask(50, owner="o" * 10_000))
    assert not caught.value.unknown
    after = look.read([SPACE])[0]
    assert not isinstance(after, BackendError)
    assert before.ports[0]._replace(age=0) == after.ports[0]._replace(age=0)
    assert before.fence == after.fence
    assert Renewed(False) == client.renew()
    assert Released(1) == backend.release(SPACE, client.holder, first)
    assert [1] == [port.number for port in client.take()]
    backend.file.read(lambda db: db.execute("PRAGMA max_page_count = 100000"))
    assert 50 == len(client.take(ask(50, owner="o" * 10_000)))


def test_full_of_others(tmp_path: Path) -> None:
    """The same for an allocator whose process may not write any further: no traceback, no port lost, then on again."""
    code = """
import resource, sys
from clusterports import PortAllocator, PortRange, BackendError
ports = PortAllocator(sys.argv[1], host="h", ranges=[PortRange("r", 1, 100)], probe=False)
held = [ports.acquire("r")]
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
try:
    while True:
        held.append(ports.acquire("r", owner="o" * 5000))
except BackendError as error:
    print(error)
seen = [port.number for port in ports.status().hosts[0].ports]
print(len(held) > 1, seen == [port.number for port in held], all(port.valid for port in held))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(ports.acquire("r").number == len(held) + 1)
ports.close()
"""
    command = [sys.executable, "-W", "error", "-c", code, f"sqlite:///{tmp_path}/x.db"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ("", 0) == (ran.stderr, ran.returncode)
    first, *rest = ran.stdout.splitlines()
    assert first.startswith(("The disk refuses", "No space is left on the disk for"))
    assert ["True True True", "True"] == rest
    assert [("ok",)] == raw(tmp_path / "x.db", "PRAGMA integrity_check")


def garbage(data: bytearray) -> None:
    data[:100] = b"not a database, but something else ".ljust(100, b"!")


def short(data: bytearray) -> None:
    del data[5000:]


def noise(data: bytearray) -> None:
    data[4096:] = random.Random(1).randbytes(len(data) - 4096)


@pytest.mark.parametrize("damage", [garbage, short, noise])
def test_damaged_file(make: Callable[..., SqliteBackend], path: Path, damage: Callable[[bytearray], None]) -> None:
    """A damaged file is an error that says so and what to do, whatever is asked; and it is left as it is."""
    backend = make()
    client = Client(backend)
    client.take(ask(50))
    backend.close()
    data = bytearray(path.read_bytes())
    damage(data)
    path.write_bytes(data)
    calls: list[Callable[[], Any]] = [client.ask, lambda: backend.read([SPACE]), lambda: Client(backend, "two")]
    for call in calls:
        with pytest.raises(BackendError, match=r"^'.*/x.db' is damaged, .*; see `clusterports doctor`$"):
            call()
    assert isinstance(client.renew(), BackendError)
    for repair in (False, True):
        findings = list(backend.diagnose(repair=repair))
        assert [] != [finding for finding in findings if finding.level == "error" and finding.cure]
    assert bytes(data) == path.read_bytes()


ROWS = {
    "a held port taken away": "DELETE FROM port WHERE name = 'tcp/00002'",
    "a lease taken away": "DELETE FROM lease WHERE space = 'host:h'",
    "the space taken away": "DELETE FROM space WHERE name = 'host:h'",
    "a place taken away": "DELETE FROM place",
    "a port of nobody": "UPDATE port SET lease = 7 WHERE name = 'tcp/00001'",
    "a state that is none": "UPDATE port SET state = 'mine' WHERE name = 'tcp/00001'",
    "a port that is none": "UPDATE port SET name = 'tcp/99999' WHERE name = 'tcp/00001'",
    "a protocol that is none": "UPDATE port SET name = 'sctp/00001' WHERE name = 'tcp/00001'",
    "a port twice": "UPDATE port SET name = 'both/00001' WHERE name = 'tcp/00002'",
    "a fence of the future": "UPDATE port SET fence = fence + 1000000000",
    "a fence that is text": "UPDATE port SET fence = 'x' WHERE name = 'tcp/00001'",
    "a request that is none": "UPDATE port SET ask = '{' WHERE name = 'tcp/00001'",
    "a request of another kind": "UPDATE port SET ask = '[]' WHERE name = 'tcp/00001'",
    "an unknown field": """UPDATE port SET ask = '{"x": 1}' WHERE name = 'tcp/00001'""",
    "an owner that is a number": """UPDATE port SET ask = '{"owner": 1}' WHERE name = 'tcp/00001'""",
    "a held port with an end": "UPDATE port SET until = 1 WHERE name = 'tcp/00001'",
    "a cooling port without": "UPDATE port SET state = 'cooling' WHERE name = 'tcp/00001'",
    "a name twice": "UPDATE lease SET instance = 'one' WHERE space = 'host:h'",
    "a TTL of nothing": "UPDATE lease SET ttl = 0 WHERE space = 'host:h'",
    "an answer that is none": "UPDATE lease SET done = '[[1, \"x\"]]' WHERE space = 'host:h'",
    "an end that is text": "UPDATE lease SET expires = 'soon' WHERE space = 'host:h'",
    "bytes that are no text": "UPDATE lease SET instance = CAST(x'ff' AS TEXT) WHERE space = 'host:h'",
    "a place of nobody": "UPDATE place SET lease = 7",
    "no beginning": "UPDATE space SET born = 0 WHERE name = 'host:h'",
    "a beginning in the future": "UPDATE space SET born = fence + 1 WHERE name = 'host:h'",
    "a clock that is text": "UPDATE space SET clock = 'x' WHERE name = 'host:h'",
    "a last number that is none": "UPDATE last SET number = 0",
}


@pytest.mark.parametrize("statement", ROWS.values(), ids=ROWS)
def test_damaged_space(make: Callable[..., SqliteBackend], path: Path, statement: str) -> None:
    """Rows that are not what was written stop their own space, in every step; nothing is written, others go on."""
    backend = make()
    well = Client(backend, "one", "host:well")
    client = Client(backend)
    client.take(ask(rotate=1), ask())
    Client(backend, "two").backend.acquire(SPACE, client.holder, Request(2, 2), [ask(99)], Wait(3600 * SECOND))
    backend.close()
    raw(path, statement)
    rows = "SELECT * FROM port", "SELECT * FROM change WHERE space = 'host:h'"
    before = [raw(path, query) for query in rows]
    error = r"^The data of space 'host:h' in '.*/x.db' is damaged, .*; see `clusterports doctor`$"
    calls: list[Callable[[], Any]] = [
        client.ask,
        lambda: Client(backend, "three"),
        lambda: backend.preview(SPACE, [ask()]),
    ]
    for call in calls:
        with pytest.raises(BackendError, match=error):
            call()
    good, bad = backend.renew([Renewal("host:well", well.holder), Renewal(SPACE, client.holder)])
    assert Renewed(False) == good
    assert isinstance(bad, BackendError)
    shown, damaged = backend.read(["host:well", SPACE])
    assert isinstance(damaged, BackendError)
    assert not isinstance(shown, BackendError)
    assert "error" in [finding.level for finding in backend.diagnose(repair=True)] or "space WHERE" in statement
    assert before == [raw(path, query) for query in rows]
    assert [1] == [port.number for port in well.take()]


def failure(name: str, text: str = "it failed") -> sqlite3.Error:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorname = name
    return error


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (failure("SQLITE_BUSY"), BackendUnavailable, "was locked by another process for more than 5 s"),
        (failure("SQLITE_BUSY_RECOVERY"), BackendUnavailable, "was locked"),
        (failure("SQLITE_LOCKED_SHAREDCACHE"), BackendUnavailable, "was locked"),
        (failure("SQLITE_PROTOCOL"), BackendUnavailable, "was locked"),
        (failure("SQLITE_FULL"), BackendError, "No space is left on the disk for '/x.db'"),
        (failure("SQLITE_CORRUPT"), BackendError, "'/x.db' is damaged"),
        (failure("SQLITE_CORRUPT_INDEX"), BackendError, "'/x.db' is damaged"),
        (failure("SQLITE_NOTADB"), BackendError, "'/x.db' is damaged"),
        (failure("SQLITE_READONLY"), BackendError, "This user may not write '/x.db'"),
        (failure("SQLITE_READONLY_DIRECTORY"), BackendError, "This user may not write '/x.db'"),
        (failure("SQLITE_PERM"), BackendError, "This user may not write '/x.db'"),
        (failure("SQLITE_CANTOPEN"), BackendError, "Unable to open '/x.db': it failed; this user needs to write"),
        (failure("SQLITE_IOERR_WRITE"), BackendError, r"The disk refuses '/x.db': it failed \(SQLITE_IOERR_WRITE\)"),
        (failure("SQLITE_NOMEM"), BackendError, "Too little memory"),
        (failure("SQLITE_ERROR", "no such table: space"), BackendError, "'/x.db' is damaged"),
        (failure("SQLITE_ERROR", "boo\nfar"), BackendError, r"SQLite failed on '/x.db': boo far \(SQLITE_ERROR\)"),
        (sqlite3.OperationalError("Could not decode to UTF-8 column"), BackendError, "'/x.db' is damaged"),
        (sqlite3.ProgrammingError("closed"), BackendError, "SQLite failed on '/x.db': closed$"),
    ],
    ids=str,
)
def test_translation(error: sqlite3.Error, kind: type[BackendError], text: str) -> None:
    """Each of SQLite's errors becomes one of ours that names the file and says what is wrong; none is left open."""
    translated = translate(error, "/x.db", 5.0)
    assert kind is type(translated)
    assert not translated.unknown
    with pytest.raises(BackendError, match=text):
        raise translated


# -------------------------------------------------------------------- doctor


def checks(backend: SqliteBackend, **arguments: Any) -> dict[str, list[tuple[str, bool]]]:
    found: dict[str, list[tuple[str, bool]]] = {}
    for finding in backend.diagnose(**arguments):
        assert (finding.cure == "") == (finding.level == "ok"), finding
        found.setdefault(finding.check, []).append((finding.level, finding.mended))
    return found


def test_diagnose(make: Callable[..., SqliteBackend]) -> None:
    """A file that is well has nothing but good lines; the first is whether it can be opened."""
    backend = make()
    Client(backend).take()
    found = checks(backend)
    assert "store" == next(iter(found))
    assert {("ok", False)} == {line for lines in found.values() for line in lines}
    assert {"file system", "disk space", "schema", "journal", "integrity", "boot", "spaces", "leases"} <= found.keys()


def test_diagnose_and_repair(path: Path, sqlite: servers.SqliteStore) -> None:
    """What ran out is named, and reclaimed by a repair; spaces with nothing in them are removed."""
    with sqlite.connect(virtual=True, alive=lambda process: False, boot="") as backend:
        Client(backend).take(ask(70))
        empty = Client(backend, "two", "host:empty")
        backend.close_lease("host:empty", empty.holder)
        sqlite.clock.advance(31)
        found = checks(backend)
        assert ([("warning", False)], [("warning", False)]) == (found["leases"], found["boot"])
        assert ["host:empty", SPACE] == backend.spaces()
        repaired = checks(backend, repair=True)
        assert ([("ok", True)], ("ok", True)) == (repaired["leases"], repaired["journal"][-1])
        assert [("ok", False)] == checks(backend)["leases"]
        assert [] == held(backend)
        checks(backend, repair=True)
        assert [] == backend.spaces()


def test_diagnose_access(make: Callable[..., SqliteBackend], path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that everybody may change, and a disk with little space, are warnings with their cure."""
    backend = make()
    Client(backend).take()
    path.chmod(0o666)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 15 * 2**20}))
    found = checks(backend)
    assert ([("warning", False)], [("warning", False)]) == (found["access"], found["disk space"])
    path.chmod(0o600)
    monkeypatch.setattr("os.access", lambda place, mode: place != path)
    assert [("warning", False)] == checks(backend)["access"]


# -------------------------------------------------------------------- through the allocator


def test_allocator(path: Path) -> None:
    """An allocator finds its ports again in the file, and another one sees them."""
    url = f"sqlite:///{path}"
    first = PortAllocator(url, host="h", instance="one", ranges=RANGES, probe=False)
    assert 1 == first.acquire("r").number
    first.detach()
    with PortAllocator(url, host="h", instance="one", ranges=RANGES, probe=False) as again:
        assert [1] == [port.number for port in again.allocations()]
        with PortAllocator(url, host="h", ranges=[PortRange("r", 1, 1)], probe=False) as other:
            with pytest.raises(PortsExhausted):
                other.acquire("r")
            assert "sqlite" == other.status().backend


async def test_own_thread(path: Path) -> None:
    """An event loop whose threads are all busy with other work can go on acquiring, and renewing."""
    busy = threading.Event()
    loop = asyncio.get_running_loop()
    others = [loop.run_in_executor(None, busy.wait, 30) for _ in range(40)]
    try:
        async with (
            asyncio.timeout(10),
            AsyncPortAllocator(f"sqlite:///{path}", host="h", ranges=RANGES, probe=False) as ports,
        ):
            port = await ports.acquire("r")
            assert 1 == port.number
            await port.release()
    finally:
        busy.set()
        await asyncio.gather(*others)


async def test_async_cancelled(path: Path) -> None:
    """A cancelled call may have been carried out; the next one is answered as ever."""
    backend = connect_async(f"sqlite:///{path}")
    first = asyncio.ensure_future(backend.open(SPACE, "one", token="aa", ttl=TTL))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    opened = await backend.open(SPACE, "one", token="aa", ttl=TTL)
    assert isinstance(opened, Opened)
    reply = await backend.acquire(SPACE, Holder("one", opened.lease, opened.incarnation), Request(1, 1), [ask(101)])
    assert isinstance(reply, Full)
    await backend.close()
    await backend.close()


def test_header(make: Callable[..., SqliteBackend], path: Path) -> None:
    """The file says of itself whose it is and of which version, and is written beside a journal."""
    backend = make()
    Client(backend).take()
    assert [(APPLICATION,)] == raw(path, "PRAGMA application_id")
    assert [(SCHEMA,)] == raw(path, "PRAGMA user_version")
    assert [("wal",)] == raw(path, "PRAGMA journal_mode")
