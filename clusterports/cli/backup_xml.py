"""``clusterports backup-xml``: the XML of a pull backup with a port that a script holds, for ``virsh backup-begin``."""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import stat
import sys
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from clusterports._names import check_text, default_host
from clusterports._requests import Ranges
from clusterports._text import printable, show
from clusterports.errors import ClusterPortsError, ConfigurationError
from clusterports.libvirt._backup_xml import BackupXml

from ._common import DEFAULT_RANGE, Common, Ttl, complete_range, end_in_order, say
from ._script import Taken, script_settings, take
from ._taking import DryRun, Labels, Owner, Wait, check_pairs, check_seconds, warn_ephemeral

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clusterports import Settings

__all__ = ["backup_xml"]

STDIO = "-"

LONGEST = 4 << 20
"""Bytes; libvirt's protocol carries no longer strings (``VIR_NET_MESSAGE_STRING_MAX``)."""

_ENCODING = re.compile(rb"""(?:\xef\xbb\xbf)?<\?xml\s[^>]*?\sencoding\s*=\s*["']([^"'>]*)["']""")
_KNOWN = re.compile(r"utf-8|ascii|(?:iso8859-|cp125)[0-9]+")
"""Python's names of encodings that contain ASCII, and in which a text is written in one way only."""


def backup_xml(
    common: Common,
    file: Annotated[str, typer.Argument(metavar="FILE", help="The <domainbackup> document; - is stdin.")],
    output: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write the document there, and PORT LEASE FENCE on stdout."),
    ] = None,
    range: Annotated[
        str, typer.Option(help="The range to take a port from.", autocompletion=complete_range)
    ] = DEFAULT_RANGE,
    owner: Owner = "",
    label: Labels = None,
    wait: Wait = "0",
    dry_run: DryRun = False,
    ttl: Ttl = None,
) -> None:
    """Fill a port into the XML of a libvirt backup, for `virsh backup-begin`: prints the document.

    A pull backup over TCP without a port (or with port 0) gets one of the range; a port that it names is claimed as it
    is. Any other backup needs none: nothing is taken, and it is printed as it came. A comment in the document says
    port, lease, fence and host. With --output, stdout has PORT LEASE FENCE, or "- - -" where no port was needed.

    Nobody renews the lease but the script: after --ttl seconds the port is taken back, unless `clusterports renew
    LEASE` comes first. Release it when libvirt says that the job is over, not when domjobabort returns (QEMU serves a
    bit longer), nor when libvirt does not answer. If QEMU had the port in use, give it back by `release --foreign`.

    On any failure nothing is held, and no script must go on. A document that an earlier run left as the output is
    removed then, since its port may be another's by now; not if it is the command line that is wrong, or if this is
    killed before it begins. Anything else there, as FILE itself, is left as it was.

    The last of the examples are how a script begins; the whole of it is in the README, "Backups with virsh".

    \b
    Examples:
      clusterports backup-xml in.xml --range backup --dry-run
      taken=$(clusterports backup-xml in.xml --output out.xml --ttl 60 --owner vm-1) || exit
      read -r port lease fence <<<"$taken"
      while sleep 20 && kill -0 $$; do clusterports renew "$lease" || [ $? != 4 ] || break; done >/dev/null 2>&1 &
      virsh backup-begin vm-1 out.xml
    """
    end_in_order()
    if output is not None:
        _check_place(output)
    with contextlib.nullcontext() if output is None or dry_run else _nothing_stale(Path(output), file):
        labels, patience = check_pairs(label), check_seconds(wait)
        check_text("owner", owner)
        source = "stdin" if file == STDIO else file
        text, encoding = _decode(_read(file), source)
        document = BackupXml(text, source)
        settings = script_settings(common, ttl)
        home = Ranges(settings.port_ranges().values()).home(range, document.port or 0)

        def tell(answer: _Answer) -> None:
            data = answer.xml.encode(encoding)
            with contextlib.nullcontext() if output is None or dry_run else _replaced(Path(output), data):
                if common.json:
                    common.print_json(answer.said | {"xml": answer.xml})
                elif output is not None:
                    print(answer.line)
                else:
                    sys.stdout.buffer.write(data)
                sys.stdout.flush()
            told = common.json or (output is not None and answer.said["ports"])
            if common.verbose or not (common.quiet or told):
                say(answer.words)

        def tell_taken(taken: Taken) -> None:
            xml = document.with_port(taken.ports[0].number, _note(taken))
            tell(_Answer(xml, taken.to_dict(), taken.in_words(), taken.lines()))

        if not document.tcp:
            tell(_Answer(text, _nothing(settings, owner), f"{source} needs no port, so none was taken", "- - -"))
            return
        if document.port is None:
            warn_ephemeral(common, settings, range)
        take(
            common,
            settings,
            tell_taken,
            range if document.port is None else home,
            port=document.port,
            owner=owner,
            labels=labels,
            wait=patience,
            dry_run=dry_run,
        )


