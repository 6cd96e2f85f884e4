"""A shell script that backs up with virsh and ``clusterports backup-xml``."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from conftest import missing

from clusterports import PortAllocator

if TYPE_CHECKING:
    import servers
    from hypervisors import Host

SCRIPT = """
set -euo pipefail
read -r port lease fence < <(clusterports backup-xml in.xml --output out.xml --ttl 60 --owner vm1)
virsh --quiet backup-begin vm1 out.xml >&2
clusterports status --json | tee held.json >/dev/null
qemu-img convert -O raw "nbd://$ADDRESS:$port/vda" pulled
virsh --quiet domjobabort vm1
while virsh backup-dumpxml vm1 >/dev/null 2>&1; do sleep 0.01; done
clusterports release "$lease"
echo "$port"
"""


def test_script(valkey: servers.ServerStore, h1: Host, tmp_path: Path) -> None:
    """The document is one that virsh takes, its port is held while the backup runs, and the data is right."""
    if shutil.which("virsh") is None:
        missing("not in PATH: virsh")
    vm = h1.vm("vm1")
    (tmp_path / "in.xml").write_text(vm.backup_xml())
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "LIBVIRT_DEFAULT_URI": h1.uri,
        "CLUSTERPORTS_URL": valkey.url,
        "CLUSTERPORTS_HOST": h1.name,
        "ADDRESS": h1.address,
    }
    result = subprocess.run(
        ["bash"], input=SCRIPT, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert ("10809\n", "Backup started\n", 0) == (result.stdout, result.stderr, result.returncode)
    assert vm.checksum == hashlib.sha256((tmp_path / "pulled").read_bytes()).hexdigest()
    assert '"owner": "vm1"' in (tmp_path / "held.json").read_text()
    assert False is h1.listens(10809)
    with PortAllocator(valkey.url) as ports:
        assert [] == [port for host in ports.status(h1.name).hosts for port in host.ports]
