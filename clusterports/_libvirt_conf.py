"""The port ranges of libvirt's ``qemu.conf``. Pure: the file's text goes in, numbers and their lines come out.

Grammar, bounds and words are those of libvirt's ``virconf.c`` and ``qemu_conf.c``: what it accepts is accepted here,
and a file on which it would not start is refused, with the line, the value and the bound added. Of a key that comes
twice the first counts, as there. One thing is added to its checks: no port is above 65535 in a minimum either.

Values of other keys are skipped, and never part of a message: the file may hold passwords of consoles. Where a quote or
the end of a line was forgotten, they look like a part of our own value, so no more than its first word is shown.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from ._text import printable, show
from .errors import ConfigurationError
from .ranges import LIBVIRT_RANGES, MAX_PORT

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Bound", "read_ranges"]

UINT_MAX: Final = 2**32 - 1

_KEYS: Final = {
    "backup": "backup_port",
    "migration": "migration_port",
    "display": "remote_display_port",
    "websocket": "remote_websocket_port",
}

_OURS: Final = frozenset(f"{key}_{end}" for key in _KEYS.values() for end in ("min", "max"))

_LOWEST: Final = {"display": 5900, "websocket": 5700}
"""A display's number is its port less 5900, that of a websocket its port less 5700."""

_BLANKS: Final = re.compile(r"[ \t]*")
_BLANKS_AND_ENDS: Final = re.compile(r"[ \t\r\n]*")
_COMMENT: Final = re.compile(r"#[^\r\n]*")
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_NUMBER: Final = re.compile(r"([+-]?)([0-9]*)")
_STRING: Final = re.compile(r'"""(.*?)"""|"(?!"")([^"\r\n]*)"|\'([^\'\r\n]*)\'', re.DOTALL)
_WORD: Final = re.compile(r"""["']{0,3}([^\s;#,:=\[\]"']*)""")
_ASSIGNED: Final = re.compile(r"[ \t]*[:=]")


class Bound(NamedTuple):
    """A first or a last port, and the line that says so, counted from 1."""

    port: int
    line: int


class _Negative(int):
    """libvirt knows a number with a minus as one of another type, also ``-0``."""


class _Value(NamedTuple):
    value: object
    line: int


def read_ranges(path: str, text: str) -> dict[str, dict[str, Bound]]:
    """By range and ``first`` or ``last``: what the file sets, and nothing else. ``path`` is for messages.

    :raises ConfigurationError: with file, line, key, value and bound.
    """
    values: dict[str, _Value] = {}
    for name, value in _Reader(path, text).statements():
        values.setdefault(name, value)
    ranges: dict[str, dict[str, Bound]] = {}
    for span in LIBVIRT_RANGES:
        key = _KEYS[span.name]
        first = _unsigned(path, f"{key}_min", values)
        last = _unsigned(path, f"{key}_max", values)
        _check(path, span.name, first, last, (span.first, span.last))
        found = {name: bound for name, bound in (("first", first), ("last", last)) if bound is not None}
        if found:
            ranges[span.name] = found
    return ranges


def _unsigned(path: str, key: str, values: dict[str, _Value]) -> Bound | None:
    if key not in values:
        return None
    value, line = values[key]
    if not isinstance(value, int) or isinstance(value, _Negative):
        _refuse(path, line, f"expected an unsigned integer for '{key}' parameter, got {_shown(value)}")
    if value > UINT_MAX:
        _refuse(path, line, f"value for '{key}' parameter must be in range 0:{UINT_MAX}, got {show(value)}")
    return Bound(value, line)


def _check(path: str, name: str, first: Bound | None, last: Bound | None, default: tuple[int, int]) -> None:
    lowest = _LOWEST.get(name, 1)
    key = _KEYS[name]
    if first is not None:
        port, line = first
        if port < lowest:
            bound = f"or equal to {lowest}" if lowest > 1 else "0"
            _refuse(path, line, f"{key}_min: port must be greater than {bound}, got {port}")
        if port > MAX_PORT:
            _refuse(path, line, f"{key}_min: port must be less than or equal to {MAX_PORT}, got {port}")
    minimum = default[0] if first is None else first.port
    if last is not None:
        port, line = last
        if not minimum <= port <= MAX_PORT:
            bound = f"between the minimal port {minimum} and {MAX_PORT}"
            _refuse(path, line, f"{key}_max: port must be {bound}, got {port}")
    elif first is not None and minimum > default[1]:
        bound = f"max port, which is {default[1]} unless {key}_max is set"
        _refuse(path, first.line, f"{key}_min: min port must not be greater than {bound}; got {minimum}")


