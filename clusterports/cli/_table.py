"""Plain tables that keep to the width of a terminal.

Not rich's: a cluster has tens of thousands of ports, and its tables take a millisecond per row.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from clusterports._text import printable

from ._common import on_terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["BOLD", "DIM", "GREEN", "RED", "YELLOW", "Column", "cells", "clip", "colored", "lean", "paint", "table"]

GAP = 1

BOLD, DIM, RED, GREEN, YELLOW = "1", "2", "31", "32", "33"  # SGR parameters, ECMA-48, 8.3.117


class Column(NamedTuple):
    """``least``: the width down to which it may be cut (None: never). ``rank``: of those with one, the highest is
    the first to be left out when the cut ones still do not fit. ``spare``: left out where no row has anything in it.
    ``style``: the colour of a cell that reads so, or None.
    """

    title: str
    right: bool = False
    least: int | None = None
    rank: int = 0
    spare: bool = False
    style: Callable[[str], str | None] | None = None


def colored() -> bool:
    """Whether what is printed may have colours: on a terminal, unless the user wants none (https://no-color.org)."""
    return on_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, style: str | None, color: bool = True) -> str:
    """The text, which is printable, in a colour. It is never looked at for what it contains."""
    return f"\x1b[{style}m{text}\x1b[m" if text and style and color else text


def lean(
    columns: Sequence[Column], rows: Sequence[Sequence[object]]
) -> tuple[Sequence[Column], Sequence[Sequence[object]]]:
    """The table without those of the spare columns that have nothing in any row."""
    kept = [i for i, column in enumerate(columns) if not column.spare or any(row[i] for row in rows)]
    if len(kept) == len(columns):
        return columns, rows
    return [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]


def table(
    columns: Sequence[Column], rows: Sequence[Sequence[object]], width: int | None, color: bool = False
) -> list[str]:
    """The lines of a table, titles first, none of them wider than ``width`` cells. None: as wide as it takes."""
    cells = list(zip(*rows, strict=True)) or [()] * len(columns)
    parts = [_Part(column, values) for column, values in zip(columns, cells, strict=True)]
    shown = _fitting(parts, width)
    total = sum(size + GAP for _, size in shown) - GAP
    narrow = width is not None and total > width
    laid = [part.cells(size, color and not narrow) for part, size in shown]
    lines = [(" " * GAP).join(line).rstrip() for line in zip(*laid, strict=True)]
    if narrow:
        lines = [clip(line, width) for line in lines]
    lines[0] = paint(lines[0], BOLD, color)
    return lines


def clip(text: str, size: int | None) -> str:
    """Printable text, cut to so many cells; None: as wide as it is."""
    if size is None or cells(text) <= size:
        return text
    if text.isascii():
        return f"{text[: size - 1]}…"
    from rich.cells import set_cell_size

    return f"{set_cell_size(text, size - 1)}…"


class _Part:
    """A column with its cells."""

    def __init__(self, column: Column, values: Sequence[object]) -> None:
        texts = [column.title, *map(str, values)]
        whole = "".join(texts)
        if not whole.isprintable():
            texts = [printable(text) for text in texts]
        width = len if whole.isascii() else cells
        self._texts = texts
        self._widths = {text: width(text) for text in set(texts)}
        self.column = column
        self.natural = max(self._widths.values())
        self.least = self.natural if column.least is None else min(self.natural, column.least)

    def cells(self, size: int, color: bool) -> list[str]:
        """Cut and filled up to this size; the title without a style."""
        style = self.column.style if color else None
        laid = {text: self._cell(text, size, style(text) if style else None) for text in self._widths}
        return [self._cell(self._texts[0], size, None), *map(laid.__getitem__, self._texts[1:])]

    def _cell(self, text: str, size: int, style: str | None) -> str:
        blank = " " * (size - self._widths[text])  # none for one that is cut
        shown = paint(clip(text, size) if self._widths[text] > size else text, style)
        return blank + shown if self.column.right else shown + blank


def _fitting(parts: Sequence[_Part], width: int | None) -> list[tuple[_Part, int]]:
    """Which columns are shown, and how wide."""
    if width is None:
        return [(part, part.natural) for part in parts]
    shown = list(parts)
    while sum(part.least + GAP for part in shown) - GAP > width and any(part.column.rank for part in shown):
        shown.remove(max(shown, key=lambda part: part.column.rank))
    sizes = [part.natural for part in shown]
    while sum(size + GAP for size in sizes) - GAP > width:
        cuttable = [i for i, part in enumerate(shown) if sizes[i] > part.least]
        if not cuttable:
            break
        sizes[max(cuttable, key=lambda i: sizes[i])] -= 1
    return list(zip(shown, sizes, strict=True))


def cells(text: str) -> int:
    """How wide printable text is."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # rich takes a third of this command's start

    return cell_len(text)
