"""``clusterports status``: for people within the width they have, for programs in a fixed layout."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from clusterports import PortAllocator
from clusterports.abc import LeaseView, PortView, SpaceView
from clusterports.cli._table import GREEN, Column, table
from clusterports.cli.status import (
    EVERYTHING,
    Look,
    Wanted,
    parse_interval,
    parse_port,
    report,
    say_unreadable,
    span,
)
from clusterports.errors import BackendError, ConfigurationError, IncompatibleSchema
from clusterports.ranges import PortRange
from clusterports.status import ClusterStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cli.conftest import Command

    Take = Callable[..., None]

NOW = datetime(2026, 3, 1, tzinfo=UTC)
BACKUP = PortRange("backup", 10809, 10840, exclude=(10811, 10812, "10820-10823"), static_band=8, limit=4)
GATEWAY = PortRange("gateway", 20000, 20009, scope="cluster", limit=2)

HOSTILE = "\x1b[31m[red]vm\n\x7f\u202e\u0085日本[/red]:smile:\\"
SHOWN = "\\x1b[31m[red]vm\\n\\x7f\\u202e\\x85日本[/red]:smile:\\"


PLAIN = Look()


def rows(out: str) -> list[dict[str, str]]:
    """The table of ports; no cell of it has blanks in these tests."""
    _, _, ports = out.partition("\n\n")
    header, *lines = [line.split() for line in ports.splitlines()]
    return [dict(zip(header, line, strict=True)) for line in lines]


def test_empty_store(command: Command) -> None:
    """An empty store is said to be empty, and which one it is."""
    url = command.environment["CLUSTERPORTS_URL"]
    done = command("status")
    elsewhere = command("status", "--host", "k")

    assert (0, f"Nothing is held, and no port is cooling (store: {url}).\n", "") == (
        done.returncode,
        done.stdout,
        done.stderr,
    )
    assert f"Nothing is held on host 'k', and no port is cooling (store: {url}).\n" == elsewhere.stdout


def test_empty_store_as_json(command: Command) -> None:
    """The layout is the same when there is nothing to show."""
    status = json.loads(command("status", "--json").stdout)

    assert ["schema", "backend", "generated_at", "hosts", "ranges", "unreadable"] == list(status)
    assert (1, "redis", []) == (status["schema"], status["backend"], status["hosts"])
    assert ["backup", "display", "migration", "websocket"] == [one["name"] for one in status["ranges"]]


@pytest.fixture
def take(command: Command) -> Iterator[Take]:
    """Take a port of ``backup`` until the end of the test, each time as a manager of its own."""
    with ExitStack() as stack:

        def take(host: str = "h", instance: str | None = None, ttl: float = 30, **ask: Any) -> None:
            url = command.environment["CLUSTERPORTS_URL"]
            ports = stack.enter_context(PortAllocator(url, host=host, instance=instance, ttl=ttl, probe=False))
            ports.acquire("backup", **ask)

        yield take


def test_who_holds_what(command: Command, take: Take) -> None:
    """Two managers on two hosts show with range, owner, host, instance, fence and the time that is left."""
    take(owner="vm-1", instance="one")
    take(owner="vm-2", instance="two", host="k", ttl=60)
    first, second = rows(command("status").stdout)

    assert ("backup", "10809/tcp", "held", "vm-1", "h", "one") == tuple(first.values())[:6]
    assert ("backup", "10809/tcp", "held", "vm-2", "k", "two") == tuple(second.values())[:6]
    assert int(first["FENCE"]) > 0
    assert first["AGE"].endswith("s")
    assert 0 < float(first["LEFT"].removesuffix("s")) <= 30 < float(second["LEFT"].removesuffix("s")) <= 60


def test_counts(command: Command, take: Take) -> None:
    """Above the ports stands how full each range is, over all hosts."""
    take()
    take()
    take(host="k")
    summary = [line.split() for line in command("status").stdout.partition("\n\n")[0].splitlines()]

    assert [
        ["RANGE", "PORTS", "HOSTS", "HELD", "COOLING", "FOREIGN", "FREE"],
        ["backup", "10809-10872", "2", "3", "0", "0", "125"],
    ] == summary[:2]


def test_filters(command: Command, take: Take) -> None:
    """Host, range and owner; a program gets the same choice."""
    take(owner="vm-1")
    take(host="k")
    one_host = rows(command("status", "--host", "k").stdout)
    one_range = json.loads(command("status", "--json", "--range", "display", "--host", "h").stdout)
    one_owner = json.loads(command("status", "--json", "--owner", "vm-*").stdout)

    assert [("k", "-")] == [(row["HOST"], row["OWNER"]) for row in one_host]
    assert [[]] == [host["ports"] for host in one_range["hosts"]]
    assert [("display", [1])] == [(one["name"], [host["held"] for host in one["hosts"]]) for one in one_range["ranges"]]
    assert [("h", 1, 1), ("k", 0, 0)] == [
        (host["host"], len(host["leases"]), len(host["ports"])) for host in one_owner["hosts"]
    ]


def test_one_number_in_other_ranges(command: Command, take: Take) -> None:
    """A number that overlapping ranges have is taken whichever range is asked for, and so is not free."""
    take()
    done = command("status", "--port", "10809", "--range", "display")

    assert (0, "Port 10809 is free on 0 of 1 host.") == (done.returncode, done.stdout.splitlines()[0])


def test_json(command: Command, take: Take) -> None:
    """One document; names and labels are in it as they were given, and only as ASCII on the way."""
    take(owner=HOSTILE, labels={"b": HOSTILE, "a": "1=2"}, instance="one")
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


def test_damaged_host(command: Command, take: Take, valkey: Any) -> None:
    """A host whose data is damaged is told as an error, with code 5, and takes nothing away from the others."""
    take(owner="vm-2")
    torn = PortAllocator(valkey.url, host="torn", probe=False)
    torn.acquire("backup", owner="vm-1")
    torn.detach()
    valkey.client.set("clusterports:1:{host:torn}:state", "x")
    done = command("status")

    assert 5 == done.returncode
    assert ["vm-2"] == [row["OWNER"] for row in rows(done.stdout)]
    assert done.stderr.startswith("clusterports: host 'torn': cannot be read: ")
    assert 1 == done.stderr.count("\n")


def test_hostile_owner(command: Command, take: Take) -> None:
    """An owner cannot speak to the terminal: neither control characters nor markup have an effect."""
    take(owner=HOSTILE)
    out = command("status").stdout

    assert out.replace("\n", "").isprintable()
    assert [SHOWN] == [row["OWNER"] for row in rows(out)]


def test_hostile_host_in_an_error(command: Command, take: Take) -> None:
    """Nor can a name in an error message."""
    take(owner=HOSTILE, instance="[bold]")
    done = command("run", "--range", "backup", "--port", "10809", "--", "true")

    assert 3 == done.returncode
    assert done.stderr.removesuffix("\n").isprintable()
    assert "[bold]" in done.stderr


def lease() -> LeaseView:
    return LeaseView(1, "mgr-a", 1, 30_000_000, 28_000_000)


def port(number: int, **other: Any) -> PortView:
    view = PortView(number, "tcp", "held", "backup", "vm", {}, "mgr-a", 1, 7, 61_500_000, None)
    return view._replace(**other)


def cluster(*spaces: SpaceView, unreadable: tuple[str, ...] = (), **filters: Any) -> ClusterStatus:
    views: dict[str, SpaceView | BackendError] = {space.space: space for space in spaces}
    views |= {name: IncompatibleSchema("schema 2") for name in unreadable}
    ranges = [BACKUP, GATEWAY, PortRange("plain", 1, 9)]
    return ClusterStatus.build(
        names=list(views), views=list(views.values()), ranges=ranges, backend="redis", generated_at=NOW, **filters
    )


def parts(lines: Iterable[str]) -> list[list[str]]:
    """What stands between blank lines."""
    return [part.splitlines() for part in "\n".join(lines).split("\n\n")]


def shown(*spaces: SpaceView, wanted: Wanted = EVERYTHING, look: Look = PLAIN, **filters: Any) -> list[list[str]]:
    """The tables, each a list of lines."""
    return parts(report(cluster(*spaces, **filters), wanted, look, store="redis://s"))


def test_all_there_is() -> None:
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
    tables = shown(SpaceView("host:h", 9, (lease(),), ports, 3), SpaceView("cluster", 9, (lease(),), wide, 1))

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
            "-       2049/tcp   held    -     h    mgr-a        7 1m01s 28.0s",
            "backup  10809/tcp  held    vm    h    mgr-a        7 1m01s 28.0s",
            "backup  10812/both held    vm    h    mgr-a        7 1m01s 28.0s now excluded",
            "backup  10813/tcp  foreign -     h    seer         7 1m01s 24.0s",
            "backup  10870/tcp  held    vm    h    mgr-a        7 1m01s 28.0s outside 10809-10840",
            "gateway 20000/tcp  held    vm    h    mgr-a        7 1m01s 28.0s scope is now cluster",
            "gateway 20003/tcp  cooling vm    h    mgr-a        7 1m01s  4.0s cluster-wide",
            "backup  10809/tcp  held    vm    k    mgr-a        7 1m01s 28.0s scope is now host, cluster-wide",
            "gateway 20001/tcp  held    vm    k    mgr-a        7 1m01s 28.0s cluster-wide",
        ],
        [
            "HOST      WAITING",
            "(cluster)       1",
            "h               3",
        ],
    ] == tables


def test_nothing_unusual() -> None:
    """Where nothing is excluded, nobody waits and no port needs a note, nothing is said of it."""
    tables = shown(SpaceView("host:h", 9, (lease(),), (port(5, range="plain"),)), range="plain")

    assert [
        ["RANGE", "PORTS", "HOSTS", "HELD", "COOLING", "FOREIGN", "FREE"],
        ["RANGE", "PORT", "STATE", "OWNER", "HOST", "INSTANCE", "FENCE", "AGE", "LEFT"],
    ] == [lines[0].split() for lines in tables]


def test_rules_of_an_empty_store() -> None:
    """What a range gives can be seen before the first port is taken."""
    assert [
        ["Nothing is held, and no port is cooling (store: redis://s)."],
        [
            "RANGE   RULE",
            "backup  at most 4 per owner on each host",
            "backup  static band 10809-10816",
            "backup  never 10811-10812, 10820-10823",
            "gateway at most 2 per owner",
        ],
    ] == shown()


def test_unused_cluster() -> None:
    """Before the first port of the whole cluster is taken all of its numbers are free; unless that cannot be known."""
    view = SpaceView("host:h", 9, (lease(),), ())
    unread = parts(report(cluster(view, unreadable=("cluster",)), EVERYTHING, PLAIN, store="s"))[0]

    assert ["gateway", "20000-20009", "cluster", "0", "0", "0", "0", "10"] == shown(view)[0][2].split()
    assert ["gateway", "20000-20009", "cluster", "0", "0", "0", "0", "0"] == unread[2].split()


def test_only_waiting() -> None:
    """A host on which somebody waits is not empty, even when no port is taken there."""
    tables = shown(SpaceView("host:h", 9, (), (), 1), range="plain")

    assert ["plain 1-9       1    0       0       0    9"] == tables[0][1:]
    assert ["HOST WAITING", "h          1"] == tables[1]


def test_recovering() -> None:
    """Where the store lost what it knew, that comes first, with the time until ports are given out again."""
    tables = shown(SpaceView("host:h", 9, (), (), recovering=12_340_000), range="plain")

    assert tables[0][0].startswith("The store lost data: nothing is given out there until")
    assert ["RECOVERING  LEFT", "h          12.3s"] == tables[0][1:]


@pytest.mark.parametrize("width", [120, 80, 60, 40, 20, 1])
def test_width_of_all_tables(width: int) -> None:
    """Neither rules nor notes nor hosts make a line wider than the terminal; 80 columns hold a whole note."""
    host = "%E6%97%A5" * 30
    ports = (port(10870, owner=HOSTILE * 9, instance="i" * 90, fence=1795389040072471),)
    view = SpaceView(f"host:{host}", 9, (lease(),), ports, 3, 9_000_000)
    tables = shown(view, look=Look(width))
    one = shown(view, wanted=Wanted(number=10870), look=Look(width))
    nothing = shown(look=Look(width))

    assert 5 == len(tables)
    assert all(cell_len(line) <= width for part in (tables, one, nothing) for lines in part for line in lines)
    if width >= 80:
        assert tables[3][2].endswith("outside 10809-10840")


def test_width(command: Command, take: Take) -> None:
    """No line is wider than the terminal says it is; what matters most stays."""
    take(owner=HOSTILE, host="日" * 20, instance="i" * 100)
    out = command("status", COLUMNS="40").stdout

    assert all(cell_len(line) <= 40 for line in out.splitlines())
    assert ["10809/tcp", "held", "LEFT"] == [word for word in ("10809/tcp", "held", "LEFT") if word in out]


def night() -> ClusterStatus:
    """Three hosts: one whose managers died at different times, one with a foreign port, one that is idle."""
    dead = LeaseView(2, "mgr-b", 1, 30_000_000, -4_000_000)
    quiet = LeaseView(3, "mgr-c", 1, 30_000_000, -9_000_000, True)
    run = [
        port(number, owner="job", lease=3, instance="mgr-c", age=number * 1_000_000) for number in range(10816, 10820)
    ]
    first = (
        port(10809, owner="vm-42"),
        port(10810, owner="vm-43", lease=2, instance="mgr-b"),
        port(10813, owner="vm-40", state="cooling", lease=9, instance="mgr-0", free_in=11_500_000),
        *run,
        port(20000, owner=HOSTILE, range=""),
    )
    second = (
        port(10809, owner="vm-44"),
        port(10810, owner="", state="foreign", instance="seer", free_in=24_000_000),
    )
    return cluster(
        SpaceView("host:kvm-07", 9, (lease(), dead, quiet), first),
        SpaceView("host:kvm-08", 9, (lease(),), second, 2),
        SpaceView("host:kvm-09", 9, (), ()),
    )


def test_screen_of_80() -> None:
    """On a terminal ports stand under their host, and runs of them in one line; leases that ran out say so."""
    _, _, ports, idle, waiting = parts(report(night(), EVERYTHING, Look(80), store="s"))

    assert [
        "RANGE  PORT            STATE   OWNER                INSTANCE FENCE   AGE    LEFT",
        "kvm-07: 7 held, 1 cooling",
        "-      20000/tcp       held    \\x1b[31m[red]vm\\n\\x… mgr-a        7 1m01s   28.0s",
        "backup 10809/tcp       held    vm-42                mgr-a        7 1m01s   28.0s",
        "backup 10810/tcp       held    vm-43                mgr-b        7 1m01s expired",
        "backup 10813/tcp       cooling vm-40                mgr-0        7 1m01s   11.5s",
        "backup 10816-10819/tcp held    job                  mgr-c        7 3h00m   grace",
    ] == ports
    assert [
        "kvm-08: 1 held, 1 foreign",
        "backup 10809/tcp       held    vm-44                mgr-a        7 1m01s   28.0s",
        "backup 10810/tcp       foreign -                    seer         7 1m01s   24.0s",
    ] == idle
    assert ["HOST   WAITING", "kvm-08       2"] == waiting


def test_screen_of_40() -> None:
    """In half the width columns go, the least important first; port, state, owner and time left stay."""
    summary, rules, *rest = parts(report(night(), EVERYTHING, Look(40), store="s"))

    assert "RANGE   PORTS         HOSTS HELD FREE" == summary[0]
    assert "backup  at most 4 per owner on each host" == rules[1]
    assert [
        [
            "PORT            STATE   OWNER       LEFT",
            "kvm-07: 7 held, 1 cooling",
            "20000/tcp       held    \\x1b[31…   28.0s",
            "10809/tcp       held    vm-42      28.0s",
            "10810/tcp       held    vm-43    expired",
            "10813/tcp       cooling vm-40      11.5s",
            "10816-10819/tcp held    job        grace",
        ],
        [
            "kvm-08: 1 held, 1 foreign",
            "10809/tcp       held    vm-44      28.0s",
            "10810/tcp       foreign -          24.0s",
        ],
        ["HOST   WAITING", "kvm-08       2"],
    ] == rest


def test_elsewhere() -> None:
    """Where there is no screen each port has a line of its own, with its host, so that lines can be searched."""
    _, _, (_, *ports), _ = parts(report(night(), EVERYTHING, PLAIN, store="s"))

    assert 10 == len(ports)
    assert 8 == sum(" kvm-07 " in line for line in ports)


@pytest.mark.parametrize(
    ("look", "lines"), [(Look(80), 1), (Look(80, unfold=True), 4), (Look(None), 4)], ids=["screen", "verbose", "file"]
)
def test_runs(look: Look, lines: int) -> None:
    """A run is one line on a screen, unless all are to be shown: oldest age, lowest fence, shortest time."""
    ports = [
        port(
            5 + i, range="plain", state="cooling", fence=8 + i % 2, age=(4 - i) * 1_000_000, free_in=(9 - i) * 1_000_000
        )
        for i in range(4)
    ]
    *_, table_ = shown(SpaceView("host:h", 9, (), tuple(ports)), look=look, range="plain")
    body = [line for line in table_[1:] if not line.startswith("h: ")]

    assert lines == len(body)
    if lines == 1:
        assert "plain 5-8/tcp cooling vm    mgr-a        8 4.0s 6.0s" == body[0]


@pytest.mark.parametrize(
    "change",
    [
        {"number": 7},
        {"protocol": "udp"},
        {"state": "cooling", "free_in": 28_000_000},
        {"range": ""},
        {"owner": "other"},
        {"labels": {"a": "1"}},
        {"instance": "mgr-b"},
        {"lease": 2},
    ],
    ids=str,
)
def test_no_run(change: dict[str, Any]) -> None:
    """Ports that differ in anything but number, fence and times stand apart."""
    two = (port(5, range="plain"), port(6, range="plain")._replace(**change))
    *_, ports = shown(SpaceView("host:h", 9, (lease(),), two), look=Look(200))

    assert 2 == len([line for line in ports if "/" in line])


def test_a_run_ends_where_the_range_does() -> None:
    """Nor are a port that its range would not give any more and its neighbour one run."""
    two = (port(10840), port(10841))
    *_, (_, heading, *ports) = shown(SpaceView("host:h", 9, (lease(),), two), look=Look(200))

    assert ("h: 2 held", 2) == (heading, len(ports))


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        (Wanted(), [10809, 10810, 10813, 10816, 10817, 10818, 10819, 20000, 10809, 10810]),
        (Wanted(owner="vm-42"), [10809]),
        (Wanted(owner="vm-4*"), [10809, 10810, 10813, 10809]),
        (Wanted(owner="*4*"), [10809, 10810, 10813, 10809]),
        (Wanted(owner="vm-4?"), []),
        (Wanted(owner="[a-z]*"), []),
        (Wanted(owner="*[red]*\\"), [20000]),
        (Wanted(owner=""), [10810]),
        (Wanted(owner="*"), [10809, 10810, 10813, 10816, 10817, 10818, 10819, 20000, 10809, 10810]),
        (Wanted(state="held", owner="vm-4*"), [10809, 10810, 10809]),
        (Wanted(state="foreign"), [10810]),
        (Wanted(instance="mgr-c"), [10816, 10817, 10818, 10819]),
        (Wanted(number=10810), [10810, 10810]),
        (Wanted(number=10810, protocol="tcp"), [10810, 10810]),
        (Wanted(number=10810, protocol="udp"), []),
        (Wanted(number=10810, state="held"), [10810]),
        (Wanted(number=20000, range="backup"), []),
    ],
    ids=str,
)
def test_which_ports(wanted: Wanted, numbers: list[int]) -> None:
    """What fits all filters is left of each host; in an owner the asterisk alone is special."""
    assert numbers == [one.number for host in wanted.of(night()).hosts for one in host.ports]


@pytest.mark.parametrize(
    ("wanted", "leases"),
    [
        (Wanted(), ["mgr-a", "mgr-b", "mgr-c", "mgr-a"]),
        (Wanted(state="foreign"), ["mgr-a", "mgr-b", "mgr-c", "mgr-a"]),
        (Wanted(owner="vm-43"), ["mgr-b"]),
        (Wanted(number=10810), ["mgr-b"]),
        (Wanted(instance="mgr-a"), ["mgr-a", "mgr-a"]),
        (Wanted(instance="mgr-0"), []),
    ],
    ids=str,
)
def test_which_leases(wanted: Wanted, leases: list[str]) -> None:
    """Whoever asks for an owner, an instance or a number gets the leases that hold what is shown; counts stay."""
    shown = wanted.of(night())

    assert leases == [one.instance for host in shown.hosts for one in host.leases]
    assert night().ranges == shown.ranges
    assert ["kvm-07", "kvm-08", "kvm-09"] == [host.host for host in shown.hosts]


@pytest.mark.parametrize(("asked", "found"), [("tcp", ["both", "tcp"]), ("udp", ["both"]), ("both", ["both", "tcp"])])
def test_port_of_a_protocol(asked: str, found: list[str]) -> None:
    """A number that is taken for both protocols is taken for each; who wants it for both needs both free."""
    ports = (port(5, range="plain"), port(5, range="plain", protocol="both"))
    wanted = Wanted(number=5, protocol=asked)  # type: ignore[arg-type]

    assert found == [one.protocol for one in wanted.of(cluster(SpaceView("host:h", 9, (), ports))).hosts[0].ports]


def test_nothing_fits() -> None:
    """When no port is as asked for, that is said, beside how full the ranges are."""
    summary, rules, answer = shown(SpaceView("host:h", 9, (lease(),), (port(10809),)), wanted=Wanted(owner="x"))

    assert ("RANGE", "RANGE   RULE") == (summary[0].split()[0], rules[0])
    assert ["No port is as asked for."] == answer


def test_one_number() -> None:
    """Who has a number, since when and for how long, on all hosts; where it is free; and whose it is."""
    assert [
        [
            "HOST   PORT      STATE OWNER INSTANCE RANGE  FENCE SINCE                  AGE  LEFT",
            "kvm-07 10809/tcp held  vm-42 mgr-a    backup     7 2026-02-28 23:58:58Z 1m01s 28.0s",
            "kvm-08 10809/tcp held  vm-44 mgr-a    backup     7 2026-02-28 23:58:58Z 1m01s 28.0s",
        ],
        ["Port 10809 is free on 1 of 3 hosts.", "Free on kvm-09.", "Range backup (10809-10840) has it."],
    ] == parts(report(night(), Wanted(number=10809), PLAIN, store="s"))


def test_one_number_in_40_columns() -> None:
    """The answer is whole there."""
    assert [
        [
            "HOST   PORT      STATE   OWNER    LEFT",
            "kvm-07 10810/tcp held    vm-43 expired",
            "kvm-08 10810/tcp foreign -       24.0s",
        ],
        ["Port 10810 is free on 1 of 3 hosts.", "Free on kvm-09.", "Range backup (10809-10840) has it."],
    ] == parts(report(night(), Wanted(number=10810), Look(40), store="s"))


@pytest.mark.parametrize(
    ("number", "facts"),
    [
        (10812, ["Port 10812 is free on 3 of 3 hosts.", "Range backup (10809-10840) excludes it."]),
        (22, ["Port 22 is free on 3 of 3 hosts.", "No range has it."]),
        (
            20001,
            [
                "Port 20001 is free, cluster-wide.",
                "Range gateway (20000-20009) has it.",
            ],
        ),
    ],
)
def test_a_free_number(number: int, facts: list[str]) -> None:
    """So has a number that nobody holds, of any range or none."""
    assert [facts] == parts(report(night(), Wanted(number=number), PLAIN, store="s"))


def facts(*spaces: SpaceView, unreadable: tuple[str, ...] = ()) -> list[str]:
    """What is said of port 5 beside the table."""
    lines = report(cluster(*spaces, unreadable=unreadable), Wanted(number=5), PLAIN, store="s")
    return parts(lines)[-1][:-1]


def on(host: str, *ports: PortView) -> SpaceView:
    return SpaceView(f"host:{host}", 9, (lease(),), ports)


def test_when_a_number_is_free_again() -> None:
    """Where it is free nowhere, it is said which host will have it first: when all that is there has run out."""
    held = port(5)
    cooling = port(5, state="cooling", free_in=4_000_000)
    later = port(5, state="foreign", free_in=9_000_000, protocol="udp")

    assert ["Port 5 is free on 0 of 2 hosts.", "Free again in 4.0s on b."] == facts(on("a", held), on("b", cooling))
    assert ["Free again in 9.0s on b."] == facts(on("a", held), on("b", cooling, later))[1:]
    assert [
        "Port 5 is free on 0 of 1 host.",
        "Held until given back or the lease ends.",
    ] == facts(on("a", held, later))


def test_a_number_of_the_cluster_on_a_host() -> None:
    """What was taken for the whole cluster, under other rules than today's, is not free on the host that has it."""
    wide = SpaceView("cluster", 9, (lease(),), (port(5, host="b"),))

    assert ["Port 5 is free on 1 of 2 hosts.", "Free on a."] == facts(on("a"), on("b"), wide)


