"""The ``<domainbackup>`` document of libvirt, as far as its port goes. Pure: text goes in, text comes out.

What is missing means what it means to libvirt (``backup_conf.c``, ``qemu_backup.c``): no mode is push, which has no
port; pull without a server serves TCP on localhost; a server without a transport serves TCP; of several servers the
first counts; port 0 is none. The document is edited where the port stands, so all else stays as it was, byte for byte.
"""

from __future__ import annotations

import re
from typing import Final

from clusterports._text import printable, show
from clusterports.errors import ConfigurationError
from clusterports.ranges import MAX_PORT, PORT_BOUND

from ._xml import Edit, Tag, Xml, attribute_edits, edited, first_child, read_tag

__all__ = ["BackupXml"]

ROOT: Final = "domainbackup"

MODES: Final = ("push", "pull")
TRANSPORTS: Final = ("tcp", "unix", "fd")
"""As libvirt knows them, capitals and blanks included; none is the first."""

_NUMBER: Final = re.compile("[1-9][0-9]{0,4}")


class BackupXml:
    """A document for a backup, as a user wrote it or as libvirt reports it.

    :param source: what it is called in errors, such as the name of its file.
    :raises ConfigurationError: with line and column, when it is not XML, or of another kind, or has a DTD (which could
        name other files, or grow without end), or its port is not one; or when libvirt knows no such mode or transport,
        or no server in this mode.
    """

    def __init__(self, text: str, source: str = "backup XML") -> None:
        self._source = source
        self._xml = Xml(text, source)
        found: list[Tag] = []
        server: list[Tag] = []
        self._end_tag = 0

        def start(path: list[str], tag: Tag) -> None:
            if len(path) == 1:
                found.append(tag)
                self._check_value(tag, "mode", MODES)
            elif path == [ROOT, "server"] and not server:
                server.append(tag)
                if not self._is_pull(found[0]):
                    self._xml.refuse("server: must be in a document with mode 'pull', got mode 'push', as no mode is")
                self._check_value(tag, "transport", TRANSPORTS)
                if self._is_tcp(found[0], tag):
                    self._check_port(tag.attributes.get("port", ""))

        def end(_: list[str], at: int) -> None:
            self._end_tag = at  # the root's is the last

        self._xml.read(ROOT, start, end)
        self._root, self._server = found[0], server[0] if server else None

    def _check_value(self, tag: Tag, key: str, values: tuple[str, ...]) -> None:
        """Without it, it is the first of these. A capital letter must not make a backup one that needs no port."""
        text = tag.attributes.get(key, values[0])
        if text not in values:
            self._xml.refuse(f"{key}: must be {', '.join(values[:-1])} or {values[-1]}; got {show(text)}")

    def _check_port(self, text: str) -> None:
        if text in ("", "0"):
            return
        if not _NUMBER.fullmatch(text) or int(text) > MAX_PORT:
            self._xml.refuse(f"port: must be {PORT_BOUND}, or 0 for one that is free; got {show(text)}")

    @staticmethod
    def _is_pull(root: Tag) -> bool:
        return root.attributes.get("mode") == "pull"

    @classmethod
    def _is_tcp(cls, root: Tag, server: Tag | None) -> bool:
        return cls._is_pull(root) and (server is None or server.attributes.get("transport", "tcp") == "tcp")

    @property
    def tcp(self) -> bool:
        """Whether it is in pull mode over TCP, and so has to have a port."""
        return self._is_tcp(self._root, self._server)

    @property
    def port(self) -> int | None:
        """The port that it asks for; None: none, or 0, or a backup that has none."""
        if self._server is None or not self.tcp:
            return None
        return int(self._server.attributes.get("port") or 0) or None

    def with_port(self, number: int, note: str = "") -> str:
        """The document with this port, and all else as it was.

        :param note: becomes a comment behind the root, in ASCII and without what could end a comment.
        :raises ConfigurationError: for a number that is no port, or when the backup has no use for one.
        """
        if not 1 <= number <= MAX_PORT:
            raise ConfigurationError(f"port: must be {PORT_BOUND}, got {show(number)}")
        if not self.tcp:
            raise ConfigurationError(f"port: {printable(self._source)} describes no pull backup over TCP")
        data = self._xml.data
        if self._server is None:
            edits = [self._server_edit(number)]
        else:
            edits = attribute_edits(data, self._server.at, {"port": str(number)})
        if note:
            edits.append(self._note_edit(note))
        return edited(data, edits).decode()

    def __str__(self) -> str:
        """The document as it came."""
        return self._xml.data.decode()

    def _note_edit(self, note: str) -> Edit:
        data = self._xml.data
        text = re.sub("-(?=-)", "- ", printable(note)).encode("ascii", "backslashreplace")
        root = read_tag(data, self._root.at)
        end = root.end if root.empty else data.index(b">", self._end_tag) + 1
        line_end = b"\r\n" if b"\r\n" in data else b"\n"
        return end, end, line_end + b"<!-- " + text + b" -->"

    def _server_edit(self, number: int) -> Edit:
        data = self._xml.data
        root = read_tag(data, self._root.at)
        # Not by name: where it has a port in use by IPv4, QEMU would serve on IPv6 alone, and say nothing.
        server = b"<server name='127.0.0.1' port='%d'/>" % number
        if root.empty:
            return root.slash, root.end, b">" + server + b"</%s>" % ROOT.encode()
        return first_child(data, root, server)
