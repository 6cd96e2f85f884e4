"""From the arguments of an acquire to an `Ask`: every value is checked before anything is sent. Pure."""

from __future__ import annotations

from difflib import get_close_matches
from random import randrange
from typing import TYPE_CHECKING, Any, Final, NamedTuple, get_args

from ._names import CLUSTER_SPACE, check_labels, check_name, check_text, host_space
from ._text import show
from .abc import Ask, Protocol4
from .errors import ConfigurationError, ImpossibleRequest
from .ranges import DEFAULT_QUARANTINE, MAX_PORT, PORT_BOUND, merged, without

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from ._lease import HeldPort
    from .ranges import PortRange, Span

__all__ = ["Plan", "Ranges", "check_port", "overlap"]

_PROTOCOLS: Final = get_args(Protocol4)

_MOST_KNOWN: Final = 4096
"""Ranges times hosts times protocols."""

_NO_LABELS: Final[Mapping[str, str]] = {}

_NONE_BUSY: Final[frozenset[int]] = frozenset()


class Plan(NamedTuple):
    """One ask, and where it goes. ``host``: where the ports will be bound, also in the cluster's space."""

    space: str
    ask: Ask
    host: str


_make_plan: Final = Plan._make
_make_ask: Final = Ask._make
"""From all fields in their order; faster than the call."""


