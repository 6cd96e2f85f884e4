"""Backups and their ports, where libvirt breaks, hangs, refuses or keeps silent."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from allocator.kit import _SYNC, Fault, Told, unused
from unit import fake_libvirt
from unit.fake_libvirt import PATIENCE, Daemon, Domain, FakeError

from clusterports import (
    AsyncPortAllocator,
    BackendUnavailable,
    ClusterPortsError,
    ConfigurationError,
    LeaseLost,
    PortAllocator,
    PortInUse,
    PortRange,
    PortsExhausted,
)
from clusterports._backends import intact
from clusterports._lease import Process, monotonic
from clusterports.libvirt import BackupPorts, _attempt, _binding, _jobs
from clusterports.libvirt._ledger import LONGEST_BEGIN
from clusterports.probe import HeldSockets, bound
from clusterports_memory import MemoryBackend
from clusterports_memory import Store as MemorySpaces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PULL = "<domainbackup mode='pull'><server name='localhost'/></domainbackup>"
EXPLICIT = "<domainbackup mode='pull'><server name='localhost' port='10809'/></domainbackup>"
RANGE = PortRange("backup", 10809, 10816)


def eventually(expected: object, seen: Callable[[], object]) -> None:
    """Wait until this is seen."""
    deadline = time.monotonic() + PATIENCE
    while (last := seen()) != expected:
        assert time.monotonic() < deadline, f"expected {expected!r}, and at last saw {last!r}"
        time.sleep(0.005)


class Store:
    """One store for all managers of a test; makes them, and closes them at the end."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self._passed = 0.0
        self._spaces = MemorySpaces(clock=lambda: round((monotonic() + self._passed) * 1e6))
        self._made: list[Any] = []

    def later(self, seconds: float) -> None:
        """Let so much time pass, for the store alone."""
        self._passed += seconds

    def allocator(self, *, backend: Any = None, **arguments: Any) -> PortAllocator:
        arguments = {"host": "h1", "ranges": [RANGE], "probe": False, "ttl": 30.0, **arguments}
        ports = PortAllocator(backend=backend or self.backend(), **arguments)
        self._made.append(ports)
        return ports

    def backend(self) -> MemoryBackend:
        return MemoryBackend(self._spaces)

    def flaky(self) -> Any:
        return _SYNC(self.backend())

    def backups(self, ports: PortAllocator | None = None, connect: Any = None, **arguments: Any) -> BackupPorts:
        """Compares only when it is told to, unless ``interval`` says otherwise."""
        arguments = {"interval": 3600, "events": False, **arguments}
        backups = BackupPorts(ports or self.allocator(), connect or self.daemon.open, **arguments)
        self._made.append(backups)
        return backups

    def ports(self) -> dict[int, str]:
        """State by number."""
        with self.allocator() as onlooker:
            return {port.number: port.state for host in onlooker.status().hosts for port in host.ports}

    def close(self) -> None:
        for one in reversed(self._made):
            with suppress(ClusterPortsError):
                one.close()


@pytest.fixture(autouse=True)
def daemon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon with two domains, vm1 and vm2."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    made = Daemon()
    made.vm("vm1")
    made.vm("vm2")
    monkeypatch.setitem(sys.modules, "libvirt", fake_libvirt.binding(made))
    _binding.binding.cache_clear()
    monkeypatch.setattr(_jobs, "AGAIN", 3600.0)  # what is missed once is not looked for behind a test's back
    yield made
    _binding.binding.cache_clear()


@pytest.fixture
def vm(daemon: Daemon) -> Domain:
    return daemon.domains["vm1"]


@pytest.fixture
def store(daemon: Daemon) -> Iterator[Store]:
    made = Store(daemon)
    yield made
    daemon.hangs.set()
    made.close()
    watching = [thread for thread in threading.enumerate() if thread.name == "clusterports-backup"]
    for thread in watching:
        thread.join(PATIENCE)
    assert [] == [thread for thread in watching if thread.is_alive()]


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let so many seconds pass, for whoever compares."""
    return fake_libvirt.passing(monkeypatch, _jobs)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is away is tried again at once."""
    monkeypatch.setattr(_jobs, "AGAIN", 0.01)


def numbers(ports: PortAllocator) -> list[int]:
    return [int(port) for port in ports.allocations()]


# -------------------------------------------------------------------- begin and end


def labels(vm: Domain, kind: str = "backup") -> dict[str, str]:
    """Of a port that is held for a job."""
    return {"libvirt.job": kind, "libvirt.domain": vm.uuid, "libvirt.daemon": "qemu:/system"}


def test_a_backup(store: Store, daemon: Daemon, vm: Domain) -> None:
    """A port is filled in, held while the job runs, and given back when libvirt says that it is over."""
    ports = store.allocator()
    with store.backups(ports) as backups:
        backup = backups.begin("vm1", PULL, owner="night", labels={"run": "7"})
        assert (10809, 10809, "night", True) == (vm.port, int(backup.port), backup.port.owner, backup.port.valid)
        assert {"run": "7", **labels(vm)} == backup.port.labels
        assert (["vm1"], False) == ([job.domain for job in backups.jobs()], backup.done)
        vm.end()
        assert backup.wait(PATIENCE)
        assert ([], []) == (backups.jobs(), numbers(ports))


def test_end(store: Store, daemon: Daemon, vm: Domain) -> None:
    """At the end of the block the job is aborted, and the port is free when the block is left."""
    ports = store.allocator()
    backups = store.backups(ports)
    with backups.begin("vm1", PULL) as backup:
        assert [10809] == numbers(ports)
    assert (True, [], None, 1) == (backup.done, numbers(ports), vm.document, daemon.aborts)
    backup.end()
    assert 1 == daemon.aborts


def test_end_without_an_event(store: Store, daemon: Daemon, vm: Domain) -> None:
    """Who waits for the end looks now and then, should no event come."""
    daemon.on_abort = lambda domain: domain.end(tell=False)
    ports = store.allocator()
    backup = store.backups(ports).begin("vm1", PULL)
    backup.end()
    assert (True, []) == (backup.done, numbers(ports))


def test_end_takes_too_long(store: Store, daemon: Daemon, vm: Domain) -> None:
    """A job that does not end in time stays, and so does its port."""
    daemon.on_abort = lambda domain: None
    ports = store.allocator()
    backup = store.backups(ports).begin("vm1", PULL)
    with pytest.raises(ClusterPortsError, match=r"The backup of 'vm1' on host 'h1' is not over after 0.01 s"):
        backup.end(0.01)
    assert (False, [10809]) == (backup.done, numbers(ports))
    daemon.on_abort = Domain.end
    backup.end()
    assert backup.done


