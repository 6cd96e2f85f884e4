"""``clusterports doctor``: what is wrong with the store, the ranges and this host, and how to cure it."""

from __future__ import annotations

from itertools import combinations
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated

import typer

from clusterports._requests import Ranges
from clusterports._text import printable, redact_url
from clusterports.abc import Finding
from clusterports.errors import ConfigurationError
from clusterports.probe import ephemeral_overlap, probe

from ._common import Common
from ._table import GREEN, RED, YELLOW, colored, paint
from .ranges import overlaps

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from clusterports.ranges import PortRange
    from clusterports.settings import Settings

__all__ = ["doctor"]

COLORS = {"ok": GREEN, "warning": YELLOW, "error": RED}

STORE = "store"
"""The check that says whether the store can be reached; without it nothing else can be said of it."""

SETTINGS = "settings"
"""The check that is there only when it fails: what is configured can never work."""


def doctor(
    common: Common,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended without a loss.")] = False,
) -> None:
    """Find out what is wrong with the store, the ranges and this host, and how to cure it.

    Each line is ok, warning or error. Exits with 2 when the settings are wrong, with 5 when the store cannot be
    reached, with 1 when there is another error, else with 0.

    \b
    Examples:
      clusterports doctor
      clusterports doctor --json | jq '.findings[] | select(.level != "ok")'
    """
    findings: list[Finding] = []
    checks = _checks(common, repair)
    while True:
        with common.busy("looking"):
            finding = next(checks, None)
        if finding is None:
            break
        findings.append(finding)
        if not common.json and not (common.quiet and finding.level == "ok"):
            print(*_lines(finding, common), sep="\n", flush=True)
    if common.json:
        common.print_json({"findings": [finding._asdict() for finding in findings]})
    errors = [finding.check for finding in findings if finding.level == "error" and not finding.mended]
    if errors:
        raise typer.Exit(2 if SETTINGS in errors else 5 if STORE in errors else 1)


def _lines(finding: Finding, common: Common) -> Iterator[str]:
    """The finding, kept within the width; what it says of a cure stands below it."""
    level, indent = finding.level, " " * 9
    text = f"{finding.check}: {finding.text}" + (" (mended)" if finding.mended else "")
    width = max(common.width or 10_000, 20)
    first, *more = wrap(printable(text), width, initial_indent=indent, subsequent_indent=indent) or [indent]
    yield paint(level, COLORS[level], colored()) + " " * (len(indent) - len(level)) + first[len(indent) :]
    yield from more
    if finding.cure:
        yield from wrap(printable(finding.cure), width, initial_indent=f"{indent}> ", subsequent_indent=f"{indent}  ")


def _checks(common: Common, repair: bool) -> Iterator[Finding]:
    try:
        settings = common.settings()
        yield from _configuration(settings)
        with common.backend(settings) as backend:
            yield Finding("url", "ok", redact_url(settings.url or ""))
            yield from backend.diagnose(repair=repair)
    except ConfigurationError as error:
        cure = "correct what is named here, and run this again: what follows from it was not looked at"
        yield Finding(SETTINGS, "error", str(error), cure)


def _configuration(settings: Settings) -> Iterator[Finding]:
    ranges, origins = settings.port_ranges(), settings.origins()
    own = [
        name for name in ranges if any(origins[f"ranges.{name}.{key}"].kind != "default" for key in ("first", "last"))
    ]
    yield from _ranges(ranges, own)
    yield from _ephemeral(ranges.values(), own)
    yield from _binds(ranges.values())


def _ranges(ranges: Mapping[str, PortRange], own: Sequence[str]) -> Iterator[Finding]:
    """Ranges that share numbers. None is ever given twice, so this is about how many are left for whom.

    ``own``: not the defaults, which span nearly everything and are of no matter while nobody uses them.
    """
    known, poor = Ranges(ranges.values()), 0
    for one, other in combinations(ranges.values(), 2):
        first, last = max(one.first, other.first), min(one.last, other.last)
        if first > last or one.scope == other.scope:
            continue
        cluster, host = (one, other) if one.scope == "cluster" else (other, one)
        if host.name in own:
            poor += 1
            text = (
                f"{host.name} does not give {first}-{last}, which belong to {cluster.name}, whose scope is the cluster"
            )
            yield Finding("ranges", "warning", text, f"move one of them, or shorten ranges.{host.name}")
    for name, span in ranges.items():
        if not known.size(name):
            poor += 1
            text = f"{name} ({span.first}-{span.last}) has no port to give"
            yield Finding("ranges", "error", text, f"widen ranges.{name}")
    text = ", ".join(f"{span.name} {span.first}-{span.last}" for span in ranges.values()) or "none"
    shared = [f"{one.name} and {other.name}" for one, other, _ in overlaps(ranges.values())]
    if shared:
        text += f"; these share numbers, each of which is given to one job only: {', '.join(shared)}"
    if not poor:
        yield Finding("ranges", "ok", text)


def _ephemeral(spans: Collection[PortRange], own: Sequence[str]) -> Iterator[Finding]:
    """What the kernel may take. Of the defaults that is said, but is no warning: they may be of no matter here."""
    check = "ephemeral ports"
    overlaps = [(span, overlap) for span in spans if (overlap := ephemeral_overlap(span.first, span.last))]
    for span, overlap in overlaps:
        if span.name not in own:
            continue
        text = f"the kernel gives {overlap.ports} of {span.name} to outgoing connections ({overlap.ephemeral})"
        cure = f"reserve them: {overlap.sysctl}" if overlap.sysctl else f"move ranges.{span.name} out of that span"
        yield Finding(check, "warning", text, cure)
    names = [span.name for span, _ in overlaps]
    if not set(names) & set(own):
        free, said = [span.name for span in spans if span.name not in names], []
        if free:
            said.append(f"the kernel gives no port of {_listed(free, 'or')} to outgoing connections")
        if names:
            verb = "overlaps" if len(names) == 1 else "overlap"
            said.append(
                f"of libvirt's default ranges, {_listed(names, 'and')} {verb} {overlaps[0][1].ephemeral}, "
                "which matters where they are used"
            )
        yield Finding(check, "ok", "; ".join(said))


def _listed(names: Sequence[str], last: str) -> str:
    return f" {last} ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _binds(spans: Collection[PortRange]) -> Iterator[Finding]:
    """Whether this user may bind the ports on this host. The lowest tells: privileged ports are the first ones."""
    check, refused = "bind", []
    for span in spans:
        verdict = probe(span.first, "tcp")
        if verdict.state == "error":
            refused.append(span.name)
            cure = f"allow it (CAP_NET_BIND_SERVICE), or move ranges.{span.name} to ports from 1024 on"
            yield Finding(check, "warning", f"this user cannot bind {verdict.reason}, the first of {span.name}", cure)
    if not refused:
        yield Finding(check, "ok", "this user may bind the first port of each range")
