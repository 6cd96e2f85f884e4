"""``clusterports backup-xml``: a document for virsh, and a port held for it only if the document was written."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from clusterports.cli.backup_xml import backup_xml

if TYPE_CHECKING:
    from cli.conftest import Command, Look, Main

PATIENCE = 30
NOWHERE = "redis://127.0.0.1:1"
PULL = "<domainbackup mode='pull'>\n  <server name='kvm-07'/>\n</domainbackup>\n"
SOCKET = "<domainbackup mode='pull'><server transport='unix' socket='/s'/></domainbackup>"


@pytest.fixture(autouse=True)
def written(tmp_path: Path) -> None:
    """The document of a script, in its working directory."""
    (tmp_path / "in.xml").write_text(PULL)


def asks_for(port: int) -> str:
    return PULL.replace("/>", f" port='{port}'/>")


def noted(text: str, look: Look) -> str:
    """The document as it is printed while the store has one port."""
    (port,) = look().ports
    comment = f"<!-- clusterports: port {port.number}, lease {port.lease}, fence {port.fence}, host h -->"
    return f"{text.rstrip()}\n{comment}\n"


def files() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


def test_prints(script: Main, look: Look) -> None:
    """The document comes back with a port, and a comment that says which lease it is; people are told on stderr."""
    code, out, err = script("backup-xml", "in.xml", "--owner", "vm-1", "--label", "job=7", "--ttl", "60")
    (lease,) = look().leases
    (port,) = look().ports

    assert (0, noted(asks_for(10809), look)) == (code, out)
    assert re.fullmatch(
        rf"clusterports: took 10809/tcp \(fence {port.fence}\) on host 'h' under lease {lease.lease} of instance "
        rf"'{lease.instance}', for (60\.0|59\.\d) s unless renewed\n",
        err,
    )
    assert ("backup", "tcp", "vm-1", {"job": "7"}) == (port.range, port.protocol, port.owner, port.labels)
    assert lease.instance.startswith("acquire-")
    assert (0, "60\n", "") == script("renew", str(lease.lease))
    assert (0, "", "") == script("release", str(lease.lease))
    assert () == look().ports


def test_quiet(script: Main, look: Look) -> None:
    """Those who want no words get none."""
    code, out, err = script("backup-xml", "in.xml", "--quiet")

    assert (0, noted(asks_for(10809), look), "") == (code, out, err)


def test_output(script: Main, look: Look) -> None:
    """With --output the document is in that file, and stdout has what `acquire` prints."""
    Path("out.xml").write_text("old")
    Path("out.xml").chmod(0o640)
    Path("link.xml").symlink_to("out.xml")
    code, out, err = script("backup-xml", "in.xml", "--output", "link.xml")
    (port,) = look().ports

    assert (0, f"10809 {port.lease} {port.fence}\n", "") == (code, out, err)
    assert noted(asks_for(10809), look) == Path("out.xml").read_text()
    assert (0o640, True) == (Path("out.xml").stat().st_mode & 0o777, Path("link.xml").is_symlink())
    assert {"in.xml", "link.xml", "out.xml"} == set(files())


def test_in_place(script: Main, look: Look) -> None:
    """The output may be the file that was read; a second time its port is that of somebody."""
    assert 0 == script("backup-xml", "in.xml", "--output", "in.xml")[0]
    text = Path("in.xml").read_text()
    code, out, err = script("backup-xml", "in.xml", "--output", "in.xml")

    assert noted(asks_for(10809), look) == text == Path("in.xml").read_text()
    assert (3, "") == (code, out)
    assert "clusterports: Port 10809/tcp on host 'h' is held by instance 'acquire-" in err
    assert 1 == len(look().leases)


def test_json(script: Main, look: Look) -> None:
    """The layout of `acquire`, and the document."""
    code, out, err = script("backup-xml", "in.xml", "--json", "--instance", "mine")
    (port,) = look().ports
    said = json.loads(out)
    left = said.pop("expires_in_s")

    assert (0, "") == (code, err)
    assert 29 < left <= 30
    assert {
        "schema": 1,
        "host": "h",
        "range": "backup",
        "protocol": "tcp",
        "ports": [10809],
        "lease": port.lease,
        "fence": [port.fence],
        "owner": "",
        "instance": "mine",
        "xml": noted(asks_for(10809), look),
    } == said


@pytest.mark.parametrize("port", [10812, 20000])
def test_explicit_port(port: int, script: Main, look: Look) -> None:
    """A port that the document names is claimed, as one of the range if it lies in it, and stays what it is."""
    Path("in.xml").write_text(asks_for(port))
    code, out, _ = script("backup-xml", "in.xml")
    (held,) = look().ports

    assert (0, noted(asks_for(port), look)) == (code, out)
    assert (port, "backup" if port == 10812 else "") == (held.number, held.range)

    code, out, err = script("backup-xml", "in.xml")
    assert (3, "") == (code, out)
    assert f"clusterports: Port {port}/tcp on host 'h' is held by " in err
    assert 1 == len(look().leases)


def test_excluded_port(script: Main, look: Look) -> None:
    """Who names a port that the range never gives out claims it without the range."""
    Path("in.xml").write_text(asks_for(10812))
    code, *_ = script("backup-xml", "in.xml", CLUSTERPORTS_RANGES__BACKUP__EXCLUDE="[10812]")

    assert (0, [(10812, "")]) == (code, [(port.number, port.range) for port in look().ports])


@pytest.mark.parametrize("document", [SOCKET, "<domainbackup/>", SOCKET.replace("unix", "fd") + "\r\n"])
def test_no_port_needed(document: str, main: Main) -> None:
    """A backup without a TCP port gets none: no store is asked, and the document is what it was."""
    Path("in.xml").write_bytes(document.encode())
    words = "clusterports: in.xml needs no port, so none was taken\n"

    assert (0, document, words) == main("backup-xml", "in.xml", "--url", NOWHERE)
    to_file = ("backup-xml", "in.xml", "--url", NOWHERE, "--output", "out.xml")
    assert (0, "- - -\n", words) == main(*to_file)
    assert (0, "- - -\n", "") == main(*to_file, "--quiet")
    assert document.encode() == Path("out.xml").read_bytes()
    assert {
        "schema": 1, "host": "h", "range": None, "protocol": "tcp", "ports": [], "lease": None, "fence": [],
        "owner": "vm", "expires_in_s": None, "instance": None, "xml": document,
    } == json.loads(main("backup-xml", "in.xml", "--json", "--host", "h", "--owner", "vm")[1])  # fmt: skip


def test_dry_run(script: Main, look: Look) -> None:
    """A dry run says what would be given, takes nothing, and writes no file."""
    comment = "<!-- clusterports: a dry run, so nobody holds port 10809 of host h -->\n"
    words = "clusterports: would take 10809/tcp on host 'h'\n"

    assert (0, asks_for(10809) + comment, words) == script("backup-xml", "in.xml", "--dry-run")
    assert (0, "10809 - -\n", "") == script("backup-xml", "in.xml", "--dry-run", "--output", "out.xml")
    assert (["in.xml"], (), ()) == (files(), look().leases, look().ports)


def test_stdin(command: Command, look: Look) -> None:
    """A pipe will do; what is not ASCII in it comes out as it went in, whatever the terminal's encoding."""
    document = PULL.replace("kvm-07", "höst").encode("latin-1")
    done = subprocess.run(
        [sys.executable, "-m", "clusterports.cli", "backup-xml", "-"],
        input=b"<?xml version='1.0' encoding='latin1'?>" + document,
        capture_output=True,
        cwd=command.directory,
        env=command.environment | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        timeout=PATIENCE,
        check=False,
    )

    assert 0 == done.returncode
    text = done.stdout.decode("latin-1")
    assert noted("<?xml version='1.0' encoding='latin1'?>" + asks_for(10809).replace("kvm-07", "höst"), look) == text


