"""Displays of virtual machines with real libvirt daemons and real QEMU."""

from __future__ import annotations

import os
import re
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from hypervisors import NEVER, PATIENCE, Vm, states

from clusterports import PortAllocator, PortInUse, PortsExhausted, Settings
from clusterports.libvirt import Display, DisplayPorts, _ledger
from clusterports.libvirt._binding import binding
from clusterports.libvirt._graphics_xml import GraphicsXml

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hypervisors import Host

VNC = "<graphics type='vnc' passwd='secret'/>"
BOTH = "<graphics type='vnc' websocket='-1' autoport='yes'/>"


@pytest.fixture
def ports() -> Iterator[PortAllocator]:
    """A central manager's: it runs on none of the hosts, and cannot probe them."""
    with PortAllocator("memory://") as allocator:
        yield allocator


@pytest.fixture
def displays(ports: PortAllocator, h1: Host) -> Iterator[DisplayPorts]:
    with watched(ports, h1) as on_h1:
        yield on_h1


@contextmanager
def watched(ports: PortAllocator, host: Host) -> Iterator[DisplayPorts]:
    with DisplayPorts(ports, host.uri, host=host.name, interval=NEVER) as displays:
        yield displays


def start(displays: DisplayPorts, vm: Vm, devices: str, **arguments: Any) -> Display:
    return displays.create(vm.xml(devices), binding().VIR_DOMAIN_START_PAUSED, **arguments)


def reported(vm: Vm) -> dict[int, str]:
    """The ports that libvirt says the domain uses."""
    return GraphicsXml(vm.domain.XMLDesc()).used


def ended(display: Display, ports: PortAllocator) -> tuple[bool, dict[int, str]]:
    return display.wait(PATIENCE), states(ports)


def test_vnc_and_websocket(ports: PortAllocator, displays: DisplayPorts, h1: Host) -> None:
    """VNC and its websocket get the lowest ports of their ranges, are served there, and hold them until the VM ends."""
    vm = Vm(h1, "vm1")
    display = start(displays, vm, BOTH, labels={"rack": "7"})
    assert {5900: "vnc", 5700: "websocket"} == reported(vm)
    assert (5900, 5700, None) == (display.vnc, display.websocket, display.spice)
    assert (True, True) == (h1.listens(5900), h1.listens(5700))
    assert {("vm1", "display", "7"), ("vm1", "websocket", "7")} == {
        (port.owner, port.range, port.labels["rack"]) for port in display.ports
    }
    assert {5900: "held", 5700: "held"} == states(ports)
    vm.destroy()
    assert (True, {}) == ended(display, ports)


def test_spice(ports: PortAllocator, displays: DisplayPorts, h1: Host) -> None:
    """Spice gets a port; without TLS on the host, one."""
    vm = Vm(h1, "vm1")
    display = start(displays, vm, "<graphics type='spice' port='-1' tlsPort='-1' autoport='yes'/>")
    assert {5900: "spice"} == reported(vm)
    assert (5900, None, True) == (display.spice, display.spice_tls, h1.listens(5900))
    assert {5900: "held"} == states(ports)


def test_without_port(ports: PortAllocator, displays: DisplayPorts, h1: Host) -> None:
    """A display that listens on no TCP port takes none."""
    vm = Vm(h1, "vm1")
    display = start(displays, vm, "<graphics type='vnc'><listen type='none'/></graphics>")
    assert ([], {}, ["vm1"]) == (display.ports, states(ports), h1.running())
    vm.destroy()
    assert (True, {}) == ended(display, ports)


def test_without_uuid(ports: PortAllocator, displays: DisplayPorts, h1: Host) -> None:
    """A domain without a UUID gets one, under which its ports are known, and given back."""
    vm = Vm(h1, "vm1")
    display = displays.create(re.sub("<uuid>.*</uuid>", "", vm.xml(VNC)), binding().VIR_DOMAIN_START_PAUSED)
    domain = h1.connection.lookupByName("vm1")
    assert (domain.UUIDString(), {5900: "held"}) == (display.uuid, states(ports))
    domain.destroy()
    assert (True, {}) == ended(display, ports)


