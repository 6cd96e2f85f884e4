"""From a URL to the path of a file on a local file system. Nothing is made or opened."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from clusterports._text import printable, redact_url, show
from clusterports.errors import ConfigurationError

__all__ = ["file_of", "file_system", "is_network", "shown"]

_NETWORK: Final = frozenset(
    (
        *("9p", "afs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "gfs2", "glusterfs", "gpfs"),
        *("lustre", "nfs", "nfs4", "ocfs2", "smb3", "smbfs"),
    )
)
"""On these several machines may see one file, or locks may be the mere appearance of locks."""

_BOUND: Final = "must be like sqlite:///relative/path.db or sqlite:////absolute/path.db"


def file_of(url: str, client: Any = None) -> str:
    """The absolute path that a URL means.

    :raises ConfigurationError: it is not the path of a file, or that of one on a network file system.
    """
    if client is not None:
        raise ConfigurationError(f"client: sqlite:// has no client, got {type(client).__name__}")
    _, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    if host or not slash or not path:
        what = f"{_BOUND}, with three slashes before a relative path" if host else f"{_BOUND}, and names no file"
        raise ConfigurationError(f"url: {what}; got {show(url)}")
    for mark, what in (("?", "options"), ("#", "a fragment")):
        if mark in path:
            raise ConfigurationError(
                f"url: {_BOUND}, without {what} ({mark} in a name is %{ord(mark):X}); got {show(url)}"
            )
    if redact_url(path) != path:  # a file of that name would show it
        raise ConfigurationError(f"url: {_BOUND}, without a password (= in a name is %3D); got {show(url)}")
    if path == ":memory:":
        raise ConfigurationError(f"url: a store in memory is memory://; got {show(url)}")
    decoded = unquote_to_bytes(path)
    if b"\0" in decoded:
        raise ConfigurationError(f"url: {_BOUND}, without NUL; got {show(url)}")
    expanded = os.path.expanduser(os.fsdecode(decoded))  # noqa: PTH111  # pathlib's raises where there is no home
    if expanded.startswith("~"):
        raise ConfigurationError(
            f"url: no home directory is known for {show(expanded)}; write ./~ for a file of that name"
        )
    if expanded.endswith("/") or os.path.isdir(expanded):  # noqa: PTH112  # pathlib's raises where one may not look
        raise ConfigurationError(f"url: {_BOUND}, but {show(expanded)} is a directory; got {show(url)}")
    try:
        absolute = str(Path.cwd() / expanded) if expanded[0] != "/" else expanded
    except OSError as error:
        raise ConfigurationError(f"url: {show(url)} is relative to the working directory, which is gone") from error
    absolute = "/" + absolute.lstrip("/")  # two slashes at the beginning would be a host in a URI
    kind = file_system(absolute)
    if is_network(kind):
        raise ConfigurationError(
            f"url: sqlite:// is for the processes of one machine, and {shown(absolute)} is on a network file system"
            f" ({kind}); use redis:// for several machines, or a path on a local disk"
        )
    return absolute


def shown(path: str) -> str:
    """A path for a message."""
    return printable(repr(path))


def is_network(kind: str) -> bool:
    """Whether this type of file system may be shared with other machines."""
    return kind in _NETWORK


def file_system(path: str, mounts: str | None = None) -> str:
    """The type of the file system on which the file is, or would be made; "" when it is not known.

    ``mounts``: as in ``/proc/self/mountinfo``.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return ""
    real = os.path.realpath(path)
    longest, found = -1, ""
    for line in mounts.splitlines():
        head, separator, tail = line.partition(" - ")
        fields = head.split(" ")
        if not separator or len(fields) < 5:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4]).rstrip("/")
        # Of two that are mounted on one point, the later one is on top.
        if (real == point or real.startswith(point + "/")) and len(point) >= longest:
            longest, found = len(point), tail.split(" ")[0]
    return found