def in_shell(command: Command, lines: str, *more: str) -> subprocess.CompletedProcess[str]:
    """These lines of a script for bash, in which ``clusterports backup-xml in.xml --output out.xml`` is "$@"."""
    take = [sys.executable, "-m", "clusterports.cli", "backup-xml", "in.xml", "--output", "out.xml", *more]
    return subprocess.run(
        ["bash", "-c", lines, "-", *take],
        capture_output=True, text=True, cwd=command.directory, env=command.environment, timeout=PATIENCE, check=False,
    )  # fmt: skip


def example() -> str:
    """The lines of the help's example that take a port; what they run is "$@"."""
    assert backup_xml.__doc__ is not None
    lines: str
    (lines,) = re.findall(r"^ +(taken=.*\n +read .*\n)", backup_xml.__doc__, re.MULTILINE)
    taking = "clusterports backup-xml in.xml --output out.xml --ttl 60 --owner vm-1"
    assert taking in lines
    return lines.replace(taking, '"$@"')


def test_shell(command: Command, look: Look) -> None:
    """The example of the help."""
    done = in_shell(command, f"{example()}cat out.xml; echo $port $lease $fence")
    (port,) = look().ports

    assert (f"{noted(asks_for(10809), look)}10809 {port.lease} {port.fence}\n", "") == (done.stdout, done.stderr)


