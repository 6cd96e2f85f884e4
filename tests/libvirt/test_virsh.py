"""Shell scripts that back up with virsh and ``clusterports backup-xml``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import missing
from hypervisors import PATIENCE, sha256, states, wait_for

from clusterports import ConfigurationError, PortAllocator
from clusterports.cli.backup_xml import backup_xml
from clusterports.libvirt import BackupPorts

if TYPE_CHECKING:
    from collections.abc import Iterator

    import servers
    from hypervisors import Host

README = Path(__file__).resolve().parents[2] / "README.md"

VIRSH = """\
#!/bin/sh
"{real}" "$@"
code=$?
echo "$1 $code" >>virsh.log
exit $code
"""

QEMU_IMG = """\
#!/bin/sh
echo "$@" >>qemu-img.log
"{real}" "$@" || exit
touch pulled
while [ -e wait ]; do sleep 0.01; done
"""


def replaced(text: str, names: dict[str, str]) -> str:
    for name, real in names.items():
        assert name in text
        text = text.replace(name, real)
    return text


class Script:
    """The README's script as it stands but for names, or another command, in a directory of its own."""

    def __init__(self, directory: Path, host: Host, url: str) -> None:
        self.directory = directory
        (found,) = re.findall(r"^```bash libvirt\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
        here = {"vm-42": "vm1", "kvm-07": host.address, "/var/tmp/": ""}  # noqa: S108  # as the README has it
        self.text = replaced(found, here)
        (directory / "in.xml").write_text(host.vm("vm1").backup_xml())
        (directory / "bin").mkdir()
        for name, shim in (("virsh", VIRSH), ("qemu-img", QEMU_IMG)):
            real = shutil.which(name)
            if real is None:
                missing(f"not in PATH: {name}")
            (directory / "bin" / name).write_text(shim.format(real=real))
            (directory / "bin" / name).chmod(0o755)
        self.environment = {
            "PATH": os.pathsep.join([str(directory / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "HOME": str(directory),
            "LIBVIRT_DEFAULT_URI": host.uri,
            "CLUSTERPORTS_URL": url,
            "CLUSTERPORTS_HOST": host.name,
        }

    def start(self, *command: str) -> subprocess.Popen[str]:
        """The script, or a command as it would run it."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command or ("bash", "-c", self.text),
            cwd=self.directory,
            env=self.environment,
            stdout=pipe,
            stderr=pipe,
            text=True,
            process_group=0,
        )

    def run(self, *command: str) -> tuple[int, str, str]:
        """To its end: exit code, stdout, stderr."""
        process = self.start(*command)
        out, err = process.communicate(timeout=PATIENCE)
        return process.returncode, out, err

    def asked(self) -> list[str]:
        """What virsh was called for, with its exit code each time."""
        log = self.directory / "virsh.log"
        return log.read_text().splitlines() if log.exists() else []

    def pulled_from(self) -> list[int]:
        return [int(port) for port in re.findall(r"nbd://[^:]*:(\d+)/", (self.directory / "qemu-img.log").read_text())]


@pytest.fixture
def script(h1: Host, valkey: servers.ServerStore, tmp_path: Path) -> Script:
    return Script(tmp_path, h1, valkey.url)


@pytest.fixture
def ports(valkey: servers.ServerStore) -> Iterator[PortAllocator]:
    with PortAllocator(valkey.url, host="h1") as ports:
        yield ports


def test_script(script: Script, h1: Host, ports: PortAllocator) -> None:
    """The README's: the document is one that virsh takes, the data is right, and nothing is left."""
    code, _, err = script.run()
    disk = script.directory / "vm1.qcow2"

    assert (0, "") == (code, err)
    assert [10809] == script.pulled_from()
    h1.execute("qemu-img", "compare", "--force-share", h1.vm("vm1").disk, disk)
    assert (False, {}) == (h1.listens(10809), states(ports))


@pytest.mark.parametrize("options", ["", "set -euo pipefail"])
def test_help(options: str, script: Script, h1: Host, ports: PortAllocator) -> None:
    """The example of the help is one as well, however strict the shell is."""
    assert backup_xml.__doc__ is not None
    _, lines = backup_xml.__doc__.split("--dry-run\n")
    here = {"vm-1": "vm1", "kvm-07": h1.address, "nbdcopy": "qemu-img convert -O raw"}
    code, _, err = script.run("bash", "-c", f"{options}\n{replaced(lines, here)}")

    assert (0, "") == (code, err)
    assert h1.vm("vm1").checksum == sha256(script.directory / "vda.img")
    assert (False, {}) == (h1.listens(10809), states(ports))


def test_daemon_away(script: Script, h1: Host, ports: PortAllocator) -> None:
    """While libvirt's daemon is away QEMU serves on, and the port is held; when it is back, it is over and released."""
    wait = script.directory / "wait"
    wait.touch()
    process = script.start()
    try:
        wait_for("the data", (script.directory / "pulled").exists)
        h1.kill()
        before = len(script.asked())
        wait.unlink()
        # The abort and the question of whether it is over, twice: it was told "no" at least once.
        wait_for("virsh to be asked", lambda: len(script.asked()) >= before + 6 or process.poll() is not None)
        assert ({10809: "held"}, True) == (states(ports), h1.listens(10809))
        h1.start()
        process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.communicate()

    assert 0 == process.returncode
    assert (False, {}) == (h1.listens(10809), states(ports))


def test_port_in_use(script: Script, h1: Host, ports: PortAllocator) -> None:
    """A port that QEMU finds in use is passed over for a while, and the backup gets the next one."""
    with h1.squat(10809):
        code, _, err = script.run()

    assert 0 == code, err
    assert "Failed to find an available port: Address already in use" in err
    assert ([10810], {10809: "foreign"}) == (script.pulled_from(), states(ports))


def test_domain_gone(script: Script, h1: Host, ports: PortAllocator) -> None:
    """A transient domain that ended with its backup is none that libvirt does not answer for."""
    wait = script.directory / "wait"
    wait.touch()
    process = script.start()
    try:
        wait_for("the data", (script.directory / "pulled").exists)
        h1.vm("vm1").kill()
        wait.unlink()
        process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.communicate()

    assert (0, {}) == (process.returncode, states(ports))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("mode='pull'", "mode='Pull'"),
        ("mode='pull'", "mode=''"),
        ("mode='pull'", "mode='pull '"),
        ("mode='pull'", "mode='push'"),
        ("mode='pull'", ""),
        ("transport='tcp'", "transport='TCP'"),
        ("transport='tcp'", "transport=''"),
        ("transport='tcp'", "transport='tcp '"),
    ],
)
def test_refused(before: str, after: str, script: Script, h1: Host, ports: PortAllocator) -> None:
    """A document that libvirt refuses for its mode or transport is refused before anything is taken."""
    document = h1.vm("vm1").backup_xml(port=10809).replace(before, after)
    (script.directory / "in.xml").write_text(document)

    assert [1, 2] == [
        script.run("virsh", "backup-begin", "vm1", "in.xml")[0],
        script.run("clusterports", "backup-xml", "in.xml", "--output", "out.xml")[0],
    ]
    with BackupPorts(ports, h1.uri, host="h1") as backups:
        with pytest.raises(ConfigurationError, match=r"^backup XML: line .*: (mode|transport|server): must be "):
            backups.begin("vm1", document)
        assert [] == backups.jobs()
    assert {} == states(ports)
