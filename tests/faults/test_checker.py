"""The judge is judged: histories that are made up, with one breach each, and their harmless neighbours."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from faults.checker import breaches, overtakings
from faults.history import Event, Recorder, read
from faults.uses import uses

if TYPE_CHECKING:
    from pathlib import Path

    from faults.uses import Breach

TTL = 2.0
QUARANTINE = 1.0


def event(client: str, what: Any, asked: float, answered: float | None = None, fence: int = 0, **more: Any) -> Event:
    """One that took a tenth of a second unless said otherwise, of port 5 on host h."""
    port: dict[str, Any] = {"host": "h", "number": 5} | more
    return Event(client, what, asked, asked + 0.1 if answered is None else answered, fence=fence, **port)


def judge(*events: Event) -> list[str]:
    """What each breach says."""
    return [breach.text for breach in breaches(events, ttl=TTL, quarantine=QUARANTINE, slack=0.0)]


def test_a_quiet_life() -> None:
    """One after the other, with growing fences, is as it should be."""
    assert [] == judge(
        event("a", "granted", 1.0, fence=1),
        event("a", "released", 2.0, fence=1),
        event("b", "granted", 2.0, fence=2),
        event("b", "released", 3.0, fence=2),
        event("a", "granted", 3.2, fence=3),
    )


def test_held_twice() -> None:
    """Two that rely on one port at one moment are a breach."""
    (breach,) = judge(
        event("a", "granted", 1.0, fence=1),
        event("b", "granted", 2.0, fence=2),
        event("a", "released", 2.2, fence=1),
    )
    assert breach.startswith("5/tcp on h was held twice: by a with fence 1 from 1.100 to 2.200 (released), and by b")


def test_held_twice_inside_a_longer_use() -> None:
    """A short use inside a long one is found, and so is one that follows the short one."""
    found = judge(
        event("a", "granted", 1.0, fence=1),
        event("b", "granted", 2.0, fence=2),
        event("b", "released", 3.0, fence=2),
        event("c", "granted", 4.0, fence=3),
    )
    assert 2 == len(found)


def test_held_twice_by_one_client() -> None:
    """Also when it is the same client."""
    (breach,) = judge(event("a", "granted", 1.0, fence=1), event("a", "granted", 2.0, fence=2))
    assert "held twice" in breach


@pytest.mark.parametrize(
    "second",
    [{"host": "other"}, {"number": 6}, {"protocol": "udp"}],
    ids=["another host", "another number", "another protocol"],
)
def test_not_the_same_port(second: dict[str, Any]) -> None:
    """Ports that differ in anything are two ports."""
    assert [] == judge(event("a", "granted", 1.0, fence=1), event("b", "granted", 2.0, fence=2, **second))


def test_ends_that_touch() -> None:
    """A grant that may have been made after the release is none, however long the two took."""
    assert [] == judge(
        event("a", "granted", 1.0, fence=1),
        event("a", "released", 2.0, 4.0, fence=1),
        event("b", "granted", 1.5, 2.5, fence=2),
    )


@pytest.mark.parametrize("what", ["jeopardy", "lost", "killed", "refused"])
def test_what_ends_a_use(what: str) -> None:
    """Who was warned, told of the loss, killed or refused relies on nothing any more."""
    assert [] == judge(
        event("a", "granted", 1.0, fence=1),
        event("a", what, 2.0, fence=1),
        event("b", "granted", 2.0, fence=2),
    )


def test_recovered() -> None:
    """After a recovery the port is in use again, so nobody else may have it."""
    warned = [event("a", "granted", 1.0, fence=1), event("a", "jeopardy", 2.0), event("a", "recovered", 3.0)]
    assert [(1.1, 2.0), (3.1, float("inf"))] == [(use.since, use.until) for use in uses(warned)]
    (breach,) = judge(*warned, event("b", "granted", 4.0, fence=2))
    assert "held twice" in breach
    between = (event("b", "granted", 2.5, fence=2), event("b", "released", 2.8, fence=2))
    assert [] == judge(*warned, *between)


def test_lost_never_recovers() -> None:
    """What was lost in jeopardy does not come back with another host's recovery, or its own."""
    assert [] == judge(
        event("a", "granted", 1.0, fence=1),
        event("a", "jeopardy", 2.0),
        event("a", "lost", 2.5),
        event("a", "recovered", 3.0),
        event("b", "granted", 4.0, fence=2),
    )


