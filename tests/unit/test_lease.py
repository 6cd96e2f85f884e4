"""Our side of a lease, on a monotonic clock that stands still until it is moved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from clusterports import _lease
from clusterports._lease import HeldPort, HostLease, Process
from clusterports.abc import Holder, Port, Renewal, Request

if TYPE_CHECKING:
    from collections.abc import Callable

SENT: Final = 1000.0
TTL: Final = 10.0
HOLDER: Final = Holder("manager", 7, 8)
KNEW = HOLDER.incarnation


class Clock:
    def __init__(self) -> None:
        self.now = SENT


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_lease, "monotonic", lambda: clock.now)
    return clock


@pytest.fixture
def lease(clock: Clock) -> HostLease:
    return HostLease("host:a", "a", HOLDER, TTL, SENT)


def hold(lease: HostLease) -> HeldPort:
    return HeldPort(lease, Port(10809, "tcp", 99), "backup", "vm-1", {}, 0.0)


def test_deadline(lease: HostLease, clock: Clock) -> None:
    """A port may be relied upon until nine tenths of a TTL after the request was sent, and not a moment longer."""
    port = hold(lease)
    clock.now = SENT + 8.999
    assert port.valid
    assert pytest.approx(0.001) == port.expires_in
    clock.now = SENT + 9.0
    assert (False, 0.0) == (port.valid, port.expires_in)


def test_renewal_counts_from_before_it_was_sent(lease: HostLease, clock: Clock) -> None:
    """However long a renewal took, the new deadline is nine tenths of a TTL after it was sent."""
    clock.now = SENT + 5.0
    lease.renewed(lease.renewal(), SENT + 2.5)
    assert SENT + 11.5 == lease.until


def test_late_renewal_does_not_shorten(lease: HostLease) -> None:
    """A renewal that was sent earlier and answered later takes nothing back."""
    lease.renewed(lease.renewal(), SENT + 5.0)
    lease.renewed(lease.renewal(), SENT + 2.5)
    assert SENT + 14.0 == lease.until


def test_jeopardy_once(lease: HostLease) -> None:
    """The deadline is told of once."""
    assert [False, True, False] == [lease.overdue(SENT + at) for at in (8.9, 9.0, 9.1)]
    assert "jeopardy" == lease.state


def test_live_again(lease: HostLease, clock: Clock) -> None:
    """A renewal that succeeds after the deadline makes the lease reliable again, and its next deadline counts."""
    port = hold(lease)
    clock.now = SENT + 20.0
    lease.overdue(clock.now)
    assert not port.valid
    lease.renewed(lease.renewal(), SENT + 19.0)
    assert (True, "live") == (port.valid, lease.state)
    assert [False, True] == [lease.overdue(SENT + at) for at in (27.9, 28.0)]


def test_renewal_that_is_too_old(lease: HostLease, clock: Clock) -> None:
    """A renewal that was so long on its way that its own deadline is over rescues nothing, and is not told twice."""
    clock.now = SENT + 9.0
    assert lease.overdue(clock.now)
    clock.now = SENT + 15.0
    lease.renewed(lease.renewal(), SENT + 5.0)
    assert ("jeopardy", False) == (lease.state, lease.overdue(clock.now))
    lease.renewed(lease.renewal(), SENT + 14.0)
    assert ("live", SENT + 23.0) == (lease.state, lease.until)


def test_strict(lease: HostLease, clock: Clock) -> None:
    """Of a strict allocator the deadline ends the lease for good, whatever a late renewal says."""
    lease.strict = True
    port = hold(lease)
    assert lease.overdue(SENT + 9.0)
    lease.renewed(lease.renewal(), SENT + 8.9)
    clock.now = SENT + 9.1
    assert ("lost", "deadline", False) == (lease.state, lease.reason, port.valid)


def test_strict_is_not_revived(lease: HostLease, clock: Clock) -> None:
    """A renewal that wins the race with the watchdog does not undo a strict deadline that has passed."""
    lease.strict = True
    clock.now = SENT + 9.0
    lease.renewed(lease.renewal(), SENT + 8.9)
    assert lease.overdue(clock.now)


def test_lost_once(lease: HostLease, clock: Clock) -> None:
    """A lease is lost once, at any time, and then neither in jeopardy nor renewed."""
    port = hold(lease)
    assert [True, False] == [lease.lose(), lease.lose()]
    lease.renewed(lease.renewal(), SENT + 1.0)
    assert (False, False, SENT + 9.0) == (port.valid, lease.overdue(SENT + 9.0), lease.until)


def test_lost_after_jeopardy(lease: HostLease) -> None:
    """A lease in jeopardy can still be lost."""
    lease.overdue(SENT + 9.0)
    assert lease.lose()


def test_child_process(lease: HostLease, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the parent held is not valid in a forked child."""
    port = hold(lease)
    assert port.valid
    monkeypatch.setattr(Process, "forks", Process.forks + 1)
    assert not port.valid


# -------------------------------------------------------------------- requests


