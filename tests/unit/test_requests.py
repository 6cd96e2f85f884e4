"""From the arguments of an acquire to what is asked of a space: one test a rule."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterports._names import CLUSTER_SPACE, host_space
from clusterports._requests import Plan, Ranges
from clusterports.abc import Ask
from clusterports.errors import ConfigurationError, ImpossibleRequest
from clusterports.ranges import PortRange

if TYPE_CHECKING:
    from collections.abc import Iterable

    from clusterports.ranges import Span

SECOND = 1_000_000

HOST = "kvm-07"

RANGES = Ranges(
    [
        PortRange("backup", 10809, 10872),
        PortRange("nodes", 30000, 30128, static_band=16),
        PortRange("nomad", 20000, 32000, exclude=["20000-31998"]),
        PortRange("gateway", 40000, 40099, scope="cluster", exclude=[40050]),
        PortRange("inside", 40010, 40019),
        PortRange("across", 39998, 40101),
        PortRange("timed", 1, 9, cooldown=1.5, quarantine=0.25, limit=2),
    ]
)


def plan(range: str | None = "backup", ranges: Ranges = RANGES, **arguments: Any) -> Plan:
    return ranges.plan(range, **{"host": HOST, **arguments})


def one_range(first: int, last: int, **options: Any) -> Ranges:
    return Ranges([PortRange("r", first, last, **options)])


def numbers(spans: Iterable[Span]) -> list[int]:
    return [number for first, last in spans for number in range(first, last + 1)]


def index(number: int) -> Any:
    """A random number that is always this one."""
    return lambda below: min(number, below - 1)


# ------------------------------------------------------------------ the plain ask


def test_plain() -> None:
    """Without anything else: one port of the range, in the space of the host."""
    expected = Ask("backup", ((10809, 10872),), 1, "tcp", 15 * SECOND)

    assert Plan(host_space(HOST), expected, HOST) == plan()


@pytest.mark.parametrize(("owner", "labels"), [("", None), ("vm-42", None), ("", {"job": "7"}), ("vm", {"job": "7"})])
def test_again(owner: str, labels: dict[str, str] | None) -> None:
    """The short way of a repeated call gives what the long way of the first one gave."""
    ranges = one_range(1, 9, strategy="next", cooldown=2, limit=3)
    first = plan("r", ranges, owner=owner, labels=labels)
    second = plan("r", ranges, owner=owner, labels=labels)
    third = plan("r", ranges)

    assert (
        Ask("r", ((1, 9),), 1, "tcp", 15 * SECOND, owner, labels or {}, cooldown=2 * SECOND, rotate=1, limit=3)
        == first.ask
    )
    assert first == second
    assert first._replace(ask=first.ask._replace(owner="", labels={})) == third
    assert type(second) is Plan
    assert type(second.ask) is Ask


def test_hosts_and_protocols_are_kept_apart() -> None:
    """The short way mixes up neither hosts nor protocols."""
    for _ in range(2):
        for host in ("a", "b"):
            for protocol in ("tcp", "udp", "both"):
                got = plan(host=host, protocol=protocol)
                assert (host_space(host), host, protocol) == (got.space, got.host, got.ask.protocol)


def test_many_hosts() -> None:
    """What is remembered for the short way does not grow without bound."""
    ranges = one_range(1, 9)
    for number in range(10_000):
        plan("r", ranges, host=f"host-{number}")

    assert len(ranges._known) <= 4096
    assert "host-0" == plan("r", ranges, host="host-0").host


def test_terms() -> None:
    """Times go out in microseconds, the limit as it is."""
    ask = plan("timed").ask

    assert (1_500_000, 250_000, 2) == (ask.cooldown, ask.quarantine, ask.limit)
    assert 0 == plan("backup").ask.limit


def test_labels_are_copied() -> None:
    """What the caller does to the labels later does not matter."""
    labels = {"job": "7"}
    ask = plan(labels=labels).ask
    labels.clear()

    assert {"job": "7"} == ask.labels


# ------------------------------------------------------------------ where to look


def test_band_comes_last() -> None:
    """Automatic picks use what lies above the static band first."""
    assert ((30016, 30128), (30000, 30015)) == plan("nodes").ask.spans


def test_band_is_counted_by_number() -> None:
    """The band is the lowest numbers of the range, excluded ones among them."""
    ranges = one_range(10, 19, static_band=4, exclude=[11, 15])

    assert ((14, 14), (16, 19), (10, 10), (12, 13)) == plan("r", ranges).ask.spans


def test_excluded_numbers_are_left_out() -> None:
    """Nomad: with 20000-31998 excluded of 20000-32000, two ports are left."""
    assert ((31999, 32000),) == plan("nomad", count=2).ask.spans


@pytest.mark.parametrize(
    ("offset", "spans"),
    [
        (0, ((12, 13), (15, 16), (18, 19), (10, 11))),
        (1, ((13, 13), (15, 16), (18, 19), (12, 12), (10, 11))),
        (2, ((15, 16), (18, 19), (12, 13), (10, 11))),
        (3, ((16, 16), (18, 19), (12, 13), (15, 15), (10, 11))),
        (5, ((19, 19), (12, 13), (15, 16), (18, 18), (10, 11))),
    ],
)
def test_random(offset: int, spans: tuple[Span, ...]) -> None:
    """The search begins at a random number, goes round, and ends in the band."""
    ranges = one_range(10, 19, strategy="random", static_band=2, exclude=[14, 17])

    assert spans == plan("r", ranges, random=index(offset)).ask.spans


def test_random_is_random() -> None:
    """Every number that can be had may come first, and one of the band never does."""
    ranges = one_range(10, 15, strategy="random", static_band=2, exclude=[13])

    assert {12, 14, 15} == {plan("r", ranges).ask.spans[0][0] for _ in range(300)}


def test_random_in_the_band_alone() -> None:
    """A range whose numbers above the band are all excluded gives those of the band."""
    ranges = one_range(10, 13, strategy="random", static_band=2, exclude=["12-13"])

    assert ((10, 11),) == plan("r", ranges).ask.spans


def test_next() -> None:
    """The space goes in a circle over what lies above the band, and the band comes after it."""
    ranges = one_range(10, 19, strategy="next", static_band=2, exclude=[15])
    ask = plan("r", ranges).ask

    assert (((12, 14), (16, 19), (10, 11)), 2) == (ask.spans, ask.rotate)
    assert 0 == plan("r", ranges, port=12).ask.rotate


@pytest.mark.parametrize("strategy", ["lowest", "random", "next"])
def test_skip(strategy: str) -> None:
    """Numbers that were found busy are not asked for again in the same call."""
    ranges = one_range(10, 19, strategy=strategy, static_band=2)
    ask = plan("r", ranges, skip={10, 13, 19, 5, 500}).ask

    assert [11, 12, 14, 15, 16, 17, 18] == sorted(numbers(ask.spans))
    assert 11 == numbers(ask.spans)[-1]
    assert (2 if strategy == "next" else 0) == ask.rotate


def test_everything_skipped() -> None:
    """When all numbers were found busy there is nothing to look for, which is not an impossible request."""
    assert () == plan("timed", skip=frozenset(range(1, 10))).ask.spans


# ------------------------------------------------------------------ blocks


def test_block() -> None:
    """Adjacent numbers are asked for by their alignment, 1 for any."""
    assert [1, 4] == [plan(count=8, contiguous=True, align=align).ask.align for align in (1, 4)]


def test_any_numbers() -> None:
    """Ports that need not be adjacent are no block, nor is a single one that need not be aligned."""
    assert [0, 0, 2] == [plan(count=2).ask.align, plan(contiguous=True).ask.align, plan(align=2).ask.align]


def test_block_across_the_band() -> None:
    """A block is looked for above the band, in the band, and last across its border."""
    ask = plan("nodes", count=8, contiguous=True).ask

    assert ((30016, 30128), (30000, 30015), (30000, 30128)) == ask.spans


def test_block_and_a_hole_at_the_border() -> None:
    """Where an excluded number lies at the border of the band, no block can lie across it."""
    ranges = one_range(10, 19, static_band=2, exclude=[12])

    assert ((13, 19), (10, 11)) == plan("r", ranges, count=2, contiguous=True).ask.spans
    assert ((13, 19), (10, 10)) == plan("r", ranges, count=2, contiguous=True, skip={11}).ask.spans


def test_block_across_a_random_number() -> None:
    """A block that begins below the random number and ends above it is found as well."""
    ranges = one_range(10, 19, strategy="random")
    ask = plan("r", ranges, count=4, contiguous=True, random=index(5)).ask

    assert ((15, 19), (10, 17)) == ask.spans
    assert ((18, 19), (10, 19)) == plan("r", ranges, count=4, contiguous=True, random=index(8)).ask.spans


# ------------------------------------------------------------------ the cluster's numbers


def test_cluster_scope() -> None:
    """Ports of a range of the cluster are asked for in its one space, with the host where they will be bound."""
    got = plan("gateway")

    assert (CLUSTER_SPACE, HOST, HOST) == (got.space, got.host, got.ask.host)
    assert ((40000, 40049), (40051, 40099)) == got.ask.spans
    assert "" == plan("backup").ask.host


def test_carved() -> None:
    """The numbers of a range of the cluster are left out of every range of a host, excluded ones among them."""
    assert ((39998, 39999), (40100, 40101)) == plan("across").ask.spans


def test_ranges_of_the_cluster_may_overlap() -> None:
    """Two ranges of the cluster share one space, so neither is carved."""
    ranges = Ranges([PortRange("a", 1, 9, scope="cluster"), PortRange("b", 5, 14, scope="cluster")])

    assert [((1, 9),), ((5, 14),)] == [plan(name, ranges).ask.spans for name in "ab"]


def test_port_of_the_cluster() -> None:
    """A number of a host's range that belongs to a range of the cluster is refused, and which one is said."""
    message = "port: 40005 of range 'across' (39998-40101) belongs to range 'gateway' (40000-40099), whose scope is"

    with pytest.raises(ImpossibleRequest) as caught:
        plan("across", port=40005)

    assert f"{message} 'cluster'" == str(caught.value)
    assert ((39999, 39999),) == plan("across", port=39999).ask.spans


