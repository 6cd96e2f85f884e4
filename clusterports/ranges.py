"""Ranges: named spans of port numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

from ._text import show
from .errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .abc import Protocol4

__all__ = [
    "COOLING_BOUND",
    "DEFAULT_QUARANTINE",
    "EXCLUDE_BOUND",
    "LIBVIRT_RANGES",
    "LIMIT_BOUND",
    "MAX_COOLING",
    "MAX_PORT",
    "NAME_BOUND",
    "PORT_BOUND",
    "SCOPE_BOUND",
    "STATIC_BAND_BOUND",
    "STRATEGY_BOUND",
    "PortRange",
    "PortRequest",
    "Scope",
    "Span",
    "Strategy",
    "is_range_name",
    "merged",
    "misfit",
    "parse_spans",
    "spans_text",
    "without",
]

Scope: TypeAlias = Literal["host", "cluster"]
"""Where a number of a range is unique: on each host, or over all hosts."""

Strategy: TypeAlias = Literal["lowest", "random", "next"]
"""Which free port comes first: the lowest, the first after a random one, the first after the last that was given."""

Span: TypeAlias = tuple[int, int]
"""The first and the last of adjacent port numbers."""

MAX_PORT: Final = 65535

MAX_COOLING: Final = 3600.0
"""The longest quarantine and the longest cooldown, in seconds."""

DEFAULT_QUARANTINE: Final = 15.0
"""Seconds."""

NAME_BOUND: Final = "1 to 64 characters of [A-Za-z0-9._-]"
PORT_BOUND: Final = f"an integer from 1 to {MAX_PORT}"
SCOPE_BOUND: Final = f"one of {', '.join(get_args(Scope))}"
STRATEGY_BOUND: Final = f"one of {', '.join(get_args(Strategy))}"
EXCLUDE_BOUND: Final = 'a list of port numbers and spans, such as [20005, "20000-20003"]'
STATIC_BAND_BOUND: Final = "an integer from 0, less than the size of the range"
COOLING_BOUND: Final = f"a number of seconds from 0 to {MAX_COOLING:g}"
LIMIT_BOUND: Final = "an integer of at least 1"

_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SPAN: Final = re.compile(r" *([0-9]{1,5}) *(?:- *([0-9]{1,5}) *)?")


def is_range_name(value: object) -> bool:
    """Whether this can name a range."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