def test_a_number_on_many_hosts() -> None:
    """A thousand hosts where it is free are not all named."""
    hosts = [on(f"n{number}") for number in range(8)]

    assert ["Port 5 is free on 7 of 8 hosts.", "Free on n1, n2, n3, n4, n5 and 2 more."] == facts(
        on("n0", port(5)), *hosts[1:]
    )


def test_a_number_in_an_empty_store() -> None:
    """Without any host there is nobody who could have it."""
    assert ["Port 5 is free: none taken yet."] == facts()


def test_a_number_with_an_unreadable_host() -> None:
    """A host that cannot be read is no host where it is free, nor is the cluster."""
    wanted = Wanted(number=20001)
    lost = parts(report(cluster(on("a"), unreadable=("cluster",)), wanted, PLAIN, store="s"))

    assert ["Port 5 is free on 1 of 1 host.", "1 more cannot be read."] == facts(on("a"), unreadable=("host:b",))
    assert ["Port 5 is free on 0 of 0 hosts.", "1 more cannot be read."] == facts(unreadable=("host:b",))
    assert [["Port 20001 is cluster-wide: not known.", "Range gateway (20000-20009) has it."]] == lost


def test_a_taken_number_of_the_cluster() -> None:
    """It is taken on all hosts at once, and by whom is in the table."""
    wide = SpaceView("cluster", 9, (lease(),), (port(20001, range="gateway", host="b", state="cooling", free_in=9000),))
    (_, row), told = parts(report(cluster(on("a"), wide), Wanted(number=20001), PLAIN, store="s"))

    assert row.startswith("b    20001/tcp cooling")
    assert ["Port 20001 is taken, cluster-wide.", "Free again in 0.0s on b."] == told[:2]


