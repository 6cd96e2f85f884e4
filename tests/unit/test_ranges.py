"""Ranges: what one is, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterports.errors import ConfigurationError
from clusterports.ranges import LIBVIRT_RANGES, PortRange, PortRequest, Span, merged, without


def test_both_bounds_belong_to_it() -> None:
    """A range has its first and its last port, and none outside."""
    backup = PortRange("backup", 10809, 10810)

    assert [10809, 10810] == [number for number in range(10800, 10820) if number in backup]
    assert 2 == backup.size
    assert 15.0 == backup.quarantine


def test_one_port() -> None:
    """A range of one port is legal, at either end of all ports."""
    assert [1, 1] == [PortRange("low", 1, 1).size, PortRange("high", 65535, 65535).size]


@pytest.mark.parametrize("stranger", ["10809", 10809.0, True, None])
def test_only_integers_are_in_it(stranger: object) -> None:
    """What is not an integer is in no range."""
    assert stranger not in PortRange("all", 1, 65535)


def test_frozen() -> None:
    """A range never changes, so it can be a key."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        PortRange("a", 1, 2).first = 3  # type: ignore[misc]

    assert 1 == len({PortRange("a", 1, 2), PortRange("a", 1, 2, quarantine=15)})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("backup", 0, 5), "ranges.backup.first: must be an integer from 1 to 65535, got 0"),
        (("backup", -2, 5), "ranges.backup.first: must be an integer from 1 to 65535, got -2"),
        (("backup", 5, 65536), "ranges.backup.last: must be an integer from 1 to 65535, got 65536"),
        (("backup", "5", 6), "ranges.backup.first: must be an integer from 1 to 65535, got '5'"),
        (("backup", 5, 6.0), "ranges.backup.last: must be an integer from 1 to 65535, got 6.0"),
        (("backup", True, 6), "ranges.backup.first: must be an integer from 1 to 65535, got True"),
        (("moby", 0, 8082), "ranges.moby.first: must be an integer from 1 to 65535, got 0"),
        (("moby", 8081, 0), "ranges.moby.last: must be an integer from 1 to 65535, got 0"),
        (("moby", 8081, 8080), "ranges.moby.first: must be at most last (8080), got 8081"),
        (("nova", 40000, 30000), "ranges.nova.first: must be at most last (30000), got 40000"),
        (("", 1, 2), "range name: must be 1 to 64 characters of [A-Za-z0-9._-], got ''"),
        (("a b", 1, 2), "range name: must be 1 to 64 characters of [A-Za-z0-9._-], got 'a b'"),
        (("a\n", 1, 2), "range name: must be 1 to 64 characters of [A-Za-z0-9._-], got 'a\\n'"),
        ((None, 1, 2), "range name: must be 1 to 64 characters of [A-Za-z0-9._-], got None"),
    ],
)
def test_bad_bounds(arguments: tuple[Any, Any, Any], message: str) -> None:
    """The message has key, bound and value."""
    with pytest.raises(ConfigurationError) as caught:
        PortRange(*arguments)

    assert message == str(caught.value)


@pytest.mark.parametrize("name", ["x" * 65, "é", "a/b", "a:b", "[red]"])
def test_bad_names(name: str) -> None:
    """A range's name is plain enough for any place it is shown in."""
    with pytest.raises(ConfigurationError, match="range name: must be"):
        PortRange(name, 1, 2)


@pytest.mark.parametrize("key", ["quarantine", "cooldown"])
@pytest.mark.parametrize("seconds", [-1, 3600.1, float("nan"), float("inf"), "15", None, True])
def test_bad_cooling(key: str, seconds: Any) -> None:
    """A quarantine and a cooldown are finite numbers of seconds, an hour at most."""
    with pytest.raises(ConfigurationError) as caught:
        PortRange("backup", 1, 2, **{key: seconds})

    assert f"ranges.backup.{key}: must be a number of seconds from 0 to 3600, got {seconds!r}" == str(caught.value)


@pytest.mark.parametrize(
    ("exclude", "spans"),
    [
        ((), ()),
        ([20005], ((20005, 20005),)),
        (["20005"], ((20005, 20005),)),
        (["20000-31998"], ((20000, 31998),)),
        ([" 20000 - 31998 "], ((20000, 31998),)),
        ([(20000, 31998)], ((20000, 31998),)),
        ([[20000, 31998]], ((20000, 31998),)),
        ([31000, "20000-20010", (20005, 20020), 20021, 20023], ((20000, 20021), (20023, 20023), (31000, 31000))),
        ({20003, 20001}, ((20001, 20001), (20003, 20003))),
        (range(20000, 20004), ((20000, 20003),)),
        (((n, n) for n in (20001, 20000)), ((20000, 20001),)),
    ],
)
def test_exclude(exclude: Any, spans: tuple[Span, ...]) -> None:
    """Excluded numbers may be said in any way and order; kept are spans that ascend and lie apart."""
    nomad = PortRange("nomad", 20000, 32000, exclude=exclude)

    assert spans == nomad.exclude
    assert nomad == dataclasses.replace(nomad)


