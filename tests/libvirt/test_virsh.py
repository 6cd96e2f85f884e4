"""Shell scripts that back up with virsh and ``clusterports backup-xml``."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import missing
from hypervisors import PATIENCE, states, wait_for

from clusterports import ConfigurationError, PortAllocator
from clusterports.cli.backup_xml import backup_xml
from clusterports.libvirt import BackupPorts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


FAKE = """\
#!/bin/bash
set -- "${0##*/} $1" "${@:2}"
echo "$1" >>calls
case $1 in
CASES
"clusterports backup-xml") echo "10809 7 8" ;;
"virsh backup-begin") echo "Backup started"; echo 10809 >job ;;
"virsh backup-dumpxml") [ -e job ] && echo "<domainbackup><server port='$(cat job)'/></domainbackup>" ;;
"virsh domjobinfo") if [ -e job ]; then echo "Job type:         Unbounded"; else echo "Job type:         None"; fi ;;
"virsh domjobabort") rm job ;;
"virsh list") echo vm-42 ;;
esac
"""
"""clusterports, qemu-img and virsh, which a test makes fail by cases of its own."""


def replaced(text: str, names: dict[str, str]) -> str:
    for name, real in names.items():
        assert name in text
        text = text.replace(name, real)
    return text


def in_readme(names: dict[str, str]) -> str:
    (found,) = re.findall(r"^```bash libvirt\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    return replaced(found, names)


class Script:
    """The README's script as it stands but for names, or another command, in a directory of its own."""

    def __init__(self, directory: Path, host: Host, url: str) -> None:
        self.directory = directory
        self.text = in_readme(
            {"vm-42": "vm1", "kvm-07": host.address, "/var/tmp/": ""}  # noqa: S108  # as the README has it
        )
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
            command or ("env", "--default-signal", "bash", "-c", self.text),
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

    @contextlib.contextmanager
    def pulling(self) -> Iterator[tuple[subprocess.Popen[str], Callable[[], None]]]:
        """The script while it pulls the data, and what to call for that to end."""
        wait = self.directory / "wait"
        wait.touch()
        process = self.start()
        try:
            wait_for("the data", (self.directory / "pulled").exists)
            yield process, wait.unlink
        finally:
            process.kill()
            process.communicate()

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
    """The example of the help begins a backup on a port that is held, however strict the shell is."""
    assert backup_xml.__doc__ is not None
    _, lines = backup_xml.__doc__.split("--dry-run\n")
    code, out, err = script.run("bash", "-c", f"{options}\n{replaced(lines, {'vm-1': 'vm1'})}")

    assert (0, "Backup started", "") == (code, out.strip(), err)
    assert (True, {10809: "held"}) == (h1.listens(10809), states(ports))


def test_daemon_away(script: Script, h1: Host, ports: PortAllocator) -> None:
    """While libvirt's daemon is away QEMU serves on, and the port is held; when it is back, it is over and released."""
    with script.pulling() as (process, go_on):
        h1.kill()
        before = len(script.asked())
        go_on()
        # Whether it is over, and what runs, twice: it was told "no" at least once.
        wait_for("virsh to be asked", lambda: len(script.asked()) >= before + 6 or process.poll() is not None)
        assert ({10809: "held"}, True) == (states(ports), h1.listens(10809))
        h1.start()
        process.communicate(timeout=PATIENCE)

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
    with script.pulling() as (process, go_on):
        h1.vm("vm1").kill()
        go_on()
        process.communicate(timeout=PATIENCE)

    assert (0, {}) == (process.returncode, states(ports))


def test_another_runs(script: Script, h1: Host, ports: PortAllocator) -> None:
    """A domain that has a backup already is left alone, and no port is taken."""
    vm = h1.vm("vm1")
    vm.domain.backupBegin(vm.backup_xml(port=20000), None, 0)
    code, _, err = script.run()

    assert (1, "vm1 has a job already\n", {}) == (code, err, states(ports))
    assert ["domjobinfo 0"] == script.asked()
    assert h1.listens(20000)


def test_no_domain(script: Script, h1: Host, ports: PortAllocator) -> None:
    """Where there is no such domain, or no libvirt, no port is taken."""
    h1.vm("vm1").kill()
    wait_for("the end of the domain", lambda: script.run("virsh", "domstate", "vm1")[0])
    (script.directory / "virsh.log").unlink()
    code, _, err = script.run()

    assert (1, "error: failed to get domain 'vm1'\n", {}) == (code, err, states(ports))
    assert ["domjobinfo 1"] == script.asked()


@pytest.mark.parametrize("end", [os.kill, os.killpg], ids=["script", "group"])
@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_interrupted(
    signum: signal.Signals, end: Callable[[int, int], None], script: Script, h1: Host, ports: PortAllocator
) -> None:
    """Who ends it, or all of its programs, ends the backup with it: QEMU lets go of the port, which is free then."""
    (script.directory / "wait").touch()
    process = script.start()
    try:
        wait_for("the data", (script.directory / "pulled").exists)
        end(process.pid, signum)
        _, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.communicate()

    assert (128 + signum, "") == (process.returncode, err)
    assert (False, {}) == (h1.listens(10809), states(ports))


# ---------------------------------------------------------------- with programs that do as a test says