def test_unreadable(capsys: pytest.CaptureFixture[str]) -> None:
    """A host that cannot be read is an error line each, and code 5 at the end."""
    status = cluster(unreadable=("host:a%0A", "cluster"))
    with pytest.raises(typer.Exit) as ended:
        say_unreadable(status)
    say_unreadable(cluster())

    assert 5 == ended.value.exit_code
    assert (
        "clusterports: the whole cluster's ports: cannot be read: schema 2\n"
        "clusterports: host 'a\\n': cannot be read: schema 2\n"
    ) == capsys.readouterr().err
    assert "Nothing is held, as far as can be read, and no port is cooling (store: s)." == next(
        iter(report(status, EVERYTHING, PLAIN, store="s"))
    )


def test_colours() -> None:
    """Each state has its colour, and so has a lease that ran out; titles and hosts are bold."""
    lines = list(report(night(), EVERYTHING, Look(80, color=True), store="s"))
    painted = {code: text for line in lines for code, text in re.findall(r"\x1b\[(\d+)m(.*?)\x1b\[m", line)}
    plain = [re.sub(r"\x1b\[\d*m", "", line) for line in lines]

    assert {"32": "held", "33": "cooling", "31": "foreign", "2": "grace"} == {
        code: text for code, text in painted.items() if code != "1"
    }
    assert any("\x1b[31mexpired\x1b[m" in line for line in lines)
    assert {"RANGE", "kvm-07:", "kvm-08:", "HOST"} == {
        line.removeprefix("\x1b[1m").split()[0] for line in lines if line.startswith("\x1b[1m")
    }
    assert list(report(night(), EVERYTHING, Look(80), store="s")) == plain