def test_shell_without_a_port(command: Command, look: Look) -> None:
    """The example ends there, with the code of the command. Who goes on all the same finds no document of before."""
    assert 0 == in_shell(command, example()).returncode
    assert 0 == command("release", str(look().leases[0].lease)).returncode
    command.environment["CLUSTERPORTS_RANGES__BACKUP__LAST"] = "10809"
    assert 0 == command("acquire").returncode
    done = in_shell(command, f"{example()}echo on")
    heedless = in_shell(command, 'read -r port < <("$@"); cat out.xml')

    assert (3, "", 1) == (done.returncode, done.stdout, len(done.stderr.splitlines()))
    assert ("", "cat: out.xml: No such file or directory") == (heedless.stdout, heedless.stderr.splitlines()[-1])


BOUND = "must be an integer from 1 to 65535, or 0 for one that is free"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"", "in.xml: line 1, column 1: not XML: no element found"),
        (b"<domainbackup>\n</domain>", "in.xml: line 2, column 3: not XML: mismatched tag"),
        (b"<domain/>", "in.xml: line 1, column 1: must be a <domainbackup> document, got 'domain'"),
        (asks_for(70000).encode(), f"in.xml: line 2, column 3: port: {BOUND}; got '70000'"),
        (b"<domainbackup>\n\xff", "in.xml: line 2: not XML: byte 0xff is not utf-8"),
        (PULL.encode("utf-16"), "in.xml: line 1: not XML: byte 0xff is not utf-8"),
        (
            b"<?xml version='1.0' encoding='utf-7'?><domainbackup/>",
            "in.xml: encoding: must be UTF-8, US-ASCII, ISO-8859-n or windows-125n, got 'utf-7'",
        ),
        (
            b"<?xml version='1.0' encoding='\x1b[31m'?><domainbackup/>",
            r"in.xml: encoding: must be UTF-8, US-ASCII, ISO-8859-n or windows-125n, got '\x1b[31m'",
        ),
        (
            b"<domainbackup mode='Pull'/>",
            "in.xml: line 1, column 1: mode: must be push or pull; got 'Pull'",
        ),
        (
            b"<domainbackup mode='pull'><server transport='TCP'/></domainbackup>",
            "in.xml: line 1, column 27: transport: must be tcp, unix or fd; got 'TCP'",
        ),
        (b" " * ((4 << 20) + 1), "file: must have at most 4194304 bytes, 'in.xml' has more"),
    ],
)
def test_bad_document(document: bytes, message: str, main: Main) -> None:
    """One line with the place; code 2, no store was asked, and no file written."""
    Path("in.xml").write_bytes(document)

    assert (2, "", f"clusterports: {message}\n") == main("backup-xml", "in.xml", "--url", NOWHERE, "--output", "o.xml")
    assert ["in.xml"] == files()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.xml",), "file: cannot read 'missing.xml': No such file or directory"),
        (("a\x1bb",), "file: cannot read 'a\\x1bb': No such file or directory"),
        ((".",), "file: cannot read '.': Is a directory"),
        (("in.xml", "--ttl", "0"), "ttl: must be a number of seconds from 0.1 to 3600, got '0'"),
        (("in.xml", "--wait", "-1"), "wait: must be a number of seconds from 0 to 31536000, got -1.0"),
        (("in.xml", "--label", "x"), "label: must be KEY=VALUE, got 'x'"),
        (
            ("in.xml", "--label", "libvirt.job=backup"),
            "label: must not be one that clusterports sets itself, got 'libvirt.job'",
        ),
        (
            ("in.xml", "--range", "bakcup"),
            (
                "range: unknown range 'bakcup', must be one of: backup, display, migration, websocket; "
                "did you mean 'backup'?"
            ),
        ),
        (
            ("in.xml", "--output", "-"),
            "output: must be the name of a file, got '-'; without it the document is printed",
        ),
        (("in.xml", "--output", "."), "output: must be the name of a file in a directory that exists, got '.'"),
        (("in.xml", "--output", "no/o"), "output: must be the name of a file in a directory that exists, got 'no/o'"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], message: str, main: Main) -> None:
    """One line that has key, bound and value; code 2, and no store was asked."""
    assert (2, "", f"clusterports: {message}\n") == main("backup-xml", "--url", NOWHERE, *arguments)