def test_deadline() -> None:
    """Who misses its heartbeats relies on nothing beyond its deadline, even if it was too fast asleep to say so."""
    sleeper = [
        event("a", "granted", 1.0, fence=1),
        event("a", "beat", 1.5),
        event("a", "beat", 2.0),
        event("a", "stopped", 2.2, 8.9, host=""),
        event("a", "refused", 9.0, fence=1),
    ]

    def twice(*events: Event) -> list[str]:
        return [text for text in judge(*events) if "held twice" in text]

    (breach,) = twice(*sleeper, event("b", "granted", 3.6, fence=2))
    assert "a with fence 1 from 1.100 to 3.800 (deadline), and by b" in breach
    assert [] == twice(*sleeper, event("b", "granted", 3.75, fence=2))
    (breach,) = twice(*sleeper, event("a", "beat", 6.0), event("b", "granted", 7.0, fence=2))
    assert "a with fence 1 from 6.100 to 7.800 (deadline), and by b" in breach


def test_other_hosts_go_on() -> None:
    """What befalls a client on one host does not end its uses elsewhere; without a host it is all of them."""
    grants = [event("a", "granted", 1.0, fence=1), event("a", "granted", 1.0, fence=2, host="other")]
    assert [2.0, float("inf")] == [use.until for use in uses([*grants, event("a", "lost", 2.0)])]
    assert [2.0, 2.0] == [use.until for use in uses([*grants, event("a", "killed", 2.0, host="")])]


def test_same_fence() -> None:
    """One fence for two grants is a breach, at whatever time."""
    found = judge(
        event("a", "granted", 1.0, fence=7),
        event("a", "released", 2.0, fence=7),
        event("b", "granted", 3.0, fence=7, number=6),
    )
    assert ["fence 7 on h was given to a and to b"] == found


def test_fence_went_back() -> None:
    """Who asked after another had its answer must have the higher fence."""
    (breach,) = judge(
        event("a", "granted", 1.0, fence=9),
        event("b", "granted", 1.2, fence=8, number=6),
    )
    assert "fences on h went back: b got 8 after 9 was given" == breach


def test_fences_of_what_overlapped() -> None:
    """Of two that were under way at once, either may have come first; and each host has its own."""
    assert [] == judge(
        event("a", "granted", 1.0, 2.0, fence=9),
        event("b", "granted", 1.5, fence=8, number=6),
        event("c", "granted", 3.0, fence=3, host="other"),
    )


def test_given_too_early() -> None:
    """The port of a killed holder stays closed until TTL and quarantine after its last heartbeat are over."""
    before = [
        event("a", "granted", 1.0, fence=1),
        event("a", "beat", 1.5),
        event("a", "beat", 2.0),
        event("a", "killed", 2.3, host=""),
    ]
    (breach,) = judge(*before, event("b", "granted", 4.7, fence=2))
    assert "5/tcp on h of a, which was killed, was given to b 0.200 s too early" == breach
    assert [] == judge(*before, event("b", "granted", 4.95, fence=2))
    assert [] == judge(*before, event("b", "granted", 4.7, fence=2, number=6))


def test_released_before_it_was_killed() -> None:
    """What was released has no quarantine, whatever happened to its holder later."""
    assert [] == judge(
        event("a", "granted", 1.0, fence=1),
        event("a", "beat", 2.0),
        event("a", "released", 2.1, fence=1),
        event("a", "killed", 2.3, host=""),
        event("b", "granted", 2.4, fence=2),
    )


def test_released_by_a_stranger() -> None:
    """Only the holder frees, and once."""
    grant, release = event("a", "granted", 1.0, fence=1), event("a", "released", 2.0, fence=1)
    assert ["b released 5/tcp on h that it did not hold"] == judge(grant, event("b", "released", 2.0, fence=1))
    assert ["a released 5/tcp on h that it did not hold"] == judge(grant, release, event("a", "released", 3.0, fence=1))


def killed(client: str, at: float) -> Event:
    return event(client, "killed", at, host="", number=0)


def world(what: Any, asked: float, answered: float | None = None) -> Event:
    """Something that was done to the store."""
    return event("", what, asked, answered, host="", number=0)


