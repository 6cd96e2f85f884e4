"""``clusterports status``: for people within the width they have, for programs in a fixed layout."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from clusterports.cli._table import Column, table
from clusterports.cli.status import span

if TYPE_CHECKING:
    from cli.conftest import Command

HOSTILE = "\x1b[31m[red]vm\n\x7f\u202e\u0085日本[/red]:smile:\\"
SHOWN = "\\x1b[31m[red]vm\\n\\x7f\\u202e\\x85日本[/red]:smile:\\"


def rows(out: str) -> list[dict[str, str]]:
    """The table of ports; no cell of it has blanks in these tests."""
    _, _, ports = out.partition("\n\n")
    header, *lines = [line.split() for line in ports.splitlines()]
    return [dict(zip(header, line, strict=True)) for line in lines]


def test_empty_store(command: Command) -> None:
    """An empty store is said to be empty."""
    done = command("status")

    assert (0, "Nothing is held, and no port is cooling (store: redis).\n", "") == (
        done.returncode,
        done.stdout,
        done.stderr,
    )


def test_empty_store_as_json(command: Command) -> None:
    """The layout is the same when there is nothing to show."""
    status = json.loads(command("status", "--json").stdout)

    assert ["schema", "backend", "generated_at", "hosts", "ranges"] == list(status)
    assert (1, "redis", []) == (status["schema"], status["backend"], status["hosts"])
    assert ["backup", "display", "migration", "websocket"] == [one["name"] for one in status["ranges"]]


def test_who_holds_what(command: Command) -> None:
    """Two commands on two hosts show with range, owner, host, instance, fence and the time that is left."""
    command.holding("--owner", "vm-1", "--instance", "one")
    command.holding("--owner", "vm-2", "--instance", "two", "--host", "k", "--ttl", "60")
    first, second = rows(command("status").stdout)

    assert ("backup", "10809/tcp", "held", "vm-1", "h", "one") == tuple(first.values())[:6]
    assert ("backup", "10809/tcp", "held", "vm-2", "k", "two") == tuple(second.values())[:6]
    assert int(first["FENCE"]) > 0
    assert first["AGE"].endswith("s")
    assert 0 < float(first["LEFT"].removesuffix("s")) <= 30 < float(second["LEFT"].removesuffix("s")) <= 60


def test_counts(command: Command) -> None:
    """Above the ports stands how full each range is, over all hosts."""
    command.holding()
    command.holding()
    command.holding("--host", "k")
    summary = [line.split() for line in command("status").stdout.partition("\n\n")[0].splitlines()]

    assert [
        ["RANGE", "PORTS", "HOSTS", "HELD", "COOLING", "FREE"],
        ["backup", "10809-10872", "2", "3", "0", "125"],
    ] == summary[:2]


def test_filters(command: Command) -> None:
    """One host, one range."""
    command.holding()
    command.holding("--host", "k")
    one_host = rows(command("status", "--host", "k").stdout)
    other_range = json.loads(command("status", "--json", "--range", "display").stdout)

    assert [("k", "-")] == [(row["HOST"], row["OWNER"]) for row in one_host]
    assert [[], []] == [host["ports"] for host in other_range["hosts"]]
    assert [("display", [1, 1])] == [
        (one["name"], [host["held"] for host in one["hosts"]]) for one in other_range["ranges"]
    ]


def test_json(command: Command) -> None:
    """One document; names and labels are in it as they were given, and only as ASCII on the way."""
    command.holding("--owner", HOSTILE, "--label", f"b={HOSTILE}", "--label", "a=1=2", "--instance", "one")
    done = command("status", "--json")
    status = json.loads(done.stdout)
    (host,) = status["hosts"]
    (port,) = host["ports"]
    (lease,) = host["leases"]

    assert done.stdout.isascii()
    assert done.stdout.replace("\n", "").isprintable()
    assert (HOSTILE, {"a": "1=2", "b": HOSTILE}) == (port["owner"], port["labels"])
    assert ("one", "live", 1, port["lease"]) == (lease["instance"], lease["state"], lease["ports"], lease["lease"])
    assert datetime.fromisoformat(port["since"]) <= datetime.fromisoformat(status["generated_at"])


def test_hostile_owner(command: Command) -> None:
    """An owner cannot speak to the terminal: neither control characters nor markup have an effect."""
    command.holding("--owner", HOSTILE)
    out = command("status").stdout

    assert out.replace("\n", "").isprintable()
    assert [SHOWN] == [row["OWNER"] for row in rows(out)]


def test_hostile_host_in_an_error(command: Command) -> None:
    """Nor can a name in an error message."""
    command.holding("--owner", HOSTILE, "--instance", "[bold]")
    done = command("run", "--range", "backup", "--port", "10809", "--", "true")

    assert 3 == done.returncode
    assert done.stderr.removesuffix("\n").isprintable()
    assert "[bold]" in done.stderr


@pytest.mark.parametrize("width", [120, 80, 60, 40, 20, 1])
def test_width(width: int, command: Command) -> None:
    """No line is wider than the terminal; what matters most stays."""
    command.holding("--owner", HOSTILE, "--host", "日" * 20, "--instance", "i" * 100)
    out = command("status", COLUMNS=str(width)).stdout

    assert all(cell_len(line) <= width for line in out.splitlines())
    for word in ("10809/tcp", "held", "LEFT") if width >= 40 else ():
        assert word in out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (-5, "0s"),
        (0, "0s"),
        (0.04, "0.0s"),
        (28.12, "28.1s"),
        (59.96, "60.0s"),
        (60, "1m00s"),
        (3599.9, "59m59s"),
        (3600, "1h00m"),
        (86399, "23h59m"),
        (86400 * 2 + 7 * 3600, "2d07h"),
    ],
)
def test_span(seconds: float | None, text: str) -> None:
    """A span of time takes at most six characters."""
    assert text == span(seconds)


COLUMNS = (
    Column("NAME", least=4, rank=1),
    Column("WHAT"),
    Column("WHO", least=3),
    Column("COUNT", right=True, rank=2),
)


@given(st.lists(st.lists(st.text(), min_size=4, max_size=4)), st.integers(1, 60))
def test_tables_keep_their_width(cells: list[list[str]], width: int) -> None:
    """Whatever is in the cells, every row is one line, and no line is too wide."""
    lines = list(table(COLUMNS, cells, width))

    assert len(cells) + 1 == len(lines)
    assert all(line.isprintable() and cell_len(line) <= width for line in lines)


def test_wide_enough() -> None:
    """Where there is room, nothing is cut, and numbers are on the right."""
    expected = ["NAME WHAT WHO COUNT", "a    日本 c       1", "b    x    d      10"]

    assert expected == list(table(COLUMNS, [("a", "日本", "c", 1), ("b", "x", "d", 10)], 19))
    assert expected == list(table(COLUMNS, [("a", "日本", "c", 1), ("b", "x", "d", 10)], None))


def test_too_narrow() -> None:
    """The widest of the texts is cut first, then whole columns go by rank."""
    row = [("a", "xx", "somebody", 1)]

    assert ["NAME WHAT WHO    COUNT", "a    xx   someb…     1"] == list(table(COLUMNS, row, 22))
    assert ["NAME WHAT WHO", "a    xx   some…"] == list(table(COLUMNS, row, 15))
    assert ["WHAT WHO", "xx   so…"] == list(table(COLUMNS, row, 8))
    assert ["WHAT W…", "xx   s…"] == list(table(COLUMNS, row, 7))