class _Book:
    """What is known beforehand of the asks of one range. Only ``span`` is as configured; numbers that can be had
    are in ``main``, and in ``band`` those of them that are kept for explicit asks.
    """

    __slots__ = ("band", "cooldown", "gaps", "main", "plain", "quarantine", "rotate", "size", "span")

    def __init__(self, span: PortRange, foreign: Iterable[Span]) -> None:
        """``foreign``: the numbers that belong to the cluster, unless the range does."""
        self.span = span
        self.quarantine = _us(span.quarantine)
        self.cooldown = _us(span.cooldown)
        holes = span.exclude if span.scope == "cluster" else merged((*span.exclude, *foreign))
        self.gaps = without(((span.first, span.last),), holes)
        self.main, self.band = self.parts(_NONE_BUSY)
        self.size = _count(self.gaps)
        self.plain = (*self.main, *self.band)
        self.rotate = len(self.main) if span.strategy == "next" else 0

    def parts(self, busy: Collection[int]) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
        """What can be had above the static band and in it."""
        gaps = without(self.gaps, ((number, number) for number in sorted(busy)))
        border = self.span.first + self.span.static_band
        return without(gaps, ((1, border - 1),)), without(gaps, ((border, MAX_PORT),))

    def spans(self, block: int, busy: Collection[int], random: Callable[[int], int]) -> tuple[tuple[Span, ...], int]:
        """Where to look for ports, in this order, and how many of the spans are a circle.

        ``block``: the size of the block that is wanted, or 0 for any numbers. No number comes twice, but for those of
        blocks that would be cut in two otherwise: by the random number, or by the border of the band.
        """
        main, band = (self.main, self.band) if not busy else self.parts(busy)
        order = main
        if main and self.span.strategy == "random":
            order = _turned(main, random(_count(main)), block)
        across: tuple[Span, ...] = ()
        if block and main and band and band[-1][1] + 1 == main[0][0]:
            across = ((band[-1][0], main[0][1]),)
        return (*order, *band, *across), len(main) if self.span.strategy == "next" else 0

    def holds_block(self, count: int, align: int) -> bool:
        """Whether a block could be found if all that can be had were free."""
        return any(-(-first // align) * align + count - 1 <= last for first, last in self.gaps)


class Ranges:
    """The ranges of an allocator, and what can be asked of them."""

    def __init__(self, ranges: Iterable[PortRange]) -> None:
        self.by_name = {span.name: span for span in ranges}
        self._cluster = [span for span in self.by_name.values() if span.scope == "cluster"]
        foreign = [(span.first, span.last) for span in self._cluster]
        self._books = {name: _Book(span, foreign) for name, span in self.by_name.items()}
        # Plans without owner and labels, and what the ask has before and after these.
        self._known: dict[tuple[str | None, str, Protocol4], tuple[Plan, tuple[Any, ...], tuple[Any, ...]]] = {}

    def check(self, name: object) -> None:
        """:raises ConfigurationError: there is no range of this name; says which there are."""
        if not isinstance(name, str) or name not in self.by_name:
            known = ", ".join(sorted(self.by_name)) or "none"
            close = get_close_matches(str(name), list(self.by_name), 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigurationError(f"range: unknown range {show(name)}, must be one of: {known}{hint}")

    def extent(self, range: str) -> Span:
        """The bounds of a range; of all ports for "", under which ports without a range are booked.

        :raises ConfigurationError: there is no range of this name.
        """
        if range == "":
            return 1, MAX_PORT
        self.check(range)
        return self.by_name[range].first, self.by_name[range].last

    def size(self, range: str) -> int:
        """How many ports a range can give, excluded ones and those of ranges of the cluster left out.

        :raises ConfigurationError: there is no range of this name.
        """
        self.check(range)
        return self._books[range].size

    def home(self, range: str, number: int) -> str | None:
        """The range, if it has this number to give. None: the number can be claimed without a range.

        :raises ConfigurationError: there is no range of this name.
        """
        self.check(range)
        return range if _has(self._books[range].gaps, number) else None

    def marks(self, range: str) -> int:
        """How many ports of a range may be marked as foreign at a time: half of those that can be had.

        None for "", under which ports without a range are booked, nor for a range that is configured elsewhere.
        """
        book = self._books.get(range)
        return 0 if book is None else book.size // 2

    def booked(self, port: HeldPort, *, cluster: bool) -> Ask:
        """What the store keeps of the ask by which a port was granted. ``cluster``: in the cluster's space."""
        book = self._books.get(port.range or "")  # None: without a range, or one that is configured elsewhere
        return Ask(
            port.range or "",
            (),
            protocol=port.protocol,
            quarantine=book.quarantine if book else _us(DEFAULT_QUARANTINE),
            owner=port.owner,
            labels=port.labels,
            cooldown=book.cooldown if book else 0,
            limit=book.span.limit or 0 if book else 0,
            host=port.host if cluster else "",
        )

    def plan(
        self,
        range: str | None,
        *,
        host: str,
        port: int | None = None,
        count: int = 1,
        contiguous: bool = False,
        align: int = 1,
        protocol: Protocol4 = "tcp",
        owner: str = "",
        labels: Mapping[str, str] | None = None,
        skip: Collection[int] = _NONE_BUSY,
        random: Callable[[int], int] = randrange,
    ) -> Plan:
        """What to ask for, and where. Without a range, a port has to be named.

        ``skip``: numbers that are not to be given; nothing to one who names a port. If they are all there is, there
        are no spans. ``random``: a random number from 0, less than its argument.

        :raises ConfigurationError: for a value of the wrong kind, or values that contradict each other.
        :raises ImpossibleRequest: for one that the range can never satisfy.
        """
        # The call that everybody makes, of which all but owner and labels was checked before.
        common = type(count) is int is type(align) and count == 1 == align and port is None and contiguous is False
        if common and not skip:
            try:
                plan, head, tail = self._known[range, host, protocol]
            except (KeyError, TypeError):  # TypeError: not even hashable
                pass
            else:
                if owner != "":
                    check_text("owner", owner)
                elif not labels:
                    return plan
                labels = check_labels(labels) if labels else _NO_LABELS
                return _make_plan((plan[0], _make_ask((*head, owner, labels, *tail)), host))
        _check_protocol(protocol)
        if type(count) is not int or count < 1:
            raise ConfigurationError(f"count: must be an integer of at least 1, got {show(count)}")
        if owner != "":
            check_text("owner", owner)
        labels = check_labels(labels) if labels else _NO_LABELS
        space = host_space(check_name("host", host))
        if type(contiguous) is not bool:
            raise ConfigurationError(f"contiguous: must be True or False, got {show(contiguous)}")
        if align != 1 or type(align) is not int:
            _check_align(align, port, count, contiguous=contiguous)
        if range is None:
            return self._unranged(space, host, port, count, protocol, owner, labels)
        try:
            book = self._books[range]
        except (KeyError, TypeError):  # TypeError: not even hashable
            self.check(range)
            raise
        rotate = block = 0
        if port is not None:
            self._check_port(port, count, book)
            spans: tuple[Span, ...] = ((port, port),)
        else:
            if count > book.size:
                raise ImpossibleRequest(_too_many(count, book))
            if align > 1 or (contiguous and count > 1):
                block = align
                if not book.holds_block(count, align):
                    raise ImpossibleRequest(_no_block(count, align, book))
            if block or skip or book.span.strategy == "random":
                spans, rotate = book.spans(count if block else 0, skip, random)
            else:
                spans, rotate = book.plain, book.rotate
        cluster = book.span.scope == "cluster"
        ask = Ask(
            book.span.name,
            spans,
            count,
            protocol,
            book.quarantine,
            owner,
            labels,
            cooldown=book.cooldown,
            align=block,
            rotate=rotate,
            limit=book.span.limit or 0,
            explicit=port is not None,
            host=host if cluster else "",
        )
        plan = Plan(CLUSTER_SPACE if cluster else space, ask, host)
        if common and spans is book.plain:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            bare = plan._replace(ask=ask._replace(owner="", labels=_NO_LABELS))
            self._known[range, host, protocol] = bare, ask[:5], ask[7:]
        return plan

    def _check_port(self, port: int, count: int, book: _Book) -> None:
        span = book.span
        if type(port) is not int:
            raise ConfigurationError(f"port: must be an integer from {span.first} to {span.last}, got {show(port)}")
        if port not in span:
            raise ImpossibleRequest(f"port: {port} is not in {_named(span)}")
        _check_one(count)
        if _has(book.gaps, port):
            return
        if _has(span.exclude, port):
            raise ImpossibleRequest(f"port: {port} is excluded from {_named(span)}")
        owner = next(other for other in self._cluster if port in other)
        raise ImpossibleRequest(f"port: {port} of {_named(span)} belongs to {_named(owner)}, whose scope is 'cluster'")

    def _unranged(
        self,
        space: str,
        host: str,
        port: int | None,
        count: int,
        protocol: Protocol4,
        owner: str,
        labels: Mapping[str, str],
    ) -> Plan:
        if port is None:
            raise ConfigurationError("port: must be given when range is None")
        _check_number(port)
        _check_one(count)
        cluster = any(port in span for span in self._cluster)
        ask = Ask(
            "",
            ((port, port),),
            protocol=protocol,
            quarantine=_us(DEFAULT_QUARANTINE),
            owner=owner,
            labels=labels,
            explicit=True,
            host=host if cluster else "",
        )
        return Plan(CLUSTER_SPACE if cluster else space, ask, host)


def check_port(number: object, protocol: object) -> None:
    """:raises ConfigurationError: when these are not the number of a port and a protocol."""
    _check_number(number)
    _check_protocol(protocol)


def overlap(one: Protocol4, other: Protocol4) -> bool:
    """Whether one number cannot be held for both protocols at once."""
    return one == other or "both" in (one, other)


def _check_number(port: object) -> None:
    if type(port) is not int or not 1 <= port <= MAX_PORT:
        raise ConfigurationError(f"port: must be {PORT_BOUND}, got {show(port)}")


def _check_protocol(protocol: object) -> None:
    if protocol not in _PROTOCOLS:
        raise ConfigurationError(f"protocol: must be one of {', '.join(_PROTOCOLS)}, got {show(protocol)}")


def _check_one(count: int) -> None:
    if count != 1:
        raise ConfigurationError(f"count: must be 1 when a port is asked for by number, got {count}")


def _check_align(align: int, port: int | None, count: int, *, contiguous: bool) -> None:
    if type(align) is not int or align < 1:
        raise ConfigurationError(f"align: must be an integer of at least 1, got {show(align)}")
    if port is not None:
        if type(port) is int and port % align:
            raise ConfigurationError(f"align: must divide the port that is asked for ({port}), got {align}")
    elif count > 1 and not contiguous:
        raise ConfigurationError(f"align: must be 1 when several ports need not be contiguous, got {align}")


def _too_many(count: int, book: _Book) -> str:
    are = "port is" if count == 1 else "ports are"
    return f"count: {count} {are} more than {_named(book.span)} has ({book.size}){_left_out(book)}"


def _no_block(count: int, align: int, book: _Book) -> str:
    if count == 1:
        return f"align: {_named(book.span)} has no multiple of {align}{_left_out(book)}"
    first = f" with a multiple of {align} as the first" if align > 1 else ""
    return f"count: {_named(book.span)} has no {count} contiguous ports{first}{_left_out(book)}"


def _left_out(book: _Book) -> str:
    excluded = _count(book.span.exclude)
    others = book.span.size - book.size - excluded
    parts = [f"{excluded} excluded"] * (excluded > 0) + [f"{others} of ranges with scope 'cluster'"] * (others > 0)
    return f"; left out are {' and '.join(parts)}" if parts else ""


def _named(span: PortRange) -> str:
    return f"range '{span.name}' ({span.first}-{span.last})"


def _us(seconds: float) -> int:
    return round(seconds * 1_000_000)


def _count(spans: Iterable[Span]) -> int:
    return sum(last - first + 1 for first, last in spans)


def _has(spans: Iterable[Span], number: int) -> bool:
    return any(first <= number <= last for first, last in spans)


def _turned(spans: tuple[Span, ...], index: int, block: int) -> tuple[Span, ...]:
    """The numbers from the one with this index on, then those before it, and with them as many of the former as a
    block that begins before it may need.
    """
    for at, (first, last) in enumerate(spans):
        size = last - first + 1
        if index < size:
            start = first + index
            cut = ((first, min(last, start - 1 + max(0, block - 1))),) if index else ()
            return ((start, last), *spans[at + 1 :], *spans[:at], *cut)
        index -= size
    raise IndexError(index)