def beats(client: str, *asked: float) -> list[Event]:
    return [event(client, "beat", at, number=0) for at in asked]


GIVEN, BACK = event("a", "granted", 1.0, fence=1), event("a", "released", 3.0, fence=1)

CASES: dict[str, tuple[str, list[Event], list[Event], list[Event]]] = {
    # the guarantee; what is common; with which it is a breach; with which it is none
    "one port, two holders": (
        "S1",
        [GIVEN, event("b", "granted", 2.0, fence=2)],
        [BACK],
        [replace(BACK, asked=1.9, answered=2.05)],
    ),
    "both is tcp and udp": (
        "S1",
        [GIVEN, BACK],
        [event("b", "granted", 2.0, fence=2, protocol="both")],
        [event("b", "granted", 2.0, fence=2, protocol="udp")],
    ),
    "a lease ends before its time": (
        "S1",
        [GIVEN, *beats("a", 0.9, 1.5)],
        [event("a", "lost", 3.3, number=0)],
        [event("a", "lost", 3.4, number=0)],
    ),
    "a stranger's release": (
        "S2",
        [GIVEN, BACK],
        [event("b", "released", 2.0, fence=1)],
        [event("b", "refused", 2.0, fence=1)],
    ),
    "a late release": (
        "S2",
        [GIVEN, *beats("a", 0.9), event("a", "stopped", 1.2, 4.9, host=""), event("b", "granted", 4.0, fence=2)],
        [event("a", "released", 5.0, fence=1)],
        [event("a", "refused", 5.0, fence=1)],
    ),
    "a heartbeat of one that was succeeded": (
        "S2",
        [GIVEN, *beats("a", 0.9), event("a#2", "found", 2.0, fence=1), *beats("a#2", 1.95), killed("a#2", 3.0)],
        beats("a", 2.2),
        beats("a", 1.99),
    ),
    "a fence twice": (
        "S3",
        [GIVEN, BACK],
        [event("b", "granted", 4.0, fence=1, number=6)],
        [event("b", "granted", 4.0, fence=1, number=6, host="other")],
    ),
    "fences that go back": (
        "S3",
        [event("a", "granted", 1.0, fence=9), world("emptied", 2.0), event("a", "lost", 2.5)],
        [event("b", "granted", 4.2, fence=8, number=6)],
        [event("b", "granted", 4.2, fence=10, number=6)],
    ),
    "held for nobody": ("S4", [GIVEN, BACK], [world("left", 9.0)], []),
    "held again": (
        "S5",
        [GIVEN, BACK],
        [event("", "left", 9.0, fence=1)],
        [event("", "left", 9.0, fence=1), world("rolled back", 3.5), event("a", "killed", 9.5)],
    ),
    "found what was released": (
        "S5",
        [GIVEN, *beats("a", 0.9, 2.0), BACK, killed("a", 3.2), event("a#2", "returned", 3.3, 3.5)],
        [event("a#2", "found", 3.3, 3.4, fence=1)],
        [],
    ),
    "two holders after a loss, and nobody is told": (
        "S7",
        [GIVEN, *beats("a", 0.9, 2.2, 3.5, 4.8), world("emptied", 1.5), event("b", "granted", 4.0, fence=2)],
        [event("a", "jeopardy", 6.6, number=0)],
        [event("a", "lost", 5.9, fence=1)],
    ),
    "told too late": (
        "S7",
        [GIVEN, world("emptied", 1.5), event("b", "granted", 4.0, fence=2), *beats("b", 3.9, 5.0)],
        [event("b", "lost", 6.4, fence=2)],
        [event("b", "lost", 6.2, fence=2)],
    ),
    "not told because the store was away again": (
        "S7",
        [GIVEN, world("emptied", 1.5), event("b", "granted", 4.0, fence=2), event("a", "lost", 8.0, number=0)],
        [world("down", 4.5, 5.7)],
        [world("down", 4.5, 6.0)],
    ),
    "given afresh to one that knew": (
        "S7",
        [event("a", "beat", 0.9, number=0), world("emptied", 2.0)],
        [event("a", "granted", 2.5, 3.9, fence=2, number=6)],
        [event("a", "granted", 2.5, 4.0, fence=2, number=6)],
    ),
    "given afresh to one that did not know": (
        "S7",
        [event("a", "granted", 0.9, fence=1), event("a", "released", 1.5, fence=1), world("emptied", 2.0)],
        [event("a", "granted", 2.5, fence=2, number=6)],
        [event("b", "granted", 2.5, fence=2, number=6)],
    ),
    "a dead one's port too early": (
        "L1",
        [GIVEN, *beats("a", 0.9, 1.5), killed("a", 1.8)],
        [event("b", "granted", 4.2, fence=2)],
        [event("b", "granted", 4.4, fence=2)],
    ),
    "a silent one's port too early": (
        "L1",
        [GIVEN, *beats("a", 0.9, 1.5), event("a", "stopped", 1.8, 8.0, host=""), event("a", "refused", 8.1, fence=1)],
        [event("b", "granted", 4.2, fence=2)],
        [event("b", "granted", 4.4, fence=2)],
    ),
    "a dead one's port too late": (
        "L1",
        [GIVEN, *beats("a", 0.9, 1.5), killed("a", 1.6), *beats("b", 3.8)],
        [event("b", "denied", 6.2, fence=1)],
        [event("b", "denied", 6.0, fence=1)],
    ),
    "nobody visited": (
        "L1",
        [GIVEN, *beats("a", 0.9, 1.5), killed("a", 1.6)],
        [*beats("b", 6.0), event("b", "denied", 8.4, fence=1)],
        [event("b", "denied", 8.4, fence=1)],
    ),
    "its heartbeat came late": (
        "L1",
        [GIVEN, *beats("a", 0.9, 1.5), killed("a", 1.6), *beats("b", 3.8), event("b", "denied", 6.2, fence=1)],
        [],
        [world("stalled", 1.5, 3.0)],
    ),
    "left at the end": ("L1", [GIVEN, killed("a", 1.8)], [event("", "left", 20.0, fence=1)], []),
    "lost by an outage": (
        "L2",
        [GIVEN, *beats("a", 0.9, 1.5), world("down", 2.0, 8.0), event("a", "jeopardy", 3.3, number=0)],
        [event("a", "lost", 9.0, number=0)],
        [event("a", "lost", 10.0, number=0)],
    ),
    "lost by a short outage": (
        "L2",
        [GIVEN, *beats("a", 0.9, 1.5), event("a", "lost", 3.6, number=0), event("a", "jeopardy", 3.3, number=0)],
        [world("down", 2.0, 2.9)],
        [world("down", 2.0, 2.8)],
    ),
    "a call that takes long": (
        "L3",
        [],
        [event("a", "granted", 1.0, 6.5, fence=1)],
        [event("a", "granted", 1.0, 6.5, fence=1), world("down", 2.0, 5.0)],
    ),
    "lost by a clock": (
        "L4",
        [GIVEN, *beats("a", 0.9, 1.5), world("clock", 2.0), event("a", "jeopardy", 3.3, number=0)],
        [event("a", "lost", 3.35, 3.45, number=0)],
        [event("a", "lost", 3.4, 3.5, number=0)],
    ),
    "valid past the deadline": (
        "H1",
        [GIVEN, *beats("a", 0.9, 1.5), event("a", "jeopardy", 3.3, number=0)],
        [event("a", "relied", 3.4, fence=1)],
        [event("a", "relied", 3.2, 3.4, fence=1)],
    ),
    "not warned": (
        "H1",
        [GIVEN, *beats("a", 0.9, 1.5), event("a", "releasing", 5.0, fence=1)],
        [event("a", "jeopardy", 3.6, number=0)],
        [event("a", "jeopardy", 3.3, number=0)],
    ),
    "warned too early": (
        "H1",
        [GIVEN, *beats("a", 0.9), event("a", "jeopardy", 2.8, number=0), event("a", "releasing", 3.0, fence=1)],
        beats("a", 1.5),
        [event("a", "beat", 1.5, 2.7, number=0)],
    ),
    "not found again": (
        "H3",
        [GIVEN, *beats("a", 0.9, 1.5), killed("a", 1.8), event("a#2", "returned", 2.0, 3.0)],
        [],
        [event("a#2", "found", 2.1, 2.2, fence=1), *beats("a#2", 2.0), event("a#2", "detached", 3.1)],
    ),
}