def _shown(value: object) -> str:
    if isinstance(value, str):
        whole = _WORD.fullmatch(value)
        return show(value) if whole and whole[1] == value else "a string"
    return "a list" if isinstance(value, list) else show(value)


def _refuse(path: str, line: int, message: str) -> NoReturn:
    raise ConfigurationError(f"{printable(path)}:{line}: {message}")


class _Reader:
    """One pass over the text. Each method leaves ``at`` behind what it has read."""

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.text = text
        self.at = 0
        self.name = ""
        self.start: int | None = None  # of the value
        self._counted = (0, 1)  # up to where line ends were counted, and the line there

    def statements(self) -> Iterator[tuple[str, _Value]]:
        """Names and values, in order; comments are left out."""
        while True:
            self._skip(_BLANKS_AND_ENDS)
            if self.at == len(self.text):
                return
            if self._skip(_COMMENT):
                continue
            line = self._line()
            self.name = self._skip(_NAME)
            if not self.name:
                self._fail("expecting a name")
            self._skip(_BLANKS)
            if not self._eat("="):
                self._fail("expecting an assignment")
            self._skip(_BLANKS)
            self.start = self.at
            yield self.name, _Value(self._value(), line)
            self._skip(_BLANKS)
            self._skip(_COMMENT)
            if self._peek() not in ("", "\r", "\n", ";"):
                self._fail("expecting a separator")
            self._eat(";")
            self.name = ""
            self.start = None

    def _value(self) -> object:
        start = self._peek()
        if start == "[":
            return self._list()
        return self._string() if start in ('"', "'") else self._number()

    def _string(self) -> str:
        found = _STRING.match(self.text, self.at)
        if found is None:
            self._fail("unterminated string")
        self.at = found.end()
        return next(part for part in found.groups() if part is not None)

    def _number(self) -> int:
        found = _NUMBER.match(self.text, self.at)
        assert found is not None
        sign, digits = found.groups()
        if not digits:
            self._fail("unterminated number" if sign else "expecting a value")
        self.at = found.end()
        number = int(digits.lstrip("0")[:100] or "0")  # Python refuses to read some thousands of digits
        return _Negative(-number) if sign == "-" else number

    def _list(self) -> list[object]:
        """Not recursive: brackets without end are no reason to run out of stack."""
        outer: list[list[object]] = []
        items: list[object] = []
        line = self._line()
        self._eat("[")
        while True:
            self._skip(_BLANKS_AND_ENDS)
            if self._eat("["):
                outer.append(items)
                items = []
                continue
            if self._peek() not in ("", "]"):
                items.append(self._value())
            while True:
                self._skip(_BLANKS_AND_ENDS)
                if not self._eat("]"):
                    break
                if not outer:
                    return items
                outer[-1].append(items)
                items = outer.pop()
            if not self._peek():
                self._fail("list is not closed with ]", line)
            if not self._eat(","):
                self._fail("expecting a separator in list")

    def _peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def _eat(self, character: str) -> bool:
        if self._peek() != character:
            return False
        self.at += 1
        return True

    def _skip(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self.text, self.at)
        if found is None:
            return ""
        self.at = found.end()
        return found[0]

    def _line(self) -> int:
        at, line = self._counted
        line += self.text.count("\n", at, self.at)
        self._counted = (self.at, line)
        return line

    def _fail(self, message: str, line: int | None = None) -> NoReturn:
        """What is there instead is told of our own keys only."""
        if self.name:
            message = f"{self.name}: {message}"
        if self.name in _OURS:
            message += self._got()
        _refuse(self.path, self._line() if line is None else line, message)

    def _got(self) -> str:
        """The first word of the value, if it can be told from what follows it, and is no key of its own."""
        start = self.at if self.start is None else self.start
        if self.at > start and self.text[start] in "\"'[":
            return ""
        word = _WORD.match(self.text, start)
        assert word is not None
        if _ASSIGNED.match(self.text, word.end()) or (not word[0] and self.text[start : start + 1] not in "\r\n#"):
            return ""
        return f"{' after' if start < word.end() <= self.at else ', got'} {show(word[0])}"