def test_nothing_left() -> None:
    """A range all of whose numbers belong to the cluster can give none."""
    with pytest.raises(ImpossibleRequest) as caught:
        plan("inside")

    expected = "count: 1 port is more than range 'inside' (40010-40019) has (0); left out are 10 of ranges with scope"
    assert f"{expected} 'cluster'" == str(caught.value)


# ------------------------------------------------------------------ explicit ports


@pytest.mark.parametrize(("range", "port"), [("backup", 10809), ("backup", 10872), ("nodes", 30000), ("nomad", 32000)])
def test_explicit(range: str, port: int) -> None:
    """A port that is named is wanted and no other, also one of the static band; skipping is for the others."""
    ask = plan(range, port=port, contiguous=True, skip={port}, protocol="udp", owner="vm").ask

    assert Ask(range, ((port, port),), 1, "udp", 15 * SECOND, "vm", explicit=True) == ask


def test_explicit_has_the_terms() -> None:
    """The limit and the times of the range hold for a port that is named, too."""
    ask = plan("timed", port=5).ask

    assert (1_500_000, 250_000, 2) == (ask.cooldown, ask.quarantine, ask.limit)


def test_without_a_range() -> None:
    """A port that is claimed without a range is booked under no name and has the default quarantine."""
    expected = Ask("", ((8080, 8080),), 1, "both", 15 * SECOND, "vm", {"a": "b"}, explicit=True)

    assert Plan(host_space(HOST), expected, HOST) == plan(
        None, port=8080, protocol="both", owner="vm", labels={"a": "b"}
    )