@dataclass(frozen=True, slots=True)
class PortRange:
    """A named span of port numbers, both bounds inclusive: ``PortRange("backup", 10809, 10872)``.

    ``scope``: a number is held once on each ``host``, or once in the whole ``cluster``. The numbers of a range of
    the cluster are left out of every range of a host.
    ``strategy``: which free port is given: the ``lowest``, the first one from a ``random`` number on, or the ``next``
    one after the last that was given.
    ``exclude``: numbers that are never given: any of 20005, "20000-20003" and (20000, 20003).
    ``static_band``: so many of the lowest numbers are kept for those who ask for a port by number; others get them
    when nothing else is free.
    ``cooldown``: how many seconds a port stays closed after its release, 0 to 3600.
    ``quarantine``: how many seconds a port stays closed after its lease ran out, 0 to 3600. A client of the
    dead job may still connect to the number.
    ``limit``: the most ports that one owner may hold here, at least 1; on each host, when that is the scope.

    :raises ConfigurationError: for a value out of its bounds.
    """

    name: str
    first: int
    last: int
    _: KW_ONLY
    scope: Scope = "host"
    strategy: Strategy = "lowest"
    exclude: tuple[Span, ...] = ()
    static_band: int = 0
    cooldown: float = 0.0
    quarantine: float = DEFAULT_QUARANTINE
    limit: int | None = None

    if TYPE_CHECKING:
        # What is taken for ``exclude`` is more than what it is afterwards: spans that ascend and lie apart.
        def __init__(
            self,
            name: str,
            first: int,
            last: int,
            *,
            scope: Scope = "host",
            strategy: Strategy = "lowest",
            exclude: Iterable[int | str | tuple[int, int] | list[int]] = (),
            static_band: int = 0,
            cooldown: float = 0.0,
            quarantine: float = DEFAULT_QUARANTINE,
            limit: int | None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        if not is_range_name(self.name):
            raise ConfigurationError(f"range name: must be {NAME_BOUND}, got {show(self.name)}")
        for key in ("first", "last"):
            port = getattr(self, key)
            self._check(key, PORT_BOUND, _is_int(port) and 1 <= port <= MAX_PORT)
        self._check("scope", SCOPE_BOUND, self.scope in get_args(Scope))
        self._check("strategy", STRATEGY_BOUND, self.strategy in get_args(Strategy))
        self._check("static_band", STATIC_BAND_BOUND, _is_int(self.static_band) and self.static_band >= 0)
        for key in ("cooldown", "quarantine"):
            seconds = getattr(self, key)
            good = _is_number(seconds) and 0 <= seconds <= MAX_COOLING  # false for NaN too
            self._check(key, COOLING_BOUND, good)
            object.__setattr__(self, key, float(seconds))
        self._check("limit", LIMIT_BOUND, self.limit is None or (_is_int(self.limit) and self.limit >= 1))
        try:
            exclude = parse_spans(self.exclude)
        except ValueError as error:
            raise ConfigurationError(f"ranges.{self.name}.exclude: {error}") from None
        wrong = misfit(self.first, self.last, exclude, self.static_band)
        if wrong is not None:
            raise ConfigurationError(f"ranges.{self.name}.{wrong[0]}: {wrong[1]}")
        object.__setattr__(self, "exclude", merged(exclude))

    def _check(self, key: str, bound: str, good: bool) -> None:
        if not good:
            raise ConfigurationError(f"ranges.{self.name}.{key}: must be {bound}, got {show(getattr(self, key))}")

    @property
    def size(self) -> int:
        """How many port numbers lie between its bounds, both included."""
        return self.last - self.first + 1

    def __contains__(self, number: object) -> bool:
        """Whether a number lies between the bounds; it may be an excluded one."""
        return _is_int(number) and self.first <= number <= self.last  # type: ignore[operator]


@dataclass(frozen=True, slots=True)
class PortRequest:
    """One of the requests of ``acquire_many``; each field means what it means to ``acquire``.

    It is checked when it is asked for, against the allocator's ranges.
    """

    range: str | None
    _: KW_ONLY
    host: str | None = None
    port: int | None = None
    count: int = 1
    contiguous: bool = False
    align: int = 1
    protocol: Protocol4 = "tcp"
    owner: str = ""
    labels: Mapping[str, str] | None = None


def parse_spans(value: object) -> tuple[Span, ...]:
    """Spans from numbers, pairs of numbers and strings such as ``"20000-20003"``, in the order given.

    :raises ValueError: for anything else; its text says what it must be and which one is wrong.
    """
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise ValueError(f"must be {EXCLUDE_BOUND}, got {show(value)}")
    return tuple(_parse_span(item) for item in value)


def _parse_span(item: object) -> Span:
    first: object = None
    last: object = None
    if isinstance(item, str):
        if match := _SPAN.fullmatch(item):
            first, last = int(match[1]), int(match[2] or match[1])
    elif isinstance(item, list | tuple) and len(item) == 2:
        first, last = item
    else:
        first = last = item
    if not (_is_int(first) and _is_int(last)):
        raise ValueError(f"must be {EXCLUDE_BOUND}, got {show(item)}")
    if first > last:  # type: ignore[operator]
        raise ValueError(f"must be spans whose first number is at most the last, got {show(item)}")
    return first, last  # type: ignore[return-value]


def misfit(first: int, last: int, exclude: Iterable[Span], static_band: int) -> tuple[str, str] | None:
    """What parts of a range do not go together: the key, and what is wrong with its value."""
    size = last - first + 1
    if size < 1:
        return "first", f"must be at most last ({last}), got {first}"
    for low, high in exclude:
        if low < first or high > last:
            got = str(low) if low == high else f"{low}-{high}"
            return "exclude", f"must be numbers of the range ({first}-{last}), got {got}"
    if merged(exclude) == ((first, last),):
        return "exclude", f"must leave a port of the range ({first}-{last}), got {first}-{last}"
    if static_band >= size:
        return "static_band", f"must be {STATIC_BAND_BOUND} ({size}), got {static_band}"
    return None


def merged(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The same numbers in spans that ascend and lie apart, with a number that is in none between any two."""
    result: list[Span] = []
    for first, last in sorted(spans):
        if result and first <= result[-1][1] + 1:
            result[-1] = (result[-1][0], max(last, result[-1][1]))
        else:
            result.append((first, last))
    return tuple(result)


def without(spans: Iterable[Span], holes: Iterable[Span]) -> tuple[Span, ...]:
    """The numbers of the spans that are in no hole. Both must ascend and lie apart, and so does the result."""
    result: list[Span] = []
    left = list(reversed(tuple(holes)))
    for first, last in spans:
        while left and left[-1][0] <= last:
            low, high = left[-1]
            if first < low:
                result.append((first, low - 1))
            first = max(first, high + 1)
            if high > last:
                break
            left.pop()
        if first <= last:
            result.append((first, last))
    return tuple(result)


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


def spans_text(spans: Iterable[Span]) -> str:
    """Spans for people: ``27020, 27025-27029``."""
    return ", ".join(f"{first}-{last}" if first < last else str(first) for first, last in spans)