class Fakes:
    """The README's script as it stands but for the time between renewals."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.text = in_readme({"sleep 20": "sleep 0.05"})
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *cases: str) -> subprocess.Popen[str]:
        """With these cases of a program and its first argument before those of ``FAKE``."""
        (self.directory / "bin").mkdir()
        for name in ("clusterports", "qemu-img", "virsh"):
            fake = self.directory / "bin" / name
            fake.write_text(FAKE.replace("CASES", "\n".join(f"{case} ;;" for case in cases)))
            fake.chmod(0o755)
        path = os.pathsep.join([str(self.directory / "bin"), os.environ["PATH"]])
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            ["env", "--default-signal", "bash", "-c", self.text],
            cwd=self.directory, env={"PATH": path}, stdout=pipe, stderr=pipe, text=True, process_group=0,
        )  # fmt: skip
        self._started.append(process)
        return process

    def run(self, *cases: str) -> tuple[int, str]:
        """To its end: exit code, stderr."""
        process = self.start(*cases)
        _, err = process.communicate(timeout=PATIENCE)
        return process.returncode, err

    def calls(self) -> list[str]:
        """What was called, but for renewals and for questions."""
        log = self.directory / "calls"
        calls = log.read_text().splitlines() if log.exists() else []
        asking = {"virsh domjobinfo", "virsh backup-dumpxml", "virsh list", "clusterports renew"}
        return [call for call in calls if call not in asking]

    def kill_all(self) -> None:
        for process in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture
def fakes(tmp_path: Path) -> Iterator[Fakes]:
    fakes = Fakes(tmp_path)
    yield fakes
    fakes.kill_all()


TAKEN, BEGUN = "clusterports backup-xml", "virsh backup-begin"
PULLED, ABORTED, RELEASED = "qemu-img convert", "virsh domjobabort", "clusterports release"


def test_renewal_fails(fakes: Fakes) -> None:
    """While the store is away for a moment the backup goes on, and its lease is renewed when the store is back."""
    assert (0, "") == fakes.run(
        '"clusterports renew") [ -e failed ] || { touch failed; exit 5; }; touch renewed',
        '"qemu-img convert") until [ -e renewed ]; do sleep 0.01; done',
    )
    assert [TAKEN, BEGUN, PULLED, ABORTED, RELEASED] == fakes.calls()


def test_daemon_of_another_language(fakes: Fakes) -> None:
    """What the daemon says, in its own language, is not looked at."""
    none = '[ -e job ] || { echo "エラー: ジョブがありません" >&2; exit 1; }'

    assert (0, "") == fakes.run(f'"virsh backup-dumpxml") {none}; echo "<server port=\'10809\'/>"')
    assert [TAKEN, BEGUN, PULLED, ABORTED, RELEASED] == fakes.calls()


@pytest.mark.parametrize("known_after", [0, 5])
def test_another_came_first(known_after: int, fakes: Fakes) -> None:
    """A backup that somebody else began meanwhile, or that is still being begun, is neither waited for nor ended."""
    said = "error: Timed out during operation: cannot acquire state change lock"
    known = f'echo >>asked; [ -e job ] && [ "$(wc -l <asked)" -gt {known_after} ]'

    assert (1, f"{said}\n") == fakes.run(
        f'"virsh backup-begin") touch job; echo "{said}" >&2; exit 1',
        f'"virsh backup-dumpxml") {known} && echo "<server port=\'10850\'/>"',
    )
    assert [TAKEN, BEGUN, RELEASED] == fakes.calls()


def test_begun_after_all(fakes: Fakes) -> None:
    """A backup that runs on our port, whatever became of the answer, is ended before the port is given back."""
    said = "error: Disconnected from qemu:///system due to end of file"

    assert (1, f"{said}\n") == fakes.run(f'"virsh backup-begin") echo 10809 >job; echo "{said}" >&2; exit 1')
    assert [TAKEN, BEGUN, ABORTED, RELEASED] == fakes.calls()


@pytest.mark.parametrize(
    ("during", "then"), [(TAKEN, [RELEASED]), (BEGUN, [ABORTED, RELEASED])], ids=["taken", "begun"]
)
@pytest.mark.parametrize("end", [os.kill, os.killpg], ids=["script", "group"])
def test_interrupted_early(during: str, then: list[str], end: Callable[[int, int], None], fakes: Fakes) -> None:
    """A port that was taken, or a backup that was begun, when the signal came, is given back, or ended."""
    if during == TAKEN and end is os.killpg:
        then = []  # the program, which gives back what it took, was told as well
    answer = {TAKEN: 'echo "10809 7 8"', BEGUN: "echo 10809 >job"}[during]
    process = fakes.start(f'"{during}") touch reached; until [ -e go ]; do sleep 0.01; done; {answer}')
    wait_for(during, (fakes.directory / "reached").exists)
    end(process.pid, signal.SIGTERM)
    (fakes.directory / "go").touch()
    _, err = process.communicate(timeout=PATIENCE)

    assert (143, "") == (process.returncode, err)
    assert [TAKEN, BEGUN][: 1 + (during == BEGUN)] + then == fakes.calls()


def test_ended_once(fakes: Fakes) -> None:
    """Who is told a second time, while it waits for QEMU, waits on."""
    process = fakes.start(
        '"virsh domjobabort") touch asked; [ ! -e go ] || rm job',
        '"qemu-img convert") touch reached; while :; do sleep 0.01; done',
    )
    wait_for("qemu-img", (fakes.directory / "reached").exists)
    process.send_signal(signal.SIGINT)
    wait_for("the abort", (fakes.directory / "asked").exists)
    process.send_signal(signal.SIGTERM)
    (fakes.directory / "go").touch()
    _, err = process.communicate(timeout=PATIENCE)

    assert (130, "") == (process.returncode, err)
    assert [ABORTED, RELEASED] == fakes.calls()[-2:]


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
