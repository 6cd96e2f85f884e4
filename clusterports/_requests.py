"""From the arguments of an acquire to an `Ask`: every value is checked before anything is sent. Pure."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, get_args

from ._names import check_labels, check_text
from ._text import show
from .abc import Ask, Protocol4
from .errors import ConfigurationError, ImpossibleRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .ranges import PortRange

__all__ = ["make_ask"]

_PROTOCOLS = get_args(Protocol4)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def find_range(ranges: Mapping[str, PortRange], name: str) -> PortRange:
    found = ranges.get(name)
    if found is not None:
        return found
    known = ", ".join(sorted(ranges)) or "none"
    close = get_close_matches(str(name), list(ranges), 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ConfigurationError(f"range: unknown range {show(name)}, must be one of: {known}{hint}")


def make_ask(
    ranges: Mapping[str, PortRange],
    range: str,
    port: int | None,
    count: int,
    protocol: Protocol4,
    owner: str,
    labels: Mapping[str, str] | None,
) -> Ask:
    """:raises ConfigurationError: for a value of the wrong kind.

    :raises ImpossibleRequest: for one that the range can never satisfy.
    """
    span = ranges.get(range) or find_range(ranges, range)
    first, last = span.first, span.last
    if protocol not in _PROTOCOLS:
        raise ConfigurationError(f"protocol: must be one of {', '.join(_PROTOCOLS)}, got {show(protocol)}")
    if not _is_int(count) or count < 1:
        raise ConfigurationError(f"count: must be an integer of at least 1, got {show(count)}")
    if port is not None:
        if not _is_int(port):
            raise ConfigurationError(f"port: must be an integer, got {show(port)}")
        if not first <= port <= last:
            raise ImpossibleRequest(f"port: {port} is not in range '{range}' ({first}-{last})")
        if count != 1:
            raise ConfigurationError(f"count: must be 1 when a port is asked for by number, got {count}")
        first = last = port
    elif count > span.size:
        raise ImpossibleRequest(f"count: {count} ports are more than range '{range}' ({first}-{last}) has ({span.size})")
    if owner:
        check_text("owner", owner)
    return Ask(
        range, ((first, last),), count, protocol, round(span.quarantine * 1_000_000), owner, check_labels(labels)
    )
