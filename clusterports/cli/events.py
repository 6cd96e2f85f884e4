"""``clusterports events``: the story of a port."""

from __future__ import annotations

import logging
import re
import sys
from datetime import UTC, datetime, timedelta
from time import sleep
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import typer

from clusterports._text import printable, redact_url, show
from clusterports.abc import Capability
from clusterports.errors import BackendUnavailable, ConfigurationError

from ._common import CLUSTER, Common, as_json, complete_range, log_to_stderr, say
from ._pager import page
from ._table import DIM, GREEN, RED, YELLOW, cells, clip, colored, paint
from .status import UNREADABLE, owned_by, parse_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import date
    from typing import NoReturn

    from clusterports._sync.events import EventLog
    from clusterports.events import PortEvent

    Test: TypeAlias = Callable[[PortEvent], bool]

__all__ = ["Story", "events", "parse_since"]

PAUSE: Final = 1.0
"""Seconds between two looks of those who follow."""

NAME: Final = 24
"""Cells of a name that a line keeps on a screen that is too narrow for all."""

STYLES: Final = {
    "acquired": GREEN,
    "expired": RED,
    "reclaimed": DIM,
    "foreign": YELLOW,
    "refused": YELLOW,
    "recovered": GREEN,
    "forced": RED,
}
WORDS: Final = {
    "acquired": "by {who}",
    "released": "by {who}",
    "expired": "lease of {who} ended; cools",
    "reclaimed": "free again after {who}",
    "foreign": "something outside has it, as {who} found",
    "refused": "no port for {who}",
    "recovered": "claimed by {who} after the store lost it",
    "forced": "taken from {who}",
}
KIND: Final = max(map(len, WORDS))
UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def events(
    common: Common,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what happens, until Ctrl-C.")] = False,
    port: Annotated[str | None, typer.Option(metavar="N[/PROTOCOL]", help="Of this number only.")] = None,
    owner: Annotated[
        str | None, typer.Option(metavar="OWNER", help="Of this owner only; * stands for any characters.")
    ] = None,
    range: Annotated[str | None, typer.Option(help="Of this range only.", autocompletion=complete_range)] = None,
    since: Annotated[
        str | None, typer.Option(metavar="WHEN", help="Not before 30s, 10m, 2h, 3d or 1w ago, or a time of ISO 8601.")
    ] = None,
    limit: Annotated[str, typer.Option(metavar="N", help="The last so many only, 1 to 1000000.")] = "1000",
) -> None:
    """Tell what happened to ports, oldest first: who took which, and what became of it.

    Each line is a time (of this machine's zone, with the date unless it is today), a host, a port and what happened to
    it: acquired, released; expired, when the lease of a dead holder ran out; reclaimed, when it is free again; foreign,
    when something else was found on it; refused, when nothing was free; recovered, when its holder claimed it after the
    store lost data; forced, when an operator took it. The same refusal within a minute is told once.

    Each host's log is short, 500 events unless the setting "events" says otherwise. --follow --json prints an event per
    line. Exits with 5 when a host's log cannot be read, and shows the others.

    \b
    Examples:
      clusterports events --host kvm-07 --port 10809
      clusterports events --owner 'vm-*' --since 2h
      clusterports events --follow --json
    """
    from clusterports.events import EventFilter, check_limit

    now = datetime.now(UTC)
    number, protocol = parse_port(port) if port is not None else (None, None)
    begin = parse_since(since, now) if since is not None else None
    most = check_limit(int(limit) if re.fullmatch("[0-9]{1,9}", limit) else limit)  # type: ignore[arg-type]
    tests: list[Test] = []
    if protocol is not None and protocol != "both":
        tests.append(lambda event: event.protocol in (protocol, "both"))
    if owner is not None and "*" in owner:
        fits, owner = owned_by(owner), None
        tests.append(lambda event: fits(event.owner))
    if common.instance is not None:
        tests.append(lambda event: event.instance == common.instance)
    settings = common.settings()
    if range is not None:
        from clusterports._requests import Ranges

        Ranges(settings.port_ranges().values()).check(range)
    if not common.quiet and not common.verbose:
        log_to_stderr(logging.WARNING)

    from clusterports._sync.events import EventLog

    wanted = EventFilter(common.host, range, number, owner, begin, _all_of(tests) if tests else None)
    with common.backend(settings) as backend:
        store = redact_url(settings.url or "")
        kept = Capability.EVENTS in backend.capabilities
        if follow and not kept:
            raise ConfigurationError(f"follow: a store of this kind keeps no events ({store})")
        log = EventLog(backend, wanted, most)
        found = log.read()
        if not found:
            common.warn(
                f"No event is as asked for (store: {store})." if kept else f"The store keeps no events: {store}"
            )
        story = Story(colored(), None if common.verbose else common.width)
        if follow:
            _follow(log, found, story, as_lines=common.json)
    if common.json:
        common.print_json({"events": [event.to_dict() for event in found]})
    elif found:
        page(list(story.lines(found, now)))
    if not log.is_whole:
        raise typer.Exit(UNREADABLE)


