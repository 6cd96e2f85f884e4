"""What the errors say, to people and to programs."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

import clusterports
from clusterports import errors
from clusterports.abc import PortView
from clusterports.errors import BindError, ConfigurationError, PortBusy, PortInUse, PortsExhausted
from clusterports.probe import Verdict

BACKUP = ("backup", 10809, 10872)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Unable to find an unused port in range 'backup' (10809-10872)"),
        ({"count": 3}, "Unable to find 3 unused ports in range 'backup' (10809-10872)"),
        (
            {"count": 8, "contiguous": True},
            "Unable to find a block of 8 unused ports in range 'backup' (10809-10872)",
        ),
        ({"count": 1, "contiguous": True}, "Unable to find an unused port in range 'backup' (10809-10872)"),
        ({"waited": 5.0}, "Unable to find an unused port in range 'backup' (10809-10872) within 5 s"),
        ({"waited": 0.25}, "Unable to find an unused port in range 'backup' (10809-10872) within 0.25 s"),
        ({"host": "h"}, "Unable to find an unused port in range 'backup' (10809-10872) on host 'h'"),
        (
            {"why": "limit", "limit": 2, "owner": "vm-1"},
            "Unable to find an unused port in range 'backup' (10809-10872): owner 'vm-1' may hold at most 2 here",
        ),
        (
            {"why": "queue", "count": 2, "waited": 1.5},
            "Unable to find 2 unused ports in range 'backup' (10809-10872) within 1.5 s: others wait for them already",
        ),
    ],
)
def test_exhausted(arguments: dict[str, Any], message: str) -> None:
    """Range and bounds are named, then host and time if given, then the reason if it is not that all are taken."""
    error = PortsExhausted(*BACKUP, **arguments)
    assert message == str(error)
    expected = {"count": 1, "contiguous": False, "why": "taken", "limit": None, "owner": "", "waited": 0.0}
    expected |= {"host": None, **arguments}
    assert expected == {name: getattr(error, name) for name in expected}
    assert BACKUP == (error.range, error.first, error.last)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Unable to take port 8080"),
        ({"why": "queue", "host": "h"}, "Unable to take port 8080 on host 'h': others wait for it already"),
    ],
)
def test_exhausted_without_a_range(arguments: dict[str, Any], message: str) -> None:
    """Without a range there is one port to be named."""
    assert message == str(PortsExhausted("", 8080, 8080, **arguments))


def view(**fields: Any) -> PortView:
    return PortView(
        **{
            "number": 8080, "protocol": "tcp", "state": "held", "range": "backup", "owner": "", "labels": {},
            "instance": "one", "lease": 1, "fence": 2, "age": 3, "free_in": None, **fields,
        }
    )  # fmt: skip


HOLDERS = [
    (view(), "held by instance 'one' (range 'backup')"),
    (view(owner="vm-1", range=""), "held by instance 'one', owner 'vm-1'"),
    (
        view(state="cooling", free_in=12_300_000, owner="vm-1"),
        "cooling for another 12.3 s, last held by instance 'one', owner 'vm-1' (range 'backup')",
    ),
    (view(state="cooling", free_in=-5), "cooling for another 0.0 s, last held by instance 'one' (range 'backup')"),
    (
        view(state="foreign", free_in=12_300_000),
        "marked as foreign for another 12.3 s, seen by instance 'one' (range 'backup')",
    ),
    (view(state="foreign", instance=""), "in use by a process outside clusterports (range 'backup')"),
    (view(state="foreign", instance="", range=""), "in use by a process outside clusterports"),
]


@pytest.mark.parametrize(("holder", "words"), HOLDERS)
def test_in_use(holder: PortView, words: str) -> None:
    """Who has the port, and for how long if that is known; range and owner only where there is one."""
    error = PortInUse("kvm-07", holder)
    assert f"Port 8080/tcp on host 'kvm-07' is {words}" == str(error)
    assert ("kvm-07", holder) == (error.host, error.holder)


def test_texts_from_outside() -> None:
    """Whatever a name or an owner contains is told on one line of bounded length."""
    hostile = "a\x1b[31m\n\u202e"
    holder = view(instance=hostile, range=hostile, owner="x" * 10_240)
    messages = [
        str(PortInUse(hostile, holder)),
        str(PortsExhausted(hostile, 1, 2, why="limit", limit=1, owner=hostile)),
    ]
    for message in messages:
        assert message.isprintable()
        assert repr(hostile) in message
    assert 2_000 > len(messages[0])


@pytest.mark.parametrize(
    "error",
    [
        ConfigurationError("ttl: must be"),
        PortsExhausted(*BACKUP, 3, why="limit", limit=2, owner="vm-1"),
        PortInUse("h", view()),
        PortBusy(Verdict("busy", "8080/tcp on :: (Address already in use)")),
        errors.BackendUnavailable("away", unknown=True),
    ],
)
def test_errors_can_be_sent_to_another_process(error: errors.ClusterPortsError) -> None:
    """What a worker of a process pool raises arrives as it was."""
    arrived = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (type(error), str(error), vars(error)) == (type(arrived), str(arrived), vars(arrived))


def test_a_port_that_cannot_be_bound() -> None:
    """It says what the kernel said, and is caught with the other failures to get a port."""
    verdict = Verdict("busy", "8080/tcp on :: (Address already in use)")
    error = PortBusy(verdict)
    assert "Unable to bind port 8080/tcp on :: (Address already in use)" == str(error)
    assert verdict == error.verdict
    assert isinstance(error, BindError)
    assert isinstance(error, errors.AllocationError)


def test_every_error_is_public() -> None:
    """Each error can be caught by a name that `clusterports` exports, and stands in the tree of the docstring."""
    assert set(errors.__all__) <= set(clusterports.__all__)
    for name in errors.__all__:
        assert name in str(errors.__doc__)
