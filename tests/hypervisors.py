"""Hosts with virtual machines, all on this machine: a network namespace and a libvirtd each, QEMU without KVM.

    with Machine(folder) as machine:
        vm = machine.hosts[0].vm("vm1")
        vm.domain.backupBegin(vm.backup_xml(port=10809), None, 0)
        assert vm.checksum == vm.pull(10809)

A host reaches this process, and every other host, at its address. Needs root.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servers import Missing

from clusterports.errors import ClusterPortsError
from clusterports.libvirt import start_events
from clusterports.libvirt._binding import binding

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from typing import Self

    from clusterports import PortAllocator

__all__ = ["NEVER", "PATIENCE", "Gate", "Host", "Machine", "Vm", "eventually", "sha256", "states"]

PROGRAMS = ("libvirtd", "qemu-system-x86_64", "qemu-img", "ip", "unshare", "mount", "hostname")

KEEPER = Path(__file__).with_name("keeper.py")

MOUNTS = {
    "etc": "/etc/libvirt",
    "run": "/run/libvirt",
    "lib": "/var/lib/libvirt",
    "log": "/var/log/libvirt",
    "hosts": "/etc/hosts",
}
"""What of a host's folder its libvirtd sees, and where. The cache, which knows what this QEMU can do, is everybody's:
libvirtd trusts an entry only while QEMU, libvirt and the kernel are those that it was made with.
"""

QEMU_CONF = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
"""

LIBVIRTD_CONF = """\
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
host_uuid = "{uuid}"
"""

DOMAIN = """\
<domain type='qemu'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>32</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <emulator>{emulator}</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='{disk}'/><target dev='vda' bus='virtio'/>
    </disk>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    {devices}
  </devices>
</domain>
"""

BACKUP = """\
<domainbackup mode='pull'>
  {server}
  <disks>
    <disk name='{disk}' backup='yes' type='file'><driver type='qcow2'/><scratch file='{scratch}'/></disk>
  </disks>
</domainbackup>
"""

SQUATTER = """\
import socket, sys, time
with socket.create_server((sys.argv[1], int(sys.argv[2]))):
    print("listening", flush=True)
    time.sleep(600)
"""

RELAY = """\
import socket, sys, threading

def copy(source, target):
    while data := source.recv(2**16):
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)

here, there, port = sys.argv[1:]
with socket.create_server((here, int(port))) as listener:
    print("listening", flush=True)
    near, _ = listener.accept()
print("reached", flush=True)
if sys.stdin.readline():
    far = socket.create_connection((there, int(port)))
    threading.Thread(target=copy, args=(far, near)).start()
    copy(near, far)
"""

PATIENCE = 30.0
"""Seconds for what takes a fraction of one, except libvirtd's first start on a machine: some 10."""

NEVER = 3600.0
"""Seconds between two comparisons in a test where only events tell."""

_scratch = itertools.count(1)