@pytest.mark.parametrize(
    ("port", "space", "host"),
    [
        (39999, host_space(HOST), ""),
        (40000, CLUSTER_SPACE, HOST),
        (40050, CLUSTER_SPACE, HOST),
        (40099, CLUSTER_SPACE, HOST),
        (40100, host_space(HOST), ""),
    ],
)
def test_without_a_range_in_the_cluster(port: int, space: str, host: str) -> None:
    """Claimed without a range, a number of the cluster is claimed in the cluster's space."""
    got = plan(None, port=port)

    assert (space, host, HOST) == (got.space, got.ask.host, got.host)


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"range": "backups"}, "range: unknown range 'backups', must be one of: "),
        ({"range": ""}, "range: unknown range '', must be one of: "),
        ({"range": 5}, "range: unknown range 5, must be one of: "),
        ({"range": ["backup"]}, "range: unknown range ['backup'], must be one of: "),
        ({"host": ""}, "host: must be 1 to 255 bytes of UTF-8 "),
        ({"host": None}, "host: must be 1 to 255 bytes of UTF-8 "),
        ({"host": ["a"]}, "host: must be 1 to 255 bytes of UTF-8 "),
        ({"port": "10809"}, "port: must be an integer from 10809 to 10872, got '10809'"),
        ({"port": 10809.0}, "port: must be an integer from 10809 to 10872, got 10809.0"),
        ({"port": True}, "port: must be an integer from 10809 to 10872, got True"),
        ({"range": None}, "port: must be given when range is None"),
        ({"range": None, "count": 2}, "port: must be given when range is None"),
        ({"range": None, "port": 0}, "port: must be an integer from 1 to 65535, got 0"),
        ({"range": None, "port": -2}, "port: must be an integer from 1 to 65535, got -2"),
        ({"range": None, "port": 65536}, "port: must be an integer from 1 to 65535, got 65536"),
        ({"range": None, "port": True}, "port: must be an integer from 1 to 65535, got True"),
        ({"range": None, "port": 8080, "count": 2}, "count: must be 1 when a port is asked for by number, got 2"),
        ({"port": 10809, "count": 2}, "count: must be 1 when a port is asked for by number, got 2"),
        ({"count": 0}, "count: must be an integer of at least 1, got 0"),
        ({"count": -1}, "count: must be an integer of at least 1, got -1"),
        ({"count": True}, "count: must be an integer of at least 1, got True"),
        ({"count": 1.0}, "count: must be an integer of at least 1, got 1.0"),
        ({"count": "2"}, "count: must be an integer of at least 1, got '2'"),
        ({"contiguous": 1}, "contiguous: must be True or False, got 1"),
        ({"contiguous": 0}, "contiguous: must be True or False, got 0"),
        ({"contiguous": None}, "contiguous: must be True or False, got None"),
        ({"align": 0}, "align: must be an integer of at least 1, got 0"),
        ({"align": -2}, "align: must be an integer of at least 1, got -2"),
        ({"align": True}, "align: must be an integer of at least 1, got True"),
        ({"align": 2.0}, "align: must be an integer of at least 1, got 2.0"),
        ({"align": None}, "align: must be an integer of at least 1, got None"),
        ({"align": 2, "count": 2}, "align: must be 1 when several ports need not be contiguous, got 2"),
        ({"align": 2, "port": 10809}, "align: must divide the port that is asked for (10809), got 2"),
        ({"range": None, "align": 2, "port": 8081}, "align: must divide the port that is asked for (8081), got 2"),
        ({"protocol": "sctp"}, "protocol: must be one of tcp, udp, both, got 'sctp'"),
        ({"protocol": None}, "protocol: must be one of tcp, udp, both, got None"),
        ({"protocol": ["tcp"]}, "protocol: must be one of tcp, udp, both, got ['tcp']"),
        ({"owner": None}, "owner: must be text of at most 10240 bytes in UTF-8, got None"),
        ({"owner": 5}, "owner: must be text of at most 10240 bytes in UTF-8, got 5"),
        ({"labels": {"a": 5}}, "label 'a': must be text of at most 10240 bytes in UTF-8, got 5"),
    ],
)
@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
def test_refused(arguments: dict[str, Any], message: str, first: bool) -> None:
    """A value of the wrong kind is refused with its key, the bound and the value, however often it comes."""
    ranges = Ranges(RANGES.by_name.values())
    if not first:
        plan(ranges=ranges)

    with pytest.raises(ConfigurationError) as caught:
        plan(**{"ranges": ranges, **arguments})

    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"port": 10808}, "port: 10808 is not in range 'backup' (10809-10872)"),
        ({"port": 10873}, "port: 10873 is not in range 'backup' (10809-10872)"),
        ({"port": 0}, "port: 0 is not in range 'backup' (10809-10872)"),
        ({"port": -2}, "port: -2 is not in range 'backup' (10809-10872)"),
        ({"range": "nomad", "port": 20005}, "port: 20005 is excluded from range 'nomad' (20000-32000)"),
        ({"range": "gateway", "port": 40050}, "port: 40050 is excluded from range 'gateway' (40000-40099)"),
        ({"count": 65}, "count: 65 ports are more than range 'backup' (10809-10872) has (64)"),
        (
            {"range": "nomad", "count": 3},
            "count: 3 ports are more than range 'nomad' (20000-32000) has (2); left out are 11999 excluded",
        ),
        (
            {"range": "across", "count": 5},
            (
                "count: 5 ports are more than range 'across' (39998-40101) has (4); "
                "left out are 100 of ranges with scope 'cluster'"
            ),
        ),
        (
            {"range": "across", "count": 3, "contiguous": True},
            (
                "count: range 'across' (39998-40101) has no 3 contiguous ports; "
                "left out are 100 of ranges with scope 'cluster'"
            ),
        ),
        (
            {"count": 64, "contiguous": True, "align": 2},
            "count: range 'backup' (10809-10872) has no 64 contiguous ports with a multiple of 2 as the first",
        ),
        ({"align": 4096}, "align: range 'backup' (10809-10872) has no multiple of 4096"),
        (
            {"range": "nomad", "align": 32000 + 1},
            "align: range 'nomad' (20000-32000) has no multiple of 32001; left out are 11999 excluded",
        ),
    ],
)
def test_impossible(arguments: dict[str, Any], message: str) -> None:
    """What can never succeed is told from what is full now, with the range and its bounds."""
    with pytest.raises(ImpossibleRequest) as caught:
        plan(**arguments)

    assert message == str(caught.value)