@pytest.mark.parametrize(
    ("exclude", "message"),
    [
        ([20005, 2001], "must be numbers of the range (20000-20010), got 2001"),
        ([(20009, 20011)], "must be numbers of the range (20000-20010), got 20009-20011"),
        (["19999-20001"], "must be numbers of the range (20000-20010), got 19999-20001"),
        ([0], "must be numbers of the range (20000-20010), got 0"),
        (["20003-20001"], "must be spans whose first number is at most the last, got '20003-20001'"),
        (["20000-20005", (20006, 20010)], "must leave a port of the range (20000-20010), got 20000-20010"),
        *(
            (value, f'must be a list of port numbers and spans, such as [20005, "20000-20003"], got {got}')
            for value, got in [
                ("20005", "'20005'"),
                (b"ab", "b'ab'"),
                (20005, "20005"),
                (None, "None"),
                ([True], "True"),
                ([20005.0], "20005.0"),
                (["x"], "'x'"),
                (["1-2-3"], "'1-2-3'"),
                (["-5"], "'-5'"),
                (["20\u0660\u0660\u0660"], "'20\u0660\u0660\u0660'"),
                ([b"ab"], "b'ab'"),
                ([(20001, 20002, 20003)], "(20001, 20002, 20003)"),
                ([("20001", "20002")], "('20001', '20002')"),
            ]
        ),
    ],
)
def test_bad_exclude(exclude: Any, message: str) -> None:
    """What is no number of the range is named: a typo does not pass in silence."""
    with pytest.raises(ConfigurationError) as caught:
        PortRange("nomad", 20000, 20010, exclude=exclude)

    assert f"ranges.nomad.exclude: {message}" == str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scope": "site"}, "scope: must be one of host, cluster, got 'site'"),
        ({"scope": None}, "scope: must be one of host, cluster, got None"),
        ({"strategy": "best"}, "strategy: must be one of lowest, random, next, got 'best'"),
        ({"strategy": ["next"]}, "strategy: must be one of lowest, random, next, got ['next']"),
        ({"static_band": -1}, "static_band: must be an integer from 0, less than the size of the range, got -1"),
        ({"static_band": 1.0}, "static_band: must be an integer from 0, less than the size of the range, got 1.0"),
        ({"static_band": True}, "static_band: must be an integer from 0, less than the size of the range, got True"),
        ({"static_band": 4}, "static_band: must be an integer from 0, less than the size of the range (4), got 4"),
        ({"limit": 0}, "limit: must be an integer of at least 1, got 0"),
        ({"limit": 1.5}, "limit: must be an integer of at least 1, got 1.5"),
        ({"limit": True}, "limit: must be an integer of at least 1, got True"),
        ({"limit": "1"}, "limit: must be an integer of at least 1, got '1'"),
    ],
)
def test_bad_options(arguments: dict[str, Any], message: str) -> None:
    """Of the other values, too, the message has key, bound and value."""
    with pytest.raises(ConfigurationError) as caught:
        PortRange("r", 10, 13, **arguments)

    assert f"ranges.r.{message}" == str(caught.value)


def test_band_below_the_size() -> None:
    """All ports but one may be kept for those who ask by number."""
    assert 3 == PortRange("r", 10, 13, static_band=3).static_band


def test_exclusion_leaves_the_bounds() -> None:
    """An excluded number still lies between the bounds: it may be held since before it was excluded."""
    nomad = PortRange("nomad", 20000, 20010, exclude=[20005])

    assert 20005 in nomad
    assert 11 == nomad.size


SPANS = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 5)).map(lambda pair: (pair[0], sum(pair))), max_size=8)


def numbers(spans: tuple[Span, ...]) -> list[int]:
    return [number for first, last in spans for number in range(first, last + 1)]


@given(SPANS, SPANS)
def test_spans_as_sets(spans: list[Span], holes: list[Span]) -> None:
    """Spans are sets of numbers in their shortest form: ascending, with a gap between any two."""
    union = merged(spans)
    left = without(union, merged(holes))

    assert sorted({*numbers(tuple(spans))}) == numbers(union)
    assert sorted({*numbers(tuple(spans))} - {*numbers(tuple(holes))}) == numbers(left)
    for result in (union, left):
        assert merged(result) == result


def test_request() -> None:
    """A request says what an acquire of a single port would have as defaults, and never changes."""
    request = PortRequest("backup", owner="vm-42")

    assert ("backup", None, None, 1, False, 1, "tcp", "vm-42", None) == tuple(
        getattr(request, field.name) for field in dataclasses.fields(request)
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.count = 2  # type: ignore[misc]


def test_libvirts_ranges() -> None:
    """The defaults are those of libvirt's qemu.conf."""
    expected = {
        "backup": (10809, 10872),
        "display": (5900, 65535),
        "migration": (49152, 49215),
        "websocket": (5700, 65535),
    }

    assert expected == {one.name: (one.first, one.last) for one in LIBVIRT_RANGES}
