"""From the arguments of an acquire to an `Ask`: every value is checked before anything is sent. Pure."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Final, get_args

from ._names import check_labels, check_text
from ._text import show
from .abc import Ask, Protocol4
from .errors import ConfigurationError, ImpossibleRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .ranges import PortRange

__all__ = ["Ranges"]

_PROTOCOLS: Final = get_args(Protocol4)

_NO_LABELS: Final[Mapping[str, str]] = {}


class Ranges:
    """The ranges of an allocator, and what can be asked of them."""

    def __init__(self, ranges: Iterable[PortRange]) -> None:
        self.by_name = {span.name: span for span in ranges}
        self._ready = {
            name: (((span.first, span.last),), span.size, round(span.quarantine * 1_000_000))
            for name, span in self.by_name.items()
        }

    def check(self, name: str) -> None:
        """:raises ConfigurationError: there is no range of this name; says which there are."""
        if name not in self.by_name:
            known = ", ".join(sorted(self.by_name)) or "none"
            close = get_close_matches(str(name), list(self.by_name), 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigurationError(f"range: unknown range {show(name)}, must be one of: {known}{hint}")

    def ask(
        self,
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
        if range not in self._ready:
            self.check(range)
        spans, size, quarantine = self._ready[range]
        if protocol not in _PROTOCOLS:
            raise ConfigurationError(f"protocol: must be one of {', '.join(_PROTOCOLS)}, got {show(protocol)}")
        if type(count) is not int or count < 1:
            raise ConfigurationError(f"count: must be an integer of at least 1, got {show(count)}")
        if port is not None:
            ((first, last),) = spans
            if type(port) is not int:
                raise ConfigurationError(f"port: must be an integer from {first} to {last}, got {show(port)}")
            if not first <= port <= last:
                raise ImpossibleRequest(f"port: {port} is not in range '{range}' ({first}-{last})")
            if count != 1:
                raise ConfigurationError(f"count: must be 1 when a port is asked for by number, got {count}")
            spans = ((port, port),)
        elif count > size:
            ((first, last),) = spans
            raise ImpossibleRequest(f"count: {count} ports are more than range '{range}' ({first}-{last}) has ({size})")
        if owner != "":
            check_text("owner", owner)
        return Ask(range, spans, count, protocol, quarantine, owner, check_labels(labels) if labels else _NO_LABELS)
