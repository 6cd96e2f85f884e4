"""That the hosts which these tests run on are what they seem."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
