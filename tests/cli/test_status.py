"""``clusterports status``: for people within the width they have, for programs in a fixed layout."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from clusterports.abc import LeaseView, PortView, SpaceView
from clusterports.cli._table import Column, table
from clusterports.cli.status import show_tables, span
from clusterports.ranges import PortRange
from clusterports.status import ClusterStatus

if TYPE_CHECKING:
    from cli.conftest import Command

NOW = datetime(2026, 3, 1, tzinfo=UTC)
BACKUP = PortRange("backup", 10809, 10840, exclude=(10811, 10812, "10820-10823"), static_band=8, limit=4)
GATEWAY = PortRange("gateway", 20000, 20009, scope="cluster", limit=2)

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
        ["RANGE", "PORTS", "HOSTS", "HELD", "COOLING", "FOREIGN", "FREE"],
        ["backup", "10809-10872", "2", "3", "0", "0", "125"],
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


@pytest.fixture(autouse=True)
def _any_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)


def lease() -> LeaseView:
    return LeaseView(1, "mgr-a", 1, 30_000_000, 28_000_000)


def port(number: int, **other: Any) -> PortView:
    view = PortView(number, "tcp", "held", "backup", "vm", {}, "mgr-a", 1, 7, 61_500_000, None)
    return view._replace(**other)


def shown(capsys: pytest.CaptureFixture[str], *spaces: SpaceView, **filters: str) -> list[list[str]]:
    """The tables, each a list of lines."""
    ranges = [BACKUP, GATEWAY, PortRange("plain", 1, 9)]
    show_tables(ClusterStatus.build(spaces, ranges, backend="redis", generated_at=NOW, **filters))
    return [part.splitlines() for part in capsys.readouterr().out.split("\n\n")]


def test_all_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Counts, the rules of the ranges, ports, and how many wait; what is unusual about a port stands in a note."""
    ports = (
        port(10809),
        port(10812, protocol="both"),
        port(10813, state="foreign", owner="", instance="seer", free_in=24_000_000),
        port(10870),
        port(2049, range="", owner=""),
        port(20000, range="gateway"),
    )
    wide = (
        port(10809, host="k"),
        port(20001, range="gateway", host="k"),
        port(20003, range="gateway", host="h", state="cooling", free_in=4_000_000),
    )
    tables = shown(capsys, SpaceView("host:h", 9, (lease(),), ports, 3), SpaceView("cluster", 9, (lease(),), wide, 1))

    assert [
        [
            "RANGE   PORTS         HOSTS HELD COOLING FOREIGN EXCLUDED FREE",
            "backup  10809-10840       1    2       0       1        5   24",
            "gateway 20000-20009 cluster    1       1       0        0    8",
            "plain   1-9               1    0       0       0        0    9",
        ],
        [
            "RANGE   RULE",
            "backup  at most 4 per owner on each host",
            "backup  static band 10809-10816, 4 free",
            "backup  never 10811-10812, 10820-10823",
            "backup  taken, but no longer part of it: 2",
            "gateway at most 2 per owner",
        ],
        [
            "RANGE   PORT       STATE   OWNER HOST INSTANCE FENCE   AGE  LEFT NOTE",
            "backup  10809/tcp  held    vm    k    mgr-a        7 1m01s 28.0s scope is now host, cluster-wide",
            "gateway 20001/tcp  held    vm    k    mgr-a        7 1m01s 28.0s cluster-wide",
            "gateway 20003/tcp  cooling vm    h    mgr-a        7 1m01s  4.0s cluster-wide",
            "-       2049/tcp   held    -     h    mgr-a        7 1m01s 28.0s",
            "backup  10809/tcp  held    vm    h    mgr-a        7 1m01s 28.0s",
            "backup  10812/both held    vm    h    mgr-a        7 1m01s 28.0s now excluded",
            "backup  10813/tcp  foreign -     h    seer         7 1m01s 24.0s",
            "backup  10870/tcp  held    vm    h    mgr-a        7 1m01s 28.0s outside 10809-10840",
            "gateway 20000/tcp  held    vm    h    mgr-a        7 1m01s 28.0s scope is now cluster",
        ],
        [
            "HOST      WAITING",
            "(cluster)       1",
            "h               3",
        ],
    ] == tables


def test_nothing_unusual(capsys: pytest.CaptureFixture[str]) -> None:
    """Where nothing is excluded, nobody waits and no port needs a note, nothing is said of it."""
    tables = shown(capsys, SpaceView("host:h", 9, (lease(),), (port(5, range="plain"),)), range="plain")

    assert [
        ["RANGE", "PORTS", "HOSTS", "HELD", "COOLING", "FOREIGN", "FREE"],
        ["RANGE", "PORT", "STATE", "OWNER", "HOST", "INSTANCE", "FENCE", "AGE", "LEFT"],
    ] == [lines[0].split() for lines in tables]


def test_rules_of_an_empty_store(capsys: pytest.CaptureFixture[str]) -> None:
    """What a range gives can be seen before the first port is taken."""
    assert [
        ["Nothing is held, and no port is cooling (store: redis)."],
        [
            "RANGE   RULE",
            "backup  at most 4 per owner on each host",
            "backup  static band 10809-10816",
            "backup  never 10811-10812, 10820-10823",
            "gateway at most 2 per owner",
        ],
    ] == shown(capsys)


def test_only_waiting(capsys: pytest.CaptureFixture[str]) -> None:
    """A host on which somebody waits is not empty, even when no port is taken there."""
    tables = shown(capsys, SpaceView("host:h", 9, (), (), 1), range="plain")

    assert ["plain 1-9       1    0       0       0    9"] == tables[0][1:]
    assert ["HOST WAITING", "h          1"] == tables[1]


@pytest.mark.parametrize("width", [120, 80, 60, 40, 20, 1])
def test_width_of_all_tables(width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither rules nor notes nor waiting hosts make a line wider than the terminal; 80 columns hold a whole note."""
    monkeypatch.setenv("COLUMNS", str(width))
    host = "%E6%97%A5" * 30
    ports = (port(10870, owner="o" * 300, instance="i" * 90, fence=1795389040072471),)
    tables = shown(capsys, SpaceView(f"host:{host}", 9, (lease(),), ports, 3))

    assert 4 == len(tables)
    assert all(cell_len(line) <= width for lines in tables for line in lines)
    if width >= 80:
        assert tables[2][1].endswith("outside 10809-10840")


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