@pytest.mark.parametrize("timeout", ["5", float("nan"), True, 1e9])
def test_bad_timeout(store: Store, daemon: Daemon, timeout: Any) -> None:
    """Seconds that are none are refused by name, value and bound, and nothing is ended."""
    backup = store.backups().begin("vm1", PULL)
    for call in (backup.end, backup.wait):
        with pytest.raises(ConfigurationError, match=f"timeout: must be a number of seconds from 0 to .*{timeout!r}"):
            call(timeout)
    assert (False, 0) == (backup.done, daemon.aborts)


def test_no_time_left(store: Store, daemon: Daemon) -> None:
    """Who has less than no time left does not wait, and ends nothing."""
    backup = store.backups().begin("vm1", PULL)
    assert not backup.wait(-1)
    with pytest.raises(ConfigurationError, match=r"timeout: must be a number of seconds from 0 to .*-1"):
        backup.end(-1)
    assert (False, 0) == (backup.done, daemon.aborts)


@pytest.mark.parametrize("tell", [True, False])
def test_end_of_one_that_is_gone(store: Store, daemon: Daemon, vm: Domain, tell: bool) -> None:
    """To end a backup whose domain is gone, or has another job by now, is to find it over."""
    ports = store.allocator()
    backups = store.backups(ports)
    first, second = backups.begin("vm1", PULL), backups.begin("vm2", PULL)
    if tell:
        vm.kill()
    else:
        del daemon.domains["vm1"]
    daemon.domains["vm2"].document = PULL.replace("/>", " port='10999'/>")
    first.end()
    second.end()
    assert (True, True, 0, []) == (first.done, second.done, daemon.aborts, numbers(ports))


def test_domain_dies(store: Store, vm: Domain) -> None:
    """With its domain a job ends."""
    ports = store.allocator()
    backup = store.backups(ports).begin("vm1", PULL)
    vm.kill()
    assert backup.wait(PATIENCE)
    assert [] == numbers(ports)


@pytest.mark.parametrize("by", ["name", "uuid", "domain"])
def test_domain(store: Store, daemon: Daemon, vm: Domain, by: str) -> None:
    """A domain is given by name, by UUID, or itself."""
    given = {"name": "vm1", "uuid": vm.uuid, "domain": daemon.open().lookupByName("vm1")}
    backup = store.backups().begin(given[by], PULL)
    assert ("vm1", vm.uuid, 10809) == (backup.domain, backup.uuid, vm.port)


def test_domain_of_another_host(store: Store, daemon: Daemon) -> None:
    """One that is not on this host is refused before a port is taken: QEMU would serve on another."""
    other = Daemon()
    other.vm("vm9")
    ports = store.allocator()
    backups = store.backups(ports)
    with pytest.raises(ConfigurationError, match=r"^domain: 'vm9' is not on host 'h1'$"):
        backups.begin(other.open().lookupByName("vm9"), PULL)
    assert ([], [], {}) == (other.begun, backups.jobs(), store.ports())


def test_domain_by_another_connection(store: Store, daemon: Daemon) -> None:
    """Whoever looked it up, a domain's backup is begun by the connection to the host where its port is held."""
    other = Daemon()
    other.vm("vm1")
    backup = store.backups().begin(other.open().lookupByName("vm1"), PULL)
    assert ([10809], [None]) == ([int(backup.port)], [vm.port for vm in other.domains.values()])
    assert 10809 == daemon.domains["vm1"].port


@pytest.mark.parametrize(
    "xml",
    [
        "<domainbackup><disks/></domainbackup>",
        "<domainbackup mode='pull'><server transport='unix' socket='s'/></domainbackup>",
        "<domainbackup mode='pull'><server transport='fd' fdgroup='g'/></domainbackup>",
    ],
)
def test_no_port(store: Store, daemon: Daemon, vm: Domain, xml: str) -> None:
    """What needs no port is begun as it is, and is a job all the same."""
    ports = store.allocator()
    backups = store.backups(ports)
    backup = backups.begin("vm1", xml)
    assert ([xml], [], [], [backup]) == (daemon.begun, backup.ports, numbers(ports), backups.jobs())
    backups.reconcile()
    vm.end()
    assert backup.wait(PATIENCE)


def test_no_port_to_name(store: Store, daemon: Daemon, vm: Domain) -> None:
    """The port of a backup that has none is an error, and not None that fails later."""
    backup = store.backups(store.allocator()).begin("vm1", "<domainbackup><disks/></domainbackup>")
    with pytest.raises(ClusterPortsError, match=r"^The backup of 'vm1' on host 'h1' has no port$"):
        print(backup.port)


def test_watched_twice(store: Store, daemon: Daemon, vm: Domain) -> None:
    """One object of an allocator watches a host: two, for two daemons of it, would end each other's jobs."""
    ports = store.allocator()
    first = store.backups(ports)
    first.start()
    second = store.backups(ports)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="host: 'h1' is watched already"):
            second.start()
    second.close()
    with pytest.raises(ConfigurationError, match="host: 'h1' is watched already"):
        store.backups(ports).start()
    store.backups(store.allocator()).start()
    first.close()
    store.backups(ports).start()


def test_not_an_allocator(store: Store) -> None:
    """What is no allocator is refused at once; the one for asyncio is another kind."""
    with pytest.raises(ConfigurationError, match="ports: must be a PortAllocator, got <AsyncPortAllocator"):
        BackupPorts(AsyncPortAllocator("memory://"))  # type: ignore[arg-type]


def test_explicit(store: Store, daemon: Daemon, vm: Domain) -> None:
    """A port that is named is claimed and not changed; one outside of the range too."""
    ports = store.allocator()
    backups = store.backups(ports)
    other = EXPLICIT.replace("10809", "20000")
    assert ["backup", None] == [
        backups.begin(name, xml).port.range for name, xml in (("vm1", EXPLICIT), ("vm2", other))
    ]
    assert ([EXPLICIT, other], [10809, 20000]) == (daemon.begun, numbers(ports))


def test_explicit_and_held(store: Store, daemon: Daemon) -> None:
    """A port that somebody holds is refused before libvirt is asked."""
    store.allocator().acquire("backup", owner="other")
    with pytest.raises(PortInUse, match="owner 'other'"):
        store.backups().begin("vm1", EXPLICIT)
    assert [] == daemon.begun


# -------------------------------------------------------------------- a begin that fails


def refuse(domain: Domain, text: str) -> None:
    raise FakeError(fake_libvirt.INTERNAL, "internal error: no such disk")


def test_refused(store: Store, daemon: Daemon) -> None:
    """A begin that fails leaves nothing behind."""
    daemon.on_begin = refuse
    ports = store.allocator()
    backups = store.backups(ports)
    with pytest.raises(FakeError, match="no such disk") as error:
        backups.begin("vm1", PULL)
    assert not hasattr(error.value, "__notes__")
    assert ([], [], {}) == (backups.jobs(), numbers(ports), store.ports())