def test_just_possible() -> None:
    """One less than too many can be asked for: the count, the block, the aligned block."""
    assert 64 == plan(count=64).ask.count
    assert 64 == plan(count=64, contiguous=True).ask.count
    assert 62 == plan(count=62, contiguous=True, align=2).ask.count
    assert 2 == plan("across", count=2, contiguous=True).ask.count
    assert ((31999, 32000),) == plan("nomad", align=32000).ask.spans


# ------------------------------------------------------------------ what else the allocator asks


def test_extent() -> None:
    """The bounds of a range; without one, those of all ports."""
    assert [(10809, 10872), (1, 65535)] == [RANGES.extent("backup"), RANGES.extent("")]
    with pytest.raises(ConfigurationError, match=r"unknown range 'backups'.*did you mean 'backup'"):
        RANGES.extent("backups")


@pytest.mark.parametrize(
    ("range", "marks"),
    [("backup", 32), ("nomad", 1), ("across", 2), ("inside", 0), ("timed", 4), ("", 0), ("elsewhere", 0)],
)
def test_marks(range: str, marks: int) -> None:
    """At most half of what a range can give is marked as foreign: none of one, and none without a range."""
    assert marks == RANGES.marks(range)


# ------------------------------------------------------------------ all of it against sets


class Case(NamedTuple):
    """A request for ports of one range, and what sets of numbers say of it."""

    ranges: Ranges
    span: PortRange
    size: int
    align: int
    usable: set[int]
    skip: frozenset[int]
    offset: int

    @property
    def left(self) -> set[int]:
        return self.usable - self.skip

    @property
    def border(self) -> int:
        """The first number above the static band."""
        return self.span.first + self.span.static_band

    def blocks(self, among: set[int]) -> list[int]:
        return [n for n in among if n % self.align == 0 and {*range(n, n + self.size)} <= among]

    def ask(self, *, contiguous: bool) -> Ask:
        return self.ranges.plan(
            "r",
            host=HOST,
            count=self.size,
            contiguous=contiguous,
            align=self.align,
            skip=self.skip,
            random=lambda below: self.offset % below,
        ).ask