FULL = {"CLUSTERPORTS_RANGES__BACKUP__LAST": "10809"}
FAILURES: list[tuple[int, tuple[str, ...], dict[str, str]]] = [
    (2, ("missing.xml",), {}),
    (2, ("bad.xml",), {}),
    (2, ("in.xml", "--wait", "-1"), {}),
    (2, ("in.xml", "--range", "bakcup"), {}),
    (3, ("in.xml",), FULL),
    (5, ("in.xml", "--url", NOWHERE), {"CLUSTERPORTS_TIMEOUT": "0.1"}),
]


@pytest.mark.parametrize(("code", "arguments", "environment"), FAILURES)
def test_stale_output(
    code: int, arguments: tuple[str, ...], environment: dict[str, str], script: Main, look: Look
) -> None:
    """Whatever fails, the document of an earlier run, whose port is held by nobody or by another, is there no more."""
    Path("bad.xml").write_text("<domainbackup")
    Path("link.xml").symlink_to("out.xml")
    assert 0 == script("backup-xml", "in.xml", "--output", "out.xml")[0]

    assert (code, "") == script("backup-xml", *arguments, "--output", "link.xml", **environment)[:2]
    assert ["bad.xml", "in.xml", "link.xml"] == files()
    assert 1 == len(look().leases)


def test_stale_output_and_a_signal(command: Command) -> None:
    """Nor where it is told to end before it asks for a port."""
    path, pipe = command.directory / "out.xml", command.directory / "pipe"
    assert 0 == command("backup-xml", "in.xml", "--output", "out.xml").returncode
    os.mkfifo(pipe)
    process = command.start("backup-xml", "pipe", "--output", "out.xml")
    deadline = time.monotonic() + PATIENCE
    writer = None
    while writer is None:
        assert time.monotonic() < deadline
        with contextlib.suppress(OSError):  # until it is being read
            writer = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    before = path.exists()
    process.send_signal(signal.SIGTERM)
    os.close(writer)

    assert (True, 143) == (before, process.wait(PATIENCE))
    assert not path.exists()