def test_driver_without_backups(store: Store, daemon: Daemon) -> None:
    """Nor does one that libvirt has no way to carry out, nor to be asked about."""

    def unknown(*_: object) -> None:
        raise FakeError(fake_libvirt.NO_SUPPORT, "this function is not supported by the connection driver")

    daemon.on_begin = daemon.on_read = unknown
    ports = store.allocator()
    backups = store.backups(ports)
    with pytest.raises(FakeError, match="not supported"):
        backups.begin("vm1", PULL)
    backups.reconcile()
    assert ([], [], {}) == (backups.jobs(), numbers(ports), store.ports())


def test_wrong_arguments(store: Store, daemon: Daemon) -> None:
    """Nor does one that the binding does not understand."""

    def misunderstand(domain: Domain, text: str) -> None:
        raise TypeError("argument 3 must be str or None")

    daemon.on_begin = misunderstand
    ports = store.allocator()
    backups = store.backups(ports)
    with pytest.raises(TypeError):
        backups.begin("vm1", PULL, 5)  # type: ignore[arg-type]
    assert ([], []) == (backups.jobs(), numbers(ports))


def test_second_begin(store: Store, vm: Domain) -> None:
    """A domain has one backup: a second is refused, and the first goes on."""
    ports = store.allocator()
    backups = store.backups(ports)
    first = backups.begin("vm1", PULL)
    with pytest.raises(FakeError, match="another job"):
        backups.begin("vm1", PULL)
    backups.reconcile()
    assert ([first], [10809], False) == (backups.jobs(), numbers(ports), first.done)


def test_in_use(store: Store, daemon: Daemon, vm: Domain) -> None:
    """What QEMU cannot bind is marked, and the next one tried."""
    daemon.foreign = {10809, 10810}
    ports = store.allocator()
    backup = store.backups(ports).begin("vm1", PULL)
    assert (10811, 10811) == (vm.port, int(backup.port))
    assert {10809: "foreign", 10810: "foreign", 10811: "held"} == store.ports()


def test_probe_that_keeps_sockets(store: Store, daemon: Daemon) -> None:
    """What an allocator's probe keeps bound is let go before QEMU is to bind it."""
    first = unused(2)

    def serve(domain: Domain, text: str) -> None:
        domain.begin(text)
        assert domain.port is not None
        bound(domain.port).close()

    daemon.on_begin = serve
    with HeldSockets(any_host=True) as held:
        ports = store.allocator(probe=held, ranges=[PortRange("backup", first, first + 1)])
        assert first == int(store.backups(ports).begin("vm1", PULL).port)


def test_all_in_use(store: Store, daemon: Daemon) -> None:
    """Each port of the range is tried once, also those that are too many to be marked; nothing stays held."""
    daemon.foreign = set(range(10809, 10817))
    ports = store.allocator()
    backups = store.backups(ports)
    with pytest.raises(PortsExhausted, match=r"'backup' \(10809-10816\)") as error:
        backups.begin("vm1", PULL)
    assert isinstance(error.value.__cause__, FakeError)
    assert 8 == len(set(daemon.begun)) == len(daemon.begun)
    assert ([], []) == (backups.jobs(), numbers(ports))
    assert dict.fromkeys(range(10809, 10813), "foreign") == store.ports()


def test_explicit_in_use(store: Store, daemon: Daemon) -> None:
    """A port that was named is not replaced by another, nor marked: it was asked for."""
    daemon.foreign = {10809}
    ports = store.allocator()
    backups = store.backups(ports)
    with pytest.raises(PortInUse, match="10809/tcp on host 'h1'"):
        backups.begin("vm1", EXPLICIT)
    assert (1, [], {}) == (len(daemon.begun), backups.jobs(), store.ports())


