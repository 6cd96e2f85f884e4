"""Pull-mode backups with real libvirt daemons and real QEMU, pulled by a real NBD client."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import missing
from hypervisors import NEVER, PATIENCE, eventually, sha256, states

from clusterports import ClusterPortsError, ConfigurationError, PortAllocator, PortInUse, PortsExhausted, Settings
from clusterports._names import host_space
from clusterports.libvirt import Backup, BackupPorts, _ledger
from clusterports.libvirt._backup_xml import BackupXml
from clusterports.libvirt._binding import binding

if TYPE_CHECKING:
    from collections.abc import Iterator

    import servers
    from hypervisors import Host, Vm

MANAGER = Path(__file__).with_name("manager.py")

OFTEN = 0.2


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as exits:
        yield exits


@pytest.fixture
def ports() -> Iterator[PortAllocator]:
    """A central manager's: it runs on none of the hosts, and cannot probe them."""
    with PortAllocator("memory://") as allocator:
        yield allocator


@pytest.fixture
def backups(ports: PortAllocator, h1: Host) -> Iterator[BackupPorts]:
    with watched(ports, h1, NEVER) as on_h1:
        yield on_h1


@pytest.fixture
def comparing(ports: PortAllocator, h1: Host) -> Iterator[BackupPorts]:
    with watched(ports, h1, OFTEN) as on_h1:
        yield on_h1


@contextmanager
def watched(ports: PortAllocator, host: Host, interval: float) -> Iterator[BackupPorts]:
    with BackupPorts(ports, host.uri, host=host.name, interval=interval) as backups:
        yield backups


def number(backup: Backup) -> int:
    return backup.port.number


def reported(vm: Vm) -> int | None:
    """The port that libvirt says the backup of this domain has."""
    return BackupXml(vm.domain.backupGetXMLDesc()).port


# ---------------------------------------------------------------- the XML


@pytest.mark.parametrize("port", [None, 0, ""])
def test_without_port(ports: PortAllocator, backups: BackupPorts, h1: Host, port: str | int | None) -> None:
    """A backup that names no port gets the lowest of the range, is served on it, and holds it until its end."""
    vm = h1.vm("vm1")
    with backups.begin(vm.domain, vm.backup_xml(port=port)) as backup:
        assert 10809 == number(backup) == reported(vm)
        assert vm.checksum == vm.pull(10809)
        assert ("vm1", {10809: "held"}) == (backup.port.owner, states(ports))
    assert (True, {}, False) == (backup.done, states(ports), h1.listens(10809))


@pytest.mark.parametrize("busy", [False, True])
def test_without_server(backups: BackupPorts, h1: Host, busy: bool) -> None:
    """A pull backup without a server is served on the loopback, by IPv4: else a listener there would go unnoticed."""
    vm = h1.vm("vm1")
    expected = 10810 if busy else 10809
    with h1.squat(10809, "127.0.0.1") if busy else nullcontext():
        backup = backups.begin("vm1", vm.backup_xml(transport=None))
        assert expected == number(backup) == reported(vm)
        target = h1.folder / "pulled"
        h1.execute("qemu-img", "convert", "-O", "raw", f"nbd://127.0.0.1:{expected}/vda", target)
    assert vm.checksum == sha256(target)


@pytest.mark.parametrize("port", [10850, 20809])
def test_explicit_port(ports: PortAllocator, backups: BackupPorts, h1: Host, port: int) -> None:
    """A port that is named stays as it is, in the range or not, and is claimed."""
    vm = h1.vm("vm1")
    with backups.begin(vm.uuid, vm.backup_xml(port=port)) as backup:
        assert port == number(backup) == reported(vm)
        assert vm.checksum == vm.pull(port)
        assert {port: "held"} == states(ports)
    assert {} == states(ports)


def test_unix(ports: PortAllocator, backups: BackupPorts, h1: Host) -> None:
    """A server on a unix socket needs no port, and its end is told all the same."""
    vm = h1.vm("vm1")
    with backups.begin(vm.domain, vm.backup_xml(transport="unix")) as backup:
        assert ([], {}) == (backup.ports, states(ports))
        assert "transport='unix'" in vm.domain.backupGetXMLDesc()
        assert [backup] == backups.jobs()
    assert backup.done


def test_push(ports: PortAllocator, backups: BackupPorts, h1: Host) -> None:
    """A push backup needs no port, ends by itself, and that is told."""
    vm = h1.vm("vm1")
    xml = f"""<domainbackup><disks><disk name='vda' backup='yes' type='file'>
        <target file='{h1.folder / "images" / "push.scratch"}'/></disk></disks></domainbackup>"""
    backup = backups.begin(vm.domain, xml)
    assert ([], {}) == (backup.ports, states(ports))
    assert backup.wait(PATIENCE)