class _Answer(NamedTuple):
    """The document; the same as an answer for programs, for people, and for the shell's ``read``."""

    xml: str
    said: dict[str, Any]
    words: str
    line: str


def _nothing(settings: Settings, owner: str) -> dict[str, Any]:
    """The layout of ``acquire --json`` where no port is needed."""
    where: dict[str, Any] = {"host": settings.host or default_host(), "range": None, "protocol": "tcp", "ports": []}
    return where | {"lease": None, "fence": [], "owner": owner, "expires_in_s": None, "instance": None}


def _note(taken: Taken) -> str:
    port = taken.ports[0]
    if taken.expires_in is None:
        return f"clusterports: a dry run, so nobody holds port {port.number} of host {port.host}"
    return f"clusterports: port {port.number}, lease {port.lease}, fence {port.fence}, host {port.host}"


_NOTED = re.compile(rb"<!-- clusterports: port [0-9]+, lease [0-9]+, fence [0-9]+, host ")
"""In a document with a port that a run held."""


def _read(file: str) -> bytes:
    """The whole file, or stdin."""
    try:
        if file == STDIO:
            if sys.__stdin__ is None:
                raise ConfigurationError("file: stdin is closed")
            data = sys.stdin.buffer.read(LONGEST + 1)
        else:
            with Path(file).open("rb") as opened:
                data = opened.read(LONGEST + 1)
    except OSError as error:
        raise ConfigurationError(f"file: cannot read {show(file)}: {error.strerror}") from None
    if len(data) > LONGEST:
        raise ConfigurationError(f"file: must have at most {LONGEST} bytes, {show(file)} has more")
    return data


def _decode(data: bytes, source: str) -> tuple[str, str]:
    """The text, and the encoding in which it is written."""
    said = _ENCODING.match(data)
    name = said[1].decode("ascii", "replace") if said else "utf-8"
    with contextlib.suppress(LookupError, ValueError):
        codec = codecs.lookup(name).name
        if _KNOWN.fullmatch(codec):
            try:
                return data.decode(codec), codec
            except UnicodeDecodeError as error:
                line = data.count(b"\n", 0, error.start) + 1
                raise ConfigurationError(
                    f"{printable(source)}: line {line}: not XML: byte {data[error.start]:#04x} is not {codec}"
                ) from None
    raise ConfigurationError(
        f"{printable(source)}: encoding: must be UTF-8, US-ASCII, ISO-8859-n or windows-125n, got {show(name)}"
    )


def _check_place(output: str) -> None:
    """Nobody is to wait for a port in vain."""
    if output == STDIO:
        raise ConfigurationError("output: must be the name of a file, got '-'; without it the document is printed")
    path = Path(output)
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigurationError(f"output: must be the name of a file in a directory that exists, got {show(output)}")


@contextlib.contextmanager
def _nothing_stale(output: Path, file: str) -> Iterator[None]:
    """If the block fails, the output is no document of an earlier run, with a port that a script would take for its
    own. Unless that is ``file``, the input: it is the user's.
    """
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            if output.is_file() and not _is_input(file, output):
                with output.open("rb") as opened:
                    stale = _NOTED.search(opened.read(2 * LONGEST))
                if stale:
                    output.resolve().unlink()
        raise


def _is_input(file: str, output: Path) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(0) if file == STDIO else Path(file).stat(), output.stat())
    return False


@contextlib.contextmanager
def _replaced(path: Path, data: bytes) -> Iterator[None]:
    """In the block the file has this content, never a half of it; if the block fails, it is as it was before."""
    with contextlib.ExitStack() as undo:
        try:
            old = _replace(path, data, undo)
        except OSError as error:
            raise ClusterPortsError(f"output: cannot write {show(str(path))}: {error.strerror}") from None
        yield
        undo.pop_all()
    with contextlib.suppress(OSError):
        old.unlink()


def _replace(path: Path, data: bytes, undo: contextlib.ExitStack) -> Path:
    """Gives the name under which the old file is kept, if there was one. ``undo``: what to do if all was in vain."""
    path = path.resolve()  # a link remains one
    new, old = (path.with_name(f".{token_hex(8)}.{end}") for end in ("new", "old"))
    if path.exists() and not path.is_file():  # a device or a pipe
        path.write_bytes(data)
        return old
    undo.callback(_put, new, None)
    with new.open("xb") as file:
        file.write(data)
    if path.exists():
        new.chmod(stat.S_IMODE(path.stat().st_mode))
        undo.callback(_put, old, path)
        path.replace(old)  # not as a second name of it, which not every file system has, nor any user may give
    else:
        undo.callback(_put, path, None)
    new.replace(path)
    return old


def _put(path: Path, place: Path | None) -> None:
    """Move the file there, or away, if it is there."""
    with contextlib.suppress(OSError):
        if place is None:
            path.unlink()
        else:
            path.replace(place)