def found(events: list[Event]) -> list[Breach]:
    return breaches(events, ttl=TTL, quarantine=QUARANTINE, patience=5.0, slack=0.2)


@pytest.mark.parametrize("name", CASES)
def test_one_breach(name: str) -> None:
    """It is the only one that is found, and the same history without it is clean."""
    rule, common, bad, good = CASES[name]
    assert [rule] == [breach.rule for breach in found([*common, *bad])]
    assert [] == found([*common, *good])


@pytest.mark.parametrize("name", CASES)
def test_shortest_story(name: str) -> None:
    """It shows the breach by itself; with any one of its events left out it does not."""
    _, common, bad, _ = CASES[name]
    crowd = [replace(one, client="c", host="other") for one in [GIVEN, BACK, *beats("c", 0.9, 1.9)]]
    (breach,) = found([*crowd, *common, *bad])
    assert set(breach.story) <= {*common, *bad}
    assert breach.key in [other.key for other in found(list(breach.story))]
    for left_out in breach.story:
        rest = [one for one in breach.story if one != left_out]
        assert breach.key not in [other.key for other in found(rest)], left_out


def test_story_in_words() -> None:
    """What was found, and below it the events that show it, in order of time."""
    _, common, bad, _ = CASES["a dead one's port too late"]
    (breach,) = found([*common, *bad])
    assert [
        "L1: 5/tcp on h of a, which was killed, was denied to b 0.099 s too late",
        "    1.000 to 1.100: a was given 5/tcp on h with fence 1",
        "    1.500 to 1.600: a had its lease renewed on h",
        "    1.600 to 1.700: a was killed",
        "    3.800 to 3.900: b had its lease renewed on h",
        "    6.200 to 6.300: b was denied 5/tcp on h with fence 1",
    ] == str(breach).splitlines()