def test_colours_are_no_answer_to_what_is_in_a_cell() -> None:
    """An owner that is called as a state is has no colour, nor can it bring its own."""
    ports = (port(5, owner="foreign", range="plain"), port(6, owner="\x1b[31mexpired", range="plain"))
    lines = shown(SpaceView("host:h", 9, (lease(),), ports), look=Look(80, color=True), range="plain")[-1]

    assert "plain 5/tcp \x1b[32mheld\x1b[m  foreign         mgr-a        7 1m01s 28.0s" == lines[2]
    assert "plain 6/tcp \x1b[32mheld\x1b[m  \\x1b[31mexpired mgr-a        7 1m01s 28.0s" == lines[3]


@pytest.mark.parametrize(
    ("text", "port"),
    [("1", (1, None)), ("65535", (65535, None)), ("10809/tcp", (10809, "tcp")), ("5/both", (5, "both"))],
)
def test_port_option(text: str, port: tuple[int, str | None]) -> None:
    """A number, and after it a protocol or none."""
    assert port == parse_port(text)


@pytest.mark.parametrize(
    "text", ["", "0", "65536", "-1", "tcp", "5/", "5/sctp", "/tcp", "5 ", "\u0665", "1e3", "1" * 99]
)
def test_bad_port_option(text: str) -> None:
    """Anything else is refused with key, bound and value."""
    bound = "port: must be a number from 1 to 65535, alone or with /tcp, /udp, /both after it; got "
    with pytest.raises(ConfigurationError) as caught:
        parse_port(text)

    assert str(caught.value).startswith(bound)


