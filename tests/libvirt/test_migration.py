"""Live migration of virtual machines between real libvirt daemons, with real QEMU."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypervisors import PATIENCE, eventually, states

from clusterports import PortAllocator, PortInUse, PortsExhausted, Settings
from clusterports.libvirt import migrate, migration, settle_migrations
from clusterports.libvirt._binding import binding
from clusterports.libvirt.migration import INCOMING, MIGRATION_OUT, _comes_in, _goes_out

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hypervisors import Host, Vm

LIVE = 1 | 32 | 512
"""VIR_MIGRATE_LIVE, _PAUSED (on arrival) and _UNSAFE: the disk is in reach of both hosts, and caches do not matter."""

PEER2PEER = 2
NON_SHARED_DISK = 64


@pytest.fixture
def ports() -> Iterator[PortAllocator]:
    """A central manager's: it runs on none of the hosts, and cannot probe them."""
    with PortAllocator("memory://") as allocator:
        yield allocator


@pytest.fixture
def connection(h2: Host) -> Iterator[Any]:
    """To the destination, and nobody else's."""
    opened = h2.connect()
    yield opened
    if opened.isAlive():
        opened.close()


@pytest.fixture
def aside() -> Iterator[ThreadPoolExecutor]:
    """For calls that wait at a gate."""
    with ThreadPoolExecutor() as pool:
        yield pool


def with_own_disk(vm: Vm, host: Host) -> str:
    """The domain's document for a host that has a disk of its own for it."""
    disk = host.folder / "images" / "copied.qcow2"
    shutil.copy(vm.disk, disk)
    flags = binding().VIR_DOMAIN_XML_MIGRATABLE | binding().VIR_DOMAIN_XML_SECURE
    return str(vm.domain.XMLDesc(flags)).replace(str(vm.disk), str(disk))


class Watched:
    """A domain that notes with which parameters it is migrated, and how the ports stand when it is."""

    def __init__(self, vm: Vm, ports: PortAllocator) -> None:
        self._domain = vm.domain
        self._ports = ports
        self.params: list[dict[str, Any]] = []
        self.states: list[dict[int, str]] = []

    def migrate3(self, destination: Any, params: dict[str, Any], flags: int) -> Any:
        self._note(params)
        return self._domain.migrate3(destination, params, flags)

    def migrateToURI3(self, uri: str, params: dict[str, Any], flags: int) -> Any:  # noqa: N802
        self._note(params)
        return self._domain.migrateToURI3(uri, params, flags)

    def _note(self, params: dict[str, Any]) -> None:
        self.params.append(params)
        self.states.append(states(self._ports, "h2"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._domain, name)


class CutOff:
    """A domain whose caller loses the connection to the source's daemon when it migrates it; the daemon goes on."""

    def __init__(self, vm: Vm, aside: ThreadPoolExecutor) -> None:
        self._domain = vm.domain
        self._aside = aside

    def migrateToURI3(self, uri: str, params: dict[str, Any], flags: int) -> None:  # noqa: N802
        self.done = self._aside.submit(self._domain.migrateToURI3, uri, params, flags)
        raise binding().libvirtError("cut off")

    def connect(self) -> Any:
        uri = self._domain.connect().getURI()
        return SimpleNamespace(isAlive=lambda: 0, getURI=lambda: uri)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._domain, name)


def test_holds_the_port_meanwhile(
    ports: PortAllocator, h1: Host, h2: Host, connection: Any, aside: ThreadPoolExecutor
) -> None:
    """The port is held, and QEMU listens on it, while the domain moves; then it is free."""
    vm = h1.vm("vm1")
    with h1.gate(h2, 49152) as gate:
        moving = aside.submit(migrate, ports, vm.domain, connection, host="h2", address=gate.address, flags=LIVE)
        gate.wait()
        assert ({49152: "held"}, True) == (states(ports, "h2"), h2.listens(49152))
        assert [] == settle_migrations(ports, connection, host="h2")
        assert {49152: "held"} == states(ports, "h2")
        gate.open()
        moved = moving.result(PATIENCE)
    assert (vm.uuid, ["vm1"], []) == (moved.UUIDString(), h2.running(), h1.running())
    assert ({}, False) == (states(ports, "h2"), h2.listens(49152))


def test_peer_to_peer(ports: PortAllocator, h1: Host, h2: Host) -> None:
    """The source's daemon may do it, given the URI of the destination's."""
    vm = h1.vm("vm1")
    domain = Watched(vm, ports)
    assert migrate(ports, domain, h2.uri, host="h2", address=h2.address, flags=LIVE | PEER2PEER, owner="me") is None
    assert (["vm1"], {}, [{49152: "held"}]) == (h2.running(), states(ports, "h2"), domain.states)
    assert f"tcp://{h2.address}:49152" == domain.params[0]["migrate_uri"]


