"""What ``clusterports demo`` shows: on a terminal a live table under the story, otherwise a line for each change."""

from __future__ import annotations

import sys
from textwrap import wrap
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from clusterports._text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    from ._demo_judge import Promise

__all__ = ["Row", "Screen"]

WIDTH = 80
BAR = 10
COLUMNS = {"HOST": 6, "MANAGER": 13, "LEASE": BAR + 6, "PORT": 5, "OWNER": 5, "STATE": 13, "FENCE": 16}
"""Their widths, which do not change with what they show; together with the gaps, 80."""


class Row(NamedTuple):
    """A port that is not free, or a lease without ports (``number`` is None).

    ``left``: seconds, of the lease, or of the cooling; ``whole``: what ``left`` counts down from.
    """

    host: str
    manager: str
    number: int | None
    state: str
    owner: str
    fence: int
    left: float
    whole: float


class Screen:
    """A context manager. ``dead``: the managers that were killed. ``silent``: it shows nothing."""

    def __init__(self, *, silent: bool = False) -> None:
        terminal = sys.stdout.isatty() and not silent
        self._console = Console(
            force_terminal=terminal,
            width=None if terminal else WIDTH,
            highlight=False,
            markup=False,
            emoji=False,
            quiet=silent,
        )
        unicode = self._console.encoding.lower().startswith("utf")
        self._full, self._empty, self._dash = ("█", "░", "—") if unicode else ("#", ".", "-")
        self._yes, self._no = ("✓", "✗") if unicode else ("ok", "NOT KEPT")
        self._began = monotonic()
        self._seen: dict[tuple[str, int], Row] = {}
        self._leases: set[tuple[str, str]] = set()
        self._live = (
            Live(console=self._console, auto_refresh=False, transient=True)
            if terminal and not self._console.is_dumb_terminal
            else None
        )
        self.dead: set[str] = set()

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str, *, style: str = "bold") -> None:
        """A sentence of the story."""
        time = f"{monotonic() - self._began:5.1f} s  "
        self._lines(printable(text), time, " " * len(time), style)

    def show(self, rows: Sequence[Row]) -> None:
        """How things stand now."""
        if self._live is not None:
            self._live.update(Group(Text(), self._table(rows), Text()) if rows else Text(), refresh=True)
            return
        leases = {(row.host, row.manager) for row in rows if row.state != "cooling"}
        for host, manager in sorted(self._leases - leases):
            if manager in self.dead:
                self.say(f"{host}  the lease of {manager} has run out", style="")
        self._leases = leases
        ports = {(row.host, row.number): row for row in rows if row.number is not None}
        for key, row in ports.items():
            before = self._seen.get(key)
            if before is None or (before.state, before.fence) != (row.state, row.fence):
                left = f", {row.left:.1f} s to go" if row.state == "cooling" else f" by {row.manager} for {row.owner}"
                self.say(f"{row.host}  {row.number} {row.state}{left}, fence {row.fence}", style="")
        for host, number in sorted(self._seen.keys() - ports.keys()):
            self.say(f"{host}  {number} free", style="")
        self._seen = ports

    def judged(self, promises: Sequence[Promise]) -> None:
        """What was promised, and what was measured."""
        self._console.print()
        for promise in promises:
            mark, style = (self._yes, "green") if promise.kept else (self._no, "bold red")
            indent = " " * (len(mark) + 1)
            self._lines(promise.text, f"{mark} ", indent, style)
            self._lines(printable(promise.figure), indent + "  ", indent + "  ", "")

    def note(self, text: str = "") -> None:
        """A line as it is."""
        self._console.print(Text(text), soft_wrap=True)

    def _lines(self, text: str, first: str, rest: str, style: str) -> None:
        width = min(WIDTH, self._console.width)
        for line in wrap(text, width, initial_indent=first, subsequent_indent=rest):
            self._console.print(Text(line, style=style), soft_wrap=True)

    def _table(self, rows: Sequence[Row]) -> Table:
        table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", pad_edge=False)
        for title, width in COLUMNS.items():
            table.add_column(title, no_wrap=True, width=width)
        above: Row | None = None
        for row in rows:
            cooling = row.state == "cooling"
            same = above is not None and (above.host, above.manager) == (row.host, row.manager)
            dead = row.manager in self.dead
            style = "yellow" if cooling else "red" if dead else "green"
            clock = Text(self._bar(row), style=style)
            table.add_row(
                "" if above is not None and above.host == row.host else row.host,
                "" if same else Text(f"{row.manager} killed" if dead else row.manager, style="red" if dead else ""),
                (Text("ran out", style="dim") if not same else Text()) if cooling else Text() if same else clock,
                self._dash if row.number is None else str(row.number),
                row.owner,
                Text(f"cooling {row.left:.1f} s" if cooling else row.state, style=style),
                str(row.fence or ""),
            )
            above = row
        return table

    def _bar(self, row: Row) -> str:
        full = max(0, min(BAR, round(BAR * row.left / row.whole)))
        return f"{self._full * full}{self._empty * (BAR - full)} {max(0.0, row.left):.1f} s"