def test_same_number_on_two_hosts(ports: PortAllocator, displays: DisplayPorts, h1: Host, h2: Host) -> None:
    """Each host has its own numbers, and a host's VMs have different ones."""
    with watched(ports, h2) as others:
        numbers = [
            start(displays, Vm(h1, "vm1"), VNC).vnc,
            start(others, Vm(h2, "vm1"), VNC).vnc,
            start(others, Vm(h2, "vm2"), VNC).vnc,
        ]
    assert [5900, 5900, 5901] == numbers
    assert (True, True, False, True) == (h1.listens(5900), h2.listens(5900), h1.listens(5901), h2.listens(5901))


def test_explicit_port(ports: PortAllocator, displays: DisplayPorts, h1: Host) -> None:
    """A port that is named stays as it is and is claimed; one that is held is refused before libvirt is asked."""
    vm = Vm(h1, "vm1")
    named = "<graphics type='vnc' port='5910' websocket='5700'/>"
    assert (5910, 5700) == ((display := start(displays, vm, named)).vnc, display.websocket)
    assert {5910: "held", 5700: "held"} == states(ports)
    with pytest.raises(PortInUse, match=r"^Port 5910/tcp on host 'h1' is held by instance .*, owner 'vm1'"):
        displays.create("<domain><name>vm2</name><devices><graphics type='vnc' port='5910'/></devices></domain>")
    assert {5910: "held", 5700: "held"} == states(ports)


def test_foreign(ports: PortAllocator, displays: DisplayPorts, h1: Host) -> None:
    """A foreign process on the port: QEMU refuses it, it is marked, and the display gets the next."""
    with h1.squat(5900):
        display = start(displays, Vm(h1, "vm1"), VNC)
        assert ({5900: "foreign", 5901: "held"}, 5901) == (states(ports), display.vnc)


def test_foreign_for_spice(ports: PortAllocator, displays: DisplayPorts, h1: Host) -> None:
    """The same for spice, which says it in other words."""
    with h1.squat(5900, "127.0.0.1"):
        display = start(displays, Vm(h1, "vm1"), "<graphics type='spice' port='-1'/>")
        assert ({5900: "foreign", 5901: "held"}, 5901) == (states(ports), display.spice)


def test_foreign_on_explicit_port(ports: PortAllocator, displays: DisplayPorts, h1: Host) -> None:
    """A foreign process on the port that is named: refused, also where QEMU does not say which of two it means."""
    with h1.squat(5950), pytest.raises(PortInUse, match=r"^Port 5950/tcp on host 'h1' is in use by a process outside"):
        start(displays, Vm(h1, "vm1"), "<graphics type='vnc' port='5950' websocket='-1'/>")
    assert ([], {5700: "foreign", 5701: "foreign"}) == (h1.running(), states(ports))


@pytest.mark.parametrize("graphics", ["<graphics type='vnc' port='5950'/>", BOTH, "<graphics type='spice' port='-1'/>"])
def test_foreign_on_another_port(ports: PortAllocator, displays: DisplayPorts, h1: Host, graphics: str) -> None:
    """A foreign process on a port that the domain needs besides: libvirt's error, and no port of ours is suspected."""
    serial = "<serial type='tcp'><source mode='bind' host='0.0.0.0' service='7777'/><protocol type='raw'/></serial>"
    with h1.squat(7777), pytest.raises(binding().libvirtError, match=r"port=7777,|connect to monitor"):
        start(displays, Vm(h1, "vm1"), graphics + serial)
    assert ([], {}) == (displays.jobs(), states(ports))


@pytest.mark.parametrize(
    "devices",
    [
        "<graphics type='vnc' websocket='-1' listen='192.0.2.1'/>",
        "<graphics type='spice' port='-1' listen='192.0.2.1'/>",
        VNC + "<disk type='file'><source file='/no such file'/><target dev='vdb'/></disk>",
    ],
)
def test_failing_start(ports: PortAllocator, displays: DisplayPorts, h1: Host, devices: str) -> None:
    """When a domain does not start, nothing stays held, and what it was started from is not told."""
    with pytest.raises(binding().libvirtError) as raised:
        start(displays, Vm(h1, "vm1"), devices)
    assert "secret" not in str(raised.value)
    assert ([], []) == (displays.jobs(), [number for number, state in states(ports).items() if state == "held"])