def test_storage(ports: PortAllocator, h1: Host, h2: Host, connection: Any) -> None:
    """Where disks are copied, that has a port of its own."""
    vm = h1.vm("vm1")
    domain = Watched(vm, ports)
    params = {"destination_xml": with_own_disk(vm, h2)}
    flags = LIVE | NON_SHARED_DISK
    migrate(ports, domain, connection, host="h2", address=h2.address, params=params, flags=flags)
    assert ([{49152: "held", 49153: "held"}], {}) == (domain.states, states(ports, "h2"))
    assert (f"tcp://{h2.address}:49152", 49153) == (domain.params[0]["migrate_uri"], domain.params[0]["disks_port"])
    assert ["vm1"] == h2.running()


def test_explicit_port(ports: PortAllocator, h1: Host, h2: Host, connection: Any) -> None:
    """A port that is named is claimed; when it is held, libvirt is not asked."""
    domain = Watched(h1.vm("vm1"), ports)
    params = {"migrate_uri": f"tcp://{h2.address}:20000"}
    with (
        ports.acquire(None, host="h2", port=20000),
        pytest.raises(PortInUse, match=r"^Port 20000/tcp on host 'h2' is held by"),
    ):
        migrate(ports, domain, connection, host="h2", params=params, flags=LIVE)
    assert [] == domain.states
    migrate(ports, domain, connection, host="h2", params=params, flags=LIVE)
    assert ([{20000: "held"}], {}, ["vm1"]) == (domain.states, states(ports, "h2"), h2.running())


def test_foreign(ports: PortAllocator, h1: Host, h2: Host, connection: Any) -> None:
    """A foreign process on the port, on IPv4 only: QEMU refuses it, it is marked, and the next one is taken."""
    vm = h1.vm("vm1")
    with h2.squat(49152):
        migrate(ports, vm.domain, connection, host="h2", address=h2.address, flags=LIVE)
    assert ({49152: "foreign"}, ["vm1"]) == (states(ports, "h2"), h2.running())


def test_foreign_for_storage(ports: PortAllocator, h1: Host, h2: Host, connection: Any) -> None:
    """A foreign process on the port that is named for the disks: QEMU says so, and the other is not suspected."""
    vm = h1.vm("vm1")
    params = {"destination_xml": with_own_disk(vm, h2), "disks_port": 49200}
    with (
        h2.squat(49200),
        pytest.raises(PortInUse, match=r"^Port 49200/tcp on host 'h2' is in use by a process outside"),
    ):
        migrate(
            ports, vm.domain, connection, host="h2", address=h2.address, params=params, flags=LIVE | NON_SHARED_DISK
        )
    assert ({}, ["vm1"]) == (states(ports, "h2"), h1.running())


DISPLAY = "<graphics type='vnc' listen='0.0.0.0' port='5999' autoport='no'/>"


@pytest.mark.parametrize("port", [None, 20000])
def test_foreign_for_display(ports: PortAllocator, h1: Host, h2: Host, connection: Any, port: int | None) -> None:
    """A foreign process on a port that the domain needs besides: libvirt's error, and no port of ours is suspected."""
    vm = h1.vm("vm1", DISPLAY)
    domain = Watched(vm, ports)
    params = {"migrate_uri": f"tcp://{h2.address}" + (f":{port}" if port else "")}
    with (
        h2.squat(5999),
        pytest.raises(binding().libvirtError, match=r"-vnc 0\.0\.0\.0:99,.*Address already in use|connect to monitor"),
    ):
        migrate(ports, domain, connection, host="h2", params=params, flags=LIVE)
    assert (1, {}, ["vm1"]) == (len(domain.params), states(ports, "h2"), h1.running())


def test_failing(ports: PortAllocator, h1: Host, h2: Host, connection: Any) -> None:
    """When a migration fails, nothing stays held."""
    vm = h1.vm("vm1")
    vm.disk.rename(vm.disk.with_suffix(".away"))
    try:
        # QEMU says what it lacks, unless it ends before libvirt can ask.
        with pytest.raises(binding().libvirtError, match=r"vm1\.qcow2|connect to monitor"):
            migrate(ports, vm.domain, connection, host="h2", address=h2.address, flags=LIVE)
    finally:
        vm.disk.with_suffix(".away").rename(vm.disk)
    assert ({}, ["vm1"], []) == (states(ports, "h2"), h1.running(), h2.running())