def eventually(expected: object, seen: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while (last := seen()) != expected:
        assert time.monotonic() < deadline, f"expected {expected!r}, and at last saw {last!r}"
        time.sleep(0.005)


def states(ports: PortAllocator, host: str = "h1") -> dict[int, str]:
    """What ``status`` says of each port of the host."""
    return {port.number: port.state for seen in ports.status(host).hosts for port in seen.ports}


def wait_for(what: str, condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(0.005)


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE, **options)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(map(str, command))}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Machine:
    """``hosts`` hosts called h1, h2 and so on. At exit nothing of them is left but the folder.

    Raises :class:`servers.Missing` where hosts cannot be made.
    """

    def __init__(self, folder: Path, hosts: int = 2) -> None:
        self.folder = folder
        self._count = hosts
        self._stack = ExitStack()
        self.hosts: list[Host] = []

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise Missing("hosts with virtual machines need root, for network namespaces")
        if gone := [program for program in PROGRAMS if shutil.which(program) is None]:
            raise Missing(f"not in PATH: {', '.join(gone)}")
        try:
            start_events()
        except ClusterPortsError as exc:
            raise Missing(str(exc)) from exc
        with ExitStack() as stack:
            self._number = stack.enter_context(_number())
            # Of a run that was killed: who has the number owns all that is called by it.
            self._remove()
            stack.callback(self._remove)
            for index in range(self._count):
                host = Host(self._number, index, self.folder / f"h{index + 1}")
                self.hosts.append(host)
            self._join()
            for host in self.hosts:
                host.open(self.hosts)
                stack.callback(host.close)
            try:
                for host in self.hosts:
                    host.start()
                for host in self.hosts:
                    host.running()
            except RuntimeError as exc:
                raise Missing(str(exc)) from exc
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def _join(self) -> None:
        """A wire from here to each host, and one between each two hosts: nothing is routed through this namespace."""
        inside: dict[str, list[str]] = {host.name: ["link set lo up"] for host in self.hosts}
        here = []
        for host in self.hosts:
            here += [
                f"netns add {host.namespace}",
                f"link add {host.wire} type veth peer name eth0 netns {host.namespace}",
                f"address add {host.gateway}/30 dev {host.wire}",
                f"link set {host.wire} up",
            ]
            inside[host.name] += [f"address add {host.address}/30 dev eth0", "link set eth0 up"]
        for one, other in itertools.combinations(self.hosts, 2):
            here.append(
                f"link add {other.name} netns {one.namespace} type veth peer name {one.name} netns {other.namespace}"
            )
            for near, far in ((one, other), (other, one)):
                inside[near.name] += [
                    f"link set {far.name} up",
                    f"route add {far.address}/32 dev {far.name} src {near.address}",
                ]
        try:
            for line in here:
                run("ip", *line.split())
            for host in self.hosts:
                run("ip", "-n", host.namespace, "-batch", "-", input="\n".join(inside[host.name]))
        except RuntimeError as exc:
            raise Missing(f"no network namespaces: {exc}") from exc

    def _remove(self) -> None:
        """The processes in the namespaces, which are all ours, the namespaces and the wires."""
        prefix = f"cp{self._number}h"
        # A line is the name, or "name (id: 0)".
        listed = [line.split()[0] for line in run("ip", "netns", "list").stdout.splitlines() if line.strip()]
        for name in listed:
            if name.startswith(prefix):
                wait_for(f"the end of all in {name}", partial(_is_empty, name))
                run("ip", "netns", "delete", name)
        for _, interface in socket.if_nameindex():
            if interface.startswith(f"cp{self._number}v"):
                # Deleting a namespace takes its interfaces with it, some time later.
                with suppress(RuntimeError):
                    run("ip", "link", "delete", interface)


def _is_empty(namespace: str) -> bool:
    """No process is in it, after each that was there was killed."""
    return not _kill_all(namespace)


def _kill_all(namespace: str, spare: Collection[int] = ()) -> set[int]:
    pids = set(map(int, run("ip", "netns", "pids", namespace).stdout.split())).difference(spare)
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return pids


@contextmanager
def _number() -> Iterator[int]:
    """The lowest number that no other process uses: an abstract socket is bound, which ends with this process."""
    with socket.socket(socket.AF_UNIX) as lock:
        for number in range(1, 255):
            try:
                lock.bind(f"\0clusterports-hypervisors-{number}")
            except OSError:
                continue
            yield number
            return
    raise Missing("all 254 networks for hosts are in use")