def test_qemu_dies(ports: PortAllocator, displays: DisplayPorts, h1: Host) -> None:
    """When QEMU is killed, its ports are free."""
    vm = Vm(h1, "vm1")
    display = start(displays, vm, BOTH)
    vm.kill()
    assert (True, {}) == ended(display, ports)


def test_libvirts_own(ports: PortAllocator, displays: DisplayPorts, h1: Host) -> None:
    """What libvirt gave out itself is passed over, claimed by the comparison with what runs, and freed at its end."""
    vm = h1.vm("vm1", BOTH)
    assert {5900: "vnc", 5700: "websocket"} == reported(vm)
    assert 5901 == start(displays, Vm(h1, "vm2"), VNC).vnc
    displays.reconcile()
    assert {5900: "held", 5700: "held", 5901: "held"} == states(ports)
    found = displays.jobs()[0]
    assert ("vm1", 5900, 5700) == (found.domain, found.vnc, found.websocket)
    assert {"display", "websocket"} == {port.range for port in found.ports}
    vm.destroy()
    assert found.wait(PATIENCE)
    assert {5901: "held"} == states(ports)


def test_stopped_qemu(ports: PortAllocator, displays: DisplayPorts, h1: Host) -> None:
    """What runs is compared also while a QEMU answers nothing."""
    vm = h1.vm("vm1", VNC)
    os.kill(vm.pid, signal.SIGSTOP)
    displays.reconcile()
    assert {5900: "held"} == states(ports)


def test_not_running(ports: PortAllocator, displays: DisplayPorts, h1: Host) -> None:
    """A domain that is defined and does not run uses no ports, though its document names some."""
    vm = Vm(h1, "vm1")
    display = start(displays, vm, VNC)
    vm.host.connection.defineXML(vm.xml("<graphics type='vnc' port='5900'/>"))
    vm.domain.destroy()
    try:
        assert (True, {}) == ended(display, ports)
    finally:
        vm.domain.undefine()


def test_found_again(h1: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next process of an instance finds a display that runs, and gives back the port of one that has ended."""
    monkeypatch.setattr(_ledger, "LONGEST_BEGIN", 0.0)
    vm, other = Vm(h1, "vm1"), Vm(h1, "vm2")
    with PortAllocator("memory://displays", instance="manager") as ports:
        with watched(ports, h1) as displays:
            start(displays, vm, BOTH)
            start(displays, other, VNC)
        other.destroy()
        ports.detach()
    with PortAllocator("memory://displays", instance="manager") as ports, watched(ports, h1) as displays:
        assert ["vm1", "vm2"] == [display.domain for display in displays.jobs()]
        displays.reconcile()
        (found,) = displays.jobs()
        assert ("vm1", 5900, 5700) == (found.domain, found.vnc, found.websocket)
        assert {5900: "held", 5700: "held"} == states(ports)


def test_ranges_of_qemu_conf(h1: Host, tmp_path: Any) -> None:
    """libvirt and clusterports take their ranges from the same lines."""
    lines = "remote_display_port_min = 5930\nremote_display_port_max = 5931\nremote_websocket_port_min = 5730\n"
    (tmp_path / "qemu.conf").write_text(lines)
    h1.write_conf(lines)
    h1.kill()
    h1.start()
    h1.connect().close()
    by_libvirt = h1.vm("vm1", VNC)
    settings = Settings(libvirt_conf=tmp_path / "qemu.conf")
    with PortAllocator("memory://", settings=settings) as ports, watched(ports, h1) as displays:
        display = start(displays, Vm(h1, "vm2"), BOTH)
        assert ({5930: "vnc"}, 5931, 5730) == (reported(by_libvirt), display.vnc, display.websocket)
        with pytest.raises(PortsExhausted, match=r"^Unable to find an unused port in range 'display' \(5930-5931\)"):
            start(displays, Vm(h1, "vm3"), VNC)
