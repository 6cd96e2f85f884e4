"""The ``<domainbackup>`` document of libvirt, as far as its port goes. Pure: text goes in, text comes out.

What is missing means what it means to libvirt (``backup_conf.c``, ``qemu_backup.c``): no mode is push, which has no
port; pull without a server serves TCP on localhost; a server without a transport serves TCP; of several servers the
first counts; port 0 is none. The document is edited where the port stands, so all else stays as it was, byte for byte.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn
from xml.parsers import expat

from clusterports._text import printable, show
from clusterports.errors import ConfigurationError
from clusterports.ranges import MAX_PORT, PORT_BOUND

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BackupXml"]

ROOT: Final = "domainbackup"

LOCALHOST: Final = "localhost"
"""Where libvirt serves when it is not told where."""

_NUMBER: Final = re.compile("[1-9][0-9]{0,4}")
# Only what a parser has accepted is looked at with these, so they need not know what is allowed in a name.
_TAG: Final = re.compile(rb"<[^\s/>]+")
_ATTRIBUTE: Final = re.compile(rb"""\s+([^\s=]+)\s*=\s*(?:"([^"]*)"|'([^']*)')""")
_TAG_END: Final = re.compile(rb"\s*(/?)>")
_INDENT: Final = re.compile(rb"\r?\n[ \t]*(?=<)")


class _Tag(NamedTuple):
    """A start tag. ``at``: where its ``<`` is, in bytes."""

    at: int
    attributes: dict[str, str]