@st.composite
def cases(draw: st.DrawFn, *, block: bool) -> Case:
    first, size = draw(st.integers(1, 50)), draw(st.integers(2, 30))
    last = first + size - 1
    span = PortRange(
        "r",
        first,
        last,
        strategy=draw(st.sampled_from(["lowest", "random", "next"])),
        exclude=draw(st.sets(st.integers(first, last), max_size=min(8, size - 1))),
        static_band=draw(st.integers(0, size - 1)),
    )
    around = st.integers(max(1, first - 5), last + 5)
    others = [
        PortRange(f"c{at}", at, at + draw(st.integers(0, 6)), scope="cluster")
        for at in draw(st.lists(around, max_size=2, unique=True))
    ]
    return Case(
        Ranges([span, *others]),
        span,
        draw(st.integers(2 if block else 1, 6)),
        draw(st.integers(1, 5)) if block else 1,
        {*range(first, last + 1)}.difference(numbers(span.exclude), *(range(o.first, o.last + 1) for o in others)),
        draw(st.frozensets(around, max_size=6)),
        draw(st.integers(0, 29)),
    )


@given(cases(block=False))
def test_numbers(case: Case) -> None:
    """What can be had, and nothing else, is looked for once: above the band in the strategy's order, then in it."""
    if case.size > len(case.usable):
        with pytest.raises(ImpossibleRequest):
            case.ask(contiguous=False)
        return
    ask = case.ask(contiguous=False)
    main = sorted(number for number in case.left if number >= case.border)
    band = sorted(number for number in case.left if number < case.border)
    turn = case.offset % len(main) if main and case.span.strategy == "random" else 0

    assert [*main[turn:], *main[:turn], *band] == numbers(ask.spans)
    assert all(first <= last for first, last in ask.spans)
    circle = ask.spans[: ask.rotate]
    assert (main if case.span.strategy == "next" else []) == numbers(circle)
    assert all(before[1] + 1 < after[0] for before, after in pairwise(circle))


@given(cases(block=True))
def test_blocks(case: Case) -> None:
    """No block is missed: those above the band are found first, then those in it, then those across its border."""
    if not case.blocks(case.usable):
        with pytest.raises(ImpossibleRequest):
            case.ask(contiguous=True)
        return
    ask = case.ask(contiguous=True)
    circle = ask.spans[: ask.rotate]
    found: dict[str, list[int]] = {"above": [], "in": [], "across": []}
    for start in case.blocks(case.left):
        end = start + case.size - 1
        place = "above" if start >= case.border else "in" if end < case.border else "across"
        fits = [at for at, (first, last) in enumerate(ask.spans) if first <= start and end <= last]
        assert fits
        found[place].append(fits[0])

    assert case.left == {*numbers(ask.spans)}
    assert max(found["above"], default=-1) < min(found["in"] + found["across"], default=len(ask.spans))
    assert max(found["in"], default=-1) < min(found["across"], default=len(ask.spans))
    assert (sorted(n for n in case.left if n >= case.border) if case.span.strategy == "next" else []) == numbers(circle)