def test_numbers_and_floors(lease: HostLease) -> None:
    """Requests count from 1; the floor is the lowest whose outcome is awaited."""
    assert [Request(1, 1, KNEW), Request(2, 1, KNEW), Request(3, 1, KNEW)] == [lease.begin() for _ in range(3)]
    lease.settle(1)
    assert Request(4, 2, KNEW) == lease.begin()
    lease.settle(3)
    lease.settle(2)
    assert Request(5, 4, KNEW) == lease.begin()
    lease.settle(4)
    lease.settle(5)
    assert Request(6, 6, KNEW) == lease.begin()


def test_renewal_floor(lease: HostLease) -> None:
    """A heartbeat settles everything below what is awaited, and everything when nothing is."""
    assert Renewal("host:a", HOLDER, 1, ports=0, knew=KNEW) == lease.renewal()
    lease.begin()
    lease.begin()
    lease.settle(1)
    assert Renewal("host:a", HOLDER, 2, knew=KNEW) == lease.renewal()
    lease.settle(2)
    assert Renewal("host:a", HOLDER, 3, ports=0, knew=KNEW) == lease.renewal()


def test_abandoned_until_a_heartbeat_got_through(lease: HostLease) -> None:
    """An abandoned request is named by every heartbeat until one succeeded, and no floor passes it before."""
    for _ in range(3):
        lease.begin()
    lease.abandon(2)
    lease.settle(1)
    lease.settle(3)
    assert Request(4, 2, KNEW) == lease.begin()
    first, second = lease.renewal(), lease.renewal()
    assert [(2,), (2,)] == [first.abandoned, second.abandoned]
    lease.renewed(second, SENT + 1)
    assert () == lease.renewal().abandoned
    lease.settle(4)
    assert Request(5, 5, KNEW) == lease.begin()


def test_abandoned_while_a_heartbeat_travels(lease: HostLease) -> None:
    """What was abandoned after a heartbeat was sent waits for the next one."""
    for _ in range(2):
        lease.begin()
    lease.abandon(1)
    renewal = lease.renewal()
    lease.abandon(2)
    lease.renewed(renewal, SENT + 1)
    assert Renewal("host:a", HOLDER, 3, (2,), knew=KNEW) == lease.renewal()


def test_many_abandoned(lease: HostLease) -> None:
    """One heartbeat undoes a bounded number of requests, and settles nothing beyond them."""
    for _ in range(250):
        lease.abandon(lease.begin().number)
    seen: list[int] = []
    for floor in (101, 201, 251):
        renewal = lease.renewal()
        assert floor == renewal.floor
        seen += renewal.abandoned
        lease.renewed(renewal, SENT)
    assert list(range(1, 251)) == seen


def test_lost_lease_forgets_what_was_abandoned(lease: HostLease) -> None:
    """The answer to a heartbeat settles abandoned requests even if the lease was given up meanwhile."""
    lease.begin()
    lease.abandon(1)
    renewal = lease.renewal()
    lease.lose()
    lease.renewed(renewal, SENT + 1)
    assert () == lease.renewal().abandoned


@pytest.mark.parametrize("convert", [int, lambda port: range(20000)[port]], ids=["int", "index"])
def test_is_a_number(lease: HostLease, convert: Callable[[HeldPort], int]) -> None:
    """A held port can be used wherever its number can."""
    assert 10809 == convert(hold(lease))


def test_repr_tells_the_state(lease: HostLease, clock: Clock) -> None:
    """What is printed of a port names it for good and says whether it may be relied upon."""
    port = hold(lease)
    assert "<HeldPort 10809/tcp on 'a' range='backup' fence=99 valid>" == repr(port)
    clock.now = SENT + 9.0
    assert repr(port).endswith(" not valid>")


def test_opened_anew(lease: HostLease, clock: Clock) -> None:
    """A lease that the store had lost makes nothing valid before the claims are answered: others may have the ports."""
    port = hold(lease)
    clock.now = SENT + 9.5
    assert lease.overdue(clock.now)
    lease.moved(Holder("manager", 17, 17), "token", SENT + 9.4)
    assert (False, "jeopardy") == (port.valid, lease.state)
    lease.renewed(lease.renewal(), SENT + 9.5)
    assert (False, SENT + 9.0) == (port.valid, lease.until)
    lease.claimed(lease.doubts)
    assert (True, "live", SENT + 18.5) == (port.valid, lease.state, lease.until)


def test_renewed_in_doubt(lease: HostLease, clock: Clock) -> None:
    """A renewal that leaves a doubt prolongs nothing before the ports were compared, and after the last doubt."""
    port = hold(lease)
    clock.now = SENT + 9.5
    assert lease.overdue(clock.now)
    lease.suspect("doubt")
    lease.renewed(lease.renewal(), SENT + 9.4, doubt=True)
    lease.renewed(lease.renewal(), SENT + 9.5)
    assert (False, "doubt") == (port.valid, lease.amiss)
    doubts = lease.doubts
    lease.suspect("doubt")
    lease.claimed(doubts)
    assert (False, "doubt") == (port.valid, lease.amiss)
    lease.claimed(doubts + 1)
    assert (True, "", SENT + 18.5) == (port.valid, lease.amiss, lease.until)