@pytest.mark.parametrize(("code", "arguments", "environment"), FAILURES)
def test_output_of_others(code: int, arguments: tuple[str, ...], environment: dict[str, str], script: Main) -> None:
    """Whatever fails, a file that no earlier run has written stays, whatever document it is."""
    Path("bad.xml").write_text("<domainbackup")
    Path("out.xml").write_text(asks_for(10809) + "<!-- clusterports: a dry run, so nobody holds port 1 of host h -->")
    before = Path("out.xml").read_text()
    script("acquire")

    assert code == script("backup-xml", *arguments, "--output", "out.xml", **environment)[0]
    assert before == Path("out.xml").read_text()


@pytest.mark.parametrize("more", ["in.xml", "./in.xml", "- <in.xml"])
def test_failed_in_place(more: str, command: Command) -> None:
    """What was read is the user's, and stays."""
    in_place = f'exec "$@" backup-xml {more} --output in.xml'
    start = ["bash", "-c", in_place, "-", sys.executable, "-m", "clusterports.cli"]
    codes, texts = [], []
    for _ in range(2):
        done = subprocess.run(start, capture_output=True, cwd=command.directory, env=command.environment, check=False)
        codes.append(done.returncode)
        texts.append((command.directory / "in.xml").read_text())

    assert ([0, 3], texts[0]) == (codes, texts[1])
    assert "port='10809'" in texts[0]


def test_failed_dry_run(script: Main) -> None:
    """A dry run removes no file either."""
    assert 0 == script("backup-xml", "in.xml", "--output", "out.xml")[0]

    assert 3 == script("backup-xml", "in.xml", "--output", "out.xml", "--dry-run", **FULL)[0]
    assert ["in.xml", "out.xml"] == files()


