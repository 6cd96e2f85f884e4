"""``clusterports ranges``: the ranges as configured, value by value, and where each value was set."""

from __future__ import annotations

from itertools import combinations
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from clusterports._requests import Ranges
from clusterports._text import printable
from clusterports.ranges import MAX_PORT, spans_text, without

from ._common import Common, complete_range
from ._table import Column, clip, colored, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from clusterports.ranges import PortRange, Span
    from clusterports.settings import Origin, Settings

__all__ = ["Overlap", "overlaps", "ranges"]

KEYS = ("first", "last", "scope", "strategy", "exclude", "static_band", "cooldown", "quarantine", "limit")

COLUMNS = (Column("RANGE", least=8), Column("KEY"), Column("VALUE", least=8), Column("FROM", least=8))

LONGEST = 200
"""Characters of a value that the table shows; all of it is in the JSON."""


class Overlap(NamedTuple):
    """Two ranges of one scope, and the numbers that both may give."""

    one: PortRange
    other: PortRange
    shared: tuple[Span, ...]


def ranges(
    common: Common,
    range: Annotated[
        str | None, typer.Argument(metavar="RANGE", help="This one only.", autocompletion=complete_range)
    ] = None,
) -> None:
    """Show the ranges, each of their values, and where it was set.

    FROM is "default", an environment variable, or a file and the line in it: clusterports.toml, or libvirt's
    qemu.conf if libvirt_conf names it. Arguments beat variables, these beat files, and files beat defaults, key by key.
    No store is contacted.

    \b
    Examples:
      clusterports ranges
      clusterports ranges backup --json
      CLUSTERPORTS_LIBVIRT_CONF=/etc/libvirt/qemu.conf clusterports ranges
    """
    from clusterports.settings import Settings

    # Not common.settings(): that wants a store as well, and there need not be one to look at ranges.
    settings = Settings.load(common.config, url=common.url, host=common.host, instance=common.instance)
    spans = settings.port_ranges()
    if range is not None:
        Ranges(spans.values()).check(range)
    shown = [span for name, span in spans.items() if range in (None, name)]
    both = [found for found in overlaps(spans.values()) if range in (None, found.one.name, found.other.name)]
    if common.json:
        common.print_json(document(settings, shown, both))
    else:
        lines = table(COLUMNS, list(rows(settings, shown)), common.width, colored())
        print(*lines, *notes(settings, both, common.width), sep="\n")


def overlaps(spans: Iterable[PortRange]) -> Iterator[Overlap]:
    """Each pair of ranges of one scope that have numbers in common; excluded ones do not count."""
    gaps = [(span, without(((span.first, span.last),), span.exclude)) for span in spans]
    for (one, mine), (other, theirs) in combinations(gaps, 2):
        if one.scope == other.scope:
            shared = without(mine, without(((1, MAX_PORT),), theirs))
            if shared:
                yield Overlap(one, other, shared)


def rows(settings: Settings, shown: Iterable[PortRange]) -> Iterator[Sequence[object]]:
    """For the table; a range is named in its first row."""
    origins = settings.origins()
    for span in shown:
        for key in KEYS:
            name = span.name if key == KEYS[0] else ""
            yield name, key, value_text(key, getattr(span, key))[:LONGEST], origins[f"ranges.{span.name}.{key}"]


def value_text(key: str, value: Any) -> str:
    """A value as people read it."""
    if key == "exclude":
        return spans_text(value) or "none"
    if value is None:
        return "none"
    return f"{value:g} s" if key in ("cooldown", "quarantine") else str(value)


def notes(settings: Settings, both: Sequence[Overlap], width: int | None) -> Iterator[str]:
    """What stands below the table: what was read, and which ranges take numbers from each other."""
    texts = [f"Note: {a.name} and {b.name} share {spans_text(shared)[:LONGEST]}" for a, b, shared in both]
    if both:
        texts.append("A number is never given twice: what one range has given is not free in the other.")
    if texts or settings.files():
        yield ""
    for path in settings.files():
        yield clip(f"Read: {printable(path)}", width)
    for text in texts:
        yield from wrap(text, width, subsequent_indent="  " if width > 2 else "") if width else [text]


def document(settings: Settings, shown: Iterable[PortRange], both: Iterable[Overlap]) -> dict[str, Any]:
    """The layout of ``ranges --json``."""
    origins = settings.origins()
    return {
        "ranges": [
            {
                "name": span.name,
                "first": span.first,
                "last": span.last,
                "size": span.size,
                "scope": span.scope,
                "strategy": span.strategy,
                "exclude": [list(pair) for pair in span.exclude],
                "static_band": span.static_band,
                "cooldown_s": span.cooldown,
                "quarantine_s": span.quarantine,
                "limit": span.limit,
                "origins": {key: _origin(origins[f"ranges.{span.name}.{key}"]) for key in KEYS},
            }
            for span in shown
        ],
        "overlaps": [
            {"ranges": [a.name, b.name], "scope": a.scope, "shared": [list(span) for span in shared]}
            for a, b, shared in both
        ],
        "files": list(settings.files()),
    }


def _origin(origin: Origin) -> dict[str, object]:
    return {"kind": origin.kind, "where": origin.where, "line": origin.line}
