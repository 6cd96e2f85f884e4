"""Ranges: what one is, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from clusterports.errors import ConfigurationError
from clusterports.ranges import LIBVIRT_RANGES, PortRange


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
        (("backup", 8081, 8080), "ranges.backup.first: must be at most last (8080), got 8081"),
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


@pytest.mark.parametrize("seconds", [-1, 3600.1, float("nan"), float("inf"), "15", None, True])
def test_bad_quarantine(seconds: Any) -> None:
    """A quarantine is a finite number of seconds, an hour at most."""
    with pytest.raises(ConfigurationError) as caught:
        PortRange("backup", 1, 2, quarantine=seconds)

    assert f"ranges.backup.quarantine: must be a number of seconds from 0 to 3600, got {seconds!r}" == str(caught.value)


def test_libvirts_ranges() -> None:
    """The defaults are those of libvirt's qemu.conf."""
    expected = {
        "backup": (10809, 10872),
        "display": (5900, 65535),
        "migration": (49152, 49215),
        "websocket": (5700, 65535),
    }

    assert expected == {one.name: (one.first, one.last) for one in LIBVIRT_RANGES}