def test_outcome_unknown(
    ports: PortAllocator,
    h1: Host,
    h2: Host,
    connection: Any,
    aside: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When the source's daemon dies, nobody knows how it ends: the port stays held until the destination says."""
    monkeypatch.setattr(migration, "LONGEST_BEGIN", 0.0)  # the daemon that was about to begin is dead
    vm = h1.vm("vm1")
    source = h1.connect()
    domain = source.lookupByUUIDString(vm.uuid)
    flags = LIVE | PEER2PEER
    with h1.gate(h2, 49152) as gate:
        moving = aside.submit(migrate, ports, domain, connection, host="h2", address=gate.address, flags=flags)
        gate.wait()
        seen = _goes_out(h1.connection, vm.uuid, waiting=False), _comes_in(h2.connection, vm.uuid)
        assert (True, True, {49152: "held"}) == (*seen, states(ports, "h2"))
        h1.kill()
        error = moving.exception(PATIENCE)
    assert isinstance(error, binding().libvirtError)
    assert {49152: "held"} == states(ports, "h2")
    note = "It may have begun all the same. Its ports stay held until libvirt says that it has not: 49152"
    assert [note] == getattr(error, "__notes__", None)
    eventually(([], []), lambda: (settle_migrations(ports, connection, host="h2"), h2.running()))
    assert {} == states(ports, "h2")


def test_yet_to_begin(ports: PortAllocator, h1: Host, h2: Host, connection: Any, aside: ThreadPoolExecutor) -> None:
    """A caller that is cut off leaves a migration that may only wait for another job of its domain: the port stays held
    until it was seen on the destination, and is there no more.
    """
    vm = h1.vm("vm1")
    vm.domain.backupBegin(vm.backup_xml(port=10809), None, 0)
    with h1.gate(h2, 49152) as gate:
        cut = CutOff(vm, aside)
        with pytest.raises(binding().libvirtError) as raised:
            migrate(ports, cut, connection, host="h2", address=gate.address, flags=LIVE | PEER2PEER)
        assert ["cut off"] == list(raised.value.args)
        (held,) = settle_migrations(ports, connection, host="h2")
        assert (49152, False) == (held.number, _comes_in(connection, vm.uuid))
        vm.domain.abortJob()
        gate.wait()
        assert h2.listens(49152)
        assert ([held], {49152: "held"}) == (settle_migrations(ports, connection, host="h2"), states(ports, "h2"))
        gate.open()
        cut.done.result(PATIENCE)
    assert ([], {}, ["vm1"]) == (settle_migrations(ports, connection, host="h2"), states(ports, "h2"), h2.running())


def test_busy_source(ports: PortAllocator, h1: Host, h2: Host, connection: Any) -> None:
    """A daemon that refuses has answered: another job of its domain is no reason to keep the port."""
    vm = h1.vm("vm1")
    vm.domain.backupBegin(vm.backup_xml(port=10809), None, 0)
    with pytest.raises(binding().libvirtError, match="nonsense"):
        migrate(ports, vm.domain, connection, host="h2", params={"nonsense": 1}, flags=LIVE | PEER2PEER)
    assert {} == states(ports, "h2")


def test_reasons() -> None:
    """libvirt's numbers for states of a domain that comes in, and for what a job does."""
    libvirt = binding()
    expected = {
        libvirt.VIR_DOMAIN_RUNNING: (libvirt.VIR_DOMAIN_RUNNING_POSTCOPY, libvirt.VIR_DOMAIN_RUNNING_POSTCOPY_FAILED),
        libvirt.VIR_DOMAIN_PAUSED: (
            libvirt.VIR_DOMAIN_PAUSED_MIGRATION,
            libvirt.VIR_DOMAIN_PAUSED_STARTING_UP,
            libvirt.VIR_DOMAIN_PAUSED_POSTCOPY,
            libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED,
        ),
    }
    assert (expected, libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT) == (INCOMING, MIGRATION_OUT)


def test_ranges_of_qemu_conf(h1: Host, h2: Host, tmp_path: Path, aside: ThreadPoolExecutor) -> None:
    """libvirt and clusterports take their ranges from the same lines."""
    lines = "migration_port_min = 49300\nmigration_port_max = 49301\n"
    (tmp_path / "qemu.conf").write_text(lines)
    h2.write_conf(lines)
    h2.kill()
    h2.start()
    vm = h1.vm("vm1")
    with PortAllocator("memory://", settings=Settings(libvirt_conf=tmp_path / "qemu.conf")) as ports:
        gone = Watched(vm, ports)
        with h1.gate(h2, 49300) as gate:
            moving = aside.submit(vm.domain.migrate3, h2.connection, {"migrate_uri": f"tcp://{gate.address}"}, LIVE)
            gate.wait()
            assert h2.listens(49300)
            gate.open()
            moving.result(PATIENCE)
        with pytest.raises(binding().libvirtError, match="Domain not found"):
            migrate(ports, gone, h2.connection, host="h2", address=h2.address, flags=LIVE)
        assert ([{49300: "held"}], {}) == (gone.states, states(ports, "h2"))
        refused = pytest.raises(PortsExhausted, match=r"in range 'migration' \(49300-49301\)")
        with ports.acquire("migration", host="h2"), ports.acquire("migration", host="h2"), refused:
            migrate(ports, gone, h2.connection, host="h2", flags=LIVE)