class Host:
    """``name``: that under which clusterports and libvirt know it. ``uri``: of its libvirtd, for any process here."""

    def __init__(self, number: int, index: int, folder: Path) -> None:
        self.name = f"h{index + 1}"
        self.folder = folder
        self.namespace = f"cp{number}h{index + 1}"
        self.wire = f"cp{number}v{index + 1}"
        self.gateway = f"10.209.{number}.{4 * index + 1}"
        self.address = f"10.209.{number}.{4 * index + 2}"
        self.uri = f"qemu+unix:///system?socket={folder / 'run' / 'libvirt-sock'}"
        self.conf = folder / "etc" / "qemu.conf"
        self.pid = 0
        """libvirtd's."""
        self._pidfd = -1
        self._connection: Any = None
        self._vms: dict[str, Vm] = {}
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"<Host {self.name} {self.namespace} {self.address}>"

    def new_uuid(self, name: str) -> uuid.UUID:
        return uuid.uuid5(uuid.NAMESPACE_URL, f"{self.namespace}/{name}")

    def write_conf(self, text: str) -> None:
        """More lines of qemu.conf, for the next start of libvirtd."""
        self.conf.write_text(QEMU_CONF + text)

    def open(self, hosts: list[Host]) -> None:
        """Its folder and its first process; libvirtd is started by :meth:`start`."""
        for part in ("etc", "run", "lib", "log", "images"):
            (self.folder / part).mkdir(parents=True)
            if part in MOUNTS:
                Path(MOUNTS[part]).mkdir(parents=True, exist_ok=True)
        names = "".join(f"{host.address} {host.name}\n" for host in hosts)
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n{names}")
        (self.folder / "etc" / "libvirtd.conf").write_text(LIBVIRTD_CONF.format(uuid=self.new_uuid("")))
        self.write_conf("")
        steps = [
            ["hostname", self.name],
            *(["mount", "--bind", str(self.folder / part), place] for part, place in MOUNTS.items()),
            ["exec", sys.executable, "-I", "-S", str(KEEPER), "libvirtd", "--pid-file", str(self.folder / "pid")],
        ]
        # Each of these replaces itself by the next: what is started here is the keeper in the end.
        command = ["unshare", "--uts", "--mount", "--propagation", "private"]
        command += ["sh", "-c", " && ".join(map(shlex.join, steps))]
        pipe = subprocess.PIPE
        with (self.folder / "output").open("ab") as output:
            self._keeper = self.popen(*command, stdin=pipe, stdout=pipe, stderr=output, start_new_session=True)

    def close(self) -> None:
        """The end of all that runs here, except what :meth:`popen` started."""
        self._disconnect()
        self._keeper.communicate(timeout=PATIENCE)
        if self._pidfd >= 0:
            os.close(self._pidfd)

    def start(self) -> None:
        """libvirtd, if it does not run. Does not wait until it answers; :meth:`connect` does."""
        if self._lives():
            return
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        with suppress(BrokenPipeError):
            self._keeper.stdin.write(b"start\n")
            self._keeper.stdin.flush()
        answer = self._keeper.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.name} did not start: {self.log}")
        self.pid = int(answer)
        if self._pidfd >= 0:
            os.close(self._pidfd)
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            self._pidfd = -1

    def stop(self) -> None:
        """libvirtd ends in good order. QEMU and its backups go on."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """libvirtd dies. QEMU and its backups go on."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        self._disconnect()
        if self._lives():
            signal.pidfd_send_signal(self._pidfd, number)
            if not self._lives(PATIENCE):
                return
            raise TimeoutError(f"libvirtd of {self.name} does not end")

    def _lives(self, seconds: float = 0.0) -> bool:
        """Whether libvirtd runs, also after so many seconds."""
        # A pidfd can be read when its process has ended.
        return self._pidfd >= 0 and not select.select([self._pidfd], [], [], seconds)[0]

    def _disconnect(self) -> None:
        with self._lock:
            if self._connection is not None:
                with suppress(binding().libvirtError):
                    self._connection.close()
            self._connection = None

    @property
    def log(self) -> str:
        """What libvirtd complained of."""
        files = (self.folder / "output", self.folder / "log" / "libvirtd.log")
        return "".join(file.read_text(errors="replace") for file in files if file.exists())

    def connect(self) -> Any:
        """A new virConnect, as soon as libvirtd answers. RuntimeError: it ended, or is silent for too long."""
        libvirt = binding()
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return libvirt.open(self.uri)
            except libvirt.libvirtError as exc:
                if not self._lives() or time.monotonic() > deadline:
                    # What it ended for comes last, and why in the line before.
                    errors = [line for line in self.log.splitlines() if " error : " in line][-2:]
                    raise RuntimeError("\n".join([f"libvirtd of {self.name} does not answer: {exc}", *errors])) from exc
            time.sleep(0.01)

    @property
    def connection(self) -> Any:
        """The harness's own, made again when libvirtd was restarted."""
        with self._lock:
            if self._connection is None or not self._connection.isAlive():
                self._connection = self.connect()
            return self._connection

    def execute(self, *command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in the namespace to its end. RuntimeError: its exit code is not 0."""
        return run("ip", "netns", "exec", self.namespace, *command, **options)

    def popen(self, *command: str | Path, **options: Any) -> subprocess.Popen[Any]:
        """Start a command in the namespace. It is killed with the machine, not with the test."""
        return subprocess.Popen(["ip", "netns", "exec", self.namespace, *command], **options)

    def listens(self, port: int) -> bool:
        """Whether a TCP socket listens on the port, on any address. Nothing is connected to."""
        # Columns: number, local address and port in hexadecimal, remote address and port, state (0A: listening).
        files = (Path(f"/proc/{self._keeper.pid}/net/{name}") for name in ("tcp", "tcp6"))
        rows = (line.split() for file in files if file.exists() for line in file.read_text().splitlines()[1:])
        return any(row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port for row in rows)

    @contextmanager
    def squat(self, port: int, address: str = "") -> Iterator[int]:
        """A foreign process listens on the port, on all IPv4 addresses if none is named. Gives its pid."""
        with self.popen(
            sys.executable, "-I", "-S", "-c", SQUATTER, address, str(port), stdout=subprocess.PIPE
        ) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == b"listening\n"
                yield process.pid
            finally:
                process.kill()

    @contextmanager
    def gate(self, to: Host, port: int) -> Iterator[Gate]:
        """A relay here to the same port of another host; at exit, what goes on is cut off."""
        command = (sys.executable, "-I", "-S", "-c", RELAY, self.address, to.address, str(port))
        pipe = subprocess.PIPE
        with self.popen(*command, stdin=pipe, stdout=pipe, bufsize=0) as process:
            try:
                gate = Gate(process, self.address)
                gate.hears("listening")
                yield gate
            finally:
                process.kill()

    def vm(self, name: str, devices: str = "") -> Vm:
        """The virtual machine of that name, paused: started if it does not run. ``devices``: more XML for the start."""
        if name not in self._vms:
            self._vms[name] = Vm(self, name)
        self._vms[name].start(devices)
        return self._vms[name]

    def running(self) -> list[str]:
        """The names of the virtual machines that libvirt knows."""
        return sorted(domain.name() for domain in self.connection.listAllDomains())

    def clean(self) -> None:
        """libvirtd runs with the first configuration, and neither a virtual machine nor another process is left."""
        if self._lives():
            # A test may have stopped it.
            signal.pidfd_send_signal(self._pidfd, signal.SIGCONT)
        if self.conf.read_text(errors="replace") != QEMU_CONF:
            self.kill()
            self.write_conf("")
        self.start()
        wait_for(f"{self.name} to be rid of its virtual machines", self._is_rid)
        for scratch in (self.folder / "images").glob("*.scratch"):
            scratch.unlink()

    def _is_rid(self) -> bool:
        return not _kill_all(self.namespace, {self.pid, self._keeper.pid}) and not self.running()


class Vm:
    """A virtual machine with one disk, vda, of 8 MiB, whose content no other has; transient."""

    def __init__(self, host: Host, name: str) -> None:
        self.name = name
        self.host = host
        self.uuid = str(host.new_uuid(name))
        self.disk = host.folder / "images" / f"{name}.qcow2"
        raw = self.disk.with_suffix(".raw")
        content = random.Random(self.uuid)
        with raw.open("wb") as file:
            file.truncate(8 * 2**20)
            for offset in (0, 5 * 2**20):
                file.seek(offset)
                file.write(content.randbytes(2**20))
        self.checksum = sha256(raw)
        run("qemu-img", "convert", "-O", "qcow2", raw, self.disk)
        raw.unlink()

    def __repr__(self) -> str:
        return f"<Vm {self.name} on {self.host.name}>"

    @property
    def domain(self) -> Any:
        """virDomain, by a connection of the harness. libvirtError: it does not run."""
        return self.host.connection.lookupByUUIDString(self.uuid)

    @property
    def runs(self) -> bool:
        return self.name in self.host.running()

    @property
    def pid(self) -> int:
        """QEMU's."""
        return int((self.host.folder / "run" / "qemu" / f"{self.name}.pid").read_text())

    def start(self, devices: str = "") -> None:
        """Unless it runs."""
        if not self.runs:
            self.host.connection.createXML(self.xml(devices), binding().VIR_DOMAIN_START_PAUSED)

    def xml(self, devices: str = "") -> str:
        """What it is started from."""
        emulator = shutil.which("qemu-system-x86_64")
        return DOMAIN.format(name=self.name, uuid=self.uuid, emulator=emulator, disk=self.disk, devices=devices)

    def kill(self) -> None:
        """QEMU dies; libvirt has noticed."""
        os.kill(self.pid, signal.SIGKILL)
        wait_for(f"libvirt to notice the death of {self}", lambda: not self.runs)

    def destroy(self) -> None:
        self.domain.destroy()

    def restart(self) -> None:
        if self.runs:
            self.destroy()
        self.start()

    def backup_xml(
        self,
        port: int | str | None = None,
        address: str | None = None,
        transport: str | None = "tcp",
        disk: str = "vda",
    ) -> str:
        """A pull backup, with a new scratch file. ``address`` None: the host's. ``transport`` None: no server."""
        name = f"{self.name}.{next(_scratch)}"
        scratch = self.host.folder / "images" / f"{name}.scratch"
        server = ""
        if transport == "unix":
            server = f"<server transport='unix' socket='{self.host.folder / 'run' / name}'/>"
        elif transport is not None:
            number = "" if port is None else f" port='{port}'"
            server = f"<server transport='{transport}' name='{address or self.host.address}'{number}/>"
        return BACKUP.format(server=server, disk=disk, scratch=scratch)

    def pull(self, port: int, address: str | None = None, disk: str = "vda") -> str:
        """The checksum of what an NBD client reads at the port, over the wire to the host."""
        raw = self.host.folder / "images" / f"{self.name}.{next(_scratch)}.pulled"
        try:
            run("qemu-img", "convert", "-O", "raw", f"nbd://{address or self.host.address}:{port}/{disk}", raw)
            return sha256(raw)
        finally:
            raw.unlink(missing_ok=True)


class Gate:
    """A relay on a host: who connects to it gets no further until it is opened. Takes one connection.

    A migration that is sent to its :attr:`address` waits, with QEMU listening on the destination, for as long as a test
    wants.
    """

    def __init__(self, process: subprocess.Popen[bytes], address: str) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.address = address
        self._stdin, self._stdout = process.stdin, process.stdout

    def hears(self, word: str) -> None:
        """Wait until it says so."""
        assert select.select([self._stdout], [], [], PATIENCE)[0], f"the relay is not {word}"
        assert f"{word}\n".encode() == self._stdout.readline()

    def wait(self) -> None:
        """Until somebody has connected."""
        self.hears("reached")

    def open(self) -> None:
        self._stdin.write(b"open\n")