def _all_of(tests: Iterable[Test]) -> Test:
    return lambda event: all(test(event) for test in tests)


def _follow(log: EventLog, found: list[PortEvent], story: Story, *, as_lines: bool) -> NoReturn:
    """Until Ctrl-C, which ends it with 130. A store that is away may come back."""
    problem = ""
    try:
        while True:
            if as_lines:
                lines = [as_json(event.to_dict(), separators=(",", ":")) for event in found]
            else:
                lines = list(story.lines(found, datetime.now(UTC)))
            if lines:
                print(*lines, sep="\n", flush=True)
            sleep(PAUSE)
            found = []
            try:
                found, problem = log.read(), ""
            except BackendUnavailable as error:
                if not problem:
                    problem = str(error)
                    say(problem)
    except KeyboardInterrupt:
        sys.exit(130)


def parse_since(text: str, now: datetime) -> datetime:
    """A time that was so long ago, or is written out; without a zone it is in that of this machine.

    :raises ConfigurationError: it is neither.
    """
    try:
        if found := re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]+)?)([smhdw])", text):
            return now - timedelta(seconds=float(found[1]) * UNITS[found[2]])
        return datetime.fromisoformat(text).astimezone()
    except (OverflowError, ValueError):
        raise ConfigurationError(
            "since: must be how long ago, such as 30s, 10m, 2h, 3d or 1w, or a time of ISO 8601, such as"
            f" 2026-03-01T14:30 or 2026-03-01T14:30:00+01:00; got {show(text)}"
        ) from None


class Story:
    """Events as lines, in columns as wide as what came so far. ``width``: of the screen, None: any."""

    def __init__(self, color: bool = False, width: int | None = None) -> None:
        self._color = color
        self._width = width
        self._widths = [0] * 3

    def lines(self, events: Iterable[PortEvent], now: datetime) -> Iterator[str]:
        """``now``: what is of today needs no date."""
        today = now.astimezone().date()
        told = [(event, _head(event, today)) for event in events]
        for _, head in told:
            self._widths = [max(size, cells(text)) for size, text in zip(self._widths, head, strict=True)]
        for event, (at, *rest) in told:
            texts = [" " * (self._widths[0] - len(at)) + at]
            texts += [text + " " * (size - cells(text)) for size, text in zip(self._widths[1:], rest, strict=True)]
            yield self._line(event, "  ".join([*texts, ""]))

    def _line(self, event: PortEvent, head: str) -> str:
        """On a narrow screen the fence goes first, then the range, the rest of long names, and the end."""
        kind = f"{event.kind:<{KIND}}  "
        words = WORDS[event.kind]
        room = None if self._width is None else self._width - cells(head) - len(kind)
        tale = words.format(who=_who(event, None))
        if room is not None and cells(tale) > room:
            tale = words.format(who=_who(event, NAME))
        for more in (printable(event.range or ""), f"fence {event.fence}" if event.fence else ""):
            if more and (room is None or cells(tale) + 2 + cells(more) <= room):
                tale += f"  {more}"
        if room is not None and cells(tale) > room:
            return clip(f"{head}{kind}{tale}", self._width)
        return head + paint(kind, STYLES.get(event.kind), self._color) + tale


def _head(event: PortEvent, today: date) -> tuple[str, str, str]:
    """Time, host and port, all printable."""
    at = event.at.astimezone()
    number = "-" if event.number is None else event.number
    return (
        f"{at:%H:%M:%S}" if at.date() == today else f"{at:%Y-%m-%d %H:%M:%S}",
        printable(event.host or CLUSTER),
        f"{number}/{event.protocol}",
    )


def _who(event: PortEvent, most: int | None) -> str:
    """The owner and the instance, or the one of them that there is."""
    owner, instance = (clip(printable(name), most) for name in (event.owner, event.instance))
    return f"{owner} ({instance})" if owner and instance else owner or instance