def test_enough_tries(store: Store, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many tries it is enough, though there are more ports."""
    monkeypatch.setattr(_attempt, "TRIES", 3)
    daemon.foreign = set(range(10809, 10814))
    with pytest.raises(PortsExhausted, match=r"'backup' \(10809-10816\)") as error:
        store.backups(store.allocator()).begin("vm1", PULL)
    assert isinstance(error.value.__cause__, FakeError)
    assert 3 == len(daemon.begun)


def test_last_one_of_many(store: Store, daemon: Daemon, vm: Domain) -> None:
    """The one port that is left is found, however many others have."""
    daemon.foreign = set(range(10809, 10816))
    assert 10816 == int(store.backups(store.allocator()).begin("vm1", PULL).port) == vm.port


def test_wait_is_for_all_tries(store: Store, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seconds to wait are those of the call, not of each try."""
    daemon.foreign = {10809, 10810}
    ports = store.allocator()
    waits: list[float] = []
    acquire = ports._acquire_all

    def spied(*args: Any, wait: float, **kwargs: Any) -> Any:
        waits.append(wait)
        return acquire(*args, wait=wait, **kwargs)

    monkeypatch.setattr(ports, "_acquire_all", spied)
    store.backups(ports).begin("vm1", PULL, wait=50.0)
    assert sorted(set(waits), reverse=True) == waits
    assert 50.0 >= waits[0] > waits[2] > 50.0 - PATIENCE


def test_none_left_for_a_second_try(store: Store, daemon: Daemon) -> None:
    """When the port was refused and there is no other, nothing stays behind."""
    daemon.foreign = {10809}
    ports = store.allocator(ranges=[PortRange("backup", 10809, 10810)])
    ports.acquire("backup", port=10810)
    backups = store.backups(ports)
    with pytest.raises(PortsExhausted):
        backups.begin("vm1", PULL)
    assert ([], [10810], 1) == (backups.jobs(), numbers(ports), len(daemon.begun))


# -------------------------------------------------------------------- a begin of unknown outcome


def breaks(daemon: Daemon, *, begun: bool) -> Callable[[Domain, str], None]:
    """The connection breaks while a backup is begun."""

    def on_begin(domain: Domain, text: str) -> None:
        if begun:
            domain.begin(text)
        daemon.breaks()

    return on_begin


def test_begun_after_all(store: Store, daemon: Daemon, vm: Domain) -> None:
    """When the connection broke the port stays held, and is found to be in use when the daemon is back."""
    daemon.on_begin = breaks(daemon, begun=True)
    ports = store.allocator()
    backups = store.backups(ports)
    with pytest.raises(FakeError) as error:
        backups.begin("vm1", PULL)
    assert ["It may have begun all the same. Its ports stay held until libvirt says that it has not: 10809"] == (
        error.value.__notes__
    )
    with pytest.raises(FakeError):
        backups.reconcile()
    (job,) = backups.jobs()
    assert ([10809], False) == (numbers(ports), job.done)

    daemon.comes_back()
    backups.reconcile()
    assert ([job], [10809]) == (backups.jobs(), numbers(ports))
    vm.end()
    assert job.wait(PATIENCE)
    assert [] == numbers(ports)


def test_not_begun(store: Store, daemon: Daemon, later: Callable[[float], None]) -> None:
    """It is given back when the daemon would have begun by now, from when it could be asked."""
    daemon.on_begin = breaks(daemon, begun=False)
    ports = store.allocator()
    backups = store.backups(ports)
    with pytest.raises(FakeError):
        backups.begin("vm1", PULL)
    later(1000.0)
    daemon.comes_back()
    for _ in range(3):
        backups.reconcile()
    assert [10809] == numbers(ports)
    later(LONGEST_BEGIN)
    backups.reconcile()
    assert ([], []) == (numbers(ports), backups.jobs())


def test_interrupted(store: Store, daemon: Daemon, vm: Domain) -> None:
    """An interrupt leaves the port held too, for nobody knows how far it had come."""

    def interrupt(domain: Domain, text: str) -> None:
        domain.begin(text)
        raise KeyboardInterrupt

    daemon.on_begin = interrupt
    ports = store.allocator()
    backups = store.backups(ports)
    with pytest.raises(KeyboardInterrupt):
        backups.begin("vm1", PULL)
    assert [10809] == numbers(ports)
    backups.reconcile()
    (job,) = backups.jobs()
    vm.end()
    assert job.wait(PATIENCE)
    assert [] == numbers(ports)


def test_an_error_and_a_job(store: Store, daemon: Daemon, vm: Domain) -> None:
    """A begin that failed, though the job is there, keeps its port."""

    def begin(domain: Domain, text: str) -> None:
        domain.begin(text)
        refuse(domain, text)

    daemon.on_begin = begin
    ports = store.allocator()
    backups = store.backups(ports)
    with pytest.raises(FakeError, match="no such disk"):
        backups.begin("vm1", PULL)
    assert [10809] == numbers(ports)


def test_the_job_before_ends(store: Store, daemon: Daemon, vm: Domain) -> None:
    """The event of the job before says nothing of one that the daemon was asked for by a process that died."""
    dying = store.allocator(instance="manager")
    dying.acquire("backup", port=10810, labels=labels(vm))
    dying.detach()
    vm.document = EXPLICIT
    ports = store.allocator(instance="manager")
    backups = store.backups(ports)
    backups.reconcile()
    assert [10809, 10810] == numbers(ports)
    vm.end()
    eventually([10810], lambda: numbers(ports))
    vm.document = EXPLICIT.replace("10809", "10810")
    backups.reconcile()
    backups.reconcile()
    assert [10810] == numbers(ports)
    vm.end()
    eventually([], lambda: numbers(ports))


# -------------------------------------------------------------------- what libvirt says, and when


def test_an_answer_from_before(store: Store, daemon: Daemon, vm: Domain) -> None:
    """That a domain had no job, before one was begun, does not end that one."""
    ports = store.allocator()
    backups = store.backups(ports)
    backups.start()
    read, go_on = threading.Event(), threading.Event()

    def late(domain: Domain) -> None:
        if threading.current_thread() is looking:
            read.set()
            assert go_on.wait(PATIENCE)

    daemon.on_read = late
    looking = threading.Thread(target=backups._look, args=(vm.uuid,))
    looking.start()
    assert read.wait(PATIENCE)
    backup = backups.begin("vm1", PULL)
    go_on.set()
    looking.join(PATIENCE)
    assert (False, [10809], 10809) == (backup.done, numbers(ports), vm.port)


def test_a_list_from_before(store: Store, daemon: Daemon, vm: Domain) -> None:
    """Nor does a list that was read before."""
    ports = store.allocator()
    backups = store.backups(ports)
    backups.start()
    begun: list[Any] = []

    def begin(domain: Domain) -> None:
        if domain is vm and not begun:
            begun.append(None)
            begun[0] = backups.begin("vm1", PULL)

    daemon.on_read = begin
    backups.reconcile()
    assert (False, [10809]) == (begun[0].done, numbers(ports))
    backups.reconcile()
    assert (False, [10809], [begun[0]]) == (begun[0].done, numbers(ports), backups.jobs())


def test_ended_while_it_began(store: Store, daemon: Daemon, vm: Domain) -> None:
    """An event that comes before the begin has returned is not lost."""

    def short(domain: Domain, text: str) -> None:
        domain.begin(text)
        domain.end()
        eventually(0, backups._heard.qsize)  # it was heard, and the job was looked at

    daemon.on_begin = short
    ports = store.allocator()
    backups = store.backups(ports)
    backup = backups.begin("vm1", PULL)
    assert backup.wait(PATIENCE)
    assert [] == numbers(ports)


def test_events_twice(store: Store, daemon: Daemon, vm: Domain) -> None:
    """An event that comes twice, or for something else, changes nothing."""
    ports = store.allocator()
    backups = store.backups(ports)
    backup = backups.begin("vm1", PULL)
    other = backups.begin("vm2", PULL)
    daemon.tell(fake_libvirt.COMPLETED, daemon.domains["vm2"], SimpleNamespace())
    daemon.tell(fake_libvirt.LIFECYCLE, daemon.domains["vm2"], 2, 0)
    vm.end()
    daemon.tell(fake_libvirt.COMPLETED, vm, SimpleNamespace())
    assert backup.wait(PATIENCE)
    eventually(0, backups._heard.qsize)
    assert ([other], [10810]) == (backups.jobs(), numbers(ports))


def test_no_events(store: Store, daemon: Daemon, vm: Domain, caplog: pytest.LogCaptureFixture) -> None:
    """Without events, a job is over when it was missing twice."""
    daemon.mute = True
    ports = store.allocator()
    backups = store.backups(ports)
    with caplog.at_level(logging.WARNING, "clusterports"):
        backup = backups.begin("vm1", PULL)
    assert "no events from libvirt, jobs are looked at now and then" in caplog.text
    backups.reconcile()
    vm.end()
    backups.reconcile()
    assert [10809] == numbers(ports)
    backups.reconcile()
    assert (True, []) == (backup.done, numbers(ports))


@pytest.mark.usefixtures("soon")
def test_second_look(store: Store, daemon: Daemon, vm: Domain) -> None:
    """Who was missing once is looked for again soon, however rarely somebody looks."""
    ports = store.allocator()
    backups = store.backups(ports, interval=3600)
    backup = backups.begin("vm1", PULL)
    vm.end(tell=False)
    backups._heard.put("")  # as when the connection broke
    assert backup.wait(PATIENCE)
    assert [] == numbers(ports)


def test_on_a_timer(store: Store, daemon: Daemon, vm: Domain) -> None:
    """And somebody looks, every so many seconds."""
    daemon.mute = True
    ports = store.allocator()
    backup = store.backups(ports, interval=0.1).begin("vm1", PULL)
    vm.end()
    assert backup.wait(PATIENCE)
    assert [] == numbers(ports)


def test_one_that_cannot_be_asked(store: Store, daemon: Daemon, vm: Domain) -> None:
    """A domain that cannot be asked keeps its port, and does not keep others from being looked at."""
    daemon.mute = True
    ports = store.allocator()
    backups = store.backups(ports)
    backup = backups.begin("vm1", PULL)
    other = backups.begin("vm2", PULL)

    def fails(domain: Domain) -> None:
        if domain is vm:
            raise FakeError(fake_libvirt.INTERNAL, "internal error: monitor is stuck")

    daemon.on_read = fails
    vm.end()
    daemon.domains["vm2"].end()
    for _ in range(3):
        backups.reconcile()
    assert ([backup], [10809], True) == (backups.jobs(), numbers(ports), other.done)


def test_found(store: Store, vm: Domain) -> None:
    """A job that nobody began through us has a port of ours, and is ended as any other."""
    vm.document = EXPLICIT
    ports = store.allocator()
    with store.backups(ports) as backups:
        (job,) = backups.jobs()
        assert ("vm1", 10809, "vm1", "backup") == (
            *(job.domain, int(job.port)),
            *(job.port.owner, job.port.range),
        )
        job.end()
        assert [] == numbers(ports)


def test_found_and_lost(store: Store, daemon: Daemon, vm: Domain) -> None:
    """One that ends while its port is claimed is noticed, though no event tells of it."""
    backend = store.flaky()
    ports = store.allocator(backend=backend)
    backups = store.backups(ports)
    backups.start()
    vm.document = EXPLICIT

    def ended(step: str, reply: Any) -> Any:
        if step == "acquire":
            vm.end(tell=False)
        return reply

    backend.says = ended
    backups.reconcile()
    eventually([], lambda: numbers(ports))
    assert 1 == backend.count("acquire")


def test_not_adopted(store: Store, daemon: Daemon, vm: Domain) -> None:
    """A port that cannot be had does not keep others from being claimed, nor anything from being watched."""
    vm.document = EXPLICIT
    daemon.domains["vm2"].document = EXPLICIT.replace("10809", "10811")
    store.allocator().acquire("backup", port=10809)
    ports = store.allocator()
    with store.backups(ports) as backups:
        assert ["vm2"] == [job.domain for job in backups.jobs()]
    assert [10811] == numbers(ports)


# -------------------------------------------------------------------- several managers, one after the other or at once


def test_resumed(store: Store, daemon: Daemon, vm: Domain) -> None:
    """A process that comes back under its name finds what runs, and ends it; what does not run is given back later."""
    first = store.allocator(instance="manager")
    before = store.backups(first)
    before.begin("vm1", PULL, owner="night")
    before.close()
    first.detach()

    ports = store.allocator(instance="manager")
    with store.backups(ports) as backups:
        (job,) = backups.jobs()
        assert ("vm1", "night", False) == (job.domain, job.port.owner, job.done)
        vm.end()
        assert job.wait(PATIENCE)
        assert [] == numbers(ports)


def test_resumed_without_a_job(store: Store, vm: Domain, later: Callable[[float], None]) -> None:
    """One whose job is not there may be begun yet on behalf of the dead process, for a while."""
    first = store.allocator(instance="manager")
    first.acquire("backup", owner="vm1", labels=labels(vm))
    first.acquire("backup", labels=labels(vm, "display"))
    first.acquire("backup")
    first.detach()
    ports = store.allocator(instance="manager")
    with store.backups(ports) as backups:
        backups.reconcile()
        assert (["vm1"], [10809, 10810, 10811]) == ([job.domain for job in backups.jobs()], numbers(ports))
        later(LONGEST_BEGIN)
        backups.reconcile()
        assert [10810, 10811] == numbers(ports), "what is not a backup's is left alone"


@pytest.mark.usefixtures("soon")
def test_superseded(store: Store, daemon: Daemon, caplog: pytest.LogCaptureFixture) -> None:
    """A manager that a newer one of its name has taken over from leaves it everything, and stops watching."""
    told = Told()
    ports = store.allocator(instance="manager", on_lost=told)
    backups = store.backups(ports)
    backup = backups.begin("vm1", PULL)
    newer = store.allocator(instance="manager")
    theirs = store.backups(newer)
    theirs.start()
    ports._renew_all()
    with caplog.at_level(logging.WARNING, "clusterports"):
        backups._heard.put("")
        assert not backup.wait(PATIENCE)
        assert backups._thread is not None
        backups._thread.join(PATIENCE)
    assert not backups._thread.is_alive()
    assert 1 == sum("host 'h1' is not watched: A newer process runs" in message for message in caplog.messages)
    assert (False, [], [10809]) == (backup.done, backups.jobs(), numbers(newer))
    calls = (backups.start, backups.reconcile, backup.end, lambda: backups.begin("vm2", PULL))
    for call in calls:
        with pytest.raises(LeaseLost, match="A newer process runs as instance 'manager'"):
            call()
    assert (0, 1) == (daemon.aborts, len(daemon.begun))
    (job,) = theirs.jobs()
    job.end()
    assert [] == numbers(newer)


def test_superseded_in_the_first_comparison(store: Store, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who learns of it while the daemon takes its time lets go of what it has begun meanwhile."""
    monkeypatch.setattr(_jobs, "STARTING", 0.05)
    daemon.hangs.clear()
    ports = store.allocator(instance="manager", on_lost=Told())
    ports.acquire("backup")
    backups = store.backups(ports)
    backups.start()
    job = backups._job("u", "vm1")
    backups._ledger.enter(job)
    store.allocator(instance="manager").allocations()
    ports._renew_all()
    daemon.hangs.set()
    eventually(True, job._ended.is_set)
    assert ([], False) == (backups.jobs(), job.done)


def test_few_begins_at_a_time(store: Store, daemon: Daemon) -> None:
    """A daemon answers who watches while several begins wait for it."""
    go = threading.Event()

    def begin(domain: Domain, text: str) -> None:
        assert go.wait(PATIENCE)
        domain.begin(text)

    daemon.on_begin = begin
    ports = store.allocator()
    backups = store.backups(ports)
    names = [daemon.vm(f"vm{number}").title for number in range(1, 6)]
    with ThreadPoolExecutor(len(names)) as threads:
        jobs = [threads.submit(backups.begin, name, PULL) for name in names]
        eventually(len(names), lambda: len(numbers(ports)))
        eventually(True, lambda: len(daemon.begun) >= _jobs.BEGINS)
        backups.reconcile()
        assert _jobs.BEGINS == len(daemon.begun)
        go.set()
        assert names == [job.result(PATIENCE).domain for job in jobs]


def test_superseded_before_the_start(store: Store) -> None:
    """Who is too late to watch is told so by its first call."""
    ports = store.allocator(instance="manager", on_lost=Told())
    ports.acquire("backup")
    store.allocator(instance="manager").allocations()
    ports._renew_all()
    with pytest.raises(LeaseLost, match="A newer process runs"):
        store.backups(ports).start()


def test_two_managers(store: Store, vm: Domain) -> None:
    """What one manager holds is left to it by the other, which takes over when it is gone."""
    first = store.allocator()
    before = store.backups(first)
    before.begin("vm1", PULL)
    second = store.allocator()
    backups = store.backups(second)
    backups.reconcile()
    assert ([], []) == (backups.jobs(), numbers(second))
    before.close()
    first.detach()
    store.later(first.ttl + 60.0)
    backups.reconcile()
    (job,) = backups.jobs()
    assert [10809] == numbers(second)
    vm.end()
    assert job.wait(PATIENCE)
    assert {} == store.ports()


def test_lost_and_claimed_again(store: Store, vm: Domain, caplog: pytest.LogCaptureFixture) -> None:
    """A port that was taken from us, while the job goes on, is claimed again for the same job."""
    told = Told()
    ports = store.allocator(ttl=0.4, on_lost=told)
    backups = store.backups(ports)
    backup = backups.begin("vm1", PULL, owner="night", labels={"run": "7"})
    lost = backup.port
    with caplog.at_level(logging.CRITICAL, "clusterports"):
        store.allocator().force_release("h1", 10809)
        asyncio.run(told.wait())
        backups.reconcile()
    assert backup.port is not lost
    assert (True, [backup], {10809: "held"}) == (backup.port.valid, backups.jobs(), store.ports())
    assert ("night", {"run": "7", **labels(vm)}) == (backup.port.owner, backup.port.labels)
    vm.end()
    assert backup.wait(PATIENCE)
    assert {} == store.ports()


def test_store_away_at_the_end(store: Store, vm: Domain, caplog: pytest.LogCaptureFixture) -> None:
    """A job that ends while the store is away is over; its port is given back with the heartbeat."""
    backend = store.flaky()
    ports = store.allocator(backend=backend, ttl=0.4)
    backup = store.backups(ports).begin("vm1", PULL)
    with caplog.at_level(logging.WARNING, "clusterports"):
        backend.faults["release"] = Fault(BackendUnavailable("the store is away"))
        vm.end()
        assert backup.wait(PATIENCE)
        assert {10809: "held"} == store.ports()
        backend.back()
        eventually({}, store.ports)
    assert "the store is away" in caplog.text


@pytest.mark.usefixtures("soon")
def test_store_away_at_the_start(store: Store, vm: Domain, caplog: pytest.LogCaptureFixture) -> None:
    """A store that is away is tried again, and then what runs is found."""
    vm.document = EXPLICIT
    backend = store.flaky()
    backend.away()
    ports = store.allocator(backend=backend)
    backups = store.backups(ports)
    with caplog.at_level(logging.WARNING, "clusterports"):
        backups.start()
        backend.back()
        eventually(["vm1"], lambda: [job.domain for job in backups.jobs()])
        eventually(2, lambda: len(caplog.messages))
    assert ["host 'h1' is not watched: the store is away", "host 'h1' is watched again"] == (caplog.messages)


def test_allocator_closed_while_a_backup_runs(store: Store) -> None:
    """An allocator that ends before who watches gives back no port that QEMU serves on."""
    ports = store.allocator()
    store.backups(ports).begin("vm1", PULL)
    ports.acquire("backup")
    ports.close()
    assert {10809: "held"} == store.ports()


def test_allocator_closed_first(store: Store, vm: Domain, caplog: pytest.LogCaptureFixture) -> None:
    """A job is over also where its port cannot be given back any more."""
    ports = store.allocator()
    backup = store.backups(ports).begin("vm1", PULL)
    ports.detach()
    with caplog.at_level(logging.CRITICAL, "clusterports"):
        vm.end()
        assert backup.wait(PATIENCE)


# -------------------------------------------------------------------- a daemon that is away, or hangs


@pytest.mark.usefixtures("soon")
def test_daemon_restarts(store: Store, daemon: Daemon, vm: Domain) -> None:
    """A daemon that restarts takes no port with it; events are heard again."""
    ports = store.allocator()
    backups = store.backups(ports)
    backup = backups.begin("vm1", PULL)
    daemon.breaks()
    eventually(True, lambda: bool(backups._trouble))
    assert (False, [10809]) == (backup.done, numbers(ports))
    daemon.comes_back()
    eventually([2], lambda: [len(one.calls) for one in daemon.opened if one.alive])
    vm.end()
    assert backup.wait(PATIENCE)
    assert [] == numbers(ports)


@pytest.mark.usefixtures("soon")
def test_daemon_away_at_the_start(store: Store, daemon: Daemon, caplog: pytest.LogCaptureFixture) -> None:
    """Without a daemon nothing is begun and nothing given back; when it is there, it is watched."""
    daemon.up = False
    ports = store.allocator()
    backups = store.backups(ports)
    with caplog.at_level(logging.WARNING, "clusterports"):
        with pytest.raises(FakeError, match="Connection refused"):
            backups.begin("vm1", PULL)
        daemon.comes_back()
        eventually([2], lambda: [len(one.calls) for one in daemon.opened])
    assert 10809 == int(backups.begin("vm1", PULL).port)


@pytest.mark.usefixtures("soon")
def test_watching_goes_on(store: Store, daemon: Daemon, vm: Domain, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever goes wrong in the thread that watches is said once, and it goes on."""
    ports = store.allocator()
    backups = store.backups(ports, interval=0.1)
    backup = backups.begin("vm1", PULL)
    failed = threading.Semaphore(0)

    def fails(domain: Domain) -> None:
        failed.release()
        raise ValueError("this should not happen")

    with caplog.at_level(logging.WARNING, "clusterports"):
        daemon.on_read = fails
        for _ in range(3):
            assert failed.acquire(timeout=PATIENCE)
        daemon.on_read = lambda domain: None
        vm.end()
        assert backup.wait(PATIENCE)
    assert 1 == caplog.text.count("host 'h1' is not watched: this should not happen\nTraceback")


def test_close_while_it_hangs(store: Store, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that hangs does not hold up a program that ends, whether or not it was being asked something."""
    monkeypatch.setattr(_jobs, "CLOSING", 0.05)
    idle = store.backups(connect="qemu:///system")
    asking = store.backups(interval=0.1)
    idle.start()
    asking.start()
    daemon.hangs.clear()
    started = time.monotonic()
    idle.close()
    asking.close()
    assert time.monotonic() - started < PATIENCE / 2
    daemon.hangs.set()
    eventually([True, True], lambda: [not one.calls for one in daemon.opened])


def test_closed(store: Store, daemon: Daemon, caplog: pytest.LogCaptureFixture) -> None:
    """Who has closed it begins nothing any more; jobs that run keep their ports, and are named."""
    ports = store.allocator()
    backups = store.backups(ports)
    backups.begin("vm1", PULL)
    with caplog.at_level(logging.WARNING, "clusterports"):
        backups.close()
    assert ["backup still running on host 'h1', and keep their ports: vm1"] == caplog.messages
    backups.close()
    for call in (backups.start, backups.reconcile, lambda: backups.begin("vm2", PULL)):
        with pytest.raises(ClusterPortsError, match="This BackupPorts is closed"):
            call()
    assert ([10809], [[]]) == (numbers(ports), [one.calls for one in daemon.opened])
    store.backups().close()  # one that was never used


# -------------------------------------------------------------------- connections


def test_uri(store: Store, daemon: Daemon) -> None:
    """A connection that was opened from a URI is kept alive, and closed at the end."""
    with store.backups(connect="qemu:///session") as backups:
        backups.begin("vm1", PULL)
        (one,) = daemon.opened
        assert ("qemu:///session", (5, 5), True) == (one.uri, one.keepalive, one.closed is not None)
    assert (1, [], None) == (one.closes, one.calls, one.closed)


@pytest.mark.usefixtures("soon")
def test_function(store: Store, daemon: Daemon) -> None:
    """A function is called again when its connection has broken; what it gave is not closed."""
    with store.backups(connect=daemon.open) as backups:
        daemon.breaks(up=True)
        eventually([False, True], lambda: [one.alive for one in daemon.opened])
        backups.begin("vm1", PULL)
    assert ([0, 0], [[], []]) == ([one.closes for one in daemon.opened], [one.calls for one in daemon.opened])


def test_shared(store: Store, daemon: Daemon) -> None:
    """A connection of the caller stays his, with what he has registered."""
    one = daemon.open()

    def mine(*_: object) -> None:
        """Of the caller."""

    one.registerCloseCallback(mine, None)
    with store.backups(connect=one) as backups, store.backups(connect=one):
        assert 4 == len(one.calls)
        backups.begin("vm1", PULL)
    assert ([one], True, 0, [], mine) == (daemon.opened, one.alive, one.closes, one.calls, one.closed)


@pytest.mark.parametrize("uri", ["qemu+ssh://root:secret@kvm-07/system", "qemu+tls://kvm-07/system"])
@pytest.mark.parametrize("by", ["uri", "function"])
def test_host_must_be_given(store: Store, daemon: Daemon, uri: str, by: str) -> None:
    """Of another machine, one has to say under which name all managers know it."""
    daemon.uri = uri
    with pytest.raises(ConfigurationError, match="host: must be given for a connection to another machine") as error:
        store.backups(connect=uri if by == "uri" else daemon.open).start()
    assert "secret" not in str(error.value)
    assert [] == [call for one in daemon.opened for call in one.calls]
    with store.backups(connect=uri if by == "uri" else daemon.open, host="kvm-07") as backups:
        assert "kvm-07" == backups.begin("vm1", PULL).port.host


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"connect": 5}, "connect: must be a URI, a connection, or a function that opens one, got 5"),
        ({"connect": "qemu+ssh://[::1/system"}, "connect: 'qemu.*' is not a URI: "),
        ({"host": ""}, "host: "),
        ({"range": "backups"}, "range: unknown range 'backups'.*did you mean 'backup'"),
        ({"interval": 0.05}, "interval: must be a number of seconds from 0.1 to 3600, got 0.05"),
        ({"interval": 3601}, "interval: .*, got 3601"),
        ({"interval": float("nan")}, "interval: .*, got nan"),
        ({"interval": True}, "interval: .*, got True"),
        ({"interval": "10"}, "interval: .*, got '10'"),
    ],
)
def test_bad_arguments(store: Store, daemon: Daemon, arguments: dict[str, Any], message: str) -> None:
    """They are refused with key, value and bound before anything is asked."""
    with pytest.raises(ConfigurationError, match=message):
        store.backups(**arguments)
    assert [] == daemon.opened


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"xml": "<domain/>"}, "must be a <domainbackup> document"),
        ({"xml": EXPLICIT.replace("10809", "70000")}, "port: must be"),
        ({"xml": PULL.encode()}, r"^xml: must be text \(str\), got bytes$"),
        ({"xml": None}, r"^xml: must be text \(str\), got NoneType$"),
        ({"domain": 42}, "^domain: must be a virDomain, or the name or UUID of one, got 42$"),
        ({"labels": {"libvirt.job": "x"}}, "labels: 'libvirt.job' is set by clusterports itself"),
        ({"labels": {"libvirt.domain": "x"}}, "labels: 'libvirt.domain' is set by clusterports itself"),
        ({"owner": 5}, "owner: must be text"),
        ({"wait": -1}, "wait: must be a number of seconds"),
        ({"wait": "5"}, "wait: must be a number of seconds"),
    ],
)
def test_bad_begin(store: Store, daemon: Daemon, arguments: dict[str, Any], message: str) -> None:
    """What cannot be begun is refused before libvirt is asked; nothing is held."""
    ports = store.allocator()
    backups = store.backups(ports)
    with pytest.raises(ConfigurationError, match=message):
        backups.begin(**{"domain": "vm1", "xml": PULL, **arguments})
    assert ([], [], []) == (daemon.begun, backups.jobs(), numbers(ports))


def test_function_that_gives_nothing(store: Store) -> None:
    """What a function gives that is no connection is refused, and does not fail later."""
    ports = store.allocator()
    backups = store.backups(ports, lambda: None)
    with pytest.raises(ConfigurationError, match="connect: the function must give an open connection, got None"):
        backups.begin("vm1", PULL)
    assert [] == numbers(ports)


def test_no_such_domain(store: Store) -> None:
    """A domain that is not there is libvirt's to refuse."""
    ports = store.allocator()
    with pytest.raises(FakeError, match="no domain with matching name 'vm9'"):
        store.backups(ports).begin("vm9", PULL)
    assert [] == numbers(ports)


@pytest.mark.parametrize("module", [None, SimpleNamespace()])
def test_no_binding(store: Store, monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    """Without the binding, or with a folder of its name, the error says what to install."""
    monkeypatch.setitem(sys.modules, "libvirt", module)
    _binding.binding.cache_clear()
    with pytest.raises(ClusterPortsError, match=r"libvirt: the Python binding .* install clusterports\[libvirt\]"):
        store.backups().begin("vm1", PULL)


# -------------------------------------------------------------------- what outlives what


def test_fork(store: Store, daemon: Daemon, vm: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forked child that leaves the block ends nothing of its parent's, and can begin nothing."""
    backups = store.backups()
    backup = backups.begin("vm1", PULL)
    with monkeypatch.context() as child:
        child.setattr(Process, "forks", Process.forks + 1)
        backup.__exit__(None, None, None)
        backups.close()
        for call in (backup.end, backups.reconcile, lambda: backups.begin("vm2", PULL), backups._connection.get):
            with pytest.raises(ClusterPortsError, match="belongs to the parent process"):
                call()
    assert (False, 0, 10809, {10809: "held"}) == (backup.done, daemon.aborts, vm.port, store.ports())
    backup.end(PATIENCE)
    assert {} == store.ports()


def test_event_loop_of_the_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """libvirt's event loop is dead in a forked child, and says so rather than be silent."""
    monkeypatch.setattr(_binding, "_loop", threading.current_thread())
    monkeypatch.setattr(_binding, "_loop_forks", Process.forks - 1)
    with pytest.raises(ClusterPortsError, match="libvirt's event loop is the parent's"):
        _binding.start_events()


def test_backup_outlives_its_manager(store: Store, daemon: Daemon, vm: Domain) -> None:
    """The port of a backup that goes on when its manager ends in order is given to nobody; who comes back has it."""
    ports = store.allocator(instance="manager")
    backups = store.backups(ports)
    backups.begin("vm1", PULL)
    ports.acquire("backup")
    backups.close()
    ports.close()
    assert {10809: "held"} == store.ports()

    ports = store.allocator(instance="manager")
    backups = store.backups(ports)
    backups.start()
    (found,) = backups.jobs()
    assert 10809 == int(found.port)
    found.end(PATIENCE)
    ports.close()
    assert {} == store.ports()


def test_wait_when_nobody_watches(store: Store, vm: Domain) -> None:
    """Who waits for the end of a job is not left waiting when nobody looks any more."""
    backups = store.backups()
    backup = backups.begin("vm1", PULL)
    backups.close()
    assert (False, False) == (backup.wait(), backup.done)
    with pytest.raises(ClusterPortsError, match="is closed"):
        backup.end()


def test_begin_outlives_close(store: Store, daemon: Daemon) -> None:
    """Who gets a port after the end of the watch begins nothing, and gives it back."""
    ports = store.allocator()
    backups = store.backups(ports)
    taken = ports.acquire("backup", count=8)
    assert isinstance(taken, list)
    failed: list[Exception] = []

    def begin() -> None:
        try:
            backups.begin("vm1", PULL, wait=PATIENCE)
        except ClusterPortsError as error:
            failed.append(error)

    thread = threading.Thread(target=begin)
    thread.start()
    eventually([1], lambda: [view.waiting for view in intact(store.backend().read(["host:h1"]))])
    backups.close()
    taken[0].release()
    thread.join(PATIENCE)
    assert (["This BackupPorts is closed"], []) == ([str(error) for error in failed], daemon.begun)
    assert 10809 not in numbers(ports)


# -------------------------------------------------------------------- what hangs, and what is wrong


def test_daemon_that_hangs_at_the_start(store: Store, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that does not answer holds up neither a start nor an end; when it answers, its host is watched."""
    monkeypatch.setattr(_jobs, "STARTING", 0.05)
    monkeypatch.setattr(_jobs, "CLOSING", 0.05)
    daemon.domains["vm1"].document = EXPLICIT
    daemon.hangs.clear()
    ports = store.allocator()
    first, second = store.backups(), store.backups(ports)
    first.start()
    first.close()
    second.start()
    assert [] == second.jobs()
    daemon.hangs.set()
    eventually([10809], lambda: numbers(ports))


def test_abort_that_hangs(store: Store, daemon: Daemon, vm: Domain) -> None:
    """Who ends a backup waits no longer than he says, also where libvirt hangs in it."""
    backup = store.backups().begin("vm1", PULL)
    released = threading.Event()

    def hang(domain: Domain) -> None:
        assert released.wait(PATIENCE)
        domain.end()

    daemon.on_abort = hang
    with pytest.raises(ClusterPortsError, match=r"^The backup of 'vm1' on host 'h1' is not over after 0\.1 s$"):
        backup.end(0.1)
    assert {10809: "held"} == store.ports()
    released.set()
    assert backup.wait(PATIENCE)


def test_start_again(store: Store, daemon: Daemon) -> None:
    """A start that failed is no start; one whose function could not connect goes on trying."""
    daemon.uri = "qemu+ssh://kvm-07/system"
    ports = store.allocator()
    backups = store.backups(ports)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="host: must be given"):
            backups.start()
    daemon.uri = "qemu:///system"
    backups.start()
    with pytest.raises(ConfigurationError, match="is watched already"):
        store.backups(ports).start()


def test_function_that_fails(store: Store, daemon: Daemon, vm: Domain, soon: None) -> None:
    """What keeps the user's own function from connecting is tried again, as a daemon that is away."""
    vm.document = EXPLICIT
    faults = [OSError("no tunnel"), OSError("no tunnel")]

    def connect() -> Any:
        if faults:
            raise faults.pop()
        return daemon.open()

    ports = store.allocator()
    store.backups(ports, connect).start()
    eventually([10809], lambda: numbers(ports))


def test_other_daemon(
    store: Store, daemon: Daemon, vm: Domain, later: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    """What another daemon of the host has begun is not ended because this one does not know it; somebody is told how
    to do it, once.
    """
    first = store.allocator(instance="manager")
    before = store.backups(first)
    before.begin("vm1", PULL)
    before.close()
    first.detach()
    daemon.uri = "qemu:///session"
    vm.document = None
    ports = store.allocator(instance="manager")
    backups = store.backups(ports)
    for _ in range(3):
        backups.reconcile()
        later(LONGEST_BEGIN)
    assert ([], [10809]) == (backups.jobs(), numbers(ports))
    assert 1 == caplog.text.count("clusterports release --force h1 10809")


def test_same_daemon_by_another_way(store: Store, daemon: Daemon, vm: Domain) -> None:
    """It is the same daemon, whether asked from its host or from elsewhere."""
    first = store.allocator(instance="manager")
    before = store.backups(first)
    before.begin("vm1", PULL)
    before.close()
    first.detach()
    daemon.uri = "qemu+ssh://root@h1/system"
    backups = store.backups(store.allocator(instance="manager"), host="h1")
    backups.start()
    assert ["vm1"] == [job.domain for job in backups.jobs()]


def test_document_that_is_beyond_us(store: Store, daemon: Daemon, vm: Domain) -> None:
    """A domain whose backup we cannot read keeps no other from being looked at, and loses nothing."""
    ports = store.allocator()
    backups = store.backups(ports)
    backups.begin("vm1", PULL)
    vm.document = "<!DOCTYPE x><domainbackup/>"
    daemon.domains["vm2"].document = EXPLICIT.replace("10809", "10811")
    for _ in range(3):
        backups.reconcile()
    assert [10809, 10811] == numbers(ports)


def test_refused_without_a_port(store: Store, daemon: Daemon, vm: Domain) -> None:
    """Of a begin that needs no port nothing is held, and nothing said of ports."""
    backups = store.backups()
    unix = "<domainbackup mode='pull'><server transport='unix' socket='/s'/></domainbackup>"
    backups.begin("vm1", unix)
    with pytest.raises(FakeError, match="another job is active") as error:
        backups.begin("vm1", unix)
    assert not hasattr(error.value, "__notes__")
