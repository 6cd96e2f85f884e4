"""Plain tables that keep to the width of a terminal.

Not rich's: a cluster has tens of thousands of ports, and its tables take a millisecond per row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rich.cells import cell_len, set_cell_size

from clusterports._text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Column", "table"]

GAP = 1


class Column(NamedTuple):
    """``least``: the width down to which it may be cut (None: never). ``rank``: of those with one, the highest is
    the first to be left out when the cut ones still do not fit.
    """

    title: str
    right: bool = False
    least: int | None = None
    rank: int = 0


def table(columns: Sequence[Column], rows: Sequence[Sequence[object]], width: int | None) -> Iterator[str]:
    """The lines of a table, none of them wider than ``width`` cells. None: as wide as it takes."""
    texts = [[column.title for column in columns], *([printable(str(cell)) for cell in row] for row in rows)]
    natural = [max(map(_width, cells)) for cells in zip(*texts, strict=True)]
    shown = _fitting(columns, natural, width)
    for row in texts:
        line = (" " * GAP).join(_cell(row[index], size, columns[index].right) for index, size in shown).rstrip()
        yield line if width is None or _width(line) <= width else _cut(line, width)


def _fitting(columns: Sequence[Column], natural: list[int], width: int | None) -> list[tuple[int, int]]:
    """Which columns are shown, and how wide."""
    sizes = dict(enumerate(natural))
    least = {i: n if columns[i].least is None else min(n, columns[i].least or n) for i, n in sizes.items()}
    if width is None:
        return list(sizes.items())
    while sum(least[i] + GAP for i in sizes) - GAP > width:
        ranked = [i for i in sizes if columns[i].rank]
        if not ranked:
            break
        del sizes[max(ranked, key=lambda i: columns[i].rank)]
    while sum(size + GAP for size in sizes.values()) - GAP > width:
        cuttable = [i for i, size in sizes.items() if size > least[i]]
        if not cuttable:
            break
        sizes[max(cuttable, key=lambda i: sizes[i])] -= 1
    return list(sizes.items())


def _cell(text: str, size: int, right: bool) -> str:
    spare = size - _width(text)
    if spare < 0:
        return _cut(text, size)
    return " " * spare + text if right else text + " " * spare


def _cut(text: str, size: int) -> str:
    return set_cell_size(text, size - 1) + "…"


def _width(text: str) -> int:
    return len(text) if text.isascii() else cell_len(text)
