"""``clusterports status``: who holds what."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import groupby
from math import inf
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Annotated, NamedTuple, TypeAlias, cast, get_args

import typer

from clusterports._text import printable, redact_url, show
from clusterports.errors import ConfigurationError
from clusterports.ranges import MAX_PORT, spans_text

from ._common import CLUSTER, Common, complete_range, say
from ._pager import page
from ._table import BOLD, DIM, GREEN, RED, YELLOW, Column, clip, colored, lean, paint, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from datetime import datetime

    from clusterports.abc import Protocol4
    from clusterports.status import ClusterStatus, HostStatus, LeaseStatus, PortStatus, RangeStatus

    Row: TypeAlias = Sequence[object]

__all__ = ["EVERYTHING", "UNREADABLE", "Look", "Wanted", "owned_by", "parse_port", "say_unreadable", "status"]

LONGEST = 200
"""Characters of an owner that a table shows; all of it is in the JSON."""

NAMED = 5
"""Hosts that a line names one by one."""

UNREADABLE = 5
"""The exit code when a part of the store could not be read: that of a store that is not available."""

STATES = {"held": GREEN, "cooling": YELLOW, "foreign": RED}
LEFT = {"expired": RED, "grace": DIM}

RANGES = (
    Column("RANGE", least=8),
    Column("PORTS"),
    Column("HOSTS", right=True),
    Column("HELD", right=True),
    Column("COOLING", right=True, rank=2),
    Column("FOREIGN", right=True, rank=3),
    Column("EXCLUDED", right=True, rank=4, spare=True),
    Column("FREE", right=True, rank=1),
)
RULES = (Column("RANGE", least=8), Column("RULE", least=8))
PORTS = (
    Column("RANGE", least=6, rank=1),
    Column("PORT"),
    Column("STATE", style=STATES.get),
    Column("OWNER", least=8),
    Column("HOST", least=7),
    Column("INSTANCE", least=10, rank=5),
    Column("FENCE", right=True, rank=4),
    Column("AGE", right=True, rank=3),
    Column("LEFT", right=True, style=LEFT.get),
    Column("NOTE", least=20, rank=2, spare=True),
)
"""Of all ports; on a screen the hosts stand above theirs."""
ON_SCREEN = tuple(column for column in PORTS if column.title != "HOST")
ONE_PORT = (
    Column("HOST", least=7),
    Column("PORT"),
    Column("STATE", style=STATES.get),
    Column("OWNER", least=8),
    Column("INSTANCE", least=10, rank=1),
    Column("RANGE", least=6, rank=5),
    Column("FENCE", right=True, rank=6),
    Column("SINCE", rank=3),
    Column("AGE", right=True, rank=4),
    Column("LEFT", right=True, style=LEFT.get),
    Column("NOTE", least=20, rank=2, spare=True),
)
WAITING = (Column("HOST", least=9), Column("WAITING", right=True))
RECOVERING = (Column("RECOVERING", least=9), Column("LEFT", right=True))


class State(StrEnum):
    """What keeps a port from being free."""

    held = "held"
    cooling = "cooling"
    foreign = "foreign"


@dataclass(frozen=True)
class Wanted:
    """Which ports are asked for; None: any."""

    range: str | None = None
    owner: str | None = None
    state: str | None = None
    instance: str | None = None
    number: int | None = None
    protocol: Protocol4 | None = None

    def of(self, cluster: ClusterStatus) -> ClusterStatus:
        """What is left of the hosts. Counts of ranges stay as they are."""
        tests = list(self._tests())
        if not tests:
            return cluster
        by_holder = (self.owner, self.instance, self.number) != (None, None, None)
        hosts = []
        for host in cluster.hosts:
            ports = tuple(port for port in host.ports if all(test(port) for test in tests))
            leases = {port.lease for port in ports if port.state == "held"}
            shown = tuple(lease for lease in host.leases if not by_holder or lease.lease in leases)
            hosts.append(replace(host, ports=ports, leases=shown))
        ranges = tuple(one for one in cluster.ranges if self.range in (None, one.name))
        return replace(cluster, hosts=tuple(hosts), ranges=ranges)

    def _tests(self) -> Iterator[Callable[[PortStatus], bool]]:
        if self.number is not None:
            number, protocol = self.number, self.protocol or "both"
            yield lambda port: port.number == number and (protocol == "both" or port.protocol in (protocol, "both"))
        if self.range is not None:
            yield lambda port: port.range == self.range
        if self.owner is not None:
            fits = owned_by(self.owner)
            yield lambda port: fits(port.owner)
        if self.state is not None:
            yield lambda port: port.state == self.state
        if self.instance is not None:
            yield lambda port: port.instance == self.instance


EVERYTHING = Wanted()


def owned_by(owner: str) -> Callable[[str], bool]:
    """Whether a name is this one, in which * stands for any characters."""
    if "*" not in owner:
        return lambda name: name == owner
    import re

    fits = re.compile(".*".join(map(re.escape, owner.split("*"))), re.DOTALL).fullmatch
    return lambda name: fits(name) is not None


class Look(NamedTuple):
    """How it is shown. ``width``: of the screen, None where it is none; ``unfold``: each port on a line of its own."""

    width: int | None = None
    color: bool = False
    unfold: bool = False


def status(
    common: Common,
    range: Annotated[str | None, typer.Option(help="Ports of this range only.", autocompletion=complete_range)] = None,
    owner: Annotated[
        str | None, typer.Option(metavar="OWNER", help="Of this owner only; * stands for any characters.")
    ] = None,
    state: Annotated[State | None, typer.Option(help="In this state only.")] = None,
    port: Annotated[
        str | None, typer.Option(metavar="N[/PROTOCOL]", help="This number on all hosts, and where it is free.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look again and again, until Ctrl-C.")] = False,
    interval: Annotated[
        str | None, typer.Option(metavar="SECONDS", help="How often to look, 0.2 to 3600; 2 by default.")
    ] = None,
) -> None:
    """Show who holds which port, and for how long.

    LEFT is the time until the lease of a held port runs out unless it is renewed, and until a cooling or a foreign
    port is free again. INSTANCE of a foreign port is who found that something else has it. NOTE: "cluster-wide", the
    number is taken on all hosts; "outside", "excluded" or "scope": the range has changed and would not give it now.
    A lease that is "expired" is taken back as soon as somebody uses the host's ports; one in "grace" gets a full TTL
    then.

    On a terminal, adjacent ports that differ in nothing else share a line, with the oldest AGE, the lowest FENCE and
    the shortest LEFT; --verbose gives each its own. What is longer than the screen goes through $CLUSTERPORTS_PAGER,
    $PAGER or less. With --host, --instance and other filters, what fits all of them is shown. --watch with --json
    prints a document per line. Exits with 5 when a host's data cannot be read, and shows the others.

    \b
    Examples:
      clusterports status --range backup --owner 'vm-*'
      clusterports status --port 10809            who has it, since when, and where it is free
      clusterports status --watch --state held
    """
    number, protocol = parse_port(port) if port is not None else (None, None)
    wanted = Wanted(range, owner, state, common.instance, number, protocol)
    pause = parse_interval(interval, watch)
    settings = common.settings()
    store = redact_url(settings.url or "")
    if range is not None:
        from clusterports._requests import Ranges

        Ranges(settings.port_ranges().values()).check(range)

    from clusterports import PortAllocator

    with common.backend(settings) as backend, PortAllocator(settings=settings, backend=backend) as ports:

        def look() -> ClusterStatus:
            # Whether a number is free, its other ranges say too.
            return ports.status(host=common.host, range=range if number is None else None)

        def lines(cluster: ClusterStatus, width: int | None) -> list[str]:
            how = Look(width, colored(), common.verbose)
            return list(report(cluster, wanted, how, store=store, host=common.host))

        if watch:
            from . import _watch

            title = f"{store}, every {pause:g} s"
            view = _watch.Screen(lines, title) if _watch.on_screen() else _watch.Plain(lines, title)
            if common.json:
                view = _watch.JsonLines(lambda cluster: wanted.of(cluster).to_dict())
            _watch.follow(look, view, pause)
        cluster = look()
    if common.json:
        common.print_json(wanted.of(cluster).to_dict())
    else:
        page(lines(cluster, common.width))
    say_unreadable(cluster)


def parse_port(text: str) -> tuple[int, Protocol4 | None]:
    """Of ``N`` or ``N/PROTOCOL``.

    :raises ConfigurationError: it is neither.
    """
    from clusterports.abc import Protocol4

    digits, slash, protocol = text.partition("/")
    known = get_args(Protocol4)
    if digits.isascii() and digits.isdecimal() and len(digits) <= 5 and 1 <= int(digits) <= MAX_PORT:
        if not slash:
            return int(digits), None
        if protocol in known:
            return int(digits), cast("Protocol4", protocol)
    raise ConfigurationError(
        f"port: must be a number from 1 to {MAX_PORT}, alone or with /{', /'.join(known)} after it; got {show(text)}"
    )


def parse_interval(text: str | None, watch: bool) -> float:
    """In seconds.

    :raises ConfigurationError: it is none that can be, or there is no use for it.
    """
    if text is None:
        return 2.0
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.2 <= seconds <= 3600:
        raise ConfigurationError(f"interval: must be a number of seconds from 0.2 to 3600, got {show(text)}")
    if not watch:
        raise ConfigurationError(f"interval: is of use with --watch only, got {show(text)}")
    return seconds


def say_unreadable(cluster: ClusterStatus) -> None:
    """An error line for each host of which nothing is known; then the command ends with code 5."""
    for one in cluster.unreadable:
        where = f"host {show(one.host)}" if one.host else "the whole cluster's ports"
        say(f"{where}: cannot be read: {one.error}")
    if cluster.unreadable:
        raise typer.Exit(UNREADABLE)


def report(cluster: ClusterStatus, wanted: Wanted, look: Look, *, store: str, host: str | None = None) -> Iterator[str]:
    """All that people are shown, line by line. ``host``: the one that was asked for."""
    width, color = look.width, look.color
    shown = wanted.of(cluster)
    if wanted.number is not None:
        if lines := list(port_lines(shown, fold=False)):
            yield from (*port_table(ONE_PORT, lines, look, cluster.generated_at), "")
        yield from (clip(printable(fact), width) for fact in port_facts(cluster, wanted.number, wanted.protocol))
        return
    if recovering := [(one.host or CLUSTER, f"{one.recovering:.1f}s") for one in cluster.hosts if one.recovering]:
        yield clip("The store lost data: nothing is given out there until holders had time to claim theirs.", width)
        yield from (*table(RECOVERING, recovering, width, color), "")
    if any(one.ports or one.leases or one.waiting for one in cluster.hosts):
        yield from table(*lean(RANGES, list(range_rows(shown))), width, color)
    else:
        where = f" on host {show(host)}" if host is not None else ""
        where += ", as far as can be read" if cluster.unreadable else ""
        yield clip(printable(f"Nothing is held{where}, and no port is cooling (store: {store})."), width)
    if rules := [(one.name, rule) for one in cluster.ranges for rule in range_rules(one)]:
        yield from ("", *table(RULES, rules, width, color))
    if lines := list(port_lines(shown, fold=width is not None and not look.unfold)):
        yield ""
        if width is None:
            yield from port_table(PORTS, lines, look, cluster.generated_at)
        else:
            yield from _under_hosts(port_table(ON_SCREEN, lines, look, cluster.generated_at), lines, look)
    elif any(one.ports for one in cluster.hosts):
        yield from ("", clip("No port is as asked for.", width))
    if waiting := [(one.host or CLUSTER, one.waiting) for one in cluster.hosts if one.waiting]:
        yield from ("", *table(WAITING, waiting, width, color))


def range_rows(cluster: ClusterStatus) -> Iterator[Row]:
    """Each range, over all hosts that are shown."""
    for one in cluster.ranges:
        held, cooling, foreign, excluded, free = (
            sum(map(attrgetter(count), one.hosts)) for count in ("held", "cooling", "foreign", "excluded", "free")
        )
        if one.scope == "cluster" and not (one.hosts or cluster.unreadable):  # nobody has used it yet
            excluded = sum(last - first + 1 for first, last in one.exclude)
            free = one.size - excluded
        where = len(one.hosts) if one.scope == "host" else "cluster"
        yield one.name, f"{one.first}-{one.last}", where, held, cooling, foreign, excluded, free


def range_rules(one: RangeStatus) -> Iterator[str]:
    """What explains why a port that looks free is not given, or why one is taken that should not be."""
    if one.limit is not None:
        yield f"at most {one.limit} per owner" + (" on each host" if one.scope == "host" else "")
    if one.static_band:
        free = f", {sum(host.band_free for host in one.hosts)} free" if one.hosts else ""
        yield f"static band {one.first}-{one.first + one.static_band - 1}{free}"
    if one.exclude:
        yield f"never {spans_text(one.exclude)}"[:LONGEST]
    if outside := sum(host.outside for host in one.hosts):
        yield f"taken, but no longer part of it: {outside}"


# ------------------------------------------------------------------ ports


class Line(NamedTuple):
    """A port, or a run of them up to ``last``: then ``port`` is the first, with what is least of all of them."""

    port: PortStatus
    last: int
    left: str
    note: str


def port_lines(cluster: ClusterStatus, fold: bool) -> Iterator[Line]:
    """The ports by the host on which they are bound, and by range."""
    ranges = {one.name: one for one in cluster.ranges}
    lines = []
    for host in cluster.hosts:
        left = {lease.lease: _left(lease) for lease in host.leases}
        for port in host.ports:
            own = "" if host.host and not port.outside else note(host, port, ranges.get(port.range or ""))
            lines.append(Line(port, port.number, left.get(port.lease, "-") if port.free_in is None else "", own))
    lines.sort(key=lambda line: (line.port.host, line.port.range or "", line.port.number, line.port.protocol))
    for line in _runs(lines) if fold else lines:
        yield line if line.left else line._replace(left=span(line.port.free_in))


def _left(lease: LeaseStatus) -> str:
    if lease.grace:
        return "grace"
    return span(lease.expires_in) if lease.state == "live" else "expired"


def _runs(lines: Iterable[Line]) -> Iterator[Line]:
    run: Line | None = None
    for line in lines:
        if run is None:
            run = line
        elif line.port.number == run.last + 1 and _alike(line) == _alike(run):
            a, b = run.port, line.port
            free_in = None if a.free_in is None or b.free_in is None else min(a.free_in, b.free_in)
            port = a._replace(since=min(a.since, b.since), fence=min(a.fence, b.fence), free_in=free_in)
            run = run._replace(port=port, last=line.last)
        else:
            yield run
            run = line
    if run is not None:
        yield run


def _alike(line: Line) -> tuple[object, ...]:
    one = line.port
    return one.host, one.range, one.protocol, one.state, one.owner, one.labels, one.instance, one.lease, line.note


def port_table(columns: Sequence[Column], lines: Sequence[Line], look: Look, now: datetime) -> list[str]:
    """A row for each line."""
    cells: dict[str, Callable[[Line], object]] = {
        "HOST": lambda line: line.port.host or CLUSTER,
        "RANGE": lambda line: line.port.range or "-",  # so that every row has as many words
        "PORT": _numbers,
        "STATE": lambda line: line.port.state,
        "OWNER": lambda line: line.port.owner[:LONGEST] or "-",
        "INSTANCE": lambda line: line.port.instance,
        "FENCE": lambda line: line.port.fence,
        "SINCE": lambda line: f"{line.port.since:%Y-%m-%d %H:%M:%S}Z",
        "AGE": lambda line: span((now - line.port.since).total_seconds()),
        "LEFT": lambda line: line.left,
        "NOTE": lambda line: line.note,
    }
    rows = list(zip(*(map(cells[column.title], lines) for column in columns), strict=True))
    return table(*lean(columns, rows), look.width, look.color)


def _numbers(line: Line) -> str:
    first, protocol = line.port[:2]
    return f"{first}/{protocol}" if first == line.last else f"{first}-{line.last}/{protocol}"


def _under_hosts(rows: Sequence[str], lines: Sequence[Line], look: Look) -> Iterator[str]:
    """The rows of the table, with a heading above those of each host."""
    titles, *rest = rows
    yield titles
    left = iter(rest)
    for i, (host, group) in enumerate(groupby(lines, key=lambda line: line.port.host)):
        counts = Counter[str]()
        part = []
        for line in group:
            counts[line.port.state] += line.last - line.port.number + 1
            part.append(next(left))
        told = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
        if i:
            yield ""
        yield paint(clip(printable(f"{host or CLUSTER}: {told}"), look.width), BOLD, look.color)
        yield from part


def note(host: HostStatus, port: PortStatus, one: RangeStatus | None) -> str:
    """Where else the number is taken, and why its range would not give it any more."""
    scope = "host" if host.host else "cluster"
    notes = []
    if port.outside and one is not None:
        if one.scope != scope:
            notes.append(f"scope is now {one.scope}")
        elif one.first <= port.number <= one.last:
            notes.append("now excluded")
        else:
            notes.append(f"outside {one.first}-{one.last}")
    if scope == "cluster":
        notes.append("cluster-wide")
    return ", ".join(notes)


# ------------------------------------------------------------------ one number


def port_facts(cluster: ClusterStatus, number: int, protocol: Protocol4 | None) -> Iterator[str]:
    """Where this number is free, or when it will be, and which ranges have it. Short, for a narrow screen."""
    name = f"Port {number}" if protocol is None else f"Port {number}/{protocol}"
    ranges = [one for one in cluster.ranges if one.first <= number <= one.last]
    taken = list(port_lines(Wanted(number=number, protocol=protocol).of(cluster), fold=False))
    if any(one.scope == "cluster" for one in ranges):
        if any(not one.host for one in cluster.unreadable):
            yield f"{name} is cluster-wide: not known."
        else:
            yield f"{name} is {'taken' if taken else 'free'}, cluster-wide."
            if taken:
                yield _next_free(taken)
    else:
        busy = {line.port.host for line in taken}
        hosts = [host.host for host in cluster.hosts if host.host]
        free = [host for host in hosts if host not in busy]
        if hosts or cluster.unreadable:
            yield f"{name} is free on {len(free)} of {len(hosts)} host{'s'[: len(hosts) != 1]}."
        else:
            yield f"{name} is free: none taken yet."
        if taken and free:
            more = f" and {len(free) - NAMED} more" if len(free) > NAMED else ""
            yield f"Free on {', '.join(free[:NAMED])}{more}."
        elif taken:
            yield _next_free(taken)
        if cluster.unreadable:
            yield f"{len(cluster.unreadable)} more cannot be read."
    for one in ranges:
        excluded = any(first <= number <= last for first, last in one.exclude)
        yield f"Range {one.name} ({one.first}-{one.last}) {'excludes' if excluded else 'has'} it."
    if not ranges:
        yield "No range has it."


def _next_free(taken: Iterable[Line]) -> str:
    """When the first host will have it."""
    waits: dict[str, float] = {}
    for line in taken:
        free_in = line.port.free_in
        waits[line.port.host] = max(waits.get(line.port.host, 0.0), inf if free_in is None else free_in)
    host, wait = min(waits.items(), key=itemgetter(1))
    if wait < inf:
        return f"Free again in {span(wait)} on {host or CLUSTER}."
    return "Held until given back or the lease ends."


def span(seconds: float | None) -> str:
    """A span of time in few characters: ``28.1s``, ``4m05s``, ``3h12m``, ``2d07h``; ``-`` when it is unknown."""
    if seconds is None:
        return "-"
    if seconds <= 0:
        return "0s"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d{hour:02}h"
    return f"{hours}h{minute:02}m" if hours else f"{minute}m{second:02}s"