@pytest.mark.parametrize(("text", "seconds"), [(None, 2.0), ("0.2", 0.2), ("3600", 3600.0), ("1e1", 10.0)])
def test_interval(text: str | None, seconds: float) -> None:
    """Two seconds, unless another number is given."""
    assert seconds == parse_interval(text, watch=True)


@pytest.mark.parametrize("text", ["", "0.19", "3600.1", "nan", "inf", "soon", "-1"])
def test_bad_interval(text: str) -> None:
    """Bounds are named, and so is the value."""
    with pytest.raises(ConfigurationError) as caught:
        parse_interval(text, watch=True)

    assert f"interval: must be a number of seconds from 0.2 to 3600, got {text!r}" == str(caught.value)


def test_interval_without_watch() -> None:
    """An option that would have no effect is refused."""
    with pytest.raises(ConfigurationError, match="interval: is of use with --watch only, got '5'"):
        parse_interval("5", watch=False)


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
    Column("WHAT", style=lambda text: GREEN if text != "xx" else None),
    Column("WHO", least=3),
    Column("COUNT", right=True, rank=2),
)


@given(st.lists(st.lists(st.text(), min_size=4, max_size=4)), st.integers(1, 60))
def test_tables_keep_their_width(cells: list[list[str]], width: int) -> None:
    """Whatever is in the cells, every row is one line, and no line is too wide."""
    lines = table(COLUMNS, cells, width)
    colored = table(COLUMNS, cells, width, color=True)

    assert len(cells) + 1 == len(lines)
    assert all(line.isprintable() and cell_len(line) <= width for line in lines)
    assert lines == [re.sub(r"\x1b\[\d*m", "", line).rstrip() for line in colored]


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
