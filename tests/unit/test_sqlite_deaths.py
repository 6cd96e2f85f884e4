"""What ``sqlite://`` knows of its machine: which processes are dead, whether it was started anew, and the time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from clusterports.abc import Ask, Capability, Gone, Granted, Holder, Opened, Renewal, Renewed, Request
from clusterports.errors import BackendError
from clusterports_sqlite import SqliteBackend, _process
from clusterports_sqlite._process import Probe, Process, boot_id, monotonic_us, this_process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import servers

SPACE = "host:h"
TTL = 30_000_000
HALF = 15_000_000


def hold(backend: SqliteBackend, instance: str = "one", *, bound: bool = True, number: int = 1) -> Holder:
    """A lease with this port."""
    opened = backend.open(SPACE, instance, token=instance.encode().hex(), ttl=TTL, bound=bound)
    assert isinstance(opened, Opened)
    holder = Holder(instance, opened.lease, opened.incarnation)
    asks = [Ask("r", ((number, number),), quarantine=HALF)]
    assert isinstance(backend.acquire(SPACE, holder, Request(1, 1), asks), Granted)
    return holder


def states(backend: SqliteBackend) -> dict[int, str]:
    (view,) = backend.read([SPACE])
    assert not isinstance(view, BackendError)
    return {port.number: port.state for port in view.ports}


def left(backend: SqliteBackend) -> list[int]:
    """Microseconds that each lease still runs."""
    (view,) = backend.read([SPACE])
    assert not isinstance(view, BackendError)
    assert not any(lease.grace for lease in view.leases)
    return [lease.expires_in for lease in view.leases]


def cooling(backend: SqliteBackend) -> list[float]:
    """Seconds until each port that cools is free."""
    (view,) = backend.read([SPACE])
    assert not isinstance(view, BackendError)
    return [port.free_in / 1e6 for port in view.ports if port.free_in is not None]


class Life:
    """Says of every process what it was told to say."""

    def __init__(self, answer: bool | None = True) -> None:
        self.answer = answer

    def __call__(self, process: Process) -> bool | None:
        assert process == this_process()._replace(boot=process.boot)
        return self.answer


# -------------------------------------------------------------------- processes


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that goes on until its standard input is closed."""
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def process_of(pid: int) -> Process:
    number, state, start, threads = _process._stat(pid)
    assert (number, True) == (pid, threads >= 1), state
    return this_process()._replace(pid=pid, start=start)


def test_this_process() -> None:
    """We are alive, and know since when, and where our number counts."""
    ours = this_process()
    assert (os.getpid(), True) == (ours.pid, ours.start > 0)
    assert "pid:[" in ours.where
    assert Probe()(ours) is True


def test_dead_process(child: subprocess.Popen[bytes]) -> None:
    """A process is alive until it ends; one that nobody has waited for yet, a zombie, is dead."""
    process = process_of(child.pid)
    assert Probe()(process) is True
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert "Z" == _process._stat(child.pid)[1]
    assert Probe()(process) is False
    child.communicate()
    assert Probe()(process) is False


def test_dead_process_is_seen_soon(child: subprocess.Popen[bytes]) -> None:
    """That a process is gone for good is seen at once, however lately it was looked at."""
    probe = Probe()
    process = process_of(child.pid)
    assert probe(process) is True
    child.kill()
    child.communicate()
    assert probe(process) is False


def test_number_used_again(child: subprocess.Popen[bytes]) -> None:
    """A process with the same number that began at another time is another one."""
    process = process_of(child.pid)
    assert Probe()(process._replace(start=process.start - 1)) is False