class BackupXml:
    """A document for a backup, as a user wrote it or as libvirt reports it.

    :param source: what it is called in errors, such as the name of its file.
    :raises ConfigurationError: with line and column, when it is not XML, or of another kind, or has a DTD (which could
        name other files, or grow without end), or its port is not one.
    """

    def __init__(self, text: str, source: str = "backup XML") -> None:
        self._source = source
        try:
            self._data = text.encode()
        except UnicodeEncodeError as error:
            line, column = text.count("\n", 0, error.start) + 1, error.start - text.rfind("\n", 0, error.start)
            self._refuse(line, column, f"not XML: no character {text[error.start]!r} can be in it")
        self._root, self._server, self._end_tag = self._parse()

    def _parse(self) -> tuple[_Tag, _Tag | None, int]:
        """The root, the server, and where the end tag of the root begins."""
        # The text is a string already, whatever it says about its encoding.
        parser = expat.ParserCreate("UTF-8", namespace_separator=" ")
        found: list[_Tag] = []
        server: list[_Tag] = []
        depth = 0
        end = 0

        def refuse(message: str) -> NoReturn:
            self._refuse(parser.CurrentLineNumber, parser.CurrentColumnNumber + 1, message)

        def start(name: str, attributes: dict[str, str]) -> None:
            nonlocal depth
            tag = _Tag(parser.CurrentByteIndex, attributes)
            if depth == 0:
                if name != ROOT:
                    refuse(f"must be a <{ROOT}> document, got {show(name)}")
                found.append(tag)
            elif depth == 1 and name == "server" and not server:
                server.append(tag)
                if self._is_tcp(found[0], tag):
                    _check_port(attributes.get("port", ""), refuse)
            depth += 1

        def finish(_: str) -> None:
            nonlocal depth, end
            depth -= 1
            if depth == 0:
                end = parser.CurrentByteIndex

        def no_doctype(*_: object) -> None:
            refuse("a document type declaration (<!DOCTYPE>) is not accepted")

        parser.StartElementHandler = start
        parser.EndElementHandler = finish
        parser.StartDoctypeDeclHandler = no_doctype
        try:
            parser.Parse(self._data, True)
        except expat.ExpatError as error:
            self._refuse(error.lineno, error.offset + 1, f"not XML: {expat.ErrorString(error.code)}")
        return found[0], server[0] if server else None, end

    @staticmethod
    def _is_tcp(root: _Tag, server: _Tag | None) -> bool:
        if root.attributes.get("mode") != "pull":
            return False
        return server is None or server.attributes.get("transport", "tcp") == "tcp"

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

    @property
    def address(self) -> str:
        """The name or address that the server listens on."""
        return LOCALHOST if self._server is None else self._server.attributes.get("name", LOCALHOST)

    def with_port(self, number: int, note: str = "") -> str:
        """The document with this port, and all else as it was.

        :param note: becomes a comment behind the root, in ASCII and without what could end a comment.
        :raises ConfigurationError: for a number that is no port, or when the backup has no use for one.
        """
        if not 1 <= number <= MAX_PORT:
            raise ConfigurationError(f"port: must be {PORT_BOUND}, got {show(number)}")
        if not self.tcp:
            raise ConfigurationError(f"port: {printable(self._source)} describes no pull backup over TCP")
        # From the end to the beginning, so that what comes before stays where it is.
        data = self._noted(note) if note else self._data
        port = str(number).encode()
        if self._server is None:
            data = self._with_server(data, port)
        else:
            data = self._with_attribute(data, self._server.at, port)
        return data.decode()

    def __str__(self) -> str:
        """The document as it came."""
        return self._data.decode()

    def _noted(self, note: str) -> bytes:
        text = re.sub("-(?=-)", "- ", printable(note)).encode("ascii", "backslashreplace")
        root = _read_tag(self._data, self._root.at)
        end = root.end if root.empty else self._data.index(b">", self._end_tag) + 1
        line_end = b"\r\n" if b"\r\n" in self._data else b"\n"
        return self._data[:end] + line_end + b"<!-- " + text + b" -->" + self._data[end:]

    def _with_server(self, data: bytes, port: bytes) -> bytes:
        root = _read_tag(data, self._root.at)
        server = b"<server name='%s' port='%s'/>" % (LOCALHOST.encode(), port)
        if root.empty:
            return data[: root.slash] + b">" + server + b"</%s>" % ROOT.encode() + data[root.end :]
        indent = _INDENT.match(data, root.end)
        return data[: root.end] + (indent[0] if indent else b"") + server + data[root.end :]

    @staticmethod
    def _with_attribute(data: bytes, at: int, port: bytes) -> bytes:
        tag = _read_tag(data, at)
        if tag.port is not None:
            start, end = tag.port
            return data[:start] + port + data[end:]
        quote = data[tag.attributes_end - 1 : tag.attributes_end]
        quote = quote if quote in (b"'", b'"') else b"'"
        return data[: tag.attributes_end] + b" port=" + quote + port + quote + data[tag.attributes_end :]

    def _refuse(self, line: int, column: int, message: str) -> NoReturn:
        raise ConfigurationError(f"{printable(self._source)}: line {line}, column {column}: {message}")


class _Places(NamedTuple):
    """Of a start tag, in bytes. ``port``: where the value of that attribute begins and ends, without quotes."""

    port: tuple[int, int] | None
    attributes_end: int
    slash: int
    end: int
    empty: bool


def _read_tag(data: bytes, at: int) -> _Places:
    found = _TAG.match(data, at)
    assert found is not None
    attributes_end = found.end()
    port: tuple[int, int] | None = None
    while attribute := _ATTRIBUTE.match(data, attributes_end):
        attributes_end = attribute.end()
        if attribute[1] == b"port":
            port = attribute.span(2 if attribute[2] is not None else 3)
    end = _TAG_END.match(data, attributes_end)
    assert end is not None
    return _Places(port, attributes_end, end.start(1), end.end(), bool(end[1]))


def _check_port(text: str, refuse: Callable[[str], NoReturn]) -> None:
    if text in ("", "0"):
        return
    if not _NUMBER.fullmatch(text) or int(text) > MAX_PORT:
        refuse(f"port: must be {PORT_BOUND}, or 0 for one that is free; got {show(text)}")