# ---------------------------------------------------------------- who has which port


def test_two_ports_for_three(h1: Host, stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two ports, two backups at a time get one each; an explicit one is refused before libvirt hears of it."""
    conf = tmp_path / "qemu.conf"
    conf.write_text("backup_port_min = 10809\nbackup_port_max = 10810\n")
    settings = Settings(url="memory://", libvirt_conf=str(conf))
    backups = stack.enter_context(watched(stack.enter_context(PortAllocator(settings=settings)), h1, NEVER))
    vm1, vm2, vm3 = (h1.vm(f"vm{index}") for index in (1, 2, 3))
    begun: list[str] = []
    begin = binding().virDomain.backupBegin

    def asked(domain: Any, *arguments: Any) -> Any:
        begun.append(domain.name())
        return begin(domain, *arguments)

    monkeypatch.setattr(binding().virDomain, "backupBegin", asked)
    first = backups.begin(vm1.domain, vm1.backup_xml())
    with pytest.raises(PortInUse, match=r"^Port 10809/tcp on host 'h1' is held by instance .*, owner 'vm1'"):
        backups.begin(vm2.domain, vm2.backup_xml(port=10809))
    assert ["vm1"] == begun
    second = backups.begin(vm2.domain, vm2.backup_xml())
    assert (10809, 10810, ["vm1", "vm2"]) == (number(first), number(second), begun)
    with pytest.raises(PortsExhausted, match=r"^Unable to find an unused port in range 'backup' \(10809-10810\)$"):
        backups.begin(vm3.domain, vm3.backup_xml())
    vm1.domain.abortJob()
    third = backups.begin(vm3.domain, vm3.backup_xml(), wait=PATIENCE)
    assert (10809, True) == (number(third), first.done)
    assert (vm2.checksum, vm3.checksum) == (vm2.pull(10810), vm3.pull(10809))


def test_two_hosts(ports: PortAllocator, backups: BackupPorts, h1: Host, h2: Host) -> None:
    """The same number serves on two hosts at once."""
    one, other = h1.vm("vm1"), h2.vm("vm1")
    with (
        watched(ports, h2, NEVER) as on_h2,
        backups.begin(one.domain, one.backup_xml()) as first,
        on_h2.begin(other.domain, other.backup_xml()) as second,
    ):
        assert (10809, 10809) == (number(first), number(second))
        assert (one.checksum, other.checksum) == (one.pull(10809), other.pull(10809))
        assert one.checksum != other.checksum
    assert ({}, {}) == (states(ports, "h1"), states(ports, "h2"))


@pytest.mark.parametrize(
    ("wrong", "says"), [({"disk": "vdz"}, "no disk named"), ({"address": "10.209.255.254"}, "Cannot assign requested")]
)
def test_failed_begin(ports: PortAllocator, backups: BackupPorts, h1: Host, wrong: dict[str, str], says: str) -> None:
    """A backup that libvirt refuses holds nothing afterwards, and the error is libvirt's own."""
    vm = h1.vm("vm1")
    with pytest.raises(Exception, match=says) as raised:
        backups.begin(vm.domain, vm.backup_xml(**wrong))
    assert "libvirtError" == type(raised.value).__name__
    assert ({}, [], []) == (states(ports), ports.allocations(), backups.jobs())
    with backups.begin(vm.domain, vm.backup_xml()) as backup:
        assert 10809 == number(backup)


def test_domain_of_another_host(ports: PortAllocator, backups: BackupPorts, h1: Host, h2: Host) -> None:
    """One that is not on this host is refused before anything is taken, and served nowhere."""
    vm = h2.vm("vm1")
    with pytest.raises(ConfigurationError, match=r"^domain: 'vm1' is not on host 'h1'$"):
        backups.begin(vm.domain, vm.backup_xml())
    assert ({}, [], False) == (states(ports), backups.jobs(), h2.listens(10809))


def test_driver_without_backups(ports: PortAllocator) -> None:
    """A driver that knows no backups refuses one, and nothing stays held. libvirt has such a one, without a daemon."""
    try:
        binding()
    except ClusterPortsError as exc:
        missing(exc)
    with (
        BackupPorts(ports, "test:///default", host="h1", interval=NEVER) as backups,
        pytest.raises(binding().libvirtError, match="not supported by the connection driver") as raised,
    ):
        backups.begin("test", "<domainbackup mode='pull'/>")
    assert not hasattr(raised.value, "__notes__")
    assert ({}, []) == (states(ports), backups.jobs())


def test_foreign_process(ports: PortAllocator, backups: BackupPorts, h1: Host) -> None:
    """Where something else has a port, which only QEMU can find out, the backup gets the next one."""
    vm = h1.vm("vm1")
    with h1.squat(10809), backups.begin(vm.domain, vm.backup_xml()) as backup:
        assert 10810 == number(backup) == reported(vm)
        assert vm.checksum == vm.pull(10810)
        assert {10809: "foreign", 10810: "held"} == states(ports)


def test_foreign_process_on_explicit_port(ports: PortAllocator, backups: BackupPorts, h1: Host) -> None:
    """Where something else has the port that is named, our error says so, and nothing stays held."""
    vm = h1.vm("vm1")
    with (
        h1.squat(10809),
        pytest.raises(PortInUse, match=r"^Port 10809/tcp on host 'h1' is in use by a process outside"),
    ):
        backups.begin(vm.domain, vm.backup_xml(port=10809))
    assert ({}, []) == (states(ports), backups.jobs())


def test_foreign_process_is_probed(h1: Host, tmp_path: Path, stack: ExitStack) -> None:
    """A manager on the host itself finds it before libvirt is asked."""
    vm = h1.vm("vm1")
    job = {
        "host": "here",
        "domain": "vm1",
        "xml": vm.backup_xml(address="127.0.0.1"),
        "nbd": "nbd://127.0.0.1:{port}/vda",
    }
    task = {"url": f"sqlite:///{tmp_path}/ports.db", "instance": "local", "ttl": 5, "host": "here", "jobs": [job]}
    task["hosts"] = {"here": h1.uri}
    # The name of a host is local where it is this machine's own.
    name = Path("/proc/sys/kernel/hostname").read_text().strip()
    text = json.dumps(task).replace('"here"', json.dumps(name))
    with h1.squat(10809):
        done = h1.execute(sys.executable, MANAGER, text)
    began, pulled, ended = map(json.loads, done.stdout.splitlines())
    assert (10810, vm.checksum, "vm1") == (began["port"], pulled["pulled"], ended["ended"])
    assert "" == done.stderr


# ---------------------------------------------------------------- the end


def test_released_on_the_event(
    ports: PortAllocator, backups: BackupPorts, h1: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a port is given back nothing listens on it any more."""
    vm = h1.vm("vm1")
    seen: list[bool] = []
    release = ports.release

    def observed(port: Any) -> None:
        seen.append(h1.listens(port.number))
        release(port)

    monkeypatch.setattr(ports, "release", observed)
    for _ in range(5):
        backup = backups.begin(vm.domain, vm.backup_xml())
        assert h1.listens(number(backup))
        vm.domain.abortJob()
        assert backup.wait(PATIENCE)
    assert [False] * 5 == seen


@pytest.mark.parametrize("end", ["kill", "destroy"])
def test_domain_dies(ports: PortAllocator, backups: BackupPorts, h1: Host, end: str) -> None:
    """With its domain a backup is over, and its port free."""
    vm = h1.vm("vm1")
    backup = backups.begin(vm.domain, vm.backup_xml())
    getattr(vm, end)()
    assert backup.wait(PATIENCE)
    assert {} == states(ports)


def test_without_events(ports: PortAllocator, h1: Host) -> None:
    """An end that nobody tells of is noticed all the same."""
    vm = h1.vm("vm1")
    with watched(ports, h1, OFTEN) as backups:
        backups._connection._heard = lambda _: None
        backup = backups.begin(vm.domain, vm.backup_xml())
        vm.domain.abortJob()
        assert backup.wait(PATIENCE)
    assert {} == states(ports)


def test_daemon_killed(ports: PortAllocator, backups: BackupPorts, h1: Host) -> None:
    """While libvirtd is dead, and when it is back, the backup goes on and holds its port; its end is heard of."""
    vm = h1.vm("vm1")
    backup = backups.begin(vm.domain, vm.backup_xml())
    h1.kill()
    assert vm.checksum == vm.pull(10809)
    assert {10809: "held"} == states(ports)
    h1.start()
    assert 10809 == reported(vm)
    backups.reconcile()
    backups.reconcile()
    assert ({10809: "held"}, [backup]) == (states(ports), backups.jobs())
    assert vm.checksum == vm.pull(10809)
    vm.domain.abortJob()
    assert backup.wait(PATIENCE)
    assert {} == states(ports)


def test_ends_while_the_daemon_is_dead(ports: PortAllocator, comparing: BackupPorts, h1: Host) -> None:
    """A backup whose QEMU died while nobody could tell of it is over when libvirtd is back."""
    vm = h1.vm("vm1")
    backup = comparing.begin(vm.domain, vm.backup_xml())
    pid = vm.pid
    h1.kill()
    os.kill(pid, signal.SIGKILL)
    h1.start()
    assert backup.wait(PATIENCE)
    assert {} == states(ports)


def test_daemon_killed_in_a_begin(
    ports: PortAllocator, comparing: BackupPorts, h1: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the daemon dies in the midst of a begin the port stays held, until its successor knows of no backup."""
    vm, connection = h1.vm("vm1"), h1.connect()
    domain = connection.lookupByName("vm1")
    outcome: Future[Backup] = Future()

    def begin() -> None:
        try:
            outcome.set_result(comparing.begin(domain, vm.backup_xml()))
        except Exception as error:  # noqa: BLE001  # for the test to look at
            outcome.set_exception(error)

    os.kill(vm.pid, signal.SIGSTOP)  # so that it does not answer libvirtd
    threading.Thread(target=begin).start()
    eventually({10809: "held"}, lambda: states(ports))
    eventually(True, lambda: domain.controlInfo()[0] != 0)  # QEMU was asked
    h1.kill()
    error = outcome.exception(PATIENCE)
    assert error is not None
    assert "libvirtError" == type(error).__name__
    assert "Its ports stay held" in "".join(error.__notes__)
    assert ({10809: "held"}, ["vm1"]) == (states(ports), [job.domain for job in comparing.jobs()])
    os.kill(vm.pid, signal.SIGKILL)
    monkeypatch.setattr(_ledger, "LONGEST_BEGIN", 0.0)
    h1.start()
    eventually({}, lambda: states(ports))


def test_begun_outside(ports: PortAllocator, comparing: BackupPorts, h1: Host) -> None:
    """The port of a backup that somebody began by hand is claimed, and free when it is over."""
    vm, other = h1.vm("vm1"), h1.vm("vm2")
    vm.domain.backupBegin(vm.backup_xml(port=10809), None, 0)
    eventually({10809: "held"}, lambda: states(ports))
    (found,) = comparing.jobs()
    assert ("vm1", 10809) == (found.domain, number(found))
    with comparing.begin(other.domain, other.backup_xml()) as backup:
        assert 10810 == number(backup)
    found.end()
    assert ({}, False) == (states(ports), h1.listens(10809))


# ---------------------------------------------------------------- managers that die


@contextmanager
def manager(url: str, hosts: list[Host], jobs: list[dict[str, Any]], **more: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that does these jobs. It is killed at the end of the block."""
    task = {"url": url, "hosts": {host.name: host.uri for host in hosts}, "jobs": jobs, "ttl": 30.0, **more}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, MANAGER, json.dumps(task)], stdin=pipe, stdout=pipe, stderr=pipe, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def told(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What it says next."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    said: dict[str, Any] = json.loads(line)
    return said


def job_of(vm: Vm, *, hold: bool = False) -> dict[str, Any]:
    return {
        "host": vm.host.name,
        "domain": vm.name,
        "xml": vm.backup_xml(),
        "nbd": f"nbd://{vm.host.address}:{{port}}/vda",
        "hold": hold,
    }


def test_manager_comes_back(valkey: servers.ServerStore, h1: Host) -> None:
    """A manager that comes back under its name within the TTL finds the backup that its predecessor began."""
    vm = h1.vm("vm1")
    with manager(valkey.url, [h1], [job_of(vm, hold=True)], instance="mgr") as first:
        began = told(first)
    assert 10809 == reported(vm)
    assert vm.checksum == vm.pull(10809)
    with manager(valkey.url, [h1], [], instance="mgr", resume=True) as second:
        found = told(second)
        assert second.wait(PATIENCE) == 0
    assert ("vm1", 10809, began["fence"]) == (found["found"], found["port"], found["fence"])
    with PortAllocator(valkey.url) as ports:
        assert ({}, False) == (states(ports), h1.listens(10809))


@pytest.mark.parametrize(("quarantine", "before"), [(0.1, {}), (60, {10809: "cooling"})])
def test_manager_does_not_come_back(
    valkey: servers.ServerStore, h1: Host, stack: ExitStack, quarantine: float, before: dict[int, str]
) -> None:
    """After the TTL nobody gets the port while QEMU serves on it: the next manager holds it till its end."""
    vm, other = h1.vm("vm1"), h1.vm("vm2")
    dying = {"instance": "mgr", "ttl": 0.5, "quarantine": quarantine}
    with manager(valkey.url, [h1], [job_of(vm, hold=True)], **dying) as first:
        assert 10809 == told(first)["port"]
    ports = stack.enter_context(PortAllocator(valkey.url))

    def left() -> dict[int, str]:
        ports._backend.reclaim(host_space("h1"))  # somebody has to come by
        return states(ports)

    eventually(before, left)
    backups = stack.enter_context(watched(ports, h1, NEVER))
    (found,) = backups.jobs()
    assert ("vm1", 10809) == (found.domain, number(found))
    with pytest.raises(PortInUse, match="owner 'vm1'"):
        ports.acquire("backup", host="h1", port=10809)
    with backups.begin(other.domain, other.backup_xml()) as backup:
        assert 10810 == number(backup)
        assert (vm.checksum, other.checksum) == (vm.pull(10809), other.pull(10810))
    found.end()
    assert {} == states(ports)


def test_manager_ends_in_order(valkey: servers.ServerStore, h1: Host) -> None:
    """Nor does anybody get the port when a manager ends in order and lets its backup go on."""
    vm = h1.vm("vm1")
    with PortAllocator(valkey.url) as ports, watched(ports, h1, NEVER) as backups:
        backups.begin(vm.domain, vm.backup_xml())
    assert h1.listens(10809)
    with PortAllocator(valkey.url) as others:
        assert 10810 == others.acquire("backup", host=h1.name).number


def test_nobody_looked(valkey: servers.ServerStore, h1: Host, stack: ExitStack) -> None:
    """Also a manager that has not compared anything yet passes the port over: QEMU says so, and it is marked."""
    vm, other = h1.vm("vm1"), h1.vm("vm2")
    vm.domain.backupBegin(vm.backup_xml(port=10809), None, 0)
    ports = stack.enter_context(PortAllocator(valkey.url))
    backups = stack.enter_context(watched(ports, h1, NEVER))
    backups._finish(backups.jobs()[0])
    assert {} == states(ports)
    with backups.begin(other.domain, other.backup_xml()) as backup:
        assert 10810 == number(backup)
        assert {10809: "foreign", 10810: "held"} == states(ports)


def test_two_managers(valkey: servers.ServerStore, h1: Host, h2: Host) -> None:
    """Forty backups by two managers on two hosts with four machines, one manager killed in the middle: QEMU sees no
    collision, all that is pulled is right, and no port is left.
    """
    a, b = ([h1.vm(name), h2.vm(name)] for name in ("vm1", "vm2"))
    expected = {(vm.host.name, vm.name): vm.checksum for vm in (*a, *b)}
    hosts = [h1, h2]
    logged = [len(host.log) for host in hosts]

    def work(process: subprocess.Popen[str], count: int) -> int:
        for _ in range(count):
            began = told(process)
            assert expected[began["host"], began["began"]] == told(process)["pulled"]
            assert began["began"] == told(process)["ended"]
        return count

    def jobs(vms: list[Vm], count: int, hold: int = 0) -> list[dict[str, Any]]:
        return [job_of(vms[index % 2], hold=index + 1 == hold) for index in range(count)]

    with manager(valkey.url, hosts, jobs(b, 20), instance="mgr-b") as steady:
        finished: list[int] = []
        thread = threading.Thread(target=lambda: finished.append(work(steady, 20)))
        thread.start()
        with manager(valkey.url, hosts, jobs(a, 20, hold=10), instance="mgr-a") as killed:
            assert 9 == work(killed, 9)
            tenth = told(killed)
            assert ("vm1", "h2") == (tenth["began"], tenth["host"])
            assert killed.poll() is None
        assert killed.returncode < 0
        assert tenth["port"] == reported(a[1]), "it goes on without its manager"
        with manager(valkey.url, hosts, jobs(a, 11), instance="mgr-a", resume=True) as back:
            found = told(back)
            assert (tenth["port"], tenth["fence"]) == (found["port"], found["fence"])
            assert 11 == work(back, 11)
            said = back.communicate(timeout=PATIENCE)[1]
        thread.join(60)
        said += steady.communicate(timeout=PATIENCE)[1]
    assert ([20], 0, 0) == (finished, steady.returncode, back.returncode)
    assert "" == said
    for host, before in zip(hosts, logged, strict=True):
        assert "Address already in use" not in host.log[before:]
    with PortAllocator(valkey.url) as ports:
        assert ({}, {}) == (states(ports, "h1"), states(ports, "h2"))
    assert [] == [port for host in hosts for port in range(10809, 10873) if host.listens(port)]
