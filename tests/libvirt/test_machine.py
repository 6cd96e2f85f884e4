"""That the hosts which these tests run on are what they seem."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from hypervisors import PATIENCE

from clusterports.libvirt._binding import binding

if TYPE_CHECKING:
    from hypervisors import Host


def test_backup(h1: Host, h2: Host) -> None:
    """Two hosts serve their own data on one number, also after the death of a libvirtd."""
    one, other = h1.vm("vm1"), h2.vm("vm1")
    for vm in (one, other):
        vm.domain.backupBegin(vm.backup_xml(port=10809), None, 0)
    assert (True, True) == (h1.listens(10809), h2.listens(10809))
    h1.kill()
    assert one.checksum == one.pull(10809)
    assert other.checksum == other.pull(10809)
    assert one.checksum != other.checksum
    h1.start()
    assert "port='10809'" in one.domain.backupGetXMLDesc()


def test_names(h1: Host, h2: Host) -> None:
    """Each libvirtd says its host's own name, by which the other host reaches it."""
    assert ["h1", "h2"] == [host.connection.getHostname() for host in (h1, h2)]
    libvirt = binding()
    flags = libvirt.VIR_MIGRATE_PEER2PEER | libvirt.VIR_MIGRATE_UNSAFE
    h1.vm("vm1").domain.migrateToURI3(h2.uri, {}, flags)
    assert ([], ["vm1"]) == (h1.running(), h2.running())


def test_squatter(h1: Host, h2: Host) -> None:
    """A foreign process has a port of one host, until it ends."""
    with h1.squat(10809):
        assert (True, False) == (h1.listens(10809), h2.listens(10809))
    assert not h1.listens(10809)


def test_gate(h1: Host, h2: Host) -> None:
    """Who connects to a gate waits there, and once it is open all goes on to the other host."""
    vm = h2.vm("vm1")
    vm.domain.backupBegin(vm.backup_xml(port=10809), None, 0)
    with ThreadPoolExecutor() as aside, h1.gate(h2, 10809) as gate:
        pulling = aside.submit(vm.pull, 10809, gate.address)
        gate.wait()
        assert not pulling.done()
        gate.open()
        assert vm.checksum == pulling.result(PATIENCE)


def test_clean(h1: Host) -> None:
    """Whatever a test leaves behind, a stopped QEMU and a stopped libvirtd too, is gone when the next begins."""
    vm = h1.vm("vm1")
    vm.domain.backupBegin(vm.backup_xml(port=10809), None, 0)
    os.kill(vm.pid, signal.SIGSTOP)
    os.kill(h1.pid, signal.SIGSTOP)
    h1.clean()
    assert ([], False) == (h1.running(), h1.listens(10809))
