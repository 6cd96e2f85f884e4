"""Ranges: named spans of port numbers."""

from __future__ import annotations

import re
from dataclasses import KW_ONLY, dataclass
from typing import Final

from ._text import show
from .errors import ConfigurationError

__all__ = [
    "LIBVIRT_RANGES",
    "MAX_PORT",
    "MAX_QUARANTINE",
    "NAME_BOUND",
    "PORT_BOUND",
    "QUARANTINE_BOUND",
    "PortRange",
    "is_range_name",
]

MAX_PORT: Final = 65535

MAX_QUARANTINE: Final = 3600.0
"""Seconds."""

NAME_BOUND: Final = "1 to 64 characters of [A-Za-z0-9._-]"
PORT_BOUND: Final = f"an integer from 1 to {MAX_PORT}"
QUARANTINE_BOUND: Final = f"a number of seconds from 0 to {MAX_QUARANTINE:g}"

_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


def is_range_name(value: object) -> bool:
    """Whether this can name a range."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


@dataclass(frozen=True, slots=True)
class PortRange:
    """A named span of port numbers, both bounds inclusive: ``PortRange("backup", 10809, 10872)``.

    ``quarantine``: how many seconds a port stays closed after its lease ran out, 0 to 3600. A client of the
    dead job may still connect to the number.

    :raises ConfigurationError: for a value out of its bounds.
    """

    name: str
    first: int
    last: int
    _: KW_ONLY
    quarantine: float = 15.0

    def __post_init__(self) -> None:
        if not is_range_name(self.name):
            raise ConfigurationError(f"range name: must be {NAME_BOUND}, got {show(self.name)}")
        for key, port in (("first", self.first), ("last", self.last)):
            if not _is_int(port) or not 1 <= port <= MAX_PORT:
                raise ConfigurationError(f"ranges.{self.name}.{key}: must be {PORT_BOUND}, got {show(port)}")
        if self.first > self.last:
            raise ConfigurationError(f"ranges.{self.name}.first: must be at most last ({self.last}), got {self.first}")
        seconds = self.quarantine
        if not _is_number(seconds) or not 0 <= seconds <= MAX_QUARANTINE:  # false for NaN too
            raise ConfigurationError(f"ranges.{self.name}.quarantine: must be {QUARANTINE_BOUND}, got {show(seconds)}")
        object.__setattr__(self, "quarantine", float(seconds))

    @property
    def size(self) -> int:
        """How many port numbers it has."""
        return self.last - self.first + 1

    def __contains__(self, number: object) -> bool:
        return _is_int(number) and self.first <= number <= self.last  # type: ignore[operator]


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


LIBVIRT_RANGES: Final = (
    PortRange("backup", 10809, 10872),
    PortRange("display", 5900, 65535),
    PortRange("migration", 49152, 49215),
    PortRange("websocket", 5700, 65535),
)
"""The defaults of libvirt's ``qemu.conf``: ``backup_port_min`` and so on.

``display`` and ``websocket`` overlap with the others there too; on one host a number is given out once.
"""
