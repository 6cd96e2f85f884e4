"""Documents that libvirt reads: looked at by a parser, edited where something stands, so that all else stays as it was,
byte for byte. Pure.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn, TypeAlias
from xml.parsers import expat

from clusterports._text import printable, show
from clusterports.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["Edit", "Places", "Tag", "Xml", "attribute_edits", "edited", "first_child", "read_tag"]

# Only what a parser has accepted is looked at with these, so they need not know what is allowed in a name.
_TAG: Final = re.compile(rb"<[^\s/>]+")
_ATTRIBUTE: Final = re.compile(rb"""\s+([^\s=]+)\s*=\s*(?:"([^"]*)"|'([^']*)')""")
_TAG_END: Final = re.compile(rb"\s*(/?)>")

_INDENT: Final = re.compile(rb"\r?\n[ \t]*(?=<)")
"""What stands between two tags that are on lines of their own."""

Edit: TypeAlias = tuple[int, int, bytes]
"""Where something begins and ends, in bytes, and what comes in its place."""


class Tag(NamedTuple):
    """A start tag. ``at``: where its ``<`` is, in bytes."""

    at: int
    attributes: dict[str, str]


class Places(NamedTuple):
    """Of a start tag, in bytes. ``values``: where those of its attributes begin and end, without quotes."""

    values: dict[bytes, tuple[int, int]]
    attributes_end: int
    slash: int
    end: int
    empty: bool


class Xml:
    """A document. ``source``: what it is called in errors, such as the name of its file.

    :raises ConfigurationError: with line and column, for what no document can hold; or it is no text.
    """

    def __init__(self, text: str, source: str) -> None:
        if not isinstance(text, str):  # of what it is the type alone is told: it may have a password
            raise ConfigurationError(f"xml: must be text (str), got {type(text).__name__}")
        self._source = source
        self._parser = expat.ParserCreate("UTF-8", namespace_separator=" ")
        try:
            self.data = text.encode()
        except UnicodeEncodeError as error:
            line, column = text.count("\n", 0, error.start) + 1, error.start - text.rfind("\n", 0, error.start)
            self._refuse(line, column, f"not XML: no character {text[error.start]!r} can be in it")

    def read(
        self,
        root: str,
        start: Callable[[list[str], Tag], None],
        end: Callable[[list[str], int], None],
        characters: Callable[[list[str], str], None] | None = None,
    ) -> None:
        """Parse it, once. What is called is told the names of the open elements, from the root on to the element that
        it is about; ``end`` also where its end tag begins, in bytes.

        :raises ConfigurationError: it is not XML, or of another kind than ``root``, or has a DTD (which could name
            other files, or grow without end).
        """
        path: list[str] = []
        # The text is a string already, whatever it says about its encoding.
        parser = self._parser

        def opened(name: str, attributes: dict[str, str]) -> None:
            if not path and name != root:
                self.refuse(f"must be a <{root}> document, got {show(name)}")
            path.append(name)
            start(path, Tag(parser.CurrentByteIndex, attributes))

        def closed(_: str) -> None:
            end(path, parser.CurrentByteIndex)
            path.pop()

        def no_doctype(*_: object) -> None:
            self.refuse("a document type declaration (<!DOCTYPE>) is not accepted")

        parser.StartElementHandler = opened
        parser.EndElementHandler = closed
        parser.StartDoctypeDeclHandler = no_doctype
        if characters is not None:
            parser.CharacterDataHandler = lambda text: characters(path, text)
        try:
            parser.Parse(self.data, True)
        except expat.ExpatError as error:
            self._refuse(error.lineno, error.offset + 1, f"not XML: {expat.ErrorString(error.code)}")

    def refuse(self, message: str) -> NoReturn:
        """Say what is wrong at the place that is being read."""
        self._refuse(self._parser.CurrentLineNumber, self._parser.CurrentColumnNumber + 1, message)

    def _refuse(self, line: int, column: int, message: str) -> NoReturn:
        raise ConfigurationError(f"{printable(self._source)}: line {line}, column {column}: {message}")


def read_tag(data: bytes, at: int) -> Places:
    """Where the parts of a start tag are."""
    found = _TAG.match(data, at)
    assert found is not None
    attributes_end = found.end()
    values: dict[bytes, tuple[int, int]] = {}
    while attribute := _ATTRIBUTE.match(data, attributes_end):
        attributes_end = attribute.end()
        values[attribute[1]] = attribute.span(2 if attribute[2] is not None else 3)
    end = _TAG_END.match(data, attributes_end)
    assert end is not None
    return Places(values, attributes_end, end.start(1), end.end(), bool(end[1]))


def attribute_edits(data: bytes, at: int, values: Mapping[str, str]) -> list[Edit]:
    """What gives a start tag these attributes: in their place, or behind the others and in quotes like theirs."""
    tag = read_tag(data, at)
    quote = data[tag.attributes_end - 1 : tag.attributes_end]
    quote = quote if quote in (b"'", b'"') else b"'"
    edits: list[Edit] = []
    more = b""
    for name, value in values.items():
        if place := tag.values.get(name.encode()):
            edits.append((*place, value.encode()))
        else:
            more += b" " + name.encode() + b"=" + quote + value.encode() + quote
    return [*edits, (tag.attributes_end, tag.attributes_end, more)] if more else edits


def first_child(data: bytes, tag: Places, element: bytes) -> Edit:
    """An element before all else in another, indented as what follows it."""
    indent = _INDENT.match(data, tag.end)
    return tag.end, tag.end, (indent[0] if indent else b"") + element


def edited(data: bytes, edits: Iterable[Edit]) -> bytes:
    """The document after all of these, which do not overlap."""
    # From the end to the beginning, so that what comes before stays where it is.
    for start, end, new in sorted(edits, reverse=True):
        data = data[:start] + new + data[end:]
    return data