def test_without_hard_links(script: Main, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is replaced where no second name can be given to it, as on some file systems, and by some users."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    Path("out.xml").write_text("old")
    monkeypatch.setattr(os, "link", refuse)

    assert (0, "") == script("backup-xml", "in.xml", "--output", "out.xml")[::2]
    assert noted(asks_for(10809), look) == Path("out.xml").read_text()
    assert ["in.xml", "out.xml"] == files()


def test_output_that_comes_meanwhile(script: Main, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory in its place is told, and nothing else is left: neither a port nor a file."""
    replace = Path.replace

    def late(self: Path, target: Path) -> Path:
        Path("out.xml").mkdir()
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", late)
    told = "clusterports: output: cannot write 'out.xml': Is a directory\n"

    assert (1, "", told) == script("backup-xml", "in.xml", "--output", "out.xml")
    assert (["in.xml", "out.xml"], ()) == (files(), look().leases)


def test_exhausted(script: Main, look: Look) -> None:
    """Without a free port it is code 3, and an output of somebody else's is left alone."""
    Path("out.xml").write_text("old")
    script("acquire", "--instance", "one")
    code, out, err = script("backup-xml", "in.xml", "--output", "out.xml", **FULL)

    assert (3, "") == (code, out)
    assert "clusterports: Unable to find an unused port in range 'backup' (10809-10809)\n" == err
    assert ("old", ["one"]) == (Path("out.xml").read_text(), [lease.instance for lease in look().leases])


def test_store_not_there(main: Main) -> None:
    """Without its store it is code 5, and nothing is written."""
    code, out, _ = main("backup-xml", "in.xml", "--url", NOWHERE, "--output", "out.xml", CLUSTERPORTS_TIMEOUT="0.1")

    assert (5, "", ["in.xml"]) == (code, out, files())


@pytest.mark.parametrize("old", [None, "old"])
@pytest.mark.parametrize("more", [(), ("--output", "out.xml"), ("--json",)])
def test_broken_pipe(more: tuple[str, ...], old: str | None, command: Command, look: Look) -> None:
    """When nobody reads what it is, nothing is held, and a file is what it was before."""
    path = command.directory / "out.xml"
    if old is not None:
        path.write_text(old)
    before = {path.name for path in command.directory.iterdir()}
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        done = command.told("backup-xml", "in.xml", *more, output=pipe)

    assert (1, "") == (done.returncode, done.stderr)
    assert ((), ()) == (look().leases, look().ports)
    assert before == {path.name for path in command.directory.iterdir()}
    assert (path.read_text() if path.exists() else None) == old


def test_full_device(command: Command, look: Look) -> None:
    """Nor when the document cannot be printed."""
    with Path("/dev/full").open("w") as full:
        done = command.told("backup-xml", "in.xml", "--quiet", output=full)

    assert 1 == done.returncode
    assert re.fullmatch(r"clusterports: .*No space left on device.*\n", done.stderr)
    assert ((), ()) == (look().leases, look().ports)


def test_output_cannot_be_written(command: Command, look: Look) -> None:
    """Nor when it cannot be written to its file, which is left as it was."""
    (command.directory / "out.xml").write_text("old")
    done = command.told("backup-xml", "in.xml", "--output", "out.xml", line='ulimit -f 0; exec "$@"')

    assert (1, "clusterports: output: cannot write 'out.xml': File too large\n") == (done.returncode, done.stderr)
    assert ((), ()) == (look().leases, look().ports)
    assert "old" == (command.directory / "out.xml").read_text()
    assert {"in.xml", "out.xml"} == {path.name for path in command.directory.iterdir()}


def test_output_to_a_pipe(command: Command, look: Look) -> None:
    """A pipe is written to, and is no file that could be replaced by another."""
    pipe = command.directory / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        done = command("backup-xml", "in.xml", "--output", "pipe")
        assert 0 == done.returncode
        assert noted(asks_for(10809), look) == os.read(reader, 1000).decode()
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_closed_streams(command: Command, look: Look) -> None:
    """Nor without any output; nor is anything read from a stdin that is closed."""
    blind = command.told("backup-xml", "in.xml", "--output", "out.xml", line='exec "$@" >&-')
    deaf = command.told("backup-xml", "-", line='exec "$@" <&-', output=subprocess.PIPE)

    told = "clusterports: stdout is closed: nobody would learn which port and lease it is\n"
    assert (1, told, False) == (blind.returncode, blind.stderr, (command.directory / "out.xml").exists())
    assert (2, "", "clusterports: file: stdin is closed\n") == (deaf.returncode, deaf.stdout, deaf.stderr)
    assert (0, (), ()) == look()[1:4]


def test_signal_while_nobody_reads(command: Command, look: Look) -> None:
    """Who is told to end while the document goes into a full pipe leaves no port behind."""
    (command.directory / "in.xml").write_text(PULL + " " * 200_000)
    process = command.start("backup-xml", "in.xml", "--quiet")
    assert process.stdout is not None
    assert "<" == process.stdout.read(1)
    assert 1 == len(look().ports)
    process.send_signal(signal.SIGTERM)
    process.stdout.close()

    assert 143 == process.wait(PATIENCE)
    assert ((), ()) == (look().leases, look().ports)


def test_light(bare: Command) -> None:
    """A document that needs no port needs no store either; libvirt's binding is never loaded."""
    (bare.directory / "in.xml").write_text(SOCKET)
    code = (
        "import sys\nsys.argv = ['clusterports', 'backup-xml', 'in.xml', '--quiet']\n"
        "from clusterports.cli import main\ntry: main()\nexcept SystemExit: pass\n"
        "heavy = {'rich.console', 'redis', 'sqlite3', 'libvirt', 'libvirtmod'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=bare.directory, env=bare.environment,
        timeout=PATIENCE, check=False,
    )  # fmt: skip

    assert (SOCKET, "[]\n") == (done.stdout, done.stderr)
