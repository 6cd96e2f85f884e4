#!/usr/bin/env python3
"""Draws for the README what ``clusterports status`` shows, or with ``--check`` says whether that was done.

The lines are those of the command itself, with its colours; the cluster and the time are made up. It is not drawn by a
library, whose next release would draw it a little differently.
"""

from __future__ import annotations

import argparse
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from clusterports.abc import LeaseView, PortView, SpaceView
from clusterports.cli import _table
from clusterports.cli.status import EVERYTHING, Look, report
from clusterports.ranges import LIBVIRT_RANGES
from clusterports.status import ClusterStatus

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / ".github/status.svg"

COLUMNS = 80
CELL, LINE, MARGIN, BAR = 8, 19, 18, 34  # pixels: a cell's width, a line's height, the space around, the window's bar
COLORS = {
    _table.BOLD: "#ffffff; font-weight: 600",
    _table.DIM: "#8b949e",
    _table.RED: "#ff7b72",
    _table.GREEN: "#56d364",
    _table.YELLOW: "#e3b341",
}
BUTTONS = ("#ff5f57", "#febc2e", "#28c840")
FONT = (
    "text { font: 13.3px ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace; fill: #c9d1d9; }"
)

SECOND = 1_000_000
FENCE = 1_795_389_040_072_471


def lease(number: int, instance: str, expires_in: float) -> LeaseView:
    return LeaseView(number, instance, 1, 30 * SECOND, round(expires_in * SECOND))


def port(number: int, owner: str, instance: str, lease: int, age: float, **other: Any) -> PortView:
    # fences begin as microseconds, and so does the time in this example
    view = PortView(
        number,
        "tcp",
        "held",
        "backup",
        owner,
        {},
        instance,
        lease,
        FENCE - round(age * SECOND),
        round(age * SECOND),
        None,
    )
    return view._replace(**other)


def example() -> ClusterStatus:
    """Of four managers on three hosts one was killed half a minute ago, and its port cools."""
    first = SpaceView(
        "host:kvm-07",
        9,
        (lease(2, "mgr-b", 24.1), lease(3, "mgr-b2", 27.4)),
        (
            port(10809, "vm-40", "mgr-a", 1, 2843.2, state="cooling", free_in=round(11.5 * SECOND)),
            port(10810, "vm-42", "mgr-b", 2, 754.1),
            port(10811, "vm-43", "mgr-b2", 3, 61.9),
            port(49152, "vm-47", "mgr-b2", 3, 17.6, range="migration"),
        ),
    )
    second = SpaceView(
        "host:kvm-08",
        9,
        (lease(1, "mgr-c", 22.8),),
        (
            port(10809, "", "mgr-c", 1, 8.3, state="foreign", free_in=round(21.7 * SECOND)),
            *(port(number, "vm-44", "mgr-c", 1, 322.0, range="migration") for number in range(49152, 49156)),
        ),
    )
    third = SpaceView("host:kvm-09", 9, (), ())
    return ClusterStatus.build(
        names=[one.space for one in (first, second, third)],
        views=[first, second, third],
        ranges=LIBVIRT_RANGES,
        backend="redis",
        generated_at=datetime(2026, 11, 22, 23, 10, 40, tzinfo=UTC),
    )


def text(line: str, y: int) -> str:
    """A line. Each part of it has its place and width, so that columns stay in line whatever the font is."""
    cell = 0
    drawn = []
    codes = ["", *re.findall(r"\x1b\[(\d*)m", line)]
    for code, part in zip(codes, re.split(r"\x1b\[\d*m", line), strict=True):
        words = part.strip(" ")
        if words:
            x = MARGIN + CELL * (cell + len(part) - len(part.lstrip(" ")))
            style = f' class="c{code}"' if code else ""
            width = CELL * len(words)
            drawn.append(f'<tspan x="{x}" textLength="{width}"{style}>{escape(words)}</tspan>')
        cell += len(part)
    return f'<text y="{y}" xml:space="preserve">{"".join(drawn)}</text>'


def draw(lines: list[str]) -> str:
    """An SVG that fetches nothing."""
    width = COLUMNS * CELL + 2 * MARGIN
    height = BAR + len(lines) * LINE + MARGIN
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    parts = (
        "<!-- Drawn by .ci/picture.py; do not edit. -->",
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
        "<title>clusterports status</title>",
        "<style>",
        FONT,
        *(f".c{code} {{ fill: {color}; }}" for code, color in COLORS.items()),
        "</style>",
        f'<rect width="{width}" height="{height}" rx="8" fill="#0d1117"/>',
        *(f'<circle cx="{20 + 18 * i}" cy="18" r="5.5" fill="{color}"/>' for i, color in enumerate(BUTTONS)),
        *(text(line, BAR + LINE * (i + 1) - 5) for i, line in enumerate(lines) if line),
        "</svg>\n",
    )
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where something differs")
    check: bool = parser.parse_args().check

    command = f"$ {_table.paint('clusterports status', _table.BOLD)}"
    picture = draw([command, *report(example(), EVERYTHING, Look(COLUMNS, color=True), store="")])
    if TARGET.exists() and TARGET.read_text(encoding="utf-8") == picture:
        return
    if check:
        sys.exit(f"{TARGET.relative_to(ROOT)}: differs from what .ci/picture.py draws")
    TARGET.write_text(picture, encoding="utf-8")
    print(f"wrote {TARGET.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