def test_files(tmp_path: Path) -> None:
    """What was recorded is read again, without the line in which a process was killed; other damage is an error."""
    path = tmp_path / "a.jsonl"
    recorder = Recorder(path, "a")
    recorder.write("granted", 1.0, 2.0, "h", 5, "udp", 7)
    recorder.write("beat", 3.0, 4.0)
    recorder.close()
    expected = [Event("a", "granted", 1.0, 2.0, "h", 5, "udp", 7), Event("a", "beat", 3.0, 4.0)]
    assert expected == read([path])
    with path.open("a") as file:
        file.write('{"client": "a", "ev')
    assert expected == read([path])
    with path.open("a") as file:
        file.write("\n")
    with pytest.raises(ValueError, match="line 3: not an event"):
        read([path])


def test_overtaking() -> None:
    """Who is served before somebody whose place is still kept has jumped the queue."""
    first, second = event("a", "queued", 1.0, ticket=7), event("b", "queued", 2.0, ticket=8)
    assert ["ticket 8 of b was served before ticket 7"] == overtakings(
        [first, second, event("b", "granted", 3.0, fence=20, ticket=8), event("a", "granted", 3.5, fence=21, ticket=7)],
        3.0,
    )
    assert ["ticket 8 of b was served before ticket 7"] == overtakings(
        [first, second, event("b", "granted", 3.0, fence=20, ticket=8), event("a", "queued", 3.5, ticket=7)], 3.0
    )


def test_killed_when_served() -> None:
    """Of one of whom nothing more was heard nobody knows whether it was served before."""
    first, second = event("a", "queued", 1.0, ticket=7), event("b", "queued", 2.0, ticket=8)
    assert [] == overtakings([first, second, event("b", "granted", 3.0, fence=20, ticket=8)], 3.0)


def test_in_order() -> None:
    """In the order of tickets, whichever answer came first; and past a place that was no longer kept."""
    first, second = event("a", "queued", 1.0, ticket=7), event("b", "queued", 2.0, ticket=8)
    assert [] == overtakings(
        [first, second, event("b", "granted", 3.0, fence=21, ticket=8), event("a", "granted", 3.5, fence=20, ticket=7)],
        3.0,
    )
    late = [event("b", "granted", 4.1, fence=20, ticket=8), event("a", "granted", 5.0, fence=21, ticket=7)]
    assert [] == overtakings([first, second, *late], 3.0)