def test_first_thread_has_ended() -> None:
    """A process whose first thread has ended looks like a zombie, and lives as long as another thread does."""
    code = (
        "import ctypes, sys, threading; t = threading.Thread(target=sys.stdin.read); t.start(); print(flush=True);"
        "ctypes.CDLL(None).pthread_exit(None)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            told = process_of(process.pid)
            for _ in range(2000):
                if _process._stat(process.pid)[1] == "Z":
                    break
                threading.Event().wait(0.005)
            assert "Z" == _process._stat(process.pid)[1]
            assert Probe()(told) is True
        finally:
            process.kill()


@pytest.mark.parametrize("change", [{"where": "pid:[1] time:[1]"}, {"start": 0}, {"pid": 0}, {"pid": -1}], ids=str)
def test_nothing_is_known(change: dict[str, int | str]) -> None:
    """Of a process in other namespaces, or whose start nobody could see, nothing is known."""
    assert Probe()(this_process()._replace(**change)) is None  # type: ignore[arg-type]


def test_hidden_processes(child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where processes are hidden, one that is there is not known to be alive; one that is not there is dead."""
    process = process_of(child.pid)
    this_process()
    monkeypatch.setattr(_process, "_read", lambda path: "")
    assert Probe()(process) is None
    child.kill()
    child.communicate()
    assert Probe()(process) is False


def test_names_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may have any name, also one that looks like the numbers after it."""
    line = "7 (a) Z 1 (b) S " + " ".join(str(number) for number in range(4, 30))
    monkeypatch.setattr(_process, "_read", lambda path: line)
    assert (7, "S", 22, 20) == _process._stat(7)


# -------------------------------------------------------------------- deaths


def test_deaths(sqlite: servers.SqliteStore) -> None:
    """With the next step after a bound holder's death its ports cool for their quarantine, and then are free."""
    life = Life()
    with sqlite.connect(virtual=True, alive=life) as backend:
        assert Capability.DEATHS in backend.capabilities
        hold(backend)
        backend.reclaim(SPACE)
        assert {1: "held"} == states(backend)
        life.answer = False
        assert {1: "held"} == states(backend)  # looking changes nothing
        backend.reclaim(SPACE)
        assert ({1: "cooling"}, [15]) == (states(backend), cooling(backend))
        sqlite.clock.advance(16)
        backend.reclaim(SPACE)
        assert {} == states(backend)


def test_deaths_are_shown(sqlite: servers.SqliteStore) -> None:
    """Who only looks sees that the lease of a dead process has run out, before anybody has taken it back."""
    life = Life()
    with sqlite.connect(virtual=True) as plain:
        backend = SqliteBackend(plain.file.path, clock=plain.clock, wall=plain.clock, boot="b", alive=life)
        rebooted = SqliteBackend(plain.file.path, clock=plain.clock, wall=plain.clock, boot="c", alive=life)
        with backend, rebooted:
            hold(backend, "one")
            hold(backend, "two", bound=False, number=2)
            assert [TTL, TTL] == left(backend)
            assert [0, 0] == left(rebooted)
            life.answer = False
            assert [0, TTL] == left(backend)
            assert {1: "held", 2: "held"} == states(backend)
            sqlite.clock.advance(31)
            assert [-1_000_000, -1_000_000] == left(backend)


@pytest.mark.parametrize(
    ("bound", "answer", "visits"),
    [(False, False, (29.9, 0.1)), (True, None, (9.9, 10, 9.9, 0.2)), (True, True, (9.9, 10, 9.9, 0.2))],
    ids=["not bound", "not known", "alive"],
)
def test_in_their_time(
    sqlite: servers.SqliteStore, bound: bool, answer: bool | None, visits: tuple[float, ...]
) -> None:
    """A holder who may come back, or who does not renew though others visit, has its TTL; and not a moment more."""
    with sqlite.connect(virtual=True, alive=Life(answer)) as backend:
        hold(backend, bound=bound)
        for seconds in visits:
            assert {1: "held"} == states(backend)
            sqlite.clock.advance(seconds)
            backend.reclaim(SPACE)
        assert ({1: "cooling"}, [15]) == (states(backend), cooling(backend))


@pytest.mark.parametrize("answer", [True, None], ids=["alive", "not known"])
def test_grace(sqlite: servers.SqliteStore, answer: bool | None) -> None:
    """A holder that may be alive was kept from renewing by the store: it gets a full TTL for that, once; it shows."""
    with sqlite.connect(virtual=True, alive=Life(answer)) as backend:
        holder = hold(backend)
        sqlite.clock.advance(100)
        (view,) = backend.read([SPACE])
        assert not isinstance(view, BackendError)
        assert [True] == [lease.grace for lease in view.leases]
        (outcome,) = backend.renew([Renewal(SPACE, holder)])
        assert Renewed(False) == outcome
        sqlite.clock.advance(100)
        backend.reclaim(SPACE)
        assert {1: "held"} == states(backend)
        sqlite.clock.advance(30)
        backend.reclaim(SPACE)
        assert {} == states(backend)


def test_bound_and_not(sqlite: servers.SqliteStore) -> None:
    """Whoever has a lease can still say that it is not to end with its process."""
    life = Life()
    with sqlite.connect(virtual=True, alive=life) as backend:
        hold(backend)
        backend.open(SPACE, "one", token=b"one".hex(), ttl=TTL, bound=False)
        life.answer = False
        backend.reclaim(SPACE)
        assert {1: "held"} == states(backend)


def test_process_is_dead(sqlite: servers.SqliteStore) -> None:
    """A process that is killed with a bound lease frees its port after the quarantine, not after its TTL."""
    code = """
import sys
from clusterports import PortAllocator, PortRange
ports = PortAllocator(sys.argv[1], host="h", ranges=[PortRange("r", 7, 7)], probe=False, ttl=3600)
print(ports.acquire("r").number, flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", code, str(sqlite.url)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert b"7\n" == process.stdout.readline()
        with sqlite.connect() as backend:
            backend.reclaim(SPACE)
            assert {7: "held"} == states(backend)
            process.kill()
            process.wait()
            backend.reclaim(SPACE)
            assert {7: "cooling"} == states(backend)
            (left,) = cooling(backend)
            assert 14 < left <= 15


# -------------------------------------------------------------------- boot and time


@pytest.mark.parametrize("later", [-10_000, 0, 1000], ids=["before", "same", "after"])
def test_reboot(sqlite: servers.SqliteStore, later: float) -> None:
    """After a reboot every lease has ended at once, wherever the machine's clock begins; its ports cool first."""
    with sqlite.connect(virtual=True, boot="first") as backend:
        holders = [hold(backend, name, bound=False, number=n) for n, name in enumerate(("one", "two"), 1)]
        assert {1: "held", 2: "held"} == states(backend)
    sqlite.clock.advance(later)
    with sqlite.connect(virtual=True, boot="second") as backend:
        outcomes = backend.renew([Renewal(SPACE, holder) for holder in holders])
        assert [Gone("expired")] * 2 == outcomes
        assert ({1: "cooling", 2: "cooling"}, [15, 15]) == (states(backend), cooling(backend))
        sqlite.clock.advance(16)
        new = hold(backend)
        assert new.lease > holders[1].incarnation
        (outcome,) = backend.renew([Renewal(SPACE, new)])
        assert Renewed(False) == outcome


@pytest.mark.parametrize("bound", [False, True])
def test_boot_id_of_a_container(sqlite: servers.SqliteStore, monkeypatch: pytest.MonkeyPatch, bound: bool) -> None:
    """A container that was given a boot id of its own ends no lease of its host, nor of another one, nor do they end
    its; after the machine's reboot only the leases of the same namespaces are known to have ended."""
    machine = Process(1234, 99, "pid:[1] time:[1]", "machine")
    first = Process(1, 100, "pid:[2] time:[1]", "made up")
    second = Process(1, 101, "pid:[3] time:[1]", "made up as well")
    with sqlite.connect(virtual=True) as backend:
        holders = []
        for number, process in enumerate((machine, first, second), 1):
            monkeypatch.setattr("clusterports_sqlite._backend.this_process", lambda process=process: process)
            holders.append(hold(backend, f"i{number}", bound=bound, number=number))
        renewals = [Renewal(SPACE, holder) for holder in holders]
        for process in (machine, first, second):
            monkeypatch.setattr("clusterports_sqlite._backend.this_process", lambda process=process: process)
            assert [TTL] * 3 == left(backend)
            assert [Renewed(False)] * 3 == backend.renew(renewals)

        rebooted = machine._replace(pid=77, boot="machine, later")
        monkeypatch.setattr("clusterports_sqlite._backend.this_process", lambda: rebooted)
        assert [0, TTL, TTL] == left(backend)
        assert (0, 1, False) == backend.overdue(SPACE)
        assert [Gone("expired"), Renewed(False), Renewed(False)] == backend.renew(renewals)
        assert {1: "cooling", 2: "held", 3: "held"} == states(backend)


def test_made_up_boot_id(tmp_path: Path) -> None:
    """What is mounted over the machine's boot id, as systemd-nspawn does, is not taken for it."""
    (tmp_path / "id").write_text("11111111-2222-3333-4444-555555555555\n", encoding="ascii")
    script = 'id=/proc/sys/kernel/random/boot_id; mount --bind "$1" $id && cat $id && exec "$2" -c "$3"'
    code = "from clusterports_sqlite._process import boot_id; print(repr(boot_id()))"
    command = [
        "unshare",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        script,
        "sh",
        str(tmp_path / "id"),
        sys.executable,
        code,
    ]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if not ran.stdout:
        pytest.skip(f"no mount namespaces here: {ran.stderr.strip()}")
    assert "11111111-2222-3333-4444-555555555555\n''\n" == ran.stdout


@pytest.mark.parametrize(("before", "after"), [("", "known"), ("known", ""), ("", "")])
def test_boot_not_known(sqlite: servers.SqliteStore, before: str, after: str) -> None:
    """Who does not know the boot ends no lease."""
    with sqlite.connect(virtual=True, boot=before) as backend:
        holder = hold(backend)
    with sqlite.connect(virtual=True, boot=after) as backend:
        (outcome,) = backend.renew([Renewal(SPACE, holder)])
        assert Renewed(False) == outcome


def test_fences_outlive_the_file(tmp_path: Path) -> None:
    """Fences come from the time of day: they grow also when the file is lost and the machine's clock began anew."""
    fences = []
    for clock, wall in ((9_000_000, 1_000_000), (5, 2_000_000)):
        path = str(tmp_path / f"{wall}.db")
        with SqliteBackend(path, clock=lambda now=clock: now, wall=lambda now=wall: now) as backend:  # type: ignore[misc]
            held = backend.held(SPACE, hold(backend))
            assert not isinstance(held, Gone)
            fences += [port.fence for port in held.ports]
    assert [1_000_001, 2_000_001] == fences


def test_time_namespace() -> None:
    """A container whose clock was moved counts on the machine's."""
    assert -1_000_000 * 100 + 500 == _process._clock_offset("monotonic  -100  500000\nboottime 7 7\n")
    assert 0 == _process._clock_offset("")
    code = "from clusterports_sqlite._process import monotonic_us; print(monotonic_us())"
    command = ["unshare", "--time", "--monotonic", "5000", "--fork", sys.executable, "-c", code]
    before = monotonic_us()
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        pytest.skip(f"no time namespaces here: {ran.stderr.strip()}")
    assert before <= int(ran.stdout) <= monotonic_us()


def test_forked_into_other_namespaces() -> None:
    """A child of a fork looks anew who it is and what time it is: it may have its parent's number, and be elsewhere."""
    code = """
import ctypes, os, pathlib
from clusterports_sqlite._process import Probe, this_process, monotonic_us
ours, before = this_process(), monotonic_us()
assert ctypes.CDLL(None).unshare(0x20000000 | 0x80) == 0
pathlib.Path("/proc/self/timens_offsets").write_text("monotonic 5000 0")
pid = os.fork()
if pid == 0:
    theirs, passed = this_process(), monotonic_us() - before
    print(ours.pid, theirs.pid, ours.where != theirs.where, Probe()(ours), 0 <= passed < 1e9, flush=True)
    os._exit(0)
os.waitpid(pid, 0)
assert (ours, True) == (this_process(), Probe()(ours))
"""
    options = ["--map-root-user", "--pid", "--time", "--fork", "--mount-proc"]
    if (tried := subprocess.run(["unshare", *options, "true"], capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"no namespaces here: {tried.stderr.strip()}")
    command = ["unshare", *options, sys.executable, "-W", "error", "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ("1 1 True None True\n", "", 0) == (ran.stdout, ran.stderr, ran.returncode)


def test_boot_id() -> None:
    """The boot has one name for all processes."""
    assert (
        boot_id() == boot_id() == subprocess.check_output(["cat", "/proc/sys/kernel/random/boot_id"], text=True).strip()
    )
